"""Metrics against scikit-learn and torchmetrics, with ties, absent classes and repeated cases."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
import sklearn.metrics as oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from consilium.evaluation import metrics as m


class Cases(NamedTuple):
    """A drawn problem; ``scores_NK`` come from few values, so that ties are usual."""

    truth_N: np.ndarray
    predicted_N: np.ndarray
    scores_NK: np.ndarray
    labels_NK: np.ndarray
    repeats_N: np.ndarray
    classes: int

    @property
    def truth_NK(self) -> np.ndarray:
        return m.one_hot(self.truth_N, classes=self.classes)

    @property
    def predicted_NK(self) -> np.ndarray:
        return m.one_hot(self.predicted_N, classes=self.classes)

    @property
    def counts(self) -> m.ClassCounts:
        return m.class_counts(self.truth_NK, self.predicted_NK)


@st.composite
def cases(draw: st.DrawFn) -> Cases:
    count, classes = draw(st.integers(1, 24)), draw(st.integers(2, 5))
    ids = npst.arrays(np.int64, count, elements=st.integers(0, classes - 1))
    grid = npst.arrays(np.int64, (count, classes), elements=st.integers(0, 6))
    repeats = npst.arrays(np.int64, count, elements=st.integers(0, 3)).filter(lambda drawn: drawn.sum() > 0)
    return Cases(draw(ids), draw(ids), draw(grid) / 6, draw(grid) > 3, draw(repeats), classes)


@pytest.fixture(autouse=True)
def _silent_oracles() -> Iterator[None]:
    with warnings.catch_warnings():  # scikit-learn warns of what we return as nan
        warnings.filterwarnings("ignore", module="sklearn")
        yield


def same(ours: object, theirs: object) -> None:
    np.testing.assert_allclose(np.asarray(ours, float), np.asarray(theirs, float), rtol=1e-9, atol=1e-12)


@given(cases())
def test_single_label_figures(drawn: Cases) -> None:
    truth, named, counts = drawn.truth_N, drawn.predicted_N, drawn.counts
    same(m.accuracy(counts), oracle.accuracy_score(truth, named))
    same(m.balanced_accuracy(counts), oracle.balanced_accuracy_score(truth, named))
    for average, ours in (("macro", m.macro_f1), ("micro", m.micro_f1), ("weighted", m.weighted_f1)):
        same(ours(counts), oracle.f1_score(truth, named, average=average, zero_division=0))
    same(m.macro_precision(counts), oracle.precision_score(truth, named, average="macro", zero_division=0))
    same(m.macro_recall(counts), oracle.recall_score(truth, named, average="macro", zero_division=0))


@given(cases())
def test_per_class_figures(drawn: Cases) -> None:
    labels = range(drawn.classes)
    theirs = oracle.precision_recall_fscore_support(
        drawn.truth_N, drawn.predicted_N, labels=labels, average=None, zero_division=np.nan
    )
    for ours, expected in zip((m.precision, m.recall, m.f1), theirs, strict=False):
        same(ours(drawn.counts), expected)
    same(drawn.counts.support, theirs[3])
    for k in labels:
        expected = oracle.recall_score(drawn.truth_N != k, drawn.predicted_N != k, zero_division=np.nan)
        same(m.specificity(drawn.counts)[k], expected)
    same(
        m.confusion_matrix(drawn.truth_N, drawn.predicted_N, classes=drawn.classes),
        oracle.confusion_matrix(drawn.truth_N, drawn.predicted_N, labels=labels),
    )


@given(cases())
def test_quadratic_kappa(drawn: Cases) -> None:
    ours = m.quadratic_weighted_kappa(m.confusion_matrix(drawn.truth_N, drawn.predicted_N, classes=drawn.classes))
    if len({*drawn.truth_N, *drawn.predicted_N}) == 1:
        assert np.isnan(ours)
    else:
        labels = range(drawn.classes)
        same(ours, oracle.cohen_kappa_score(drawn.truth_N, drawn.predicted_N, labels=labels, weights="quadratic"))


@given(cases())
def test_areas_of_each_class(drawn: Cases) -> None:
    ours = m.auroc(drawn.labels_NK, drawn.scores_NK), m.average_precision(drawn.labels_NK, drawn.scores_NK)
    for k, (truth, scores) in enumerate(zip(drawn.labels_NK.T, drawn.scores_NK.T, strict=True)):
        if truth.any() and not truth.all():
            same(ours[0][k], oracle.roc_auc_score(truth, scores))
        else:
            assert np.isnan(ours[0][k])
        if truth.any():
            same(ours[1][k], oracle.average_precision_score(truth, scores))
        else:
            assert np.isnan(ours[1][k])


@given(cases(), st.sampled_from([0.5, 0.75, 0.8, 0.9, 0.95]))
def test_sensitivity_at_specificity(drawn: Cases, level: float) -> None:
    ours = m.sensitivity_at_specificity(drawn.labels_NK, drawn.scores_NK, specificity=level)
    for k, (truth, scores) in enumerate(zip(drawn.labels_NK.T, drawn.scores_NK.T, strict=True)):
        if truth.any() and not truth.all():
            false_positives, sensitivity, _ = oracle.roc_curve(truth, scores, drop_intermediate=False)
            same(ours[k], sensitivity[false_positives <= 1 - level + 1e-9].max())
        else:
            assert np.isnan(ours[k])


def test_one_of_ten_negatives_may_pass_at_specificity_nine_tenths() -> None:
    truth = np.array([[False] * 10 + [True]]).T
    scores = np.array([[0.1] * 9 + [0.9] + [0.8]]).T
    assert m.sensitivity_at_specificity(truth, scores, specificity=0.9) == 1.0
    assert m.sensitivity_at_specificity(truth, scores, specificity=0.95) == 0.0


@given(cases())
def test_macro_auroc_is_scikit_learns_one_vs_rest(drawn: Cases) -> None:
    probabilities = (drawn.scores_NK + 0.1) / (drawn.scores_NK + 0.1).sum(axis=1, keepdims=True)
    if drawn.classes > 2 and len(set(drawn.truth_N)) == drawn.classes:
        expected = oracle.roc_auc_score(drawn.truth_N, probabilities, multi_class="ovr", average="macro")
        same(m.macro(m.auroc(drawn.truth_NK, probabilities)), expected)


@given(cases())
def test_multi_label_figures(drawn: Cases) -> None:
    truth, named = drawn.labels_NK, drawn.scores_NK >= 0.5
    counts = m.class_counts(truth, named)
    same(m.exact_match(truth, named), oracle.accuracy_score(truth, named))
    same(m.hamming_loss(truth, named), oracle.hamming_loss(truth, named))
    same(m.macro_f1(counts), oracle.f1_score(truth, named, average="macro", zero_division=np.nan))
    same(m.micro_f1(counts), oracle.f1_score(truth, named, average="micro", zero_division=np.nan))
    if truth.any():
        same(m.weighted_f1(counts), oracle.f1_score(truth, named, average="weighted", zero_division=0))
    else:
        assert np.isnan(m.weighted_f1(counts))


@given(cases())
def test_probability_scores(drawn: Cases) -> None:
    probabilities = (drawn.scores_NK + 0.05) / (drawn.scores_NK + 0.05).sum(axis=1, keepdims=True)
    labels = range(drawn.classes)
    same(m.log_loss(drawn.truth_NK, probabilities), oracle.log_loss(drawn.truth_N, probabilities, labels=labels))
    same(m.brier(drawn.truth_NK, probabilities), np.mean(np.sum((probabilities - drawn.truth_NK) ** 2, axis=1)))
    truth = drawn.labels_NK
    columns = [oracle.log_loss(truth[:, k], drawn.scores_NK[:, k], labels=[False, True]) for k in range(drawn.classes)]
    same(m.binary_log_loss(truth, drawn.scores_NK), np.mean(columns))
    briers = [np.mean((truth[:, k] - drawn.scores_NK[:, k]) ** 2) for k in range(drawn.classes)]
    same(m.binary_brier(truth, drawn.scores_NK), np.mean(briers))


WEIGHTED: dict[str, Callable[..., object]] = {
    "counts": lambda d, w: m.f1(m.class_counts(d.truth_NK, d.predicted_NK, weights=w)),
    "macro_f1": lambda d, w: m.macro_f1(m.class_counts(d.truth_NK, d.predicted_NK, weights=w)),
    "auroc": lambda d, w: m.auroc(d.labels_NK, d.scores_NK, weights=w),
    "average_precision": lambda d, w: m.average_precision(d.labels_NK, d.scores_NK, weights=w),
    "sensitivity": lambda d, w: m.sensitivity_at_specificity(d.labels_NK, d.scores_NK, specificity=0.8, weights=w),
    "calibration": lambda d, w: m.calibration_error(
        d.scores_NK[:, 0], d.truth_N == d.predicted_N, bins=5, weights=w
    ),
    "multi_label_calibration": lambda d, w: m.calibration_error(d.scores_NK, d.labels_NK, bins=5, weights=w),
    "exact_match": lambda d, w: m.exact_match(d.labels_NK, d.scores_NK >= 0.5, weights=w),
    "log_loss": lambda d, w: m.log_loss(d.truth_NK, d.scores_NK, weights=w),
    "binary_log_loss": lambda d, w: m.binary_log_loss(d.labels_NK, d.scores_NK, weights=w),
    "brier": lambda d, w: m.brier(d.truth_NK, d.scores_NK, weights=w),
    "binary_brier": lambda d, w: m.binary_brier(d.labels_NK, d.scores_NK, weights=w),
    "hamming_loss": lambda d, w: m.hamming_loss(d.labels_NK, d.scores_NK >= 0.5, weights=w),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTED)
@settings(max_examples=40)
@given(drawn=cases())
def test_a_weight_is_a_repetition(name: str, drawn: Cases) -> None:
    figure = WEIGHTED[name]
    repeated = Cases(*(np.repeat(part, drawn.repeats_N, axis=0) for part in drawn[:5]), drawn.classes)
    weights_RN = np.stack([drawn.repeats_N, np.ones_like(drawn.repeats_N)]).astype(float)
    both = np.asarray(figure(drawn, weights_RN))
    same(both[0], figure(repeated, None))
    same(both[1], figure(drawn, None))


def test_calibration_bins_follow_guo() -> None:
    confidence = np.array([0.0, 0.2, 0.200001, 1.0])
    bins = m.calibration_bins(confidence, np.array([False, True, False, True]), bins=5)
    np.testing.assert_array_equal(bins.statements_M, [2, 1, 0, 0, 1])  # 0.2 closes the first bin, 0 belongs to it
    assert bins.frequency_M[0] == 0.5
    assert np.isnan(bins.confidence_M[2])


@settings(max_examples=30)
@given(cases(), st.integers(2, 20))
def test_calibration_error_is_the_sum_over_its_bins(drawn: Cases, bins: int) -> None:
    shown = m.calibration_bins(drawn.scores_NK, drawn.labels_NK, bins=bins)
    gaps = np.nansum(shown.statements_M * np.abs(shown.confidence_M - shown.frequency_M)) / drawn.scores_NK.size
    same(m.calibration_error(drawn.scores_NK, drawn.labels_NK, bins=bins), gaps)


@pytest.mark.parametrize("seed", range(3))
def test_against_torchmetrics(seed: int) -> None:
    import torch
    from torchmetrics.functional import classification as peer

    random = np.random.default_rng(seed)
    count, classes = 300, 5
    truth = random.integers(classes, size=count)
    probabilities = random.dirichlet(np.ones(classes), size=count)
    probabilities[np.arange(count), truth] += 0.4
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    one_hot, named = m.one_hot(truth, classes=classes), probabilities.argmax(axis=1)
    counts = m.class_counts(one_hot, m.one_hot(named, classes=classes))
    tensors = torch.tensor(probabilities), torch.tensor(truth)
    confidence, right = probabilities.max(axis=1), named == truth

    def close(ours: object, theirs: torch.Tensor) -> None:
        np.testing.assert_allclose(np.asarray(ours), theirs.numpy(), rtol=1e-5)

    close(m.calibration_error(confidence, right, bins=15), peer.multiclass_calibration_error(*tensors, classes, 15))
    close(m.auroc(one_hot, probabilities), peer.multiclass_auroc(*tensors, classes, average=None))
    close(
        m.average_precision(one_hot, probabilities), peer.multiclass_average_precision(*tensors, classes, average=None)
    )
    close(m.macro_f1(counts), peer.multiclass_f1_score(*tensors, classes, average="macro"))
    close(m.specificity(counts), peer.multiclass_specificity(*tensors, classes, average=None))
    kappa = m.quadratic_weighted_kappa(m.confusion_matrix(truth, named, classes=classes))
    close(kappa, peer.multiclass_cohen_kappa(*tensors, classes, weights="quadratic"))
    at_90, _ = peer.multiclass_sensitivity_at_specificity(*tensors, classes, min_specificity=0.9)
    close(m.sensitivity_at_specificity(one_hot, probabilities, specificity=0.9), at_90)
