"""Trackers of other makers: TensorBoard and Weights & Biases."""

from __future__ import annotations

import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilium.core.contracts import Progress, StepLog
from consilium.core.errors import ConfigError, MissingExtraError
from consilium.training.config import TrainerConfig

SECONDS = 5.0  # in which the server of Weights & Biases must answer


class TensorBoardHook:
    """Scalars for TensorBoard, written every step."""

    def __init__(self, folder: Path, *, resume_step: int) -> None:
        # Not tensorboard's own writer: each of its scalars wakes a thread, which steps of a small head wait for.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        file = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        # Unbuffered, so that what an interrupted training wrote is on the disk.
        self._records = RecordWriter((folder / file).open("wb", buffering=0))
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._add(file_version="brain.Event:2")
        if resume_step:  # what a killed start wrote from here on does not count
            self._add(step=resume_step + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def on_step(self, progress: Progress, log: StepLog) -> None:
        """Loss, its parts, rates, gradient norm, seconds."""
        self._write(step_scalars(log), progress.step)

    def on_evaluation(self, progress: Progress, metrics: Mapping[str, float | None]) -> None:
        """The validation figures."""
        self._write({f"val/{name}": value for name, value in metrics.items() if value is not None}, progress.step)

    def on_end(self, progress: Progress) -> None:
        """Close the file."""
        self._records.close()

    def _write(self, scalars: Mapping[str, float], step: int) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._add(step=step, summary=self._summary(value=values))

    def _add(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())


@dataclass(frozen=True)
class WandbRun:
    """Where a run goes at Weights & Biases, and the config it shows; without an entity into the user's default one."""

    project: str
    entity: str | None
    config: dict[str, Any]


def wandb_run(trainer: TrainerConfig, *, name: str, config: dict[str, Any]) -> WandbRun | None:
    """The run to record; None where none is asked for. The project is called ``name`` unless it has a name."""
    where = trainer.tracked
    return None if where is None else WandbRun(project=where.project or name, entity=where.entity, config=config)


class WandbHook:
    """The same scalars for Weights & Biases; ``WANDB_MODE=offline`` keeps them on this machine."""

    def __init__(self, folder: Path, *, run: WandbRun, log: Callable[[str], None]) -> None:
        wandb = _wandb()
        # The mode again, because wandb reads the environment once in a Python process.
        quiet = wandb.Settings(silent=True, console="off", mode=os.environ["WANDB_MODE"])
        try:
            self._run = wandb.init(
                project=run.project,
                entity=run.entity,
                name=folder.name,
                dir=str(folder),
                config=run.config,
                resume="allow",
                id=folder.name,
                settings=quiet,
            )
        except wandb.Error as error:
            raise _refused(str(error)) from error
        where = self._run.url if _online() else f"kept in {folder / 'wandb'}; `wandb sync` sends it"
        log(f"Weights & Biases: {where}")

    def on_step(self, progress: Progress, log: StepLog) -> None:
        """Loss, its parts, rates, gradient norm, seconds."""
        self._run.log(step_scalars(log), step=progress.step)

    def on_evaluation(self, progress: Progress, metrics: Mapping[str, float | None]) -> None:
        """The validation figures."""
        self._run.log({f"val/{name}": value for name, value in metrics.items()}, step=progress.step)

    def on_end(self, progress: Progress) -> None:
        """End the run."""
        self._run.finish()


def step_scalars(log: StepLog) -> dict[str, float]:
    """The figures of a step by the name that trackers show."""
    scalars: Iterable[tuple[str, float | None]] = [
        ("train/loss", log.loss),
        ("train/gradient_norm", log.gradient_norm),
        ("time/data_seconds", log.data_seconds),
        ("time/step_seconds", log.step_seconds),
        *((f"train/{name}", value) for name, value in log.parts.items()),
        *((f"learning_rate/{name}", rate) for name, rate in log.learning_rates.items()),
    ]
    return {name: value for name, value in scalars if value is not None}


def check_wandb() -> None:
    """Whatever keeps Weights & Biases from taking a run is an error, before anything else takes time.

    Offline, which is the default, nothing is asked.
    """
    wandb = _wandb()
    if not _online():
        return
    server = os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url
    try:
        with urllib.request.urlopen(server, timeout=SECONDS):
            pass
    except urllib.error.HTTPError:
        pass  # an answer
    except OSError as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise _refused(f"{server} does not answer: {reason}") from error
    try:
        wandb.login()
    except wandb.Error as error:
        raise _refused(str(error)) from error


def _wandb() -> Any:
    try:
        import wandb
    except ImportError:
        raise MissingExtraError("trainer.wandb", "wandb") from None
    # Nothing leaves the machine unless the user asked for it by name.
    os.environ.setdefault("WANDB_MODE", "offline")
    return wandb


def _online() -> bool:
    return os.environ["WANDB_MODE"] not in ("offline", "dryrun", "disabled")


def _refused(reason: str) -> ConfigError:
    why = " ".join(reason.split()).rstrip(".")
    return ConfigError(
        f"Weights & Biases cannot take this run: {why}. Log in with `wandb login`, or set WANDB_MODE=offline, which "
        "keeps the run here for `wandb sync` to send later."
    )
