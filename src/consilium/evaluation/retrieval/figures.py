"""Medians of ranks, and what chance would give.

Axes in names: P query; ``...`` is the R of bootstrap weights, or nothing.
"""

from __future__ import annotations

import numpy as np

from consilium.evaluation.metrics import Floats, Ints, as_weights


def median_rank(ranks_P: Ints, weights: Floats | None = None) -> Floats:
    """The median of ranks, [...]; of an even number the mean of the two in the middle."""
    order_P = np.argsort(ranks_P, kind="stable")
    sums = np.cumsum(as_weights(weights, len(ranks_P))[..., order_P], axis=-1)
    half, rounding = sums[..., -1:] / 2, 1e-9 * sums[..., -1:]  # a third and two thirds are not quite one
    lower, upper = (sums >= half - rounding).argmax(axis=-1), (sums > half + rounding).argmax(axis=-1)
    sorted_P = ranks_P[order_P]
    return np.asarray((sorted_P[lower] + sorted_P[upper]) / 2)


# -- Chance -------------------------------------------------------------------------------------------------------


def chance_recall(right_P: Ints, gallery: int, *, at: int, weights_P: Floats | None = None) -> float:
    """The expected share of queries with a right answer among the first ``at``, where the order is random.

    ``right_P`` is how many of the ``gallery`` answers are right for each query, ``weights_P`` how often it counts.
    """
    return float(chance_recalls(right_P, gallery, weights_P=weights_P)[min(at, gallery)])


def chance_average_precision(right_P: Ints, gallery: int, *, weights_P: Floats | None = None) -> float:
    """The expected mean average precision, where the order is random."""
    if gallery == 1:
        return 1.0
    harmonic = float((1 / np.arange(1, gallery + 1)).sum())
    expected_P = (harmonic + (right_P - 1) / (gallery - 1) * (gallery - harmonic)) / gallery
    return float(np.average(expected_P, weights=weights_P))


def median_of_recalls(found: Floats) -> float:
    """The rank that half of the queries reach, by the shares that ``chance_recalls`` gives."""
    rounding = 1e-12
    return float((np.argmax(found >= 0.5 - rounding) + np.argmax(found > 0.5 + rounding)) / 2)


def chance_recalls(right_P: Ints, gallery: int, *, weights_P: Floats | None = None) -> Floats:
    """The expected share of queries with a right answer among the first 0, 1 ... ``gallery``, [gallery + 1]."""
    drawn, found = np.arange(gallery), np.zeros(gallery + 1)
    counts, kind_P = np.unique(right_P, return_inverse=True)
    shares = np.bincount(kind_P, weights=as_weights(weights_P, len(right_P)))
    for right, share in zip(counts, shares / shares.sum(), strict=True):
        none_yet = np.cumprod(np.maximum(gallery - right - drawn, 0) / (gallery - drawn))
        found[1:] += (1 - none_yet) * share
    return found
