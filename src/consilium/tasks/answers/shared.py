"""What bundles must have in common to answer as one, and what they know together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from consilium.core.answers import Calibration
from consilium.core.errors import DataError
from consilium.core.reporter import some
from consilium.tasks.answers.answering import Answering
from consilium.tasks.answers.targets import LabelKnowledge
from consilium.tasks.family import Member


def refuse_different(members: Mapping[str, Member]) -> None:
    """Members whose answers are over other labels, or made in another way, are a DataError."""
    (first, one), *others = members.items()
    for name, other in others:
        _refuse_other_labels(one.knowledge, other.knowledge, first=first, name=name)
        for what, of in _SAME.items():
            if of(one) != of(other):
                raise DataError(
                    f"{first} and {name} do not answer alike: {what} {_shown(of(one))} in the one and "
                    f"{_shown(of(other))} in the other. An ensemble is made of bundles that differ in seed, fold or "
                    "network."
                )


def _refuse_other_labels(one: Any, other: Any, *, first: str, name: str) -> None:
    if (one.labels, one.nested) == (other.labels, other.nested):
        return
    here, there = set(one.labels) - set(other.labels), set(other.labels) - set(one.labels)
    found = [f"only {place} has {some(sorted(own), 10)}" for place, own in ((first, here), (name, there)) if own]
    if not found:
        order = f"their order is {some(one.labels, 10)} in the one and {some(other.labels, 10)} in the other"
        found = [
            order if one.nested == other.nested else "one of them has a tree, the other a flat list of the same names"
        ]
    raise DataError(
        f"{first} and {name} answer with different labels: {'; '.join(found)}. An ensemble averages probabilities of "
        "the same labels; train them with the same task.tree.nodes."
    )


def _reads(member: Member) -> Any:
    known: Any = member.knowledge
    return [getattr(known, name, None) for name in ("tokenizer", "vectors", "metadata")]


_SAME: Mapping[str, Callable[[Member], Any]] = {
    "task.multi_label is": lambda member: member.section.multi_label,  # type: ignore[attr-defined]
    "what is read is": lambda member: list(member.section.reads),
    "the views of a case are": lambda member: list(member.task.views),
    "task.answers.distance is": lambda member: member.section.answers.distance is not None,  # type: ignore[attr-defined]
    "evaluation.averaging is": lambda member: member.looks,
    "texts and metadata become numbers by": _reads,
}


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:60]} ..."


def shared_knowledge(members: Mapping[str, Member]) -> Any:
    """What the first knows, with the means of what training cases and validation taught each of them.

    Thresholds and distances are means of the members': an ensemble has no validation of its own. There are none where a
    member has none.
    """
    known: list[Any] = [member.knowledge for member in members.values()]
    tasks: list[Any] = [member.task for member in members.values()]
    counts = np.array([own.class_counts for own in known]).mean(axis=0)
    changes = {
        "class_counts": [round(float(count)) for count in counts],
        "training_cases": round(float(np.mean([own.training_cases for own in known]))),
        "calibration": _mean_calibration(known, tasks),
        "calibrations": [],
        "seen": _together([own.seen for own in known]),
    }
    return known[0].model_copy(update=changes)


def _mean_calibration(known: Sequence[LabelKnowledge], tasks: Sequence[Answering]) -> Calibration:
    if tasks[0].multi_label:
        return Calibration(thresholds=[float(np.mean([task.threshold for task in tasks]))])
    own = [one.calibration for one in known]
    distances = [one.distances for one in own]
    mean: dict[str, Any] = {}
    if all(distances) and len({len(one) for one in distances}) == 1:
        mean["distances"] = [float(np.mean(level)) for level in zip(*distances, strict=True)]
    if len({(one.wanted_accuracy, len(one.thresholds)) for one in own}) == 1 and own[0].thresholds:
        levels = zip(*(one.thresholds for one in own), strict=True)
        mean["thresholds"] = [None if None in level else float(np.mean(level)) for level in levels]
        mean["wanted_accuracy"] = own[0].wanted_accuracy
    return Calibration(**mean)


def _together(seen: Sequence[Mapping[str, list[str]]]) -> dict[str, list[str]]:
    """The values of each column that any member has seen; a column that one does not know is left out."""
    names = [name for name in seen[0] if all(name in own for own in seen)]
    return {name: sorted({value for own in seen for value in own[name]}) for name in names}
