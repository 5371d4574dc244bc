"""The one filtered table that feeds weights, statistics, sampling and evaluation."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from consilium.core.errors import DataError
from consilium.core.labels import LabelTree, reading_order
from consilium.core.reporter import some
from consilium.data.filters import Filtered
from consilium.data.guards.labels import spelled_alike
from consilium.data.store import CaseTable

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class LabelledCases:
    """Cases with an image and a label, their targets, and which rows each split has.

    ``targets`` is int64 [N] (single label) or float32 [N, K] (multi-label). ``notes`` says what was left
    out and what is odd.
    """

    table: CaseTable
    labels: LabelTree
    targets: np.ndarray
    rows: dict[str, np.ndarray]
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        splits = ", ".join(f"{split} {len(rows)}" for split, rows in self.rows.items())
        return f"<LabelledCases: {splits}; {self.labels!r}>"

    def class_counts(self) -> list[int]:
        """Training cases of every class; of a node of a tree also those below it."""
        return self.counts("train")

    def counts(self, split: str) -> list[int]:
        """Cases of every class in a split; of a node of a tree also those below it."""
        targets = self.targets[self.rows[split]]
        if targets.ndim == 2:
            return [int(count) for count in targets.sum(0)]
        paths_NL = self.labels.paths_ML[targets[targets >= 0]]
        return [int(count) for count in np.bincount(paths_NL[paths_NL >= 0], minlength=len(self.labels))]

    def without(self, ids: Collection[str]) -> LabelledCases:
        """The cases without these in any split."""
        if not ids:
            return self
        stays = np.array([name not in ids for name in self.table.ids])
        return replace(self, rows={split: own[stays[own]] for split, own in self.rows.items()})

    def balancing_class(self) -> np.ndarray:
        """One class [N] per case for balanced sampling: its label, or the rarest of its labels."""
        if self.targets.ndim == 1:
            return self.targets
        rarity = 1 / np.maximum(np.array(self.class_counts()), 1)
        return np.where(self.targets.any(1), (self.targets * rarity).argmax(1), -1)


def labelled_cases(
    found: Filtered,
    *,
    multi_label: bool,
    labels: LabelTree | None = None,
    nested: bool = False,
    known: LabelTree | None = None,
    limits: Mapping[str, int | None] | None = None,
) -> LabelledCases:
    """The classes and targets of cases that were filtered.

    ``labels`` None takes those of train, ``nested`` with the nodes above them. ``known`` labels come before
    them, in their order. ``limits`` has the most cases of each split to keep, spread over the classes.
    """
    table = found.table
    rows = {split: table.rows(split) for split in SPLITS}
    if labels is None:
        labels = _training_labels(found, rows, least=1 if multi_label or known else 2, nested=nested)
        wrong = "labels occur that training never sees"
        mend = (
            "A class with one row ends up in one split only: add cases, give them a split, rename the labels "
            "(data.rename_labels), or leave the class out (data.filters.min_samples_per_label)."
        )
    else:
        wrong = "labels occur that the model does not know"
        mend = (
            f"The known ones are: {some(list(labels.names), 20)}. Correct or rename the labels "
            "(data.rename_labels), keep the cases out (data.filters.labels), or, before a training, add the labels to "
            "task.tree.nodes."
        )
    if known is not None:
        labels = LabelTree(list(dict.fromkeys((*known.names, *labels.names))), nested=nested)
    _check_labels(table, labels, multi_label=multi_label, wrong=wrong, mend=mend)
    targets = labels.multi_hot(table.labels) if multi_label else labels.indices(table.labels)
    cases = LabelledCases(table, labels, targets, rows, list(found.notes))
    classes = cases.balancing_class()
    for split, limit in (limits or {}).items():
        if limit is not None and limit < len(rows[split]):
            key = "max_train_samples" if split == "train" else "max_eval_samples"
            left_out = len(rows[split]) - limit
            cases.notes.append(f"{left_out} cases of {split} are left out by data.filters.{key} or --limit: {limit}.")
            rows[split] = _spread(rows[split], classes, limit)
    return cases


def _training_labels(found: Filtered, rows: dict[str, np.ndarray], *, least: int, nested: bool) -> LabelTree:
    table = found.table
    if not len(rows["train"]):
        why = "".join(f" {note}" for note in found.notes)
        raise DataError(
            f"the train split is empty: no case with an image and a label is left for training.{why}"
            " Look at the split, label and is_gt columns with `consilium data inspect`."
        )
    labels = LabelTree.from_labels((table.labels[row] for row in rows["train"].tolist()), nested=nested)
    if len(labels.leaves) < least:
        raise DataError(
            f"train has {len(labels.leaves)} label(s) ({', '.join(labels.leaves)}); a classifier needs at least two. "
            "For folders see that path is the folder above those of the labels, and look at label_levels; for tables "
            "at columns.label."
        )
    return labels


def _check_labels(table: CaseTable, labels: LabelTree, *, multi_label: bool, wrong: str, mend: str) -> None:
    known = set(labels.names)
    strange: dict[str, list[int]] = {}
    for row, own in enumerate(table.labels):
        for label in own:
            if label not in known:
                strange.setdefault(label, []).append(row)
        if len(own) > 1 and not multi_label:
            raise DataError(
                f"case {table.ids[row]} has {len(own)} labels ({', '.join(own)}); set task.multi_label: true, or give "
                "one label a case."
            )
    if strange:
        shown = "; ".join(
            f"'{label}' ({len(found)} case(s), first {table.ids[found[0]]} in {table.splits[found[0]]}"
            f"{_hint(label, labels)})"
            for label, found in sorted(strange.items())[:10]
        )
        raise DataError(f"{wrong}: {shown}. {mend}")


def _hint(label: str, labels: LabelTree) -> str:
    """What an unknown label may be."""
    if any(name.startswith(f"{label}.") for name in labels.names):
        return "; it stops above known ones, which only task.tree.head: joint or cascade learns"
    if alike := spelled_alike(label, labels.names):
        letters = "" if f"{label}{alike[0]}".isascii() else f", letter by letter {label!a} and {alike[0]!a}"
        return f"; it may be another spelling of '{alike[0]}'{letters}"
    close = difflib.get_close_matches(label, labels.names, n=1, cutoff=0.8)  # paths of one branch are alike anyway
    if close:
        return f"; did you mean '{close[0]}'?"
    above = [name for name in labels.names if label.startswith(f"{name}.")]
    return f"; of its branch '{max(above, key=len)}' is known" if above else ""


def _spread(rows: np.ndarray, classes: np.ndarray, limit: int) -> np.ndarray:
    """At most ``limit`` of ``rows``: first one of every class, then a second of every class, and so on."""
    order = np.random.default_rng(0).permutation(rows)
    turn: dict[int, int] = {}
    turns = []
    for row in order.tolist():
        turns.append(turn.setdefault(int(classes[row]), 0))
        turn[int(classes[row])] += 1
    return np.sort(order[np.argsort(turns, kind="stable")[:limit]])


def rare_class_warnings(cases: LabelledCases, *, at_least: int = 5) -> list[str]:
    """Classes too small in a split to be learned or measured."""
    warnings = []
    named = reading_order(cases.labels.names)
    learned = {name for name, count in zip(cases.labels.names, cases.counts("train"), strict=True) if count}
    without = {
        "train": "a training on these data cannot learn them",
        "val": "the best weights are chosen without them",
        "test": "nothing judges how well they are found",
    }
    for split in SPLITS:
        if not len(cases.rows[split]):
            continue
        counts = dict(zip(cases.labels.names, cases.counts(split), strict=True))
        counts = {label: counts[label] for label in named}
        missing = [label for label, n in counts.items() if n == 0 and (split == "train" or label in learned)]
        if missing:
            warnings.append(f"{split} has no case of: {some(missing, 20)}; {without[split]}.")
            counts = {label: n for label, n in counts.items() if label not in missing}
        rare = [f"{label} ({n})" for label, n in counts.items() if n < at_least]
        if rare:
            warnings.append(f"{split} has fewer than {at_least} cases of: {some(rare, 20)}; their figures mean little.")
    return warnings
