"""The folder of a bundle: its files, its manifest, and how it comes here from wherever it lies."""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from pydantic import Field, ValidationError

from consilium.core.answers import Calibration
from consilium.core.archives import is_archive, unpack_once
from consilium.core.config import Config
from consilium.core.errors import BundleError, DataError, WeightsError
from consilium.core.files import fingerprint
from consilium.core.labels import LabelTree
from consilium.core.places import exists, is_remote, local_path
from consilium.core.reporter import counted
from consilium.core.transfer import cache_folder, fetch
from consilium.data.config import ImageConfig
from consilium.evaluation.config import AveragingConfig
from consilium.tasks.config import TaskConfig

FORMAT_VERSION = 2
MANIFEST, WEIGHTS = "bundle.json", "model.safetensors"
NODES = "nodes"  # where a cascade has its networks
FILES = (MANIFEST, WEIGHTS, "config.yaml", "history.csv")  # that others read of a bundle


class Manifest(Config):
    """``bundle.json``: all that is needed to rebuild the task, and where it came from."""

    format_version: int = FORMAT_VERSION
    consilium_version: str
    created: str
    name: str
    task: TaskConfig
    image: ImageConfig
    labels: list[str]
    class_counts: list[int]
    training_cases: int
    threshold: float
    averaging: AveragingConfig = AveragingConfig()
    calibration: Calibration = Calibration()
    seed: int
    data_fingerprint: str
    metrics: dict[str, dict[str, float | None]]
    weights_sha256: str = ""
    nodes: dict[str, str] = Field(default={}, description="Of a cascade: SHA-256 of the manifest of each network.")

    def __repr__(self) -> str:
        return f"<Manifest of '{self.name}', {self.created}: {counted(len(self.labels), 'label')}>"

    __str__ = __repr__


def new_manifest(
    *,
    name: str,
    task: TaskConfig,
    image: ImageConfig,
    labels: LabelTree,
    class_counts: Sequence[int],
    training_cases: int,
    threshold: float,
    averaging: AveragingConfig,
    calibration: Calibration,
    seed: int,
    data_fingerprint: str,
    metrics: dict[str, dict[str, float | None]],
) -> Manifest:
    """A manifest of this version and moment."""
    return Manifest(
        consilium_version=version("consilium"),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        name=name,
        task=task,
        image=image,
        labels=list(labels.names),
        class_counts=list(class_counts),
        training_cases=training_cases,
        threshold=threshold,
        averaging=averaging,
        calibration=calibration,
        seed=seed,
        data_fingerprint=data_fingerprint,
        metrics=metrics,
    )


def node_folder(node: str) -> str:
    """Where in the folder of a cascade the bundle of a node's network is."""
    safe = re.sub(r"[^A-Za-z0-9_.-]|^\.", "_", node)
    return f"{NODES}/{safe}" if safe == node else f"{NODES}/{safe}-{fingerprint(node)}"


def local_bundle(bundle: str | Path) -> Path:
    """The folder of a bundle; one in a bucket is downloaded, one in an archive unpacked, once for each content."""
    if not isinstance(bundle, str | os.PathLike) or not os.fspath(bundle):
        raise BundleError(
            f"the bundle is {bundle!r}; expected the path of the folder of a finished run (of what a training "
            "returned: result.bundle)."
        )
    bundle = local_path(str(bundle))
    try:
        path = fetch(bundle, names=() if is_archive(bundle) else FILES)
        if is_remote(str(bundle)) and (path / MANIFEST).is_file() and (nodes := read_manifest(path).nodes):
            path = fetch(bundle, names=[*FILES, *(f"{node_folder(node)}/{name}" for node in nodes for name in FILES)])
        if not (is_archive(path) and path.is_file()):
            return path
        folder = unpack_once(path, cache_folder() / "bundles")
    except (OSError, DataError) as error:
        raise BundleError(f"bundle {bundle} cannot be read: {error}") from error
    inner = [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]
    found = [child for child in inner if (child / MANIFEST).is_file()]
    if not found:
        raise BundleError(f"{bundle} has no {MANIFEST}, so it is no bundle; pack the folder of a finished run.")
    return found[0]


def weights_file(origin: str) -> Path:
    """The weights of a bundle, or a weights file, wherever it lies."""
    if is_archive(origin) or (Path(origin).is_dir() if not is_remote(origin) else not exists(origin)):
        folder = local_bundle(origin)
        refuse_links(folder)
        if (folder / NODES).is_dir():
            raise BundleError(f"{origin} is a cascade; give one of its networks, a folder in {folder / NODES}.")
        return folder / WEIGHTS
    try:
        return fetch(origin)
    except OSError as error:
        raise WeightsError(f"weights file {error}.") from error


def refuse_links(folder: Path, names: Iterable[str] = FILES) -> None:
    """A file of a bundle that is a link out of its folder is a BundleError: what it leads to nobody has checked."""
    for name in names:
        target = os.path.realpath(folder / name)
        if not Path(target).is_relative_to(os.path.realpath(folder)):
            raise BundleError(
                f"{folder / name} is a link to {target}, outside of the bundle, and is not read. If you trust it, "
                f"copy the bundle with what its links stand for (cp -rL {folder} COPY) and give the copy."
            )


def _no_bundle(folder: Path) -> str:
    """What a place without a bundle is, and what to give in its stead."""
    if not folder.exists():
        return "does not exist; give the folder of a finished run (consilium train prints it)."
    if folder.is_file():
        return "is a file; give the folder of a finished run, in which it may lie."
    without = f"has no {MANIFEST}, so it is not a finished run; give the folder of"
    found = sorted((*folder.glob(f"*/{MANIFEST}"), *folder.glob(f"*/*/{MANIFEST}")), key=os.path.getmtime)
    if found:
        return f"{without} one of those in it, {found[-1].parent} for instance, the newest."
    return f"{without} a finished run (consilium train prints it)."


def read_manifest(folder: Path) -> Manifest:
    """The checked manifest of a bundle; anything wrong is a BundleError."""
    refuse_links(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder} {_no_bundle(folder)}")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}. Copy the bundle again.") from error
    found = tree.get("format_version") if isinstance(tree, dict) else None
    if isinstance(found, int) and found > FORMAT_VERSION:
        raise BundleError(
            f"{folder} was written by Consilium {tree.get('consilium_version')} in bundle format {found}; this version "
            f"({version('consilium')}) reads up to {FORMAT_VERSION}. Update Consilium."
        )
    try:
        return Manifest.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise BundleError(f"{path} is damaged: {where}: {first['msg']}. Copy the bundle again.") from error
