"""How deep an answer goes: against a walk down the tree written out case by case."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from consilium.core.answers import Calibration, answer
from consilium.core.labels import LabelTree

TREE = LabelTree(["a", "b", "a.x", "a.y", "a.y.u", "a.y.v"], nested=True)
LEAST = st.lists(st.none() | st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), max_size=3)


def of_conditionals(conditionals_NM: np.ndarray, tree: LabelTree = TREE) -> np.ndarray:
    """Probabilities of paths: the product of the shares on the way."""
    return np.stack([np.prod(conditionals_NM[:, list(tree.path(node))], axis=1) for node in range(len(tree))], axis=1)


def by_hand(own_M: np.ndarray, least: list[float | None], tree: LabelTree = TREE) -> tuple[list[int], int]:
    """The likeliest path of one case, and how many of its levels are answered."""
    path: list[int] = []
    while below := [n for n in range(len(tree)) if tree.parent(n) == (path[-1] if path else None)]:
        path.append(max(below, key=lambda node: own_M[node]))
    depth = 0
    for level, node in enumerate(path):
        needed = least[level] if level < len(least) else 0.0
        if needed is None or own_M[node] < needed:
            break
        depth += 1
    return path, depth


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(0, 5), st.just(6)), elements=st.sampled_from([0.5, 0.75, 1])), LEAST
)
def test_an_answer_is_the_walk_to_the_likelier_child(shares_NM: np.ndarray, least: list[float | None]) -> None:
    probabilities_NM = of_conditionals(shares_NM)
    found = answer(probabilities_NM, labels=TREE, thresholds=least)
    assert found.paths_NL.shape == found.probabilities_NL.shape == (len(shares_NM), 3)
    for case, own_M in enumerate(probabilities_NM):
        path, depth = by_hand(own_M, least)
        gap = 3 - len(path)
        assert found.paths_NL[case].tolist() == path + [-1] * gap
        assert found.probabilities_NL[case].tolist() == [own_M[node] for node in path] + [0.0] * gap
        assert found.depths_N[case] == depth
        assert found.nodes_N[case] == (path[depth - 1] if depth else -1)


def test_the_path_may_leave_the_likeliest_leaf_aside() -> None:
    """The walk decides level by level: 0.6 are below a, though no leaf there has as much as b."""
    found = answer(np.array([[0.6, 0.4, 0.3, 0.3, 0.3, 0.0]]), labels=TREE)
    assert found.nodes_N.tolist() == [2]


@pytest.mark.parametrize(
    ("least", "node"),
    [
        ([], 4),
        ([0.9, 0.6, 0.5], 4),  # as sure as asked for is sure enough
        ([0.9, 0.6, 0.51], 3),
        ([0.9, 0.61, 0.0], 0),  # below an unsure level nothing is answered
        ([0.9, None, 0.0], 0),
        ([0.91], -1),
        ([None], -1),
        ([0.9], 4),  # levels without a threshold are always answered
        ([0.0, 0.0, 0.0, None], 4),  # as are thresholds without a level
    ],
    ids=str,
)
def test_an_answer_stops_at_the_parent_of_what_is_unsure(least: list[float | None], node: int) -> None:
    found = answer(np.array([[0.9, 0.1, 0.3, 0.6, 0.5, 0.1]]), labels=TREE, thresholds=least)
    assert found.nodes_N.tolist() == [node]


@st.composite
def distant(draw: st.DrawFn, tree: LabelTree = TREE) -> tuple[np.ndarray, list[float]]:
    """Distances that grow down the tree, many of them equal, and limits of some levels."""
    steps_NM = draw(hnp.arrays(np.float32, (4, len(tree)), elements=st.sampled_from([0.0, 1.0, 2.0])))
    distances_NM = np.stack([steps_NM[:, list(tree.path(node))].sum(1) for node in range(len(tree))], axis=1)
    return distances_NM, draw(st.lists(st.sampled_from([0.0, 1.0, 2.0, 4.0]), max_size=4))


@given(hnp.arrays(np.float32, (4, 6), elements=st.sampled_from([0.5, 0.75, 1])), LEAST, distant())
def test_an_answer_stops_at_the_deepest_node_that_both_signs_let_pass(
    shares_NM: np.ndarray, least: list[float | None], far: tuple[np.ndarray, list[float]]
) -> None:
    probabilities_NM, (distances_NM, limits) = of_conditionals(shares_NM), far
    found = answer(probabilities_NM, labels=TREE, thresholds=least, distances_NM=distances_NM, limits=limits)
    for case, own_M in enumerate(probabilities_NM):
        path, sure = by_hand(own_M, least)
        beyond = [node for node, limit in zip(path, limits, strict=False) if distances_NM[case, node] > limit]
        near = path.index(beyond[0]) if beyond else len(path)
        assert found.depths_N[case] == min(sure, near)
        assert found.paths_NL[case].tolist() == path + [-1] * (3 - len(path))  # the path itself does not change


def test_flat_an_answer_is_the_likeliest_class_or_unknown() -> None:
    probabilities_NM = np.array([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])
    found = answer(probabilities_NM, labels=LabelTree(["a.x", "b"]), thresholds=[0.6])
    assert found.nodes_N.tolist() == [1, 0, -1]
    assert found.paths_NL.tolist() == [[1], [0], [0]]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf")])
def test_a_temperature_is_above_zero(temperature: float) -> None:
    with pytest.raises(ValidationError):
        Calibration(temperatures={"root": temperature})
