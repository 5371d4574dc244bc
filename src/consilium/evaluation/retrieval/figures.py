"""Retrieval from embeddings: ranks, average precision, and what chance would give.

A query looks for its right answers in a gallery by cosine similarity. Axes in names: Q query, M answer of the gallery,
P pair of a query and an answer that is right for it, F number of an embedding, K how many answers are looked at;
``...`` is the R of bootstrap weights, or nothing.

Ties count against the model: a wrong answer whose similarity is not lower than that of the right one (within the
rounding of float32) stands before it. A model that gives everything the same embedding finds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from consilium.evaluation.metrics import Bools, Floats, Ints, as_weights

TIE = 1e-6  # similarities that differ by less are equal
_BLOCK = 2_000_000  # similarities that are held at a time (8 MB)


@dataclass(frozen=True)
class Comparison:
    """What was found of every pair of a query and a right answer.

    ``wrong_before_P`` counts the wrong answers of the gallery that are not less similar to the query than this right
    one. ``log_probability_P`` is the logarithm of the probability of all right answers of the query, where the
    gallery's probabilities are the softmax of scaled similarities; None without a scale.
    """

    wrong_before_P: Ints
    similarity_P: Floats
    log_probability_P: Floats | None


def unit(embeddings_NF: Floats) -> Floats:
    """The embeddings, float32, divided by their length; zeros stay zeros."""
    embeddings_NF = np.asarray(embeddings_NF, dtype=np.float32)
    length_N = np.linalg.norm(embeddings_NF, axis=1, keepdims=True)
    return np.asarray(embeddings_NF / np.where(length_N > 0, length_N, 1))


def compare(
    queries_QF: Floats, gallery_MF: Floats, *, query_P: Ints, answer_P: Ints, scale: float | None = None
) -> Comparison:
    """Where the right answers of queries stand in the gallery.

    ``query_P`` and ``answer_P`` name every right answer of every query by their rows, each pair once, in any order; an
    answer that no pair names is wrong. All embeddings have length 1. Memory does not grow with Q x M.
    """
    order_P = np.argsort(query_P, kind="stable")
    query_P, answer_P = query_P[order_P], answer_P[order_P]
    wrong_before_P, similarity_P = np.zeros(len(order_P), dtype=np.int64), np.zeros(len(order_P))
    log_probability_P = np.zeros(len(order_P))
    size = max(1, _BLOCK // max(1, len(gallery_MF)))
    for start in range(0, len(order_P), size):
        pairs = slice(start, start + size)
        query_B, row_R = np.unique(query_P[pairs], return_inverse=True)
        similarity_BM = queries_QF[query_B] @ gallery_MF.T
        own_R = similarity_BM[row_R, answer_P[pairs]]
        all_pairs = slice(*np.searchsorted(query_P, [query_B[0], query_B[-1] + 1]).tolist())
        right_BM = np.zeros(similarity_BM.shape, dtype=bool)
        right_BM[np.searchsorted(query_B, query_P[all_pairs]), answer_P[all_pairs]] = True
        rivals_BM = np.where(right_BM, -np.inf, similarity_BM)
        similarity_P[order_P[pairs]] = own_R
        wrong_before_P[order_P[pairs]] = (rivals_BM[row_R] >= own_R[:, None] - TIE).sum(axis=1)
        if scale is not None:
            log_probability_P[order_P[pairs]] = _log_probability(similarity_BM, right_BM, scale)[row_R]
    return Comparison(wrong_before_P, similarity_P, log_probability_P if scale is not None else None)


def _log_probability(similarity_BM: Floats, right_BM: Bools, scale: float) -> Floats:
    """The logarithm of the probability of all right answers of each query."""
    scores_BM = np.exp(np.float32(scale) * (similarity_BM - similarity_BM.max(axis=1, keepdims=True)))
    right_B = np.where(right_BM, scores_BM, 0).sum(axis=1, dtype=float)
    right_B = np.maximum(right_B, np.finfo(np.float32).tiny)  # a probability of 0 would be an infinite loss
    return np.asarray(np.log(right_B / scores_BM.sum(axis=1, dtype=float)))


def best_ranks(wrong_before_P: Ints, query_P: Ints) -> Ints:
    """The rank of the best right answer, 1 the first, of the query of each pair, [P]."""
    best_Q = np.full(query_P.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(best_Q, query_P, wrong_before_P)
    return np.asarray(best_Q[query_P] + 1)


def average_precisions(wrong_before_P: Ints, query_P: Ints) -> Floats:
    """The average precision of the query of each pair, [P].

    The mean over a query's right answers of the share of right ones among the answers up to there.
    """
    order_P = np.lexsort((wrong_before_P, query_P))
    sizes_Q = np.bincount(query_P)
    first_P = np.repeat(np.cumsum(sizes_Q) - sizes_Q, sizes_Q)
    right_P = np.arange(len(query_P)) - first_P + 1  # right answers up to each one
    precision_P = right_P / (right_P + wrong_before_P[order_P])
    means_Q = np.bincount(query_P[order_P], weights=precision_P) / np.maximum(sizes_Q, 1)
    return np.asarray(means_Q[query_P])


def median_rank(ranks_P: Ints, weights: Floats | None = None) -> Floats:
    """The median of ranks, [...]; of an even number the mean of the two in the middle."""
    order_P = np.argsort(ranks_P, kind="stable")
    sums = np.cumsum(as_weights(weights, len(ranks_P))[..., order_P], axis=-1)
    half, rounding = sums[..., -1:] / 2, 1e-9 * sums[..., -1:]  # a third and two thirds are not quite one
    lower, upper = (sums >= half - rounding).argmax(axis=-1), (sums > half + rounding).argmax(axis=-1)
    sorted_P = ranks_P[order_P]
    return np.asarray((sorted_P[lower] + sorted_P[upper]) / 2)


def nearest(queries_QF: Floats, gallery_MF: Floats, *, count: int) -> tuple[Ints, Floats]:
    """The ``count`` most similar answers of each query, best first: their rows [Q, K] and similarities [Q, K]."""
    count = min(count, len(gallery_MF))
    rows_QK, similarity_QK = np.zeros((len(queries_QF), count), dtype=np.int64), np.zeros((len(queries_QF), count))
    size = max(1, _BLOCK // max(1, len(gallery_MF)))
    for start in range(0, len(queries_QF), size):
        rows = slice(start, start + size)
        similarity_BM = queries_QF[rows] @ gallery_MF.T
        order_BK = np.argsort(-similarity_BM, axis=1, kind="stable")[:, :count]
        rows_QK[rows] = order_BK
        similarity_QK[rows] = np.take_along_axis(similarity_BM, order_BK, axis=1)
    return rows_QK, similarity_QK


# -- Chance -------------------------------------------------------------------------------------------------------


def chance_recall(right_P: Ints, gallery: int, *, at: int, weights_P: Floats | None = None) -> float:
    """The expected share of queries with a right answer among the first ``at``, where the order is random.

    ``right_P`` is how many of the ``gallery`` answers are right for each query, ``weights_P`` how often it counts.
    """
    return float(_found_until(right_P, gallery, weights_P)[min(at, gallery)])


def chance_average_precision(right_P: Ints, gallery: int, *, weights_P: Floats | None = None) -> float:
    """The expected mean average precision, where the order is random."""
    if gallery == 1:
        return 1.0
    harmonic = float((1 / np.arange(1, gallery + 1)).sum())
    expected_P = (harmonic + (right_P - 1) / (gallery - 1) * (gallery - harmonic)) / gallery
    return float(np.average(expected_P, weights=weights_P))


def chance_median_rank(right_P: Ints, gallery: int, *, weights_P: Floats | None = None) -> float:
    """The median of the ranks of all queries' best right answers, where the order is random."""
    found = _found_until(right_P, gallery, weights_P)
    rounding = 1e-12
    return float((np.argmax(found >= 0.5 - rounding) + np.argmax(found > 0.5 + rounding)) / 2)


def _found_until(right_P: Ints, gallery: int, weights_P: Floats | None) -> Floats:
    """The expected share of queries with a right answer among the first 0, 1 ... ``gallery``, in random order."""
    drawn, found = np.arange(gallery), np.zeros(gallery + 1)
    counts, kind_P = np.unique(right_P, return_inverse=True)
    shares = np.bincount(kind_P, weights=as_weights(weights_P, len(right_P)))
    for right, share in zip(counts, shares / shares.sum(), strict=True):
        none_yet = np.cumprod(np.maximum(gallery - right - drawn, 0) / (gallery - drawn))
        found[1:] += (1 - none_yet) * share
    return found
