"""Run folders: ``{root}/{name}/{variation}-{time}``, never mixed."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import re
import shutil
import socket
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from consilium.core.config import Config, build, parse_yaml, to_yaml
from consilium.core.errors import ConfigError, InterruptedRunError, RunFolderError, TrainingError
from consilium.core.files import BUNDLE, write_json, write_text
from consilium.core.moved import up_to_date
from consilium.core.reporter import Reporter
from consilium.core.transfer import send
from consilium.data.sources.config import ATTACHMENT_TOKENS, FORMER_ATTACHMENT_TOKEN
from consilium.training.config import OutputConfig
from consilium.training.state import MODEL, checkpoints

STATE, CONFIG, LOCK = "run.json", "config.yaml", ".lock"
OWN_VARIATION = "give the new run an `output.variation` of its own"
# What may differ in a restart: it changes neither what is learned nor what is validated.
FREE = (
    "output.", "report.", "task.model.license", "task.vision.license", "task.text.license",
    "data.loader.workers", "data.loader.prefetch_factor", "data.loader.eval_batch_size",
    "trainer.keep_last", "trainer.log_every", "trainer.threads", "trainer.wandb",
)  # fmt: skip
# Keys whose default became another one, both of them: what that changes in the data, their fingerprint says.
_NEW_DEFAULTS = {"attachment_token": (FORMER_ATTACHMENT_TOKEN, [*ATTACHMENT_TOKENS])}


class RunState(Config):
    """``run.json``: what a restart must find unchanged, and how the run stands."""

    status: str  # running, interrupted, failed, finished
    started: str
    precision: str | None = None  # decided by the first start, so that a restart computes the same
    data_fingerprint: str | None = None
    limit: int | None = None


def find_run(
    output: OutputConfig,
    *,
    name: str,
    config: Config,
    limit: int | None,
    data_fingerprints: Collection[str],
    resume: bool,
) -> Path | None:
    """The unfinished run to go on with, as ``resume`` or ``output.if_exists`` says; None: start a new one."""
    parent = Path(output.root) / name
    existing = _runs(parent, output.variation)
    if resume or output.if_exists == "resume":
        unfinished = _by_start([path for path in existing if read_state(path).status != "finished"])
        if unfinished:
            other = "start a new run, without --resume" if resume else OWN_VARIATION
            _check_same(unfinished[-1], config, limit=limit, data_fingerprints=data_fingerprints, other=other)
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
    return None


def finished_run(
    output: OutputConfig, *, name: str, config: Config, limit: int | None, data_fingerprints: Collection[str]
) -> Path | None:
    """The latest finished run of the variation; one of another config or of other data is a RunFolderError."""
    found = _runs(Path(output.root) / name, output.variation)
    finished = _by_start([path for path in found if read_state(path).status == "finished"])
    if not finished:
        return None
    _check_same(finished[-1], config, limit=limit, data_fingerprints=data_fingerprints, other=OWN_VARIATION)
    return finished[-1]


def new_run(
    output: OutputConfig, *, name: str, config: Config, limit: int | None, data_fingerprint: str, precision: str
) -> Path:
    """A new run folder."""
    moment = datetime.datetime.now().astimezone()
    try:
        while True:
            folder = Path(output.root) / name / f"{output.variation}-{moment:%Y%m%d-%H%M%S}"
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:
                moment += datetime.timedelta(seconds=1)
        state = RunState(
            status="running",
            started=f"{moment:%Y-%m-%d %H:%M:%S%z}",
            precision=precision,
            data_fingerprint=data_fingerprint,
            limit=limit,
        )
        write_text(folder / CONFIG, to_yaml(config))
        write_state(folder, state)
    except OSError as error:
        raise RunFolderError(
            f"the run folder {folder} could not be made: {error}. Correct output.root, its permissions, or free space."
        ) from error
    return folder


def remove_others(output: OutputConfig, *, name: str, keep: Path) -> None:
    """Remove the other runs of the variation, except those that a process is working in."""
    for folder in _runs(Path(output.root) / name, output.variation):
        if folder != keep:
            with contextlib.suppress(RunFolderError), hold(folder):
                shutil.rmtree(folder)


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run folder while this one works in it."""
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            # A record lock is this process's own: a loader's worker that outlives a kill does not hold it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise RunFolderError(
                    f"{folder} is in use by {file.read() or 'another process'}. Wait for it or stop it; or start "
                    "another run, without --resume."
                ) from None
            # else a file system that knows no locks
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """``hold`` the run folder and keep its state true; a failure to write becomes a TrainingError."""

    def note(status: str) -> None:
        write_state(folder, read_state(folder).model_copy(update={"status": status}))

    try:
        with hold(folder):
            try:
                note("running")
                yield
                note("finished")
            except BaseException as error:
                with contextlib.suppress(OSError):  # a full disk must not hide what happened
                    note("interrupted" if isinstance(error, InterruptedRunError | KeyboardInterrupt) else "failed")
                raise
    except OSError as error:
        raise TrainingError(
            f"{folder} could not be written: {error}. The checkpoints in it are whole; make room, or mend the disk, "
            "and give the same command with --resume."
        ) from error


