"""One answer of several experts, weighted: a mixture of their probabilities over the labels of one tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from consilium.core.answers import UNKNOWN, answer
from consilium.core.labels import LabelTree, with_ancestors
from consilium.tasks.family import Labelled


@dataclass(frozen=True)
class Weighted:
    """The answer of an expert, the labels that it is of, and what it counts."""

    weight: float
    record: Mapping[str, Any]
    labelled: Labelled


def common_tree(experts: Sequence[Labelled | None], router: LabelTree) -> LabelTree | None:
    """The labels that answers of these experts can be combined over; None where they cannot.

    The labels of one are among those of another; or all are paths in the tree of the router, such as ``xray.normal``
    below its ``xray``. Experts with one label a case do not combine with those that have any number, and answers that
    also stop by distance combine with none.
    """
    found = [own for own in experts if own is not None and not own.calibration.distances]
    if len(found) < len(experts) or len({own.multi_label for own in found}) != 1:
        return None
    whole = max((own.labels for own in found), key=lambda labels: len(labels.leaves))
    leaves = {leaf for own in found for leaf in own.labels.leaves}
    if leaves <= set(whole.leaves):
        return whole
    if not all(with_ancestors([leaf]) & set(router.names) for leaf in leaves):
        return None
    if found[0].multi_label:
        return LabelTree(sorted(leaves))
    nodes = with_ancestors(leaves)
    divided = {name.rpartition(".")[0] for name in nodes}
    return None if leaves & divided else LabelTree(sorted(nodes), nested=True)


def combined(answers: Sequence[Weighted], tree: LabelTree) -> dict[str, Any]:
    """The record of a mixture of answers over the labels of ``tree``, in the form of a label task.

    With one label a case an expert says that labels which it does not know are not it. The thresholds are the weighted
    mean of those of the experts, where these have the levels of ``tree``; elsewhere there are none.
    """
    total = sum(own.weight for own in answers)
    shares = [own.weight / total if total else 1 / len(answers) for own in answers]
    if answers[0].labelled.multi_label:
        return _several_labels(answers, shares, tree)
    mixed_M = np.zeros(len(tree))
    for own, share in zip(answers, shares, strict=True):
        for leaf in own.labelled.labels.leaves:
            mixed_M[tree.index(leaf)] += share * own.record["probabilities"][leaf]
    paths_M = mixed_M @ tree.ancestry_MM if tree.nested else mixed_M
    found = answer(paths_M[None], labels=tree, thresholds=_thresholds(answers, shares, tree))
    probabilities = {name: round(float(value), 6) for name, value in zip(tree.names, paths_M, strict=True)}
    node = int(found.nodes_N[0])
    label = UNKNOWN if node < 0 else tree.names[node]
    steps = [tree.names[step] for step in found.paths_NL[0].tolist() if step >= 0]
    return {
        "label": label,
        "probability": None if node < 0 else probabilities[label],
        "path": [{"label": step, "probability": probabilities[step]} for step in steps],
        "probabilities": probabilities,
    }


def _thresholds(answers: Sequence[Weighted], shares: Sequence[float], tree: LabelTree) -> list[float]:
    if any(own.labelled.labels.levels != tree.levels for own in answers):
        return []
    rows = zip_longest(*(own.labelled.calibration.thresholds for own in answers), fillvalue=0.0)
    return [
        sum(share * (np.inf if least is None else least) for share, least in zip(shares, row, strict=True) if share)
        for row in rows
    ]


def _several_labels(answers: Sequence[Weighted], shares: Sequence[float], tree: LabelTree) -> dict[str, Any]:
    """Each label by the experts that know it; it is given from the mean of their thresholds on."""
    probabilities, labels = {}, []
    for name in tree.names:
        known = [
            (share, own)
            for share, own in zip(shares, answers, strict=True)
            if name in own.record["probabilities"] and share > 0
        ]
        total = sum(share for share, _ in known)
        value = sum(share * own.record["probabilities"][name] for share, own in known) / total if total else 0.0
        least = sum(share * own.labelled.threshold for share, own in known) / total if total else 1.0
        probabilities[name] = round(value, 6)
        if total and value >= least:
            labels.append(name)
    return {"labels": labels, "probabilities": probabilities}
