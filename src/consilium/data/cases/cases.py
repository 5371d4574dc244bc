"""The one filtered table that feeds weights, statistics, sampling and judging."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np

from consilium.data.cases.filters import Filtered
from consilium.data.store.store import CaseTable

SPLITS = ("train", "val", "test")

KnowledgeT = TypeVar("KnowledgeT")


@dataclass(frozen=True)
class Cases:
    """Cases that a task can use: ``rows`` [n] of each split, and ``notes`` on what was left out and what is odd.

    ``mentions`` are the phrases whose sentences were taken out of their texts.
    """

    table: CaseTable
    rows: Mapping[str, np.ndarray]
    notes: list[str] = field(default_factory=list)
    mentions: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Cases: {', '.join(f'{split} {count}' for split, count in self.counts().items())}>"

    @classmethod
    def of(cls, found: Filtered) -> Cases:
        """The cases that are left after the filters."""
        rows = {split: found.table.rows(split) for split in SPLITS}
        return cls(found.table, rows, list(found.notes), found.mentions)

    def counts(self) -> dict[str, int]:
        """How many cases each split has."""
        return {split: len(rows) for split, rows in self.rows.items()}

    def without(self, ids: Collection[str]) -> Cases:
        """The cases without these in any split."""
        if not ids:
            return self
        stays = np.array([name not in ids for name in self.table.ids])
        return replace(self, rows={split: own[stays[own]] for split, own in self.rows.items()})

    def has_text(self, split: str) -> bool:
        """Whether any case of a split has a text."""
        return any(self.table.texts[row] for row in self.rows[split].tolist())

    def used(self) -> CaseTable:
        """The table of the cases that are in a split."""
        return self.table.select(np.sort(np.concatenate(list(self.rows.values()))))

    def limited(self, limits: Mapping[str, int | None], *, strata_N: np.ndarray | None) -> Cases:
        """At most so many cases of each split: first one of every stratum, then a second of each, and so on."""
        exceeded = {
            split: limit for split, limit in limits.items() if limit is not None and limit < len(self.rows[split])
        }
        if not exceeded:
            return self
        rows, notes = dict(self.rows), list(self.notes)
        for split, limit in exceeded.items():
            key = "max_train_samples" if split == "train" else "max_eval_samples"
            left_out = len(rows[split]) - limit
            notes.append(f"{left_out} cases of {split} are left out by data.filters.{key} or --limit: {limit}.")
            rows[split] = _spread(rows[split], strata_N, limit)
        return replace(self, rows=rows, notes=notes)


def _spread(rows: np.ndarray, strata_N: np.ndarray | None, limit: int) -> np.ndarray:
    order = np.random.default_rng(0).permutation(rows)
    turn: dict[int, int] = {}
    turns = []
    for row in order.tolist():
        stratum = 0 if strata_N is None else int(strata_N[row])
        turns.append(turn.setdefault(stratum, 0))
        turn[stratum] += 1
    return np.sort(order[np.argsort(turns, kind="stable")[:limit]])


@dataclass(frozen=True)
class Studied(Generic[KnowledgeT]):
    """What a family sees in the chosen cases before any model is built.

    ``knowledge`` is what the training cases teach beside the weights. ``targets`` [N, ...] is what is learned of each
    case of the table. ``strata_N`` has the stratum of each case that limits and balanced sampling spread over; None:
    the cases are all alike. ``units_N`` numbers the unit of each case, which a task that chooses settings inside the
    training cases leaves out as a whole; None: it chooses none.
    """

    cases: Cases
    knowledge: KnowledgeT
    targets: np.ndarray | None = None
    strata_N: np.ndarray | None = None
    units_N: np.ndarray | None = None

    @property
    def known_targets(self) -> np.ndarray:
        """The targets of a task that has some."""
        if self.targets is None:
            raise ValueError("these cases have no targets")
        return self.targets

    def without(self, ids: Collection[str]) -> Studied[KnowledgeT]:
        """The same without these cases in any split."""
        return replace(self, cases=self.cases.without(ids))
