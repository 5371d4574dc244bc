"""What a training returns, and the summary of several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilium.core.files import write_json
from consilium.core.reporter import Reporter, counted, figures, format_table
from consilium.evaluation.report.page import main_split
from consilium.evaluation.statistics import mean_and_deviation


@dataclass(frozen=True)
class RunResult:
    """One finished run: its bundle folder, the figures of every split, and how many cases could not be judged."""

    folder: Path
    metrics: dict[str, dict[str, float | None]]
    unread: int = 0

    def __repr__(self) -> str:
        return f"<RunResult {self.folder}: {self.headline()}>"

    def headline(self) -> str:
        """The first figures of the split that is told at length, and how many cases are missing in all."""
        split = main_split(self.metrics)
        missing = f", {counted(self.unread, 'case')} not judged" if self.unread else ""
        return f"{split} {figures(self.metrics[split])}{missing}"


@dataclass(frozen=True)
class TrainResult:
    """A finished training: ``folder`` is the bundle, or holds one bundle per seed when there are several runs."""

    folder: Path
    runs: list[RunResult]

    def __repr__(self) -> str:
        several = f"{len(self.runs)} runs, the first: " if len(self.runs) > 1 else ""
        return f"<TrainResult {self.folder}: {several}{self.runs[0].headline()}>"

    @property
    def unread(self) -> int:
        """Validation and test cases that were not judged, since an image of theirs could not be read."""
        return sum(run.unread for run in self.runs)

    @property
    def bundle(self) -> Path:
        """The (first) bundle."""
        return self.runs[0].folder


def write_summary(
    folder: Path, runs: Mapping[str, Mapping[str, Mapping[str, float | None]]], *, reporter: Reporter
) -> None:
    """Mean and deviation of every figure over several runs: printed, and in ``summary.json``."""
    first = next(iter(runs.values()))
    summary: dict[str, list[dict[str, Any]]] = {}
    for split, metrics in first.items():
        rows = []
        for name in metrics:
            values = [value for run in runs.values() if (value := run[split][name]) is not None]
            if len(values) == len(runs):
                found = mean_and_deviation(values)
                rows.append({"metric": name, "mean": found.mean, "deviation": found.deviation, "runs": len(values)})
        summary[split] = rows
        reporter.line(format_table(rows, title=f"{split}: mean and standard deviation over {len(runs)} runs"))
    write_json(folder / "summary.json", {"runs": list(runs), "splits": summary})
