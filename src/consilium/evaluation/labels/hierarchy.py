"""Metrics of answers in a label tree, and of answers that may be withheld, as pure functions.

A flat list of labels is a tree of one level. ``weights`` are those of ``metrics``: how often each case counts.
Axes in names: N case, M node, L level (0 is below the root), T threshold, R resample; ``...`` is the R, or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from consilium.core.labels import LabelTree
from consilium.evaluation.estimates import Share
from consilium.evaluation.metrics import Bools, Floats, Ints, as_weights, ratio


@dataclass(frozen=True)
class JudgedPaths:
    """Paths beside those of the labels, each [N, L] bool.

    ``true_NL``: the label has a node at that level. ``said_NL``: the path has one that can be judged. ``right_NL``: it
    has the label's.
    """

    true_NL: Bools
    said_NL: Bools
    right_NL: Bools


def judge_paths(truth_N: Ints, paths_NL: Ints, depths_N: Ints, *, labels: LabelTree) -> JudgedPaths:
    """The first ``depths_N`` levels of paths (ids from the top, -1 past their end) beside the labels ``truth_N``.

    Where a label stops at an inner node nothing is known of what lies below: there the path is cut at that depth.
    """
    truth_NL = labels.paths_ML[truth_N]
    true_NL = truth_NL >= 0
    known_NL = true_NL | np.isin(truth_N, labels.leaf_ids)[:, None]
    said_NL = (paths_NL >= 0) & (np.arange(labels.levels) < depths_N[:, None]) & known_NL
    return JudgedPaths(true_NL, said_NL, said_NL & (paths_NL == truth_NL))


# -- Whole paths ------------------------------------------------------------------------------------------------


def hierarchical_precision(paths: JudgedPaths) -> Share:
    """Of all nodes that the paths say, the share that is on the paths of the labels; pooled over cases.

    The root, which is always right, does not count. Kiritchenko et al., "Functional annotation of genes using
    hierarchical text categorization", 2005; Silla and Freitas, 2011, doi:10.1007/s10618-010-0175-9.
    """
    return Share(paths.right_NL.sum(1), paths.said_NL.sum(1))


def hierarchical_recall(paths: JudgedPaths) -> Share:
    """Of all nodes on the paths of the labels, the share that the paths say; pooled over cases, without the root.

    A path that stops early loses recall and no precision. References: see ``hierarchical_precision``.
    """
    return Share(paths.right_NL.sum(1), paths.true_NL.sum(1))


def hierarchical_f1(paths: JudgedPaths) -> Share:
    """The harmonic mean of hierarchical precision and recall; 0 where nothing is said."""
    return Share(2 * paths.right_NL.sum(1), paths.said_NL.sum(1) + paths.true_NL.sum(1))


# -- Levels and nodes -------------------------------------------------------------------------------------------


def level_accuracy(paths: JudgedPaths) -> Share:
    """At each level, of the cases whose label reaches it, the share whose path is right there; [..., L]."""
    return Share(paths.right_NL, paths.true_NL)


def level_coverage(answered: JudgedPaths) -> Share:
    """At each level, of the cases whose label reaches it, the share whose answer does, too; [..., L]."""
    return Share(answered.said_NL & answered.true_NL, answered.true_NL)


def level_answered_accuracy(answered: JudgedPaths) -> Share:
    """At each level, of the answers that reach it, the share that is right there; [..., L].

    Where the label ends above it at a leaf, such an answer is wrong.
    """
    return Share(answered.right_NL, answered.said_NL)


def nodes_said(paths: JudgedPaths, paths_NL: Ints, *, labels: LabelTree) -> Bools:
    """Which nodes the paths say and can be judged for, [N, M]."""
    said_NM = np.zeros((len(paths_NL), len(labels) + 1), dtype=bool)  # the last one takes what is not said
    np.put_along_axis(said_NM, np.where(paths.said_NL, paths_NL, len(labels)), values=True, axis=1)
    return said_NM[:, :-1]


def path_distances(distances_NM: Floats, paths_NL: Ints) -> Floats:
    """The distance to the last node of each path, [N]."""
    last_N = paths_NL[np.arange(len(paths_NL)), (paths_NL >= 0).sum(axis=1) - 1]
    return np.asarray(distances_NM[np.arange(len(last_N)), last_N])


# -- Answers that may be withheld -------------------------------------------------------------------------------


@dataclass(frozen=True)
class RiskCoverage:
    """For each distinct sureness, falling: the weight of cases at least as sure, and of the wrong ones; [..., T]."""

    sure_T: Floats
    answered: Floats
    wrong: Floats

    @property
    def risk(self) -> Floats:
        """The share of wrong ones among the answered."""
        return ratio(self.wrong, self.answered)


def risk_coverage(sure_N: Floats, wrong_N: Bools, *, weights: Floats | None = None) -> RiskCoverage:
    """How often answers are wrong when only those are given that are sure enough, for every threshold.

    El-Yaniv and Wiener, JMLR 11, 2010; Geifman and El-Yaniv, "Selective classification for deep neural networks",
    2017, arXiv:1705.08500. ``sure_N``: how sure each answer is, ``wrong_N``: whether it is wrong. Cases that are
    equally sure are answered together.
    """
    weights = as_weights(weights, len(sure_N))
    order = np.argsort(-sure_N, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(sure_N[order]) != 0, True)[: len(order)])
    ranked = weights[..., order]
    return RiskCoverage(
        sure_T=sure_N[order][last_of_tie],
        answered=np.cumsum(ranked, axis=-1)[..., last_of_tie],
        wrong=np.cumsum(ranked * wrong_N[order], axis=-1)[..., last_of_tie],
    )


def aurc(sure_N: Floats, wrong_N: Bools, *, weights: Floats | None = None) -> Floats:
    """Area under the curve of risk against coverage, [...]; 0 is best, nan without cases.

    The mean over cases of the risk when all cases are answered that are at least as sure (Geifman, Uziel and El-Yaniv,
    2019, arXiv:1805.08206). It is low where errors are few and the unsure cases are the wrong ones.
    """
    curve = risk_coverage(sure_N, wrong_N, weights=weights)
    joined = np.diff(curve.answered, prepend=0.0, axis=-1)
    return ratio((joined * np.nan_to_num(curve.risk)).sum(axis=-1), joined.sum(axis=-1))
