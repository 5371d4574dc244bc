"""The folder of a bundle: its files, its manifest, and how it comes here from wherever it lies."""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from consilium.core.archives import is_archive, unpack_once
from consilium.core.config import Config
from consilium.core.errors import BundleError, DataError, WeightsError
from consilium.core.files import BUNDLE, folder_name
from consilium.core.licenses import License
from consilium.core.places import exists, is_remote, local_path
from consilium.core.reporter import counted
from consilium.core.section import Knowledge, TaskSection
from consilium.core.transfer import cache_folder, fetch
from consilium.data.config import ImageConfig
from consilium.evaluation.config import AveragingConfig
from consilium.tasks.config import OneTask, TaskConfig, kinds

FORMAT_VERSION = 3
MANIFEST, WEIGHTS = BUNDLE, "model.safetensors"
_PLACE = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")
OTHERS = ("config.yaml", "history.csv")  # that are read beside what the manifest names


class Header(Config):
    """``bundle.json``, as far as it is the same of every bundle, whatever answers.

    ``files`` and ``members`` are named by their place in the folder of the bundle.
    """

    format_version: int = FORMAT_VERSION
    consilium_version: str
    created: str
    name: str
    reads: list[str] = Field(description="Fields of a case: image, text, metadata.")
    gives: list[str] = Field(description="Keys of an answer.")
    licenses: list[License] | None = Field(default=None, description="Of the starting weights; null: not recorded.")
    files: dict[str, str] = Field(default={}, description="SHA-256 of weights, tokenizer and indexes.")
    members: dict[str, str] = Field(default={}, description="SHA-256 of the manifest of each bundle inside.")

    @field_validator("files", "members")
    @classmethod
    def _places_are_inside(cls, named: dict[str, str]) -> dict[str, str]:
        for place in named:
            if not _PLACE.fullmatch(place) or ".." in place.split("/"):
                raise ValueError(f"'{place}' is no place inside a bundle")
        return named


class Manifest(Header):
    """The manifest of a trained task. ``knowledge`` is what its family reads."""

    task: TaskConfig
    image: ImageConfig
    looks: AveragingConfig = AveragingConfig()
    knowledge: dict[str, Any]
    seed: int
    data_fingerprint: str
    metrics: dict[str, dict[str, float | None]]
    ensemble: bool = Field(default=False, description="The members answer together, by the mean of probabilities.")
    alpha: float | None = Field(default=None, description="trainer.wise_ft: share of what was learned in the weights.")

    def __repr__(self) -> str:
        return f"<Manifest of '{self.name}', {self.created}: {self.task.kind}>"

    __str__ = __repr__


class CouncilSection(Config):
    """The seats of a council; bundles and indexes are named by their folders inside it."""

    router: str
    experts: dict[str, str] = Field(description="The expert of each node of the router's tree that has one.")
    default: str | None = Field(default=None, description="The bundle for cases that no expert is asked about.")
    generalist: str | None = Field(default=None, description="The bundle that is always asked, too.")
    indexes: dict[str, str] = Field(default={}, description="The index of each expert that has one.")
    top_k: int = Field(default=1, ge=1, description="How many experts are asked about a case.")


class CouncilManifest(Header):
    """The manifest of a council."""

    council: CouncilSection

    @model_validator(mode="after")
    def _what_it_names_is_inside(self) -> CouncilManifest:
        seats = self.council
        for folder in (seats.router, *seats.experts.values(), seats.default, seats.generalist):
            if folder is not None and folder not in self.members:
                raise ValueError(f"'{folder}' is none of the members")
        for folder in seats.indexes.values():
            if not any(file.startswith(f"{folder}/") for file in self.files):
                raise ValueError(f"'{folder}' is none of the indexes")
        return self

    def __repr__(self) -> str:
        return f"<CouncilManifest of '{self.name}', {self.created}: {counted(len(self.council.experts), 'expert')}>"

    __str__ = __repr__


def new_manifest(
    task: TaskConfig,
    knowledge: Knowledge,
    *,
    name: str,
    image: ImageConfig,
    looks: AveragingConfig,
    seed: int,
    data_fingerprint: str,
    metrics: dict[str, dict[str, float | None]],
    alpha: float | None = None,
    licenses: Iterable[License],
) -> Manifest:
    """A manifest of this version and moment."""
    return Manifest(
        consilium_version=version("consilium"),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        name=name,
        task=task,
        image=image,
        looks=looks,
        knowledge=knowledge.model_dump(mode="json"),
        reads=list(task.reads),
        gives=list(task.gives),
        seed=seed,
        data_fingerprint=data_fingerprint,
        metrics=metrics,
        alpha=alpha,
        licenses=list(licenses),
    )


