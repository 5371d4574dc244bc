"""What a run leaves: how a bundle is written, and how its task is loaded again."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from consilium.core.config import read_tree
from consilium.core.errors import BundleError, ConfigError, DataError, WeightsError
from consilium.core.files import atomic_file, sha256_of, write_json
from consilium.core.licenses import recorded
from consilium.core.moved import up_to_date
from consilium.core.section import Knowledge
from consilium.core.task import Task
from consilium.manifest import MANIFEST, OTHERS, WEIGHTS, Header, Manifest, read_manifest, refuse_links
from consilium.models.weights import load_state, load_strict, save_state
from consilium.tasks.family import Known, Member, family_of


def save_bundle(folder: Path, *, manifest: Manifest, task: Task, members: Iterable[str] = ()) -> None:
    """Write weights, then the manifest that makes the folder a bundle.

    ``members`` are the folders of finished bundles inside that the task is made of; then it has no weights of its own.
    """
    inside = {name: sha256_of(folder / name / MANIFEST) for name in members}
    files = {}
    if not inside:
        with atomic_file(folder / WEIGHTS) as temporary:
            save_state(task.state_dict(), temporary)
        files = {WEIGHTS: sha256_of(folder / WEIGHTS)}
    written = manifest.model_copy(update={"files": files, "members": inside})
    write_json(folder / MANIFEST, written.model_dump(mode="json"))


def load_member(folder: Path, manifest: Manifest) -> Member:
    """The task of a bundle with its weights, and of those inside it; whatever is wrong is a BundleError."""
    if not manifest.members and WEIGHTS not in manifest.files:
        raise BundleError(f"{folder / MANIFEST} is damaged: it names no {WEIGHTS}. Copy the bundle again.")
    check_files(folder, {**manifest.files, **manifests(manifest)})
    members = {name: load_member(folder / name, read_manifest(folder / name)) for name in manifest.members}
    known = read_known(folder, manifest)
    try:
        family = family_of(known.section)
        if manifest.ensemble:
            task = family.ensemble(known.section, known.knowledge, members=members)
        else:
            task = family.build(known.section, known.knowledge, image=known.image, members=members, weights=False)
        if WEIGHTS in manifest.files:
            load_strict(task, load_state(folder / WEIGHTS), origin=str(folder))
    except (OSError, ConfigError, DataError, WeightsError) as error:
        raise BundleError(f"bundle {folder} cannot be loaded: {error}") from error
    task.licenses = tuple(recorded(manifest.licenses, source=manifest.name))
    return Member(known.section, known.knowledge, known.image, known.looks, task)


def manifests(manifest: Header) -> dict[str, str]:
    """The checksum of the manifest of each bundle inside, by its place."""
    return {f"{name}/{MANIFEST}": digest for name, digest in manifest.members.items()}


def check_files(folder: Path, digests: Mapping[str, str]) -> None:
    """A file of a bundle that is missing, a link out of it, or not the one with this SHA-256 is a BundleError."""
    refuse_links(folder, digests)
    for name, digest in digests.items():
        check_there(folder / name)
        if sha256_of(folder / name) != digest:
            raise BundleError(
                f"{folder / name} is not the file that {MANIFEST} names (its checksum differs). Copy the bundle again."
            )


def check_there(file: Path) -> None:
    """A file of a bundle that is missing is a BundleError."""
    if not file.is_file():
        raise BundleError(f"{file} is missing, without which the bundle is nothing. Copy it again.")


def copy_bundle(folder: Path, target: Path) -> None:
    """Copy what a bundle is made of, and the bundles inside, without reports and checkpoints; each file is checked."""
    manifest = read_manifest(folder)
    check_files(folder, {**manifest.files, **manifests(manifest)})
    target.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST, *OTHERS, *manifest.files):
        if (folder / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target / name)
    for member in manifest.members:
        copy_bundle(folder / member, target / member)


def read_known(folder: Path, manifest: Manifest) -> Known:
    """What a bundle says of itself; knowledge that its family cannot read is a BundleError."""
    try:
        knowledge: Knowledge = family_of(manifest.task).knowledge.model_validate(manifest.knowledge)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("knowledge", *first["loc"]))
        raise BundleError(f"{folder / MANIFEST} is damaged: {where}: {first['msg']}. Copy the bundle again.") from error
    return Known(manifest.task, knowledge, manifest.image, manifest.looks)


def bundle_config(folder: Path) -> dict[str, Any]:
    """The config that a bundle was trained with, by this version or an earlier one."""
    read_manifest(folder)  # which says what is wrong with a folder that is no bundle
    path = folder / "config.yaml"
    try:
        tree = up_to_date(read_tree(path))
    except ConfigError as error:
        raise BundleError(f"bundle {folder} cannot be judged: {error} Copy the bundle again.") from error
    for section in ("task", "data"):
        if not isinstance(tree.get(section), dict):
            raise BundleError(f"{path} is damaged: it has no `{section}` section. Copy the bundle again.")
    return tree


def learned_apart(folder: Path) -> bool:
    """Whether the members of an ensemble learned from different cases, so that none of their data is new to all."""
    manifest = read_manifest(folder)
    if not manifest.ensemble:
        return False
    data = [bundle_config(folder / member)["data"] for member in manifest.members]
    return any(own.get(name) != data[0].get(name) for own in data for name in ("sources", "split", "filters"))
