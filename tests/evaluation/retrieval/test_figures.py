"""Retrieval against an oracle that sorts each query's answers, and chance against all orders of a gallery."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from consilium.evaluation.retrieval import figures as r


class Drawn(NamedTuple):
    """Queries and answers from few values, so that ties are usual; ``right_QM`` has a right answer for every query."""

    queries_QF: np.ndarray
    gallery_MF: np.ndarray
    right_QM: np.ndarray

    @property
    def pairs(self) -> dict[str, np.ndarray]:
        query_P, answer_P = np.nonzero(self.right_QM)
        order = np.random.default_rng(0).permutation(len(query_P))
        return {"query_P": query_P[order], "answer_P": answer_P[order]}


@st.composite
def drawn(draw: st.DrawFn) -> Drawn:
    queries, gallery, width = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(1, 3))
    grids = [npst.arrays(np.int64, (count, width), elements=st.integers(-2, 2)) for count in (queries, gallery)]
    right_QM = draw(npst.arrays(np.bool_, (queries, gallery)))
    right_QM[np.arange(queries), np.arange(queries) % gallery] = True
    return Drawn(*(r.unit(draw(grid)) for grid in grids), right_QM)


def oracle(similarity: Sequence[float], right: Sequence[bool]) -> tuple[int, float]:
    """Rank of the best right answer and average precision, where right answers stand last among equals."""
    order = sorted(zip(similarity, right, strict=True), key=lambda pair: (-round(pair[0], 5), pair[1]))
    places = [place for place, (_, is_right) in enumerate(order, start=1) if is_right]
    return places[0], sum(found / place for found, place in enumerate(places, start=1)) / len(places)


@given(drawn())
def test_ranks_and_average_precision_are_the_oracle_s(cases: Drawn) -> None:
    pairs, exact = cases.pairs, cases.queries_QF.astype(float) @ cases.gallery_MF.astype(float).T
    found = r.compare(cases.queries_QF, cases.gallery_MF, **pairs)
    ranks = r.best_ranks(found.wrong_before_P, pairs["query_P"])
    precisions = r.average_precisions(found.wrong_before_P, pairs["query_P"])
    for place, query in enumerate(pairs["query_P"]):
        rank, precision = oracle(exact[query].tolist(), cases.right_QM[query].tolist())
        assert ranks[place] == rank
        assert precisions[place] == pytest.approx(precision)
    np.testing.assert_allclose(found.similarity_P, exact[pairs["query_P"], pairs["answer_P"]], atol=1e-6)


@given(drawn(), st.floats(1, 100))
def test_probabilities_are_those_of_a_softmax(cases: Drawn, scale: float) -> None:
    found = r.compare(cases.queries_QF, cases.gallery_MF, **cases.pairs, scale=scale)
    scores = scale * (cases.queries_QF.astype(float) @ cases.gallery_MF.astype(float).T)
    whole = np.exp(scores - scores.max(axis=1, keepdims=True))
    right = (np.where(cases.right_QM, whole, 0).sum(axis=1) / whole.sum(axis=1))[cases.pairs["query_P"]]
    assert found.log_probability_P is not None
    seen = right > 1e-37  # below, float32 has no numbers, and the logarithm stays finite
    np.testing.assert_allclose(found.log_probability_P[seen], np.log(right[seen]), rtol=1e-3, atol=1e-4)
    assert (found.log_probability_P[~seen] < -80).all()
    assert np.isfinite(found.log_probability_P).all()


def test_a_model_that_gives_everything_the_same_embedding_finds_nothing() -> None:
    own = np.arange(6)
    found = r.compare(np.ones((6, 2)), np.ones((6, 2)), query_P=own, answer_P=own)
    assert r.best_ranks(found.wrong_before_P, own).tolist() == [6] * 6


def test_blocks_change_nothing_and_hold_memory_down(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    count = 4000
    queries, gallery = (r.unit(random.normal(size=(count, 16))) for _ in range(2))
    places = np.unique(random.integers(count * count, size=2 * count))
    pairs = {"query_P": places % count, "answer_P": places // count}
    whole = r.compare(queries, gallery, **pairs, scale=10.0)
    monkeypatch.setattr(r, "_BLOCK", 500_000)
    tracemalloc.start()
    parts = r.compare(queries, gallery, **pairs, scale=10.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < count * count  # a quarter of all similarities
    np.testing.assert_array_equal(parts.wrong_before_P, whole.wrong_before_P)
    np.testing.assert_allclose(parts.log_probability_P, whole.log_probability_P, rtol=1e-5)


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


@given(drawn(), st.integers(1, 14))
def test_nearest_are_the_first_of_a_sorted_gallery(cases: Drawn, count: int) -> None:
    rows, similarity = r.nearest(cases.queries_QF, cases.gallery_MF, count=count)
    all_QM = cases.queries_QF @ cases.gallery_MF.T
    assert rows.shape == (len(all_QM), min(count, all_QM.shape[1]))
    np.testing.assert_allclose(similarity, -np.sort(-all_QM, axis=1)[:, :count], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(all_QM, rows, axis=1), similarity, atol=1e-6)


def test_unit_has_length_one_and_leaves_zeros() -> None:
    found = r.unit(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0]], rtol=1e-6)


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
    assert r.chance_median_rank(right_N, gallery) == pytest.approx((lower + upper) / 2)


def test_chance_of_queries_that_count_double_is_that_of_two() -> None:
    once, twice, weights = np.array([1, 3]), np.array([1, 3, 3]), np.array([0.5, 1.0])
    for chance in (r.chance_average_precision, r.chance_median_rank):
        assert chance(once, 9, weights_P=weights) == pytest.approx(chance(twice, 9))
    assert r.chance_recall(once, 9, at=2, weights_P=weights) == pytest.approx(r.chance_recall(twice, 9, at=2))


@pytest.mark.parametrize("gallery", [1, 4, 7, 1000])
def test_chance_of_one_right_answer_is_what_everybody_knows(gallery: int) -> None:
    right_N = np.ones(3, dtype=int)
    assert r.chance_recall(right_N, gallery, at=1) == pytest.approx(1 / gallery)
    assert r.chance_median_rank(right_N, gallery) == (gallery + 1) / 2
    harmonic = math.fsum(1 / place for place in range(1, gallery + 1))
    assert r.chance_average_precision(right_N, gallery) == pytest.approx(harmonic / gallery)
