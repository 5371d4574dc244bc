"""Retrieval from embeddings: ranks, average precision, and what chance would give.

A query looks for its right answers in a gallery by cosine similarity. Axes in names: N query, M answer of the gallery,
F number of an embedding, K how many answers are looked at; ``...`` is the R of bootstrap weights, or nothing.

Ties count against the model: a wrong answer whose similarity is not lower than that of the right one (within the
rounding of float32) stands before it. A model that gives everything the same embedding finds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from consilium.evaluation.metrics import Floats, Ints, as_weights

TIE = 1e-6  # similarities that differ by less are equal
_BLOCK = 2_000_000  # similarities that are held at a time (8 MB)


@dataclass(frozen=True)
class Comparison:
    """One pair of a query and a right answer in each row.

    ``wrong_before_N`` counts the wrong answers of the gallery that are not less similar to the query than its right
    answer is. ``log_probability_N`` is the logarithm of the probability of all right answers of the query, where the
    gallery's probabilities are the softmax of scaled similarities; None without a scale.
    """

    wrong_before_N: Ints
    similarity_N: Floats
    log_probability_N: Floats | None


def unit(embeddings_NF: Floats) -> Floats:
    """The embeddings, float32, divided by their length; zeros stay zeros."""
    embeddings_NF = np.asarray(embeddings_NF, dtype=np.float32)
    length_N = np.linalg.norm(embeddings_NF, axis=1, keepdims=True)
    return np.asarray(embeddings_NF / np.where(length_N > 0, length_N, 1))


def compare(
    queries_NF: Floats,
    answers_NF: Floats,
    gallery_MF: Floats,
    *,
    same_N: Ints,
    same_M: Ints,
    scale: float | None = None,
) -> Comparison:
    """Where the right answer ``answers_NF[n]`` of the query ``queries_NF[n]`` stands in the gallery.

    All embeddings have length 1. An answer m of the gallery is right for query n where ``same_N[n] == same_M[m]``.
    Memory does not grow with N x M.
    """
    wrong_before_N, similarity_N = np.zeros(len(queries_NF), dtype=np.int64), np.zeros(len(queries_NF))
    log_probability_N = np.zeros(len(queries_NF))
    for rows, similarity_BM in _blocks(queries_NF, gallery_MF):
        own_B = np.einsum("bf,bf->b", queries_NF[rows], answers_NF[rows])
        right_BM = same_N[rows, None] == same_M
        similarity_N[rows] = own_B
        wrong_before_N[rows] = ((similarity_BM >= own_B[:, None] - TIE) & ~right_BM).sum(axis=1)
        if scale is not None:
            scores_BM = np.exp(np.float32(scale) * (similarity_BM - similarity_BM.max(axis=1, keepdims=True)))
            right_B = np.where(right_BM, scores_BM, 0).sum(axis=1, dtype=float)
            right_B = np.maximum(right_B, np.finfo(np.float32).tiny)  # a probability of 0 would be an infinite loss
            log_probability_N[rows] = np.log(right_B / scores_BM.sum(axis=1, dtype=float))
    return Comparison(wrong_before_N, similarity_N, log_probability_N if scale is not None else None)


def best_ranks(wrong_before_N: Ints, same_N: Ints) -> Ints:
    """The rank of a query's best right answer, 1 the first, [N]; rows of one number are the answers of one query."""
    number_N = _numbers(same_N)
    best = np.full(number_N.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(best, number_N, wrong_before_N)
    return np.asarray(best[number_N] + 1)


def average_precisions(wrong_before_N: Ints, same_N: Ints) -> Floats:
    """The average precision of a query, [N]; rows of one number are the answers of one query.

    The mean over a query's right answers of the share of right ones among the answers up to there.
    """
    number_N = _numbers(same_N)
    order_N = np.lexsort((wrong_before_N, number_N))
    sizes = np.bincount(number_N)
    first_N = np.repeat(np.cumsum(sizes) - sizes, sizes)
    right_N = np.arange(len(number_N)) - first_N + 1  # right answers up to each one
    precision_N = right_N / (right_N + wrong_before_N[order_N])
    means = np.bincount(number_N[order_N], weights=precision_N) / sizes
    return np.asarray(means[number_N])


def median_rank(ranks_N: Ints, weights: Floats | None = None) -> Floats:
    """The median of ranks, [...]; of an even number the mean of the two in the middle."""
    order_N = np.argsort(ranks_N, kind="stable")
    sums = np.cumsum(as_weights(weights, len(ranks_N))[..., order_N], axis=-1)
    half = sums[..., -1:] / 2
    lower, upper = (sums >= half).argmax(axis=-1), (sums > half).argmax(axis=-1)
    sorted_N = ranks_N[order_N]
    return np.asarray((sorted_N[lower] + sorted_N[upper]) / 2)


def nearest(queries_NF: Floats, gallery_MF: Floats, *, count: int) -> tuple[Ints, Floats]:
    """The ``count`` most similar answers of each query, best first: their rows [N, K] and similarities [N, K]."""
    count = min(count, len(gallery_MF))
    rows_NK, similarity_NK = np.zeros((len(queries_NF), count), dtype=np.int64), np.zeros((len(queries_NF), count))
    for rows, similarity_BM in _blocks(queries_NF, gallery_MF):
        order_BK = np.argsort(-similarity_BM, axis=1, kind="stable")[:, :count]
        rows_NK[rows] = order_BK
        similarity_NK[rows] = np.take_along_axis(similarity_BM, order_BK, axis=1)
    return rows_NK, similarity_NK


# -- Chance -------------------------------------------------------------------------------------------------------


def chance_recall(right_N: Ints, gallery: int, *, at: int) -> float:
    """The expected share of queries with a right answer among the first ``at``, where the order is random.

    ``right_N`` is how many of the ``gallery`` answers are right for each query.
    """
    return float(_found_until(right_N, gallery)[min(at, gallery)])


def chance_average_precision(right_N: Ints, gallery: int) -> float:
    """The expected mean average precision, where the order is random."""
    if gallery == 1:
        return 1.0
    harmonic = float((1 / np.arange(1, gallery + 1)).sum())
    return float(np.mean((harmonic + (right_N - 1) / (gallery - 1) * (gallery - harmonic)) / gallery))


def chance_median_rank(right_N: Ints, gallery: int) -> float:
    """The median of the ranks of all queries' best right answers, where the order is random."""
    found = _found_until(right_N, gallery)
    rounding = 1e-12
    return float((np.argmax(found >= 0.5 - rounding) + np.argmax(found > 0.5 + rounding)) / 2)


def _found_until(right_N: Ints, gallery: int) -> Floats:
    """The expected share of queries with a right answer among the first 0, 1 ... ``gallery``, in random order."""
    drawn, found = np.arange(gallery), np.zeros(gallery + 1)
    for right, queries in zip(*np.unique(right_N, return_counts=True), strict=True):
        none_yet = np.cumprod(np.maximum(gallery - right - drawn, 0) / (gallery - drawn))
        found[1:] += (1 - none_yet) * queries / len(right_N)
    return found


def _numbers(same_N: Ints) -> Ints:
    return np.unique(same_N, return_inverse=True)[1]


def _blocks(queries_NF: Floats, gallery_MF: Floats) -> Iterator[tuple[slice, Floats]]:
    """The similarities of some queries at a time with the whole gallery, [B, M]."""
    size = max(1, _BLOCK // max(1, len(gallery_MF)))
    for start in range(0, len(queries_NF), size):
        rows = slice(start, start + size)
        yield rows, queries_NF[rows] @ gallery_MF.T