def _upgraded(tree: dict[str, Any]) -> dict[str, Any]:
    """The manifest of an earlier format as this one; formats 1 and 2 knew label tasks alone."""
    if tree.get("format_version", FORMAT_VERSION) >= 3:
        return tree
    same = ("consilium_version", "created", "name", "image", "seed", "data_fingerprint", "metrics")
    kept = {key: tree[key] for key in same}
    task = dict(tree["task"])
    knowledge: dict[str, Any] = {
        "labels": tree["labels"],
        "nested": task.get("tree", {}).get("head", "flat") != "flat",
        "class_counts": tree["class_counts"],
        "training_cases": tree["training_cases"],
        "calibration": tree.get("calibration", {}),
    }
    task["answers"] = {"threshold": tree["threshold"]}
    section: TaskSection = OneTask.model_validate({"task": task}).task
    weights = tree.get("weights_sha256")
    return {
        **kept,
        "format_version": FORMAT_VERSION,
        "task": task,
        "looks": tree.get("averaging", {}),
        "knowledge": knowledge,
        "reads": list(section.reads),
        "gives": list(section.gives),
        "files": {WEIGHTS: weights} if weights else {},
        "members": {f"nodes/{folder_name(node)}": digest for node, digest in tree.get("nodes", {}).items()},
    }


def local_bundle(bundle: str | Path) -> Path:
    """The folder of a bundle; one in a bucket is downloaded, one in an archive unpacked, once for each content."""
    if not isinstance(bundle, str | os.PathLike) or not os.fspath(bundle):
        raise BundleError(
            f"the bundle is {bundle!r}; expected the path of the folder of a finished run (of what a training "
            "returned: result.bundle)."
        )
    bundle = local_path(str(bundle))
    try:
        path = fetch(bundle, names=() if is_archive(bundle) else (MANIFEST, *OTHERS))
        if is_remote(str(bundle)) and (path / MANIFEST).is_file():
            path = _fetch_whole(bundle, path)
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


def _fetch_whole(bundle: str | Path, path: Path) -> Path:
    """Fetch all that the manifest of a bundle names, and the bundles inside it, level by level."""
    names, level = [MANIFEST, *OTHERS], [""]
    while level:
        inside = []
        for here in level:
            manifest = read_header(path / here)
            names += [f"{here}{name}" for name in manifest.files]
            inside += [f"{here}{member}/" for member in manifest.members]
        names += [f"{member}{name}" for member in inside for name in (MANIFEST, *OTHERS)]
        path = fetch(bundle, names=names)
        level = [member for member in inside if (path / member / MANIFEST).is_file()]  # loading says what is missing
    return path


def weights_file(origin: str) -> Path:
    """The weights of a bundle, or a weights file, wherever it lies."""
    if is_archive(origin) or (Path(origin).is_dir() if not is_remote(origin) else not exists(origin)):
        folder = local_bundle(origin)
        refuse_links(folder)
        if (folder / MANIFEST).is_file() and (members := read_header(folder).members):
            raise BundleError(
                f"{origin} holds {counted(len(members), 'bundle')} and no weights of its own; give one of them, "
                f"{folder / next(iter(members))} for instance."
            )
        return folder / WEIGHTS
    try:
        return fetch(origin)
    except OSError as error:
        raise WeightsError(f"weights file {error}.") from error


def refuse_links(folder: Path, names: Iterable[str] = (MANIFEST, WEIGHTS, *OTHERS)) -> None:
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
    """The checked manifest of a trained task; anything wrong, and a council, is a BundleError."""
    found = read_header(folder)
    if isinstance(found, CouncilManifest):
        raise BundleError(
            f"{folder} is a council of {counted(len(found.members), 'bundle')}, but one trained bundle is expected "
            f"here; give one of them, {folder / found.council.router} for instance."
        )
    return found


def read_header(folder: Path) -> Manifest | CouncilManifest:
    """The checked manifest of any bundle; anything wrong is a BundleError."""
    refuse_links(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder} {_no_bundle(folder)}")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}. Copy the bundle again.") from error
    if not isinstance(tree, dict):
        raise BundleError(f"{path} is damaged: the whole is no mapping of keys. Copy the bundle again.")
    found = tree.get("format_version")
    if isinstance(found, int) and found > FORMAT_VERSION:
        raise BundleError(
            f"{folder} was written by Consilium {tree.get('consilium_version')} in bundle format {found}; this version "
            f"({version('consilium')}) reads up to {FORMAT_VERSION}. Update Consilium."
        )
    kind = task.get("kind") if isinstance(task := tree.get("task"), dict) else None
    if isinstance(kind, str) and kind not in kinds():
        raise BundleError(
            f"{folder} answers with a task of kind '{kind}', which this version ({version('consilium')}) does not "
            f"know; it knows {', '.join(kinds())}. Update Consilium."
        )
    try:
        if "council" in tree:
            return CouncilManifest.model_validate(tree)
        return Manifest.model_validate(_upgraded(tree))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise BundleError(f"{path} is damaged: {where}: {first['msg']}. Copy the bundle again.") from error
    except KeyError as error:
        raise BundleError(f"{path} is damaged: {error.args[0]}: Field required. Copy the bundle again.") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise BundleError(f"{path} is damaged: {error}. Copy the bundle again.") from error
