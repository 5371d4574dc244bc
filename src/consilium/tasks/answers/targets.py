"""What tasks that answer with labels learn of the cases: the classes, the target of each case, and what is odd."""

from __future__ import annotations

import difflib
from dataclasses import replace

import numpy as np
from pydantic import Field

from consilium.core.answers import Calibration, NamedCalibration
from consilium.core.errors import DataError
from consilium.core.labels import LabelTree, reading_order
from consilium.core.reporter import some
from consilium.core.section import Knowledge
from consilium.data.cases.cases import SPLITS, Cases, Studied
from consilium.data.guards.labels import spelled_alike
from consilium.data.store.splits import missing_values
from consilium.data.store.store import CaseTable
from consilium.models.checkpoints.layout import ImageLayout, ProjectionLayout


class LabelKnowledge(Knowledge):
    """The classes of a task and what the cases taught about them.

    ``class_counts`` are the training cases of every class; of a node of a tree also those below it. ``tower`` says what
    the image tower is made of, where its config does not, and ``embedding`` what projects its features into the space
    of texts, where the head has a prior there. ``seen`` are the values that training cases have in columns by which
    figures are given, such as the source. ``calibrations`` are those that ``consilium calibrate`` keeps, the first that
    of the training; [] where it was not asked.
    """

    labels: list[str]
    nested: bool = False
    class_counts: list[int]
    calibration: Calibration = Calibration()
    calibrations: list[NamedCalibration] = Field(default=[], description="From the oldest to the newest.")
    tower: ImageLayout | None = None
    embedding: ProjectionLayout | None = None
    seen: dict[str, list[str]] = Field(default={}, description="Values by column.")

    @property
    def tree(self) -> LabelTree:
        """The classes in the order of their ids."""
        return LabelTree(self.labels, nested=self.nested)


def study_labels(
    cases: Cases,
    *,
    multi_label: bool,
    nested: bool = False,
    given: LabelTree | None = None,
    known: LabelKnowledge | None = None,
    learns: bool = True,
) -> Studied[LabelKnowledge]:
    """The classes and targets of cases: int64 [N], with ``multi_label`` float32 [N, K].

    The classes are ``given``, or those of train, ``nested`` with the nodes above them; ``known`` ones come before
    them, in their order. Unless it ``learns``, only the known ones are classes. A label that is none is a DataError.
    """
    labels = known.tree if known is not None and not learns else given
    if labels is None:
        labels = _training_labels(cases, least=1 if multi_label or known else 2, nested=nested)
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
    if known is not None and learns:
        labels = LabelTree(list(dict.fromkeys((*known.labels, *labels.names))), nested=nested)
    _check_labels(cases.table, labels, multi_label=multi_label, wrong=wrong, mend=mend)
    targets = labels.multi_hot(cases.table.labels) if multi_label else labels.indices(cases.table.labels)
    counts = label_counts(labels, targets[cases.rows["train"]])
    knowledge = LabelKnowledge(
        labels=list(labels.names),
        nested=labels.nested,
        class_counts=counts if learns or known is None else known.class_counts,
        training_cases=len(cases.rows["train"]) if learns or known is None else known.training_cases,
        calibration=Calibration() if known is None else known.calibration,
        calibrations=[] if known is None or learns else known.calibrations,
    )
    if learns:
        odd = [*missing_values(labels.names), *rare_class_warnings(cases, labels=labels, targets=targets)]
        cases = replace(cases, notes=[*cases.notes, *odd])
    return Studied(cases, knowledge, targets, _strata(targets, counts))


def label_counts(labels: LabelTree, targets: np.ndarray) -> list[int]:
    """Cases of every class; of a node of a tree also those below it."""
    if targets.ndim == 2:
        return [int(count) for count in targets.sum(0)]
    paths_NL = labels.paths_ML[targets[targets >= 0]]
    return [int(count) for count in np.bincount(paths_NL[paths_NL >= 0], minlength=len(labels))]


def _strata(targets: np.ndarray, class_counts: list[int]) -> np.ndarray:
    """One class [N] per case to balance by: its label, or the rarest of its labels."""
    if targets.ndim == 1:
        return targets
    rarity = 1 / np.maximum(np.array(class_counts), 1)
    return np.where(targets.any(1), (targets * rarity).argmax(1), -1)


def _training_labels(cases: Cases, *, least: int, nested: bool) -> LabelTree:
    table, rows = cases.table, cases.rows
    if not len(rows["train"]):
        why = "".join(f" {note}" for note in cases.notes)
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


def rare_class_warnings(cases: Cases, *, labels: LabelTree, targets: np.ndarray, at_least: int = 5) -> list[str]:
    """Classes too small in a split to be learned or measured."""
    warnings = []
    named = reading_order(labels.names)
    counted = {split: label_counts(labels, targets[cases.rows[split]]) for split in SPLITS}
    learned = {name for name, count in zip(labels.names, counted["train"], strict=True) if count}
    without = {
        "train": "a training on these data cannot learn them",
        "val": "the best weights are chosen without them",
        "test": "nothing judges how well they are found",
    }
    for split in SPLITS:
        if not len(cases.rows[split]):
            continue
        counts = dict(zip(labels.names, counted[split], strict=True))
        counts = {label: counts[label] for label in named}
        missing = [label for label, n in counts.items() if n == 0 and (split == "train" or label in learned)]
        if missing:
            warnings.append(f"{split} has no case of: {some(missing, 20)}; {without[split]}.")
            counts = {label: n for label, n in counts.items() if label not in missing}
        rare = [f"{label} ({n})" for label, n in counts.items() if n < at_least]
        if rare:
            warnings.append(f"{split} has fewer than {at_least} cases of: {some(rare, 20)}; their figures mean little.")
    return warnings
