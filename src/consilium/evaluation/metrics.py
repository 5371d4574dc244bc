"""Metrics of classification as pure functions of arrays.

Every function that judges cases takes ``weights``: how often each case counts, shape [N], or [R, N] for R
bootstrap resamples at once. None counts every case once. With [R, N] the result gains a leading axis R, so a
thousand resamples cost one matrix product or one cumulative sum instead of a Python loop.

Axes: N case, K class, R resample, M calibration bin. ``truth_NK`` and ``predicted_NK`` are boolean: one-hot for
single-label tasks, any number of ones a row for multi-label. ``...`` stands for the R of the weights, or nothing.

A figure that is not defined (no positives, one class only) is nan, never an exception. A class is *present* when
it has weight in the truth or in the predictions; classes that are not present take no part in macro averages, as
in scikit-learn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]
Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class ClassCounts:
    """Weighted true and false positives and negatives of each class, [..., K]."""

    tp: Floats
    fp: Floats
    fn: Floats
    tn: Floats

    @property
    def support(self) -> Floats:
        """Weight of each class in the truth."""
        return self.tp + self.fn

    @property
    def present(self) -> Bools:
        """Whether a class has weight in the truth or in the predictions."""
        return np.asarray(self.tp + self.fp + self.fn > 0)


@dataclass(frozen=True)
class CalibrationBins:
    """Statements, mean confidence and observed frequency in each of M bins; nan where a bin is empty."""

    edges: Floats
    statements_M: Floats
    confidence_M: Floats
    frequency_M: Floats


def one_hot(indices_N: Ints, *, classes: int) -> Bools:
    """Class ids [N] as booleans [N, K]."""
    return np.asarray(indices_N[:, None] == np.arange(classes))


def class_counts(truth_NK: Bools, predicted_NK: Bools, *, weights: Floats | None = None) -> ClassCounts:
    """True and false positives and negatives of each class."""
    weights = as_weights(weights, len(truth_NK))
    tp = weights @ (truth_NK & predicted_NK)
    fp = weights @ (~truth_NK & predicted_NK)
    fn = weights @ (truth_NK & ~predicted_NK)
    return ClassCounts(tp=tp, fp=fp, fn=fn, tn=weights.sum(axis=-1)[..., None] - tp - fp - fn)


def confusion_matrix(truth_N: Ints, predicted_N: Ints, *, classes: int) -> Ints:
    """Cases by true class (row) and predicted class (column), [K, K]."""
    codes = np.asarray(truth_N, dtype=np.int64) * classes + predicted_N
    return np.bincount(codes, minlength=classes * classes).reshape(classes, classes)


# -- From counts ------------------------------------------------------------------------------------------------


def precision(counts: ClassCounts) -> Floats:
    """Share of the cases called a class that are of it (positive predictive value), [..., K]; nan if none is."""
    return ratio(counts.tp, counts.tp + counts.fp)


def recall(counts: ClassCounts) -> Floats:
    """Share of a class that was found (sensitivity), [..., K]; nan where the truth has none."""
    return ratio(counts.tp, counts.tp + counts.fn)


def specificity(counts: ClassCounts) -> Floats:
    """Share of the cases outside a class that were kept out of it, [..., K]; nan where there are none."""
    return ratio(counts.tn, counts.tn + counts.fp)


def f1(counts: ClassCounts) -> Floats:
    """Harmonic mean of precision and recall, [..., K]; nan for a class that is not present."""
    return ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)


def accuracy(counts: ClassCounts) -> Floats:
    """Share of cases whose one label was named right, [...]; single-label counts only."""
    return ratio(counts.tp.sum(axis=-1), counts.support.sum(axis=-1))


def balanced_accuracy(counts: ClassCounts) -> Floats:
    """Mean recall over the classes in the truth, [...]."""
    return macro(recall(counts))


def macro_precision(counts: ClassCounts) -> Floats:
    """Mean precision over present classes, [...]; 0 for one that was never predicted, as in scikit-learn."""
    return macro(np.where(counts.present, np.nan_to_num(precision(counts)), np.nan))


def macro_recall(counts: ClassCounts) -> Floats:
    """Mean recall over present classes, [...]; 0 for one that the truth lacks, as in scikit-learn."""
    return macro(np.where(counts.present, np.nan_to_num(recall(counts)), np.nan))


def macro_f1(counts: ClassCounts) -> Floats:
    """Mean F1 over present classes, [...]."""
    return macro(f1(counts))


def micro_f1(counts: ClassCounts) -> Floats:
    """F1 of all decisions pooled, [...]; equals accuracy in single-label tasks."""
    tp, errors = counts.tp.sum(axis=-1), (counts.fp + counts.fn).sum(axis=-1)
    return ratio(2 * tp, 2 * tp + errors)


def weighted_f1(counts: ClassCounts) -> Floats:
    """Mean F1 weighted by each class's support, [...]."""
    return ratio((np.nan_to_num(f1(counts)) * counts.support).sum(axis=-1), counts.support.sum(axis=-1))


