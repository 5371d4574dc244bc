"""Figures of retrieval for each query, and intervals of their mean.

Axes in names: N case, M answer, S seed, R resample.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from consilium.evaluation.metrics import Floats
from consilium.evaluation.retrieval.figures import chance_average_precision, chance_recall
from consilium.evaluation.retrieval.ranks import TIE, unit

FIGURES = ("label mAP", "R@1", "R@5", "R@10")
RESAMPLES = 2000


def judge(
    images_NF: Floats, texts_NF: Floats, *, texts: Sequence[str], labels: Sequence[str | None]
) -> tuple[dict[str, list[float | None]], dict[str, float]]:
    """The figures of each case, the mean of both directions, and what chance would give.

    R@k is 1 where one of the first k answers is right: of the different texts the image's own, of the images one with
    this text. In label mAP all answers with the query's label are right; cases without one (None) are left out of it.
    """
    similarity_NN = unit(images_NF) @ unit(texts_NF).T
    text_N = np.array([texts.index(text) for text in texts])
    different_M = np.unique(text_N)  # a case of each
    labelled = [row for row, label in enumerate(labels) if label is not None]
    label_L = np.array([str(labels[row]) for row in labelled])
    ways = (
        (similarity_NN[:, different_M], text_N[:, None] == different_M),
        (similarity_NN.T, text_N[:, None] == text_N),
    )
    ranks = [searched(*way)[0] for way in ways]
    same_LL, among_LL = label_L[:, None] == label_L, similarity_NN[np.ix_(labelled, labelled)]
    precision_N = np.full(len(texts), np.nan)
    precision_N[labelled] = (searched(among_LL, same_LL)[1] + searched(among_LL.T, same_LL)[1]) / 2
    values, chance = {"label mAP": precision_N}, {"label mAP": chance_average_precision(same_LL.sum(1), len(labelled))}
    for k in (1, 5, 10):
        values[f"R@{k}"] = np.mean([rank_N <= k for rank_N in ranks], axis=0)
        chance[f"R@{k}"] = statistics.fmean(chance_recall(right.sum(1), right.shape[1], at=k) for _, right in ways)
    return {name: [None if np.isnan(v) else float(v) for v in own] for name, own in values.items()}, chance


def searched(similarity_NM: Floats, right_NM: np.ndarray) -> tuple[Floats, Floats]:
    """The rank of the first right answer and the average precision of each query; ties count against the model."""
    ranks, precisions = [], []
    for similarity_M, right_M in zip(similarity_NM, right_NM, strict=True):
        wrong = np.sort(similarity_M[~right_M])
        before = np.sort(len(wrong) - np.searchsorted(wrong, similarity_M[right_M] - TIE))
        right = np.arange(1, len(before) + 1)
        ranks.append(before[0] + 1)
        precisions.append(np.mean(right / (right + before)))
    return np.array(ranks, float), np.array(precisions)


def mean(values: Floats) -> float:
    """Of the numbers that are there."""
    return float(np.nanmean(values))


def resampled(values_SN: Floats, groups: list[str]) -> Floats:
    """The mean in each of the resamples, which are the same for all rows with as many seeds."""
    chance = np.random.default_rng(0)
    group_N = np.unique(groups, return_inverse=True)[1]
    count = group_N.max() + 1
    weights_RN = chance.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)[:, group_N]
    seeds_RS = chance.integers(len(values_SN), size=(RESAMPLES, len(values_SN)))
    there_N = ~np.isnan(values_SN[0])
    return np.array(
        [
            np.average(values_SN[seeds_S][:, there_N].mean(0), weights=weights_N[there_N])
            for seeds_S, weights_N in zip(seeds_RS, weights_RN, strict=True)
        ]
    )


def interval(values_R: Floats) -> str:
    """Where 95 % of the values lie."""
    low, high = np.quantile(values_R, (0.025, 0.975))
    return f"{low:+.3f} to {high:+.3f}"
