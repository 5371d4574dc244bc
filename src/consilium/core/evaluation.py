"""What judging passes around: evidence over a set of cases, and the figures that an evaluator makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from consilium.core.reporter import counted, figures


@dataclass(frozen=True)
class Outputs:
    """A task's evidence over a whole set, with what is needed to judge it.

    ``arrays`` hold [N, ...] float arrays, ``targets`` [N, ...] what the family's study made of the labels (None: there
    are none). ``groups`` names the
    bootstrap unit of each case (patient); ``columns`` maps a column name (``source``, and every
    metadata column) to N strings, '' where a case has none.
    """

    arrays: Mapping[str, np.ndarray]
    targets: np.ndarray | None
    ids: list[str]
    groups: list[str]
    columns: dict[str, list[str]]
    unread: dict[str, str] = field(default_factory=dict)  # ids left out, since an image cannot be read, and why
    labels: list[tuple[str, ...]] = field(default_factory=list)  # of each case, () where it has none; []: not known

    @property
    def known_targets(self) -> np.ndarray:
        """The targets of a task that has some."""
        if self.targets is None:
            raise ValueError("these cases have no targets")
        return self.targets

    def take(self, rows: np.ndarray) -> Outputs:
        """The same of some of the cases; ``unread`` stays."""
        chosen = rows.tolist()
        return replace(
            self,
            arrays={name: array[rows] for name, array in self.arrays.items()},
            targets=None if self.targets is None else self.targets[rows],
            ids=[self.ids[row] for row in chosen],
            groups=[self.groups[row] for row in chosen],
            columns={name: [values[row] for row in chosen] for name, values in self.columns.items()},
            labels=[self.labels[row] for row in chosen] if self.labels else [],
        )

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in self.arrays.items())
        return f"<Outputs of {counted(len(self.ids), 'case')}: {shapes}>"


@dataclass(frozen=True)
class Interval:
    """A figure with its bootstrap interval; low and high are None when it was not computed."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What an evaluator found.

    ``metrics`` are plain figures by name (``accuracy``, ``macro_f1`` ...), ``intervals`` the headline
    ones with bootstrap intervals, ``tables`` rows of dictionaries by name (``per_class``, ``per_source``,
    ``confusion`` ...), ready for JSON, CSV and the report. Undefined figures are None, never NaN. ``draws`` are the
    bootstrap draws of figures, [samples] each; those of two models for the same cases are of the same resamples.
    """

    split: str
    cases: int
    metrics: dict[str, float | None]
    intervals: dict[str, Interval] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    groups: int | None = None  # bootstrap units (patients) among the cases
    draws: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __repr__(self) -> str:
        return f"<Evaluation of {self.split}: {counted(self.cases, 'case')}, {figures(self.metrics)}>"

    @property
    def unread(self) -> int:
        """Cases of the split that are not judged, since an image of theirs cannot be read; the table names them."""
        return len(self.tables.get("unread", ()))


class Evaluator(Protocol):
    """Judges a task's outputs over a set."""

    @property
    def metric_names(self) -> Sequence[str]:
        """The names of the figures that ``quick`` gives."""
        ...

    def quick(self, outputs: Outputs) -> dict[str, float | None]:
        """The plain figures only: what validation in training needs."""
        ...

    def evaluate(self, outputs: Outputs, *, split: str) -> Evaluation:
        """Everything: figures, intervals, tables."""
        ...

    def check_monitor(self, metric: str) -> None:
        """Refuse a metric that cannot choose weights in a training, as a ConfigError."""
        ...

    def higher_is_better(self, metric: str) -> bool:
        """The direction of a metric; an unknown name is a ConfigError that lists the known ones."""
        ...
