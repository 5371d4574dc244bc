"""What a training returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from consilium.core.reporter import counted, figures
from consilium.evaluation.report.page import main_split


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
