"""What validation teaches about a model's probabilities: temperatures, and thresholds for a wanted accuracy.

Axes in names: N case, M node of the tree, K sibling, L level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from consilium.core.answers import FAR, answer
from consilium.core.labels import LabelTree
from consilium.evaluation.labels.hierarchy import judge_paths

_SPREAD = 0.5  # deviation of log temperature that is expected before any case is seen
_OFFSETS = 2.0  # and of offsets of labels: odds seven times as high or low
_RANGE = (math.log(0.05), math.log(20.0))
_MARGIN = 1e-4  # of a probability or distance: as much as another batch or another machine may change it


def fit_temperatures(logits_NM: np.ndarray, targets_N: np.ndarray, *, labels: LabelTree) -> dict[str, float]:
    """The temperature of every inner node, by its name: the scores of its children are divided by it.

    ``logits_NM`` are a model's raw scores of validation cases, ``targets_N`` the ids of their labels (-1: none). Of
    each group of siblings the cases count whose label is at or below one of them. Minimised is the sum of their
    negative log-likelihoods (Guo et al., 2017, arXiv:1706.04599) plus ``(log T)^2 / (2 * 0.5^2)``: a normal prior that
    keeps the temperature near 1 where there are few cases, and finite where no case is wrong. A group without cases
    keeps 1.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    temperatures = {}
    steps_NG = np.where(targets_N[:, None] >= 0, labels.steps_MG[targets_N], -1)
    for group, steps_N in zip(labels.siblings, steps_NG.T, strict=True):
        here = np.flatnonzero(steps_N >= 0)
        logits_NK, truth_N = logits_NM[here][:, list(group.ids)].astype(np.float64), steps_N[here]

        def cost(log_t: float, logits_NK: np.ndarray = logits_NK, truth_N: np.ndarray = truth_N) -> float:
            log_p_NK = log_softmax(logits_NK / math.exp(log_t), axis=1)
            return float(-log_p_NK[np.arange(len(truth_N)), truth_N].sum() + log_t**2 / (2 * _SPREAD**2))

        fits = len(here) > 0 and len(group.ids) > 1
        found = minimize_scalar(cost, bounds=_RANGE, method="bounded").x if fits else 0.0
        temperatures[labels.name_of(group.parent)] = round(math.exp(found), 4)
    return temperatures


def choose_thresholds(
    probabilities_NM: np.ndarray,
    targets_N: np.ndarray,
    *,
    labels: LabelTree,
    wanted_accuracy: float,
    given: Sequence[float | None] = (),
    distances_NM: np.ndarray | None = None,
    limits: Sequence[float] = (),
) -> list[float | None]:
    """The least probability of an answer at each level, so that answers are right as often as wanted.

    ``probabilities_NM`` are calibrated ones of paths, of validation cases. From the top, each level takes the lowest
    threshold at which the share of right answers among the answered is at least ``wanted_accuracy``, which answers
    the most cases. Judged at a level are all cases answered at the levels above but those whose label stops at an inner
    node above it, of which nothing is known there. None where no threshold gives that accuracy (or no case reaches the
    level): such a level is never answered. A threshold is a little below the least probability that it answers, so
    that rounding in another batch does not change the answer. Those ``given`` for the first levels stay. Answers that
    ``distances_NM`` beyond their ``limits`` stop are none here either.
    """
    thresholds = list(given)
    known_N = targets_N >= 0
    probabilities_NM, targets_N = probabilities_NM[known_N], targets_N[known_N]
    distances_NM = None if distances_NM is None else distances_NM[known_N]
    for level in range(len(thresholds), labels.levels):
        tried = [*thresholds, 0.0]
        answers = answer(probabilities_NM, labels=labels, thresholds=tried, distances_NM=distances_NM, limits=limits)
        judged = judge_paths(targets_N, answers.paths_NL, answers.depths_N, labels=labels)
        said_N, sure_N = judged.said_NL[:, level], answers.probabilities_NL[:, level]
        thresholds.append(_lowest(sure_N[said_N], judged.right_NL[said_N, level], wanted_accuracy))
    return thresholds