def try_copy(folder: Path, output: OutputConfig, *, name: str) -> None:
    """Copy the config of a run that begins to ``output.copy_to``: that no access is left shows now, not at the end."""
    try:
        send(folder / CONFIG, f"{_copy_of(folder, output, name=name)}/{CONFIG}")
    except OSError as error:
        raise RunFolderError(f"output.copy_to cannot be used: {error}.") from error


def copy_run(folder: Path, output: OutputConfig, *, name: str, reporter: Reporter) -> None:
    """Copy a finished run to ``output.copy_to``, without its checkpoints; what makes it a bundle comes last."""
    target = _copy_of(folder, output, name=name)
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    files = [path for path in files if "checkpoints" not in path.parts and path.name != LOCK]
    files.sort(key=lambda path: (path.name == BUNDLE, -len(path.parts), path))  # a cascade holds other bundles
    try:
        for done, path in enumerate(files, start=1):
            send(folder / path, f"{target}/{path.as_posix()}")
            reporter.progress("copy", done, len(files))
    except OSError as error:
        raise TrainingError(
            f"the run is finished and whole in {folder}, but could not be copied to {target}: {error}. Copy the folder "
            "there by hand."
        ) from error
    reporter.line(f"copied to {target}")


def _copy_of(folder: Path, output: OutputConfig, *, name: str) -> str:
    return f"{str(output.copy_to).rstrip('/')}/{name}/{folder.name}"


def _runs(parent: Path, variation: str) -> list[Path]:
    """The runs of a variation, by name."""
    named = re.compile(re.escape(variation) + r"-\d{8}-\d{6}")
    found = parent.iterdir() if parent.is_dir() else ()
    return sorted(path for path in found if named.fullmatch(path.name) and (path / STATE).is_file())


def _by_start(runs: list[Path]) -> list[Path]:
    """The one that started last comes last, whatever it is named: a clock may be set back, a folder renamed."""

    def moment(run: Path) -> tuple[datetime.datetime, str]:
        try:
            started = datetime.datetime.fromisoformat(read_state(run).started)
        except ValueError as error:
            raise RunFolderError(
                f"{run / STATE} is damaged: {error}. Remove this folder, or mend `started`."
            ) from error
        return started.astimezone(), run.name  # an earlier version wrote local time without its zone

    return sorted(runs, key=moment)


def _check_same(
    folder: Path, config: Config, *, limit: int | None, data_fingerprints: Collection[str], other: str
) -> None:
    """A run that cannot be gone on with is a RunFolderError; ``other`` is what one may do instead."""
    state, path = read_state(folder), folder / CONFIG
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"), origin=str(path))
        # Built, so that a key that is new since then is its default, not missing.
        old = build(type(config), up_to_date(tree), origin=str(path))
    except (OSError, ValueError, ConfigError) as error:
        raise RunFolderError(f"{path} is damaged: {error}. Mend it, or {other}.") from error
    changed = [
        f"{key} was {_shown(before)} and is {_shown(now)}"
        for key, before, now in _changed(old.model_dump(mode="json"), config.model_dump(mode="json"))
        if not key.startswith(FREE)
    ]
    if state.limit != limit:
        changed.append(f"--limit was {_shown(state.limit)} and is {_shown(limit)}")
    if changed:
        more = f"; and {len(changed) - 8} more" if len(changed) > 8 else ""
        raise RunFolderError(
            f"{folder} was started with another config: {'; '.join(changed[:8])}{more}. Go on with the config it was "
            f"started with, {path}, or {other}."
        )
    if state.data_fingerprint is not None and state.data_fingerprint not in data_fingerprints:
        saved = checkpoints(folder / "checkpoints")
        begin = f" trainer.init_from: {saved[-1] / MODEL} begins it with what this one has learned." if saved else ""
        raise RunFolderError(
            f"the data changed since {folder} was started: rows, labels, splits or the bytes of images are not the "
            "same, and a run cannot go on with other data. Put the files back as they were (their dates do not "
            f"matter), or {other}.{begin}"
        )


def _changed(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Every key that differs, with both values."""
    if _are_sections(old) and _are_sections(new) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        return [found for key in keys for found in _changed(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    return [] if old == new or (old, new) == _NEW_DEFAULTS.get(path.rpartition(".")[2]) else [(path, old, new)]


def _are_sections(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else "something longer"


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
