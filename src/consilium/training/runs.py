"""Run folders: ``{root}/{name}/{variation}-{time}``, never mixed."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

from consilium.core.config import Config, parse_yaml, to_yaml
from consilium.core.errors import RunFolderError
from consilium.core.files import write_json, write_text
from consilium.training.config import OutputConfig

STATE, CONFIG = "run.json", "config.yaml"


class RunState(Config):
    """``run.json``: what a restart must find unchanged, and how the run stands."""

    status: str  # running, interrupted, failed, finished
    started: str
    precision: str | None = None  # decided by the first start, so that a restart computes the same
    data_fingerprint: str | None = None
    limit: int | None = None


def open_run(output: OutputConfig, *, name: str, config: Config, limit: int | None, resume: bool) -> Path:
    """The folder for this run, made or found as ``output.if_exists`` (or ``resume``) says."""
    parent = Path(output.root) / name
    existing = sorted(path for path in parent.glob(f"{output.variation}-*") if (path / STATE).is_file())
    if resume or output.if_exists == "resume":
        unfinished = [path for path in existing if read_state(path).status != "finished"]
        if unfinished:
            _check_same(unfinished[-1], config, limit=limit)
            return unfinished[-1]
        if resume:
            raise RunFolderError(
                f"there is no unfinished run of '{output.variation}' under {parent} to resume; start one without "
                "--resume."
            )
    if existing and output.if_exists == "refuse":
        raise RunFolderError(
            f"{existing[-1]} exists and output.if_exists is refuse. Choose another output.variation, or if_exists: new."
        )
    if existing and output.if_exists == "replace":
        for path in existing:
            shutil.rmtree(path)
    return _new_folder(parent, output.variation, config, limit=limit)


def _new_folder(parent: Path, variation: str, config: Config, *, limit: int | None) -> Path:
    moment = datetime.datetime.now()
    while True:
        folder = parent / f"{variation}-{moment:%Y%m%d-%H%M%S}"
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            moment += datetime.timedelta(seconds=1)
    write_text(folder / CONFIG, to_yaml(config))
    write_state(folder, RunState(status="running", started=f"{moment:%Y-%m-%d %H:%M:%S}", limit=limit))
    return folder


def _check_same(folder: Path, config: Config, *, limit: int | None) -> None:
    old, new = (
        parse_yaml((folder / CONFIG).read_text(encoding="utf-8"), origin=str(folder / CONFIG)),
        config.model_dump(mode="json"),
    )
    changed = [key for key in _changed(old, new) if not key.startswith("output.")]
    if read_state(folder).limit != limit:
        changed.append("--limit")
    if changed:
        raise RunFolderError(
            f"{folder} was started with another config; different: {', '.join(changed[:8])}. Resume with the config "
            "it was "
            "started with, or start a new run."
        )


def _changed(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        return [found for key in keys for found in _changed(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    return [] if old == new else [path]


def read_state(folder: Path) -> RunState:
    """The state of a run folder."""
    try:
        tree: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return RunState.model_validate(tree)
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{folder / STATE} is damaged: {error}. Remove this folder, or start a new run."
        ) from error


def write_state(folder: Path, state: RunState) -> None:
    """Write ``run.json`` whole."""
    write_json(folder / STATE, state.model_dump(mode="json"))
