"""Retrieval against an oracle that sorts each query's answers, both ways, at every kind of right answer."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from consilium.evaluation.retrieval import ranks as r


class Drawn(NamedTuple):
    """Images and texts from few values, so that ties are usual; in ``right_NM`` each has a right answer."""

    images_NF: np.ndarray
    texts_MF: np.ndarray
    right_NM: np.ndarray

    @property
    def pairs(self) -> dict[str, np.ndarray]:
        image_P, text_P = np.nonzero(self.right_NM)
        order = np.random.default_rng(0).permutation(len(image_P))
        return {"image_P": image_P[order], "text_P": text_P[order]}

    @property
    def exact_NM(self) -> np.ndarray:
        return self.images_NF.astype(float) @ self.texts_MF.astype(float).T


@st.composite
def drawn(draw: st.DrawFn) -> Drawn:
    images, texts, width = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(1, 3))
    grids = [npst.arrays(np.int64, (count, width), elements=st.integers(-2, 2)) for count in (images, texts)]
    right_NM = draw(npst.arrays(np.bool_, (images, texts)))
    right_NM[np.arange(images), np.arange(images) % texts] = True
    right_NM[np.arange(texts) % images, np.arange(texts)] = True
    return Drawn(*(r.unit(draw(grid)) for grid in grids), right_NM)


def oracle(similarity: Sequence[float], right: Sequence[bool]) -> tuple[int, float]:
    """Rank of the best right answer and average precision, where right answers stand last among equals."""
    order = sorted(zip(similarity, right, strict=True), key=lambda pair: (-round(pair[0], 5), pair[1]))
    places = [place for place, (_, is_right) in enumerate(order, start=1) if is_right]
    return places[0], sum(found / place for found, place in enumerate(places, start=1)) / len(places)


def agrees(found: r.Standing, exact_QA: np.ndarray, right_QA: np.ndarray) -> None:
    """A standing is what the oracle says of every query."""
    assert found.gallery == exact_QA.shape[1]
    np.testing.assert_array_equal(found.right_Q, right_QA.sum(axis=1))
    for query, (exact_A, right_A) in enumerate(zip(exact_QA, right_QA, strict=True)):
        rank, precision = oracle(exact_A.tolist(), right_A.tolist())
        assert found.rank_Q[query] == rank
        assert found.precision_Q[query] == pytest.approx(precision)
        assert found.similarity_Q[query] == pytest.approx(exact_A[right_A].max(), abs=1e-6)


@given(drawn(), st.sampled_from([0, 1, 2, 32]))
def test_both_ways_are_the_oracle_s_counted_or_sorted(cases: Drawn, few: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(r, "FEW", few)
        images, texts = r.by_pairs(cases.images_NF, cases.texts_MF, **cases.pairs)
    agrees(images, cases.exact_NM, cases.right_NM)
    agrees(texts, cases.exact_NM.T, cases.right_NM.T)


@given(drawn(), st.data())
def test_classes_are_pairs_of_all_that_share_one(cases: Drawn, data: st.DataObject) -> None:
    images, texts = cases.right_NM.shape
    classes = min(images, texts)
    others = (
        st.lists(st.integers(0, classes - 1), min_size=n - classes, max_size=n - classes) for n in (images, texts)
    )
    image_N, text_M = (np.array([*range(classes), *data.draw(own)]) for own in others)
    right_NM = image_N[:, None] == text_M
    found = r.by_class(cases.images_NF, cases.texts_MF, image_N=image_N, text_M=text_M)
    agrees(found[0], cases.exact_NM, right_NM)
    agrees(found[1], cases.exact_NM.T, right_NM.T)


@given(drawn(), st.floats(1, 100))
def test_losses_are_those_of_a_softmax_both_ways(cases: Drawn, scale: float) -> None:
    found = r.by_pairs(cases.images_NF, cases.texts_MF, **cases.pairs, scale=scale)
    for standing, scores, right in zip(
        found, (scale * cases.exact_NM, scale * cases.exact_NM.T), (cases.right_NM, cases.right_NM.T), strict=True
    ):
        whole = np.exp(scores - scores.max(axis=1, keepdims=True))
        share = np.where(right, whole, 0).sum(axis=1) / whole.sum(axis=1)
        assert standing.loss_Q is not None
        seen = share > 1e-37  # below, float32 has no numbers, and the logarithm stays finite
        np.testing.assert_allclose(standing.loss_Q[seen], -np.log(share[seen]), rtol=1e-3, atol=1e-4)
        assert (standing.loss_Q[~seen] > 80).all()
        assert np.isfinite(standing.loss_Q).all()


def test_a_model_that_gives_everything_the_same_embedding_finds_nothing() -> None:
    own, same = np.arange(6), np.ones((6, 2), dtype=np.float32)
    for found in r.by_pairs(same, same, image_P=own, text_P=own):
        assert found.rank_Q.tolist() == [6] * 6
    for found in r.by_class(same, same, image_N=own % 2, text_M=own % 2):
        assert found.rank_Q.tolist() == [4] * 6
        assert found.precision_Q.tolist() == pytest.approx([(1 / 4 + 2 / 5 + 3 / 6) / 3] * 6)


def test_tiles_change_nothing_and_hold_memory_down(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    count = 4000
    images, texts = (r.unit(random.normal(size=(count, 16))) for _ in range(2))
    own = np.arange(count)
    places = np.unique(np.concatenate((own * (count + 1), random.integers(count * count, size=count))))
    pairs = {"image_P": places // count, "text_P": places % count}
    whole = r.by_pairs(images, texts, **pairs, scale=10.0)
    classes = r.by_class(images, texts, image_N=own % 7, text_M=own % 7)
    monkeypatch.setattr(r, "_TILE", (300, 700))
    monkeypatch.setattr(r, "_BLOCK", 500_000)
    tracemalloc.start()
    parts = r.by_pairs(images, texts, **pairs, scale=10.0)
    parts_of_classes = r.by_class(images, texts, image_N=own % 7, text_M=own % 7)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < count * count  # a quarter of all similarities
    for part, one in zip((*parts, *parts_of_classes), (*whole, *classes), strict=True):
        np.testing.assert_array_equal(part.rank_Q, one.rank_Q)
        np.testing.assert_allclose(part.precision_Q, one.precision_Q, rtol=1e-5)
        if part.loss_Q is not None:
            np.testing.assert_allclose(part.loss_Q, one.loss_Q, rtol=1e-5)


@given(drawn(), st.integers(1, 14))
def test_nearest_are_the_first_of_a_sorted_gallery(cases: Drawn, count: int) -> None:
    rows, similarity = r.nearest(cases.images_NF, cases.texts_MF, count=count)
    all_QM = cases.images_NF @ cases.texts_MF.T
    assert rows.shape == (len(all_QM), min(count, all_QM.shape[1]))
    np.testing.assert_allclose(similarity, -np.sort(-all_QM, axis=1)[:, :count], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(all_QM, rows, axis=1), similarity, atol=1e-6)


def test_unit_has_length_one_and_leaves_zeros() -> None:
    found = r.unit(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0]], rtol=1e-6)