def fit_labels(logits_NK: np.ndarray, truth_NK: np.ndarray) -> tuple[float, list[float]]:
    """The temperature of all labels of cases that have any number of them, and the offset of each label.

    The probability of a label is the sigmoid of its score over the temperature plus its offset (Platt, "Probabilistic
    outputs for support vector machines", 1999): a site where a label is rarer or more frequent needs the offset.
    ``logits_NK`` are raw scores, ``truth_NK`` which labels a case has. Minimised is the sum of the negative
    log-likelihoods of all labels plus the prior of ``fit_temperatures`` and ``b^2 / (2 * 2^2)`` of each offset.
    """
    from scipy.optimize import minimize

    scores_NK, truth_NK = logits_NK.astype(np.float64), truth_NK.astype(np.float64)

    def cost(values: np.ndarray) -> tuple[float, np.ndarray]:
        scaled_NK = scores_NK * math.exp(-values[0])
        total_NK = scaled_NK + values[1:]
        wrong_NK = 0.5 * (1 + np.tanh(total_NK / 2)) - truth_NK  # the sigmoid, which cannot overflow
        loss = (np.logaddexp(0.0, total_NK) - truth_NK * total_NK).sum()
        loss += values[0] ** 2 / (2 * _SPREAD**2) + (values[1:] ** 2).sum() / (2 * _OFFSETS**2)
        slope = values[0] / _SPREAD**2 - (wrong_NK * scaled_NK).sum()
        return float(loss), np.array([slope, *(wrong_NK.sum(axis=0) + values[1:] / _OFFSETS**2)])

    start = np.zeros(1 + scores_NK.shape[1])
    bounds = [_RANGE, *[(-20.0, 20.0)] * scores_NK.shape[1]]
    found = minimize(cost, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return round(math.exp(found[0]), 4), [round(float(value), 4) for value in found[1:]]


def choose_label_threshold(probabilities_NK: np.ndarray, truth_NK: np.ndarray) -> float | None:
    """The probability from which on a label is given with the highest micro F1; None where no case has a label.

    It lies half way between the least probability that it gives and the next one.
    """
    order = np.argsort(-probabilities_NK.ravel(), kind="stable")
    sure_D, right_D = probabilities_NK.ravel()[order].astype(np.float64), np.cumsum(truth_NK.ravel()[order])
    below_D = np.append(sure_D[1:], 0.0)
    f1_D = 2 * right_D / (np.arange(1, len(order) + 1) + truth_NK.sum())
    f1_D[below_D >= sure_D] = 0.0  # equal probabilities are given together
    best = int(f1_D.argmax())
    return float((sure_D[best] + below_D[best]) / 2) if f1_D[best] > 0 else None


def choose_distances(
    probabilities_NM: np.ndarray,
    distances_NM: np.ndarray,
    *,
    labels: LabelTree,
    share: float,
    given: Sequence[float] = (),
) -> list[float]:
    """The largest distance of an answer at each level, so that a ``share`` of cases lies within.

    Of each level count the cases of validation whose likeliest path reaches it: the threshold is a little above the
    smallest of their distances to its node that is large enough for the share. A level that none reaches has that of
    the level above. Labels are not asked: what lies far from all training cases is not in validation. Those ``given``
    for the first levels stay.
    """
    paths_NL = answer(probabilities_NM, labels=labels).paths_NL
    limits = list(given)
    for level in range(len(limits), labels.levels):
        here = np.flatnonzero(paths_NL[:, level] >= 0)
        own_N = distances_NM[here, paths_NL[here, level]]
        own_N = own_N[own_N < FAR]
        limit = float(np.quantile(own_N, share, method="inverted_cdf")) * (1 + _MARGIN) if len(own_N) else None
        limits.append(limit if limit is not None else limits[-1] if limits else 0.0)
    return limits


def _lowest(sure_N: np.ndarray, right_N: np.ndarray, wanted: float) -> float | None:
    """The threshold that answers most of these cases with a share of right answers of at least ``wanted``."""
    order = np.argsort(-sure_N, kind="stable")
    sure_N, share_N = sure_N[order].astype(np.float64), np.cumsum(right_N[order]) / np.arange(1, len(order) + 1)
    below_N = np.append(sure_N[1:], -1.0)  # the next probability that is not answered
    good = np.flatnonzero((share_N >= wanted) & (below_N < sure_N))
    if not len(good):
        return None
    least, below = sure_N[good[-1]], below_N[good[-1]]
    return float(max(least * (1 - _MARGIN), (least + below) / 2))
