"""A calibration before and after it was chosen anew: what the same answers state, and how often they are right.

Axes in names: N case, K label, L level of the tree, R resample; ``...`` is the R, or nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from consilium.core.answers import Calibration
from consilium.core.evaluation import Interval, Outputs
from consilium.core.labels import LabelTree
from consilium.evaluation import metrics as m
from consilium.evaluation.config import AnswersConfig, EvaluationConfig
from consilium.evaluation.labels.hierarchy import judge_paths
from consilium.evaluation.labels.tables import calibration_rows
from consilium.evaluation.metrics import Bools, Floats
from consilium.evaluation.statistics import bootstrap_groups, figure_interval, percentile_interval

_SHARES = ("accuracy", "coverage", "answered_accuracy", "exact_match")


@dataclass(frozen=True)
class Stated:
    """What is said of labelled cases: ``sure``, the confidence of each statement, and whether it is ``right``.

    With one label a case there is a statement for each, [N]: the likeliest path, down to the depth of the label.
    ``given_N``: something is answered; ``good_N``: and all of it is right. With any number of labels every label is a
    statement, [N, K], and ``named_NK`` are those that are given. ``loss_N`` is the log loss of each case.
    """

    sure: Floats
    right: Bools
    loss_N: Floats
    given_N: Bools | None = None
    good_N: Bools | None = None
    named_NK: Bools | None = None

    def figures(self, weights: Floats | None, *, bins: int) -> dict[str, Floats]:
        """The figures by name, each [...]."""
        weights = m.as_weights(weights, len(self.loss_N))
        every = weights.sum(axis=-1)
        found = {
            "log_loss": m.ratio(weights @ self.loss_N, every),
            "calibration_error": m.calibration_error(self.sure, self.right, bins=bins, weights=weights),
        }
        if self.named_NK is not None:
            counts = m.class_counts(self.right, self.named_NK, weights=weights)
            exact = m.exact_match(self.right, self.named_NK, weights=weights)
            return {**found, "micro_f1": m.micro_f1(counts), "macro_f1": m.macro_f1(counts), "exact_match": exact}
        assert self.given_N is not None
        assert self.good_N is not None
        return {
            **found,
            "accuracy": m.ratio(weights @ self.right, every),
            "coverage": m.ratio(weights @ self.given_N, every),
            "answered_accuracy": m.ratio(weights @ self.good_N, weights @ self.given_N),
        }


def stated_answers(outputs: Outputs, *, labels: LabelTree, calibration: Calibration) -> Stated:
    """What is stated of cases with one label each, by the probabilities of ``outputs`` and the calibration."""
    probabilities_NM, truth_N = outputs.arrays["probabilities"], outputs.known_targets
    found = calibration.answers(probabilities_NM, labels=labels, distances_NM=outputs.arrays.get("distances"))
    every, lengths_N = np.arange(len(truth_N)), (found.paths_NL >= 0).sum(axis=1)
    whole = judge_paths(truth_N, found.paths_NL, lengths_N, labels=labels)
    answered = judge_paths(truth_N, found.paths_NL, found.depths_N, labels=labels)
    last_N = np.maximum(whole.said_NL.sum(axis=1), 1) - 1
    exact_N = (whole.right_NL | ~(whole.said_NL | whole.true_NL)).all(axis=1)
    given_N = found.depths_N > 0
    return Stated(
        sure=found.probabilities_NL[every, last_N].astype(float),
        right=np.asarray(exact_N),
        loss_N=_penalty(probabilities_NM[every, truth_N]),
        given_N=given_N,
        good_N=given_N & (answered.right_NL | ~answered.said_NL).all(axis=1),
    )


def stated_labels(outputs: Outputs, *, threshold: float) -> Stated:
    """What is stated of cases with any number of labels each."""
    probabilities_NK, truth_NK = outputs.arrays["probabilities"], outputs.known_targets > 0.5
    loss_NK = _penalty(np.where(truth_NK, probabilities_NK, 1 - probabilities_NK))
    return Stated(
        sure=probabilities_NK.astype(float),
        right=truth_NK,
        loss_N=np.asarray(loss_NK.mean(axis=1)),
        named_NK=np.asarray(probabilities_NK >= threshold),
    )


def _penalty(probabilities: Floats) -> Floats:
    smallest = float(np.finfo(np.float32).eps)
    return np.asarray(-np.log(np.clip(probabilities.astype(float), smallest, 1.0)))


def joined(parts: Sequence[Stated], rows: Sequence[np.ndarray]) -> Stated:
    """What is stated of parts of the cases as one; ``rows`` says where in the whole the cases of each part are."""
    order = np.argsort(np.concatenate(rows), kind="stable")

    def whole(name: str) -> Any:
        own = [getattr(part, name) for part in parts]
        return None if own[0] is None else np.concatenate(own)[order]

    return Stated(*(whole(name) for name in ("sure", "right", "loss_N", "given_N", "good_N", "named_NK")))


@dataclass(frozen=True)
class BeforeAfter:
    """Figures before and after with their intervals and that of the difference, and the bins of both diagrams."""

    rows: list[dict[str, Any]]
    bins: tuple[list[dict[str, Any]], list[dict[str, Any]]]

    def row(self, figure: str) -> dict[str, Any]:
        """The row of a figure."""
        return next(row for row in self.rows if row["figure"] == figure)


@dataclass(frozen=True)
class SiteCalibration:
    """The calibration of all cases, how it differs from the old one, and what it is worth on cases it has not seen."""

    calibration: Calibration
    judged: BeforeAfter
    changes: list[dict[str, Any]]
    label_shares: dict[str, tuple[float | None, float]]  # of cases, in training and at the site
    cases: int
    groups: int
    notes: list[str]


def before_after(
    before: Stated, after: Stated, groups: Sequence[str], *, answers: AnswersConfig, evaluation: EvaluationConfig
) -> BeforeAfter:
    """Both on the same cases; intervals are of resamples of whole groups, that of the difference of the same ones."""
    bins = answers.calibration_bins

    def figures(weights: Floats | None) -> dict[str, Floats]:
        old, new = before.figures(weights, bins=bins), after.figures(weights, bins=bins)
        both = {(name, "before"): value for name, value in old.items()}
        both |= {(name, "after"): value for name, value in new.items()}
        both |= {(name, "difference"): new[name] - old[name] for name in new}
        return {"|".join(key): value for key, value in both.items()}

    draws = bootstrap_groups(groups, figures, samples=evaluation.bootstrap_samples, seed=evaluation.seed)
    values, rows = figures(None), []
    for name in after.figures(None, bins=bins):
        row: dict[str, Any] = {"figure": name}
        for side in ("before", "after", "difference"):
            value, own = float(values[f"{name}|{side}"]), draws.get(f"{name}|{side}")
            if side == "difference":
                found = (
                    Interval(value)
                    if own is None
                    else percentile_interval(value, own, confidence=evaluation.confidence)
                )
            else:
                share = name in _SHARES
                found = figure_interval(value, own, groups=groups, share=share, confidence=evaluation.confidence)
            row |= {side: m.defined(found.value), f"{side}_low": found.low, f"{side}_high": found.high}
        rows.append(row)
    old, new = (calibration_rows(side.sure, side.right, bins=bins) for side in (before, after))
    return BeforeAfter(rows, (old, new))
