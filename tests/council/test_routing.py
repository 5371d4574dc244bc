"""Which experts a route chooses, what each counts, and what their answers are together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.core.answers import Calibration, answer
from consilium.core.labels import LabelTree
from consilium.council.combining import Weighted, combined, common_tree
from consilium.council.routing import Chosen, Routing
from consilium.tasks.family import Labelled

TREE = LabelTree(["ct", "ct.chest", "ct.head", "ct.head.base", "ct.head.top", "mri"], nested=True)
LEAVES = list(TREE.leaves)


def route_of(leaves: list[float], thresholds: tuple[float, ...] = ()) -> dict[str, Any]:
    """A router's record for the probabilities of the leaves."""
    whole = np.zeros(len(TREE))
    whole[list(TREE.leaf_ids)] = np.array(leaves) / sum(leaves)
    paths_M = whole @ TREE.ancestry_MM
    node = int(answer(paths_M[None], labels=TREE, thresholds=thresholds).nodes_N[0])
    probabilities = dict(zip(TREE.names, paths_M.tolist(), strict=True))
    return {"label": "unknown" if node < 0 else TREE.names[node], "probabilities": probabilities}


ROUTES = st.lists(st.floats(0.01, 1), min_size=len(LEAVES), max_size=len(LEAVES))
SEATS = st.lists(st.sampled_from(TREE.names), min_size=1, unique=True)


@given(ROUTES, SEATS, st.integers(1, 6), st.sampled_from([(), (0.5,), (0.3, 0.6)]))
def test_weights_are_the_probabilities_of_the_leaves_that_each_expert_answers(
    leaves: list[float], seats: list[str], top_k: int, thresholds: tuple[float, ...]
) -> None:
    route = route_of(leaves, thresholds)
    chosen = Routing(TREE, tuple(seats), False, top_k).choose(route)
    answered = [] if route["label"] == "unknown" else TREE.path(TREE.index(route["label"]))
    above = [TREE.names[node] for node in answered if TREE.names[node] in seats]
    if not above:
        assert chosen == []
        return
    assert chosen[0].expert == above[-1], "the deepest on the answered path"
    assert len(chosen) == len({own.expert for own in chosen}) <= top_k
    names = [own.expert for own in chosen]
    expected = dict.fromkeys(names, 0.0)
    for leaf in LEAVES:  # of each leaf the nearest chosen expert above it
        path = [TREE.names[node] for node in TREE.path(TREE.index(leaf))]
        if mine := [name for name in path if name in names]:
            expected[mine[-1]] += route["probabilities"][leaf]
    for own in chosen:
        assert own.weight == pytest.approx(expected[own.expert], abs=1e-9)


def test_the_default_answers_for_the_others() -> None:
    routing = Routing(TREE, ("ct.head",), True, 1)
    assert routing.choose(route_of([1, 9, 9, 1])) == [Chosen("ct.head", pytest.approx(0.9))]
    for route in (route_of([9, 1, 1, 1]), route_of([1, 9, 9, 1], (0.9, 0.95)), {"error": "no image"}):
        assert routing.choose(route) == [Chosen("default", None)]
    assert routing.uncovered() == ["ct.chest", "mri"]


def test_a_flat_router_has_its_labels_as_nodes() -> None:
    flat = Routing(LabelTree(["ct.chest", "mri"]), ("ct.chest",), False, 1)
    assert flat.choose({"label": "ct.chest", "probabilities": {"ct.chest": 0.7, "mri": 0.3}}) == [
        Chosen("ct.chest", 0.7)
    ]
    assert flat.choose({"label": "mri", "probabilities": {"ct.chest": 0.3, "mri": 0.7}}) == []


def labelled(*names: str, nested: bool = False, multi: bool = False, **options: Any) -> Labelled:
    return Labelled(LabelTree(names, nested=nested), multi, Calibration(**options), 0.5)


def test_labels_are_in_one_tree_or_not() -> None:
    few, many = labelled("a", "b"), labelled("a", "b", "c")
    assert common_tree([few, many], TREE) is many.labels
    assert common_tree([few, labelled("b", "d")], TREE) is None
    assert common_tree([few, None], TREE) is None
    assert common_tree([few, labelled("a", "b", distances=[3.0])], TREE) is None
    assert common_tree([few, labelled("a", "b", multi=True)], TREE) is None
    chest, head = labelled("ct.chest.mass", "ct.chest.none"), labelled("ct.head.base", "ct.head.top")
    both = common_tree([chest, head], TREE)
    assert both is not None
    assert both.names == ("ct", "ct.chest", "ct.chest.mass", "ct.chest.none", "ct.head", "ct.head.base", "ct.head.top")
    assert common_tree([chest, labelled("ct.chest", "mri")], TREE) is None, "one divides what the other does not"


@given(st.lists(st.floats(0.01, 1), min_size=5, max_size=5), st.floats(0, 1))
def test_a_mixture_is_the_weighted_mean(values: list[float], weight: float) -> None:
    p, q = np.array(values[:2]) / sum(values[:2]), np.array(values[2:]) / sum(values[2:])
    few, many = labelled("a", "b"), labelled("a", "b", "c")
    records = [{"probabilities": dict(zip("ab", p, strict=True))}, {"probabilities": dict(zip("abc", q, strict=True))}]
    own = [Weighted(weight, records[0], few), Weighted(1 - weight, records[1], many)]
    found = combined(own, many.labels)
    expected = weight * np.array([*p, 0]) + (1 - weight) * q
    assert list(found["probabilities"].values()) == pytest.approx(expected, abs=1e-6)
    assert expected["abc".index(found["label"])] == pytest.approx(expected.max(), abs=1e-12)
    assert found["path"] == [{"label": found["label"], "probability": found["probability"]}]


def test_thresholds_are_mixed_and_nobody_sure_enough_is_unknown() -> None:
    sure, unsure = labelled("a", "b", thresholds=[0.5]), labelled("a", "b", thresholds=[0.9])
    records = [{"probabilities": {"a": 0.8, "b": 0.2}}, {"probabilities": {"a": 0.6, "b": 0.4}}]

    def label(weight: float) -> Any:
        own = [Weighted(weight, records[0], sure), Weighted(1 - weight, records[1], unsure)]
        return combined(own, sure.labels)["label"]

    assert label(0.9) == "a"  # 0.78 of at least 0.54
    assert label(0.3) == "unknown"  # 0.66 of at least 0.78
    never = labelled("a", "b", thresholds=[None])
    assert (
        combined([Weighted(0.9, records[0], sure), Weighted(0.1, records[1], never)], sure.labels)["probability"]
        is None
    )


def test_several_labels_are_judged_by_those_who_know_them() -> None:
    few, many = labelled("a", multi=True), labelled("a", "b", multi=True)
    own = [
        Weighted(0.25, {"probabilities": {"a": 0.9}}, few),
        Weighted(0.75, {"probabilities": {"a": 0.3, "b": 0.7}}, many),
    ]
    assert combined(own, many.labels) == {"labels": ["b"], "probabilities": {"a": 0.45, "b": 0.7}}
