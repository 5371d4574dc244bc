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
    """Queries and answers from few values, so that ties and repeated texts are usual."""

    queries_NF: np.ndarray
    gallery_NF: np.ndarray
    same_N: np.ndarray


@st.composite
def drawn(draw: st.DrawFn) -> Drawn:
    count, width = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    grid = npst.arrays(np.int64, (count, width), elements=st.integers(-2, 2))
    same = draw(npst.arrays(np.int64, count, elements=st.integers(0, 4)))
    queries = draw(grid)[np.unique(same, return_inverse=True)[1]]  # equal texts have equal embeddings
    return Drawn(r.unit(queries), r.unit(draw(grid)), same)


def oracle(similarity: Sequence[float], right: Sequence[bool]) -> tuple[int, float]:
    """Rank of the best right answer and average precision, where right answers stand last among equals."""
    order = sorted(zip(similarity, right, strict=True), key=lambda pair: (-round(pair[0], 5), pair[1]))
    places = [place for place, (_, is_right) in enumerate(order, start=1) if is_right]
    return places[0], sum(found / place for found, place in enumerate(places, start=1)) / len(places)


@given(drawn())
def test_ranks_and_average_precision_are_the_oracle_s(cases: Drawn) -> None:
    queries, gallery, same = cases
    found = r.compare(queries, gallery, gallery, same_N=same, same_M=same)
    ranks, precisions = r.best_ranks(found.wrong_before_N, same), r.average_precisions(found.wrong_before_N, same)
    exact = queries.astype(float) @ gallery.astype(float).T
    for n in range(len(same)):
        rank, precision = oracle(exact[n].tolist(), (same == same[n]).tolist())
        assert ranks[n] == rank
        assert precisions[n] == pytest.approx(precision)
    np.testing.assert_allclose(found.similarity_N, np.diag(exact), atol=1e-6)


@given(drawn(), st.floats(1, 100))
def test_probabilities_are_those_of_a_softmax(cases: Drawn, scale: float) -> None:
    queries, gallery, same = cases
    found = r.compare(queries, gallery, gallery, same_N=same, same_M=same, scale=scale)
    scores = scale * (queries.astype(float) @ gallery.astype(float).T)
    whole = np.exp(scores - scores.max(axis=1, keepdims=True))
    right = np.where(same[:, None] == same, whole, 0).sum(axis=1) / whole.sum(axis=1)
    assert found.log_probability_N is not None
    seen = right > 1e-37  # below, float32 has no numbers, and the logarithm stays finite
    np.testing.assert_allclose(found.log_probability_N[seen], np.log(right[seen]), rtol=1e-3, atol=1e-4)
    assert (found.log_probability_N[~seen] < -80).all()
    assert np.isfinite(found.log_probability_N).all()


def test_a_model_that_gives_everything_the_same_embedding_finds_nothing() -> None:
    same = np.arange(6)
    found = r.compare(np.ones((6, 2)), np.ones((6, 2)), np.ones((6, 2)), same_N=same, same_M=same)
    assert r.best_ranks(found.wrong_before_N, same).tolist() == [6] * 6


def test_blocks_change_nothing_and_hold_memory_down(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    count = 4000
    queries, gallery = (r.unit(random.normal(size=(count, 16))) for _ in range(2))
    same = random.integers(count // 2, size=count)
    whole = r.compare(queries, gallery, gallery, same_N=same, same_M=same, scale=10.0)
    monkeypatch.setattr(r, "_BLOCK", 500_000)
    tracemalloc.start()
    parts = r.compare(queries, gallery, gallery, same_N=same, same_M=same, scale=10.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < count * count  # a quarter of all similarities
    np.testing.assert_array_equal(parts.wrong_before_N, whole.wrong_before_N)
    np.testing.assert_allclose(parts.log_probability_N, whole.log_probability_N, rtol=1e-5)


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 3)), min_size=1).filter(lambda all_: any(n for _, n in all_))
)
def test_the_median_rank_of_weighted_queries_is_that_of_repeated_ones(ranks: list[tuple[int, int]]) -> None:
    values, repeats = (np.array(column) for column in zip(*ranks, strict=True))
    weights = np.stack([repeats, np.ones(len(ranks), int)])
    found = r.median_rank(values, weights)
    np.testing.assert_allclose(found, [np.median(np.repeat(values, repeats)), np.median(values)])
    assert r.median_rank(values) == np.median(values)


@given(drawn(), st.integers(1, 14))
def test_nearest_are_the_first_of_a_sorted_gallery(cases: Drawn, count: int) -> None:
    rows, similarity = r.nearest(cases.queries_NF, cases.gallery_NF, count=count)
    all_NN = cases.queries_NF @ cases.gallery_NF.T
    assert rows.shape == (len(all_NN), min(count, len(all_NN)))
    np.testing.assert_allclose(similarity, -np.sort(-all_NN, axis=1)[:, :count], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(all_NN, rows, axis=1), similarity, atol=1e-6)


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


@pytest.mark.parametrize("gallery", [1, 4, 7, 1000])
def test_chance_of_one_right_answer_is_what_everybody_knows(gallery: int) -> None:
    right_N = np.ones(3, dtype=int)
    assert r.chance_recall(right_N, gallery, at=1) == pytest.approx(1 / gallery)
    assert r.chance_median_rank(right_N, gallery) == (gallery + 1) / 2
    harmonic = math.fsum(1 / place for place in range(1, gallery + 1))
    assert r.chance_average_precision(right_N, gallery) == pytest.approx(harmonic / gallery)
