"""What is written down beside the loop: text log, csv, progress bar, and the trackers."""

from __future__ import annotations

import csv
import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from consilium.core.contracts import Hook, Progress, StepLog
from consilium.core.files import write_text
from consilium.core.reporter import Reporter, format_table
from consilium.training.monitor import Monitor
from consilium.training.tracking import TensorBoardHook, WandbHook, WandbRun

STEP_COLUMNS = ("step", "epoch", "cases", "train_loss", "gradient_norm", "data_seconds", "step_seconds")
WAIT_WARNING = 0.15  # share of a step spent waiting for data from which the log says what to change


class RunLog:
    """The plain text log of a run; every line also goes to ``echo``. Lines wait until there is a file."""

    def __init__(self, *, echo: Callable[[str], None]) -> None:
        self._path: Path | None = None
        self._waiting: list[str] = []
        self._echo = echo

    def open(self, path: Path) -> None:
        """Write to the end of ``path`` from now on, first what was logged before."""
        self._path = path
        self._write()

    def line(self, text: str) -> None:
        """Write one line with the time in front."""
        self._waiting.append(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}  {text}\n")
        self._write()
        self._echo(text)

    def _write(self) -> None:
        if self._path is not None:
            lines, self._waiting = self._waiting, []
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(lines)


class History:
    """``history.csv``: a row per logged step and per validation; on resume, later rows go."""

    def __init__(self, path: Path, *, metrics: Sequence[str], groups: Sequence[str], resume_step: int) -> None:
        self._path = path
        rates = [f"learning_rate_{name}" for name in groups]
        before = read_history(path)
        known = dict.fromkeys([*STEP_COLUMNS, *rates, *(f"val_{name}" for name in metrics)])
        self.columns = list(known | dict.fromkeys(before[0] if before else ()))
        self._rewrite([row for row in before if int(row["step"]) <= resume_step])

    def _rewrite(self, rows: Sequence[Mapping[str, str]]) -> None:
        lines = [",".join(self.columns), *(",".join(row.get(name, "") for name in self.columns) for row in rows)]
        write_text(self._path, "\n".join(lines) + "\n")

    def append(self, row: Mapping[str, object]) -> None:
        """Add one row; None becomes an empty cell. What no row had before is a new column."""
        if new := [name for name in row if name not in self.columns]:
            self.columns += new
            self._rewrite(read_history(self._path))
        with self._path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writerow({name: "" if row.get(name) is None else row[name] for name in self.columns})


