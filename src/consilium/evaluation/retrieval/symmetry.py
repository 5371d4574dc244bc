"""How alike the two views of a case are, and what exchanging them changes.

Axes in names: N case in a set, F number of an embedding, G group.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from consilium.core.evaluation import Outputs
from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.estimates import estimate_means
from consilium.evaluation.metrics import Floats
from consilium.evaluation.retrieval.cases import DIRECTIONS, figure_name, read_cases, ways
from consilium.evaluation.retrieval.evaluator import shares_of

_FIGURES = ("mean_recall", *(figure_name("text", way, "recall_at_1") for way in DIRECTIONS))


def symmetry(outputs: Outputs, *, config: EvaluationConfig) -> list[dict[str, Any]]:
    """One row, or none where all cases are of one group: mean cosines of views, with intervals over groups.

    ``same_case`` is that of the two views of a case, ``other_groups`` that of one view and the other view of cases of
    other groups, ``difference`` the first less the second. The views are compared as the shared tower gives them,
    ``tower_image_embeddings`` [N, 2, F], since behind it each has a space of its own. All cases have both views.
    """
    first_NF, second_NF = outputs.arrays["tower_image_embeddings"].astype(np.float64).transpose(1, 0, 2)
    group_N = np.unique(np.asarray(outputs.groups), return_inverse=True)[1]
    if len(set(outputs.groups)) < 2:
        return []
    same_N = (first_NF * second_NF).sum(axis=1)
    other_N = (_with_others(first_NF, second_NF, group_N) + _with_others(second_NF, first_NF, group_N)) / 2
    values = {"same_case": same_N, "other_groups": other_N, "difference": same_N - other_N}
    found = estimate_means(values, outputs.groups, config=config)
    cells = {key: value for name in values for key, value in found.cells(name, name).items()}
    return [{"cases": len(same_N), **cells}]


def _with_others(queries_NF: Floats, answers_NF: Floats, group_N: np.ndarray) -> Floats:
    """The mean cosine [N] of each view with the other view of the cases of other groups."""
    sums_GF = np.zeros((group_N.max() + 1, answers_NF.shape[1]))
    np.add.at(sums_GF, group_N, answers_NF)
    others_N = len(group_N) - np.bincount(group_N)[group_N]
    return np.asarray((queries_NF * (answers_NF.sum(axis=0) - sums_GF[group_N])).sum(axis=1) / others_N)


def exchange(outputs: Outputs, *, config: EvaluationConfig) -> list[dict[str, Any]]:
    """What changes where the two views of every case change places, with intervals over groups.

    The first row is the mean ``cosine`` of the embedding of a case with that of its exchanged views, as ``exchanged``.
    The others are figures of retrieval: their ``value``, that of the ``exchanged`` cases, and the ``difference``.
    """
    turned_NF = outputs.arrays["exchanged_image_embeddings"]
    cosine_N = (outputs.arrays["image_embeddings"] * turned_NF).sum(axis=1)
    alike = estimate_means({"cosine": cosine_N}, outputs.groups, config=config)
    first = {"figure": "cosine", "value": None, **alike.cells("cosine", "exchanged"), "difference": None}
    rows: list[dict[str, Any]] = [first]
    before, after = _parts(outputs), _parts(replace(outputs, arrays={**outputs.arrays, "image_embeddings": turned_NF}))
    groups = read_cases(outputs).groups
    for name in before:
        values = {"value": before[name], "exchanged": after[name], "difference": after[name] - before[name]}
        found = estimate_means(values, groups, config=config)
        rows.append(
            {"figure": name, **{key: own for value in values for key, own in found.cells(value, value).items()}}
        )
    return rows


def _parts(outputs: Outputs) -> dict[str, Floats]:
    """What each case has of figures of retrieval that are means over cases; {} where these are not defined."""
    cases = read_cases(outputs)
    shares = shares_of(cases, ways(cases))
    return {name: np.asarray(shares[name].part, dtype=np.float64) for name in _FIGURES if name in shares}