def macro(values: Floats) -> Floats:
    """Mean over the last axis of the values that are defined; nan where none is."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1).astype(float))


def quadratic_weighted_kappa(confusion_KK: Ints) -> float:
    """Agreement beyond chance where an error costs the squared distance of its classes.

    Cohen, "Weighted kappa", Psychological Bulletin 70 (1968). The distance is that of positions in the label
    order, so the figure means something only where that order does (grades, stages). 1 is full agreement, 0
    chance; nan when truth and predictions are all of one class.
    """
    confusion = np.asarray(confusion_KK, dtype=float)
    position = np.arange(len(confusion))
    cost_KK = (position[:, None] - position) ** 2
    chance_KK = np.outer(confusion.sum(axis=1), confusion.sum(axis=0)) / max(confusion.sum(), 1.0)
    return float(1.0 - ratio((cost_KK * confusion).sum(), (cost_KK * chance_KK).sum()))


# -- From scores ------------------------------------------------------------------------------------------------


def auroc(truth_NK: Bools, scores_NK: Floats, *, weights: Floats | None = None) -> Floats:
    """Area under the receiver operating characteristic of each class against the rest, [..., K].

    The chance that a case of the class scores higher than one outside it; equal scores count half (Hanley and
    McNeil, Radiology 143, 1982). nan where a class has no positives or no negatives.
    """
    return _per_class(_auroc, truth_NK, scores_NK, weights)


def average_precision(truth_NK: Bools, scores_NK: Floats, *, weights: Floats | None = None) -> Floats:
    """Area under the precision-recall curve of each class (AUPR), [..., K].

    Step-wise: precision at each distinct score times the gain in recall, without interpolation between points,
    which would be optimistic (Davis and Goadrich, ICML 2006). nan where a class has no positives.
    """
    return _per_class(_average_precision, truth_NK, scores_NK, weights)


def sensitivity_at_specificity(
    truth_NK: Bools, scores_NK: Floats, *, specificity: float, weights: Floats | None = None
) -> Floats:
    """Highest sensitivity of each class at a threshold that keeps at least this specificity, [..., K].

    nan where a class has no positives or no negatives. The threshold is chosen on the same cases, so the figure
    is what the scores could give and not the performance of a threshold fixed beforehand.
    """

    def figure(tp_T: Floats, fp_T: Floats) -> Floats:
        # The tolerance lets 1 of 10 negatives pass at 0.9, which 1 - 0.9 in binary falls just short of.
        allowed = fp_T <= (1.0 - specificity) * fp_T[..., -1:] + 1e-9
        best = np.where(allowed, tp_T, 0.0).max(axis=-1)
        return np.where(fp_T[..., -1] > 0, ratio(best, tp_T[..., -1]), np.nan)

    return _per_class(figure, truth_NK, scores_NK, weights)


def _per_class(figure: Any, truth_NK: Bools, scores_NK: Floats, weights: Floats | None) -> Floats:
    """``figure`` of the cumulative true and false positives of each class, thresholds falling, ties in one step.

    Neighbouring steps that hold no true positive are one: they change no figure, and most steps are of that kind.
    """
    weights_NR = as_weights(weights, len(truth_NK)).T  # the weights of a case are a row, which is moved as a whole
    columns = []
    for truth_N, scores_N in zip(truth_NK.T, scores_NK.T, strict=True):
        order = np.argsort(-scores_N, kind="stable")
        true_N = truth_N[order]
        starts_T = np.flatnonzero(np.append(True, np.diff(scores_N[order]) != 0))
        has_true_T = np.logical_or.reduceat(true_N, starts_T)
        starts_T = starts_T[has_true_T | np.append(True, has_true_T[:-1])]
        all_TR = np.add.reduceat(weights_NR[order], starts_T, axis=0).cumsum(axis=0)
        true_until_T = np.add.reduceat(true_N, starts_T, dtype=int).cumsum()
        none_R = np.zeros_like(all_TR[:1])
        tp_TR = np.concatenate((none_R, weights_NR[order[true_N]].cumsum(axis=0)))[true_until_T]
        columns.append(figure(tp_TR.T, (all_TR - tp_TR).T))
    return np.stack(columns, axis=-1)


def _auroc(tp_T: Floats, fp_T: Floats) -> Floats:
    area = (np.diff(fp_T, prepend=0.0) * (tp_T - np.diff(tp_T, prepend=0.0) / 2)).sum(axis=-1)
    return ratio(area, tp_T[..., -1] * fp_T[..., -1])


def _average_precision(tp_T: Floats, fp_T: Floats) -> Floats:
    precision_T = np.nan_to_num(ratio(tp_T, tp_T + fp_T))
    return ratio((np.diff(tp_T, prepend=0.0) * precision_T).sum(axis=-1), tp_T[..., -1])


# -- Probabilities ----------------------------------------------------------------------------------------------


def log_loss(truth_NK: Bools, probabilities_NK: Floats, *, weights: Floats | None = None) -> Floats:
    """Mean negative logarithm (nats) of the probability given to the true class; single label.

    Probabilities are clipped to the resolution of their type, as in scikit-learn, so one confident error cannot
    make the figure infinite.
    """
    return _mean(-(np.log(_clip(probabilities_NK)) * truth_NK).sum(axis=1), weights)


def binary_log_loss(truth_NK: Bools, probabilities_NK: Floats, *, weights: Floats | None = None) -> Floats:
    """Mean binary cross entropy (nats) over all cases and labels; multi-label."""
    probabilities = _clip(probabilities_NK)
    return _mean(-np.where(truth_NK, np.log(probabilities), np.log1p(-probabilities)).mean(axis=1), weights)


def brier(truth_NK: Bools, probabilities_NK: Floats, *, weights: Floats | None = None) -> Floats:
    """Mean over cases of the squared error summed over classes, in [0, 2] (Brier, Monthly Weather Review 1950)."""
    return _mean(((probabilities_NK - truth_NK) ** 2).sum(axis=1), weights)


def binary_brier(truth_NK: Bools, probabilities_NK: Floats, *, weights: Floats | None = None) -> Floats:
    """Mean squared error over all cases and labels, in [0, 1]; multi-label."""
    return _mean(((probabilities_NK - truth_NK) ** 2).mean(axis=1), weights)


def calibration_error(confidence: Floats, correct: Bools, *, bins: int, weights: Floats | None = None) -> Floats:
    """Expected calibration error, [...]: how far confidence is from the share of correct answers.

    The mean over equal-width bins ((m-1)/M, m/M] of |accuracy - mean confidence|, weighted by the statements in
    each (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017). ``confidence`` and ``correct`` hold
    one statement per case [N] (single label: the probability of the named class, top label) or several [N, L]
    (multi-label: the probability and the truth of every label).
    """
    cases = len(confidence)
    statements = confidence.size // cases
    weights = as_weights(weights, cases)
    code = np.repeat(np.arange(cases), statements) * bins + _bin_of(confidence.ravel(), bins)
    gap_NM = np.bincount(code, weights=(correct - confidence).ravel(), minlength=cases * bins).reshape(cases, bins)
    return ratio(np.abs(weights @ gap_NM).sum(axis=-1), statements * weights.sum(axis=-1))


def calibration_bins(confidence: Floats, correct: Bools, *, bins: int) -> CalibrationBins:
    """The bins behind ``calibration_error``, for a reliability diagram."""
    bin_N = _bin_of(confidence.ravel(), bins)
    statements_M = np.bincount(bin_N, minlength=bins).astype(float)
    return CalibrationBins(
        edges=np.linspace(0.0, 1.0, bins + 1),
        statements_M=statements_M,
        confidence_M=ratio(np.bincount(bin_N, weights=confidence.ravel(), minlength=bins), statements_M),
        frequency_M=ratio(np.bincount(bin_N, weights=correct.ravel(), minlength=bins), statements_M),
    )


# -- Multi-label ------------------------------------------------------------------------------------------------


def exact_match(truth_NK: Bools, predicted_NK: Bools, *, weights: Floats | None = None) -> Floats:
    """Share of cases whose whole set of labels is right (subset accuracy), [...]."""
    return _mean((truth_NK == predicted_NK).all(axis=1), weights)


def hamming_loss(truth_NK: Bools, predicted_NK: Bools, *, weights: Floats | None = None) -> Floats:
    """Share of case-label decisions that are wrong, [...]."""
    return _mean((truth_NK != predicted_NK).mean(axis=1), weights)


# -- Helpers ----------------------------------------------------------------------------------------------------


def as_weights(weights: Floats | None, cases: int) -> Floats:
    """How often each case counts, once each where nothing is given."""
    return np.ones(cases) if weights is None else np.asarray(weights, dtype=float)


def _mean(values_N: Any, weights: Floats | None) -> Floats:
    weights = as_weights(weights, len(values_N))
    return ratio(weights @ values_N, weights.sum(axis=-1))


def ratio(numerator: Any, denominator: Any) -> Floats:
    """The quotient, nan where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    quotient = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator != 0)
    return quotient


def defined(value: Any) -> float | None:
    """A plain float, None for nan."""
    return None if math.isnan(value) else float(value)


def _clip(probabilities: Floats) -> Floats:
    smallest = float(np.finfo(probabilities.dtype).eps)
    return np.asarray(np.clip(probabilities.astype(float), smallest, 1.0 - smallest))


def _bin_of(confidence_N: Floats, bins: int) -> Ints:
    return np.asarray(np.clip(np.ceil(confidence_N * bins).astype(np.int64) - 1, 0, bins - 1))
