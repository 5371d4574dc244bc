"""``ensemble``: several trained bundles as one, which averages their probabilities and says how far they disagree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from consilium.bundle import bundle_config, copy_bundle, learned_apart, load_member
from consilium.console import reporting
from consilium.core.errors import BundleError, ConfigError, DataError
from consilium.core.files import atomic_folder, sha256_of, write_json, write_text
from consilium.core.reporter import Reporter, counted
from consilium.manifest import MANIFEST, Manifest, local_bundle, new_manifest, read_manifest
from consilium.tasks.family import Known, Member, family_of


def ensemble(
    runs: Sequence[str | Path],
    *,
    out: str | Path,
    name: str | None = None,
    quiet: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Write a bundle into the new folder ``out`` that answers by the mean of what the bundles ``runs`` answer.

    They are of one kind and answer with the same labels: seeds, folds, or other networks. All are copied into ``out``,
    which needs none of them. Each record has their ``disagreement``. Thresholds are the means of theirs, since an
    ensemble has no validation of its own: choose them with ``consilium calibrate``. ``name`` is that of the new bundle.
    What does not go together is a DataError, a bundle that cannot be used a BundleError.
    """
    target = Path(out).expanduser()
    if target.exists():
        raise ConfigError(f"--out is {target}, which exists already; name a new folder for the ensemble.")
    with reporting(reporter, quiet=quiet) as shown:
        folders = _folders(runs)
        manifests = {place: read_manifest(folder) for place, folder in folders.items()}
        _refuse_unfit(manifests)
        members = {place: load_member(folder, manifests[place]) for place, folder in folders.items()}
        known = _together(manifests, members)
        task = family_of(known.section).ensemble(known.section, known.knowledge, members=members)
        task.inherit(member.task for member in members.values())
        with atomic_folder(target) as work:
            inside = {f"members/{number}": folder for number, folder in enumerate(folders.values())}
            for place, folder in inside.items():
                copy_bundle(folder, work / place)
            first = next(iter(manifests.values()))
            manifest = new_manifest(
                first.task,
                known.knowledge,
                name=name or f"{first.name}-ensemble",
                image=known.image,
                looks=known.looks,
                seed=first.seed,
                data_fingerprint=_same([own.data_fingerprint for own in manifests.values()]),
                metrics={},
                licenses=task.licenses,
            )
            digests = {place: sha256_of(work / place / MANIFEST) for place in inside}
            gives = [*manifest.gives, "disagreement"]
            changed = {"ensemble": True, "members": digests, "gives": gives}
            config = {**bundle_config(next(iter(folders.values()))), "name": manifest.name}
            write_text(work / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
            write_json(work / MANIFEST, manifest.model_copy(update=changed).model_dump(mode="json"))
        for line in _lines(target, members, apart=learned_apart(target), known=known):
            shown.line(line)
    return target


def _folders(runs: Sequence[str | Path]) -> dict[str, Path]:
    """The folders of bundles by what they were given as."""
    if len(runs) < 2:
        raise ConfigError(f"an ensemble has two members or more, but {counted(len(runs), 'bundle')} came.")
    found: dict[str, Path] = {}
    for run in map(str, runs):
        if run in found:
            raise ConfigError(f"{run} is given twice; each member of an ensemble counts once.")
        found[run] = local_bundle(run)
    return found


def _refuse_unfit(manifests: dict[str, Manifest]) -> None:
    """Ensembles, bundles of different kinds and one bundle twice cannot be members."""
    contents: dict[str, str] = {}
    (first, one), *_ = manifests.items()
    for place, manifest in manifests.items():
        if manifest.ensemble:
            raise BundleError(
                f"{place} is an ensemble; give its {counted(len(manifest.members), 'member')} one by one."
            )
        if family_of(manifest.task) is not family_of(one.task):
            raise ConfigError(
                f"{first} and {place} are of different kinds: the one answers with {', '.join(one.gives)}, the other "
                f"with {', '.join(manifest.gives)}. An ensemble is made of bundles of one kind."
            )
        content = str(sorted({**manifest.files, **manifest.members}.items()))
        if content in contents:
            raise ConfigError(
                f"{contents[content]} and {place} are one bundle twice (their weights are the same); each member of an "
                "ensemble counts once."
            )
        contents[content] = place


def _together(manifests: dict[str, Manifest], members: dict[str, Member]) -> Known:
    try:
        found: Known = family_of(next(iter(manifests.values())).task).together(members)
    except DataError as error:
        raise DataError(f"these bundles make no ensemble: {error}") from error
    return found


def _same(values: Sequence[Any]) -> Any:
    return values[0] if len(set(values)) == 1 else ""


def _lines(target: Path, members: dict[str, Member], *, apart: bool, known: Known) -> list[str]:
    found = [f"ensemble of {counted(len(members), 'member')}: {next(iter(members.values())).task.about()}"]
    calibration = getattr(known.knowledge, "calibration", None)
    if calibration is not None and (calibration.thresholds or calibration.distances):
        found.append(
            "note: thresholds are the means of the members'; choose them for the ensemble on cases that none of the "
            "members has learned from: `consilium calibrate`."
        )
    if apart:
        found.append(
            "note: the members learned from different cases of the same data (folds), so that no case of these data is "
            "new to all of them; judge the ensemble on other data."
        )
    return [*found, f"bundle: {target}"]
