"""Medians of ranks against repeated queries, and chance against all orders of a gallery."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.evaluation.retrieval import figures as r


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 3)), min_size=1).filter(lambda all_: any(n for _, n in all_))
)
def test_the_median_rank_of_weighted_queries_is_that_of_repeated_ones(ranks: list[tuple[int, int]]) -> None:
    values, repeats = (np.array(column) for column in zip(*ranks, strict=True))
    weights = np.stack([repeats, np.ones(len(ranks), int)])
    found = r.median_rank(values, weights)
    np.testing.assert_allclose(found, [np.median(np.repeat(values, repeats)), np.median(values)])
    assert r.median_rank(values) == np.median(values)


def test_the_median_of_queries_that_count_a_third_is_that_of_whole_ones() -> None:
    ranks, thirds = np.array([1, 1, 1, 4, 5, 9]), np.array([1 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3])
    assert r.median_rank(ranks, thirds) == 2.5


# -- Chance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gallery", [1, 2, 5, 8])
@pytest.mark.parametrize("at", [1, 3, 10])
def test_chance_is_the_mean_over_all_orders(gallery: int, at: int) -> None:
    right_N = np.array([1, 1, min(2, gallery), min(3, gallery), gallery])
    recalls, precisions, ranks = [], [], []
    for right in right_N:
        places = list(combinations(range(1, gallery + 1), int(right)))
        recalls.append(np.mean([found[0] <= at for found in places]))
        precisions.append(np.mean([np.mean([n / place for n, place in enumerate(found, start=1)]) for found in places]))
        first = np.array([found[0] for found in places])
        ranks.append([(first <= rank).mean() for rank in range(1, gallery + 1)])
    assert r.chance_recall(right_N, gallery, at=at) == pytest.approx(np.mean(recalls))
    assert r.chance_average_precision(right_N, gallery) == pytest.approx(np.mean(precisions))
    reached = np.mean(ranks, axis=0)
    lower, upper = (
        next(n for n, share in enumerate(reached, start=1) if share > half) for half in (0.4999999, 0.5000001)
    )
    assert r.median_of_recalls(r.chance_recalls(right_N, gallery)) == pytest.approx((lower + upper) / 2)


def test_chance_of_queries_that_count_double_is_that_of_two() -> None:
    once, twice, weights = np.array([1, 3]), np.array([1, 3, 3]), np.array([0.5, 1.0])
    for chance in (r.chance_average_precision, r.chance_recalls):
        assert chance(once, 9, weights_P=weights) == pytest.approx(chance(twice, 9))
    assert r.chance_recall(once, 9, at=2, weights_P=weights) == pytest.approx(r.chance_recall(twice, 9, at=2))


@pytest.mark.parametrize("gallery", [1, 4, 7, 1000])
def test_chance_of_one_right_answer_is_what_everybody_knows(gallery: int) -> None:
    right_N = np.ones(3, dtype=int)
    assert r.chance_recall(right_N, gallery, at=1) == pytest.approx(1 / gallery)
    assert r.median_of_recalls(r.chance_recalls(right_N, gallery)) == (gallery + 1) / 2
    harmonic = math.fsum(1 / place for place in range(1, gallery + 1))
    assert r.chance_average_precision(right_N, gallery) == pytest.approx(harmonic / gallery)