def read_history(path: Path) -> list[dict[str, str]]:
    """The rows of a history.csv; none when it does not exist."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class LogHook:
    """Writes the text log and the csv every ``log_every`` steps, with the time a step waits for data.

    Where that is long it advises, once; ``cached`` features need no advice.
    """

    def __init__(
        self,
        log: RunLog,
        history: History,
        *,
        log_every: int,
        monitor: Monitor,
        shown: Sequence[str],
        cached: bool,
    ) -> None:
        """``shown`` metrics are in the text log; history.csv has all."""
        self._log, self._history, self._every, self._monitor = log, history, log_every, monitor
        self._shown = list(dict.fromkeys([monitor.name, *shown]))
        self._since: list[StepLog] = []
        self._advised = cached
        self._undefined_said = False

    def on_step(self, progress: Progress, log: StepLog) -> None:
        """Collect; write every ``log_every`` steps."""
        if progress.solution:
            self._log.line(format_table(progress.solution, title="solution"))
        self._since.append(log)
        if progress.step % self._every == 0 or progress.step == 1 or progress.step >= progress.total_steps:
            self._flush(progress)

    def on_evaluation(self, progress: Progress, metrics: Mapping[str, float | None]) -> None:
        """Write the validation figures."""
        shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in self._shown if metrics.get(name) is not None)
        mark = " (best so far)" if progress.best_step == progress.step else ""
        self._log.line(f"validation after step {progress.step}{mark}: {shown}")
        if metrics.get(self._monitor.name) is None and not self._undefined_said:
            self._undefined_said = True
            self._log.line(f"note: {self._monitor.undefined()}")
        row = {f"val_{name}": value for name, value in metrics.items()}
        self._history.append({"step": progress.step, "epoch": round(progress.epochs, 4), **row})

    def on_end(self, progress: Progress) -> None:
        """Write why the training ended."""
        reason = progress.stop_reason or "all steps done"
        ended = f"training ended after step {progress.step} of {progress.total_steps}: {reason}"
        self._log.line("; ".join(filter(None, [ended, self._monitor.best(progress)])))

    def _flush(self, progress: Progress) -> None:
        logs, self._since = self._since, []
        cases = sum(log.cases for log in logs)
        loss = progress.loss_sum / progress.loss_cases
        progress.loss_sum, progress.loss_cases = 0.0, 0
        wait, work = (sum(getattr(log, name) for log in logs) for name in ("data_seconds", "step_seconds"))
        rates = logs[-1].learning_rates
        shown_rates = ", ".join(f"{name} {rate:.2e}" for name, rate in rates.items()) or "none"
        self._log.line(
            f"step {progress.step}/{progress.total_steps}  epoch {progress.epochs:.2f}  loss {loss:.4f}  rate "
            f"{shown_rates}  "
            f"{cases / (wait + work):.1f} cases/s  waits for data {wait / (wait + work):.0%}"
        )
        if wait > WAIT_WARNING * (wait + work) and progress.step > 1 and not self._advised:
            self._advised = True
            self._log.line(
                f"a step waits {wait / (wait + work):.0%} of its time for data. Raise data.loader.workers (or give "
                "the run more cores), or let the store hold smaller images: data.store.images: embed with "
                "data.store.resize."
            )
        self._history.append(
            {
                "step": progress.step,
                "epoch": round(progress.epochs, 4),
                "cases": progress.samples,
                "train_loss": loss,
                **{f"train_{name}": _mean(logs, name) for name in logs[-1].parts},
                "gradient_norm": logs[-1].gradient_norm,
                "data_seconds": wait / len(logs),
                "step_seconds": work / len(logs),
                **{f"learning_rate_{name}": rate for name, rate in rates.items()},
            }
        )


class ProgressHook:
    """Feeds a progress bar: ``update(done, total, text)``."""

    def __init__(self, update: Callable[[int, int, str], None], *, monitor: str) -> None:
        self._update, self._monitor = update, monitor
        self._text = ""

    def on_step(self, progress: Progress, log: StepLog) -> None:
        """Move the bar."""
        self._update(progress.step, progress.total_steps, f"loss {log.loss:.3f} {self._text}")

    def on_evaluation(self, progress: Progress, metrics: Mapping[str, float | None]) -> None:
        """Show the best so far."""
        if progress.best_metric is not None:
            self._text = f"best {self._monitor} {progress.best_metric:.3f}"

    def on_end(self, progress: Progress) -> None:
        """Nothing to close."""


def build_hooks(
    folder: Path,
    *,
    log: RunLog,
    reporter: Reporter,
    metrics: Sequence[str],
    groups: Sequence[str],
    resume_step: int,
    log_every: int,
    monitor: Monitor,
    shown: Sequence[str],
    cached: bool,
    wandb: WandbRun | None,
) -> list[Hook]:
    """All hooks of a run; ``wandb`` is where they go at Weights & Biases, None for nowhere."""
    history = History(folder / "history.csv", metrics=metrics, groups=groups, resume_step=resume_step)
    hooks: list[Hook] = [
        LogHook(log, history, log_every=log_every, monitor=monitor, shown=shown, cached=cached),
        TensorBoardHook(folder / "tensorboard", resume_step=resume_step),
        ProgressHook(lambda done, total, text: reporter.progress("train", done, total, text), monitor=monitor.name),
    ]
    if wandb is not None:
        hooks.append(WandbHook(folder, run=wandb, log=log.line))
    return hooks


def _mean(logs: Sequence[StepLog], part: str) -> float:
    values = [log.parts[part] for log in logs if part in log.parts]
    return sum(values) / len(values)
