"""Figures of answers in a tree, against sets of names and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.core.labels import LabelTree
from consilium.evaluation.labels import hierarchy as h
from consilium.evaluation.labels.hierarchy import JudgedPaths
from tests.evaluation.trees import Judged, judged


def answered(cases: Judged) -> JudgedPaths:
    return h.judge_paths(cases.truth_N, cases.answers.paths_NL, cases.answers.depths_N, labels=cases.labels)


def whole(cases: Judged) -> JudgedPaths:
    depths_N = np.full(len(cases.truth_N), cases.labels.levels)
    return h.judge_paths(cases.truth_N, cases.answers.paths_NL, depths_N, labels=cases.labels)


def quotient(part: float, of: float) -> float:
    return part / of if of else math.nan


@given(judged())
def test_hierarchical_figures_are_those_of_sets_of_names(cases: Judged) -> None:
    found = answered(cases)
    values = [h.hierarchical_precision(found), h.hierarchical_recall(found), h.hierarchical_f1(found)]
    for weights_N in [np.ones(len(cases.truth_N)), *cases.weights_RN]:
        both = said = true = 0.0
        for case, weight in enumerate(weights_N):
            named, label = set(cases.said(case)), set(cases.path(cases.truth_N[case]))
            both, said, true = (
                both + weight * len(named & label),
                said + weight * len(named),
                true + weight * len(label),
            )
        precision, recall = quotient(both, said), quotient(both, true)
        expected = [precision, recall, quotient(2 * both, said + true)]
        np.testing.assert_allclose([value.value(weights_N) for value in values], expected)
        if precision and recall and precision + recall:  # it is their harmonic mean
            assert expected[2] == pytest.approx(2 * precision * recall / (precision + recall), nan_ok=True)


@given(judged())
def test_resamples_at_once_equal_one_after_another(cases: Judged) -> None:
    found = answered(cases)
    for share in (h.hierarchical_precision(found), h.level_accuracy(found), h.level_coverage(found)):
        np.testing.assert_allclose(share.value(cases.weights_RN), np.stack([share.value(w) for w in cases.weights_RN]))


@given(judged())
def test_right_answers_give_one(cases: Judged) -> None:
    paths_NL = cases.labels.paths_ML[cases.truth_N]
    found = h.judge_paths(cases.truth_N, paths_NL, (paths_NL >= 0).sum(1), labels=cases.labels)
    for figure in (h.hierarchical_precision, h.hierarchical_recall, h.hierarchical_f1):
        assert figure(found).value() == 1.0


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=20))
def test_of_a_flat_list_they_are_the_accuracy(pairs: list[tuple[int, int]]) -> None:
    truth_N, named_N = np.array(pairs).T
    labels = LabelTree(["a", "b", "c.d"])
    found = h.judge_paths(truth_N, named_N[:, None], np.ones(len(pairs), dtype=int), labels=labels)
    accuracy = np.mean(truth_N == named_N)
    for figure in (h.hierarchical_precision, h.hierarchical_recall, h.hierarchical_f1):
        assert figure(found).value() == pytest.approx(accuracy)


@given(judged())
def test_stopping_only_costs_recall(cases: Judged) -> None:
    full, stopped = whole(cases), answered(cases)
    assert h.hierarchical_recall(stopped).value() <= h.hierarchical_recall(full).value()
    # To stop just above every error makes all that is said right, and finds as much.
    above = h.judge_paths(cases.truth_N, cases.answers.paths_NL, full.right_NL.sum(1), labels=cases.labels)
    assert h.hierarchical_precision(above).value() == 1.0 or not above.said_NL.any()
    assert h.hierarchical_recall(above).value() == h.hierarchical_recall(full).value()


@given(judged())
def test_levels_against_a_loop(cases: Judged) -> None:
    right, covered, right_of_covered = (
        share.value()
        for share in (
            h.level_accuracy(whole(cases)),
            h.level_coverage(answered(cases)),
            h.level_answered_accuracy(answered(cases)),
        )
    )
    for level in range(cases.labels.levels):
        rows = [n for n, node in enumerate(cases.truth_N) if len(cases.path(node)) > level]
        hits = [
            cases.said(n, whole=True)[level : level + 1] == cases.path(cases.truth_N[n])[level : level + 1]
            for n in rows
        ]
        given_here = [len(cases.said(n)) > level for n in rows]
        np.testing.assert_allclose(right[level], quotient(sum(hits), len(rows)))
        np.testing.assert_allclose(covered[level], quotient(sum(given_here), len(rows)))
        reached = [n for n in range(len(cases.truth_N)) if len(cases.said(n)) > level]
        hit = [cases.said(n)[level] in cases.path(cases.truth_N[n]) for n in reached]
        np.testing.assert_allclose(right_of_covered[level], quotient(sum(hit), len(reached)))


@given(judged())
def test_nodes_said_against_names(cases: Judged) -> None:
    found = h.nodes_said(whole(cases), cases.answers.paths_NL, labels=cases.labels)
    for case, row in enumerate(found):
        assert [name for name, there in zip(cases.labels.names, row, strict=True) if there] == sorted(
            cases.said(case, whole=True)
        )


def test_a_label_above_the_leaves_cuts_what_is_said_below_it() -> None:
    labels = LabelTree(["a", "a.b", "a.c", "d"], nested=True)
    found = h.judge_paths(np.array([0, 0, 1]), np.array([[0, 1], [3, -1], [0, 2]]), np.array([2, 1, 2]), labels=labels)
    assert found.said_NL.tolist() == [[True, False], [True, False], [True, True]]
    assert found.right_NL.tolist() == [[True, False], [False, False], [True, False]]
    assert h.hierarchical_precision(found).value() == 0.5


# -- Risk against coverage --------------------------------------------------------------------------------------


SURE = st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.7, 0.9]), st.booleans()), min_size=1, max_size=15)


def plain_aurc(sure: list[float], wrong: list[bool]) -> float:
    risks = []
    for threshold in sure:
        kept = [bad for other, bad in zip(sure, wrong, strict=True) if other >= threshold]
        risks.append(sum(kept) / len(kept))
    return quotient(sum(risks), len(risks))


@given(SURE, st.data())
def test_aurc_is_the_mean_risk_over_the_thresholds_of_all_cases(
    pairs: list[tuple[float, bool]], data: st.DataObject
) -> None:
    sure, wrong = np.array([s for s, _ in pairs]), np.array([w for _, w in pairs])
    assert h.aurc(sure, wrong) == pytest.approx(plain_aurc(sure.tolist(), wrong.tolist()))
    counts = st.lists(st.integers(0, 3), min_size=len(pairs), max_size=len(pairs))
    weights_RN = np.array([data.draw(counts) for _ in range(3)])
    expected = [plain_aurc(np.repeat(sure, w).tolist(), np.repeat(wrong, w).tolist()) for w in weights_RN]
    np.testing.assert_allclose(h.aurc(sure, wrong, weights=weights_RN.astype(float)), expected)
    order = data.draw(st.permutations(range(len(pairs))))
    assert h.aurc(sure[order], wrong[order]) == pytest.approx(float(h.aurc(sure, wrong)))


@given(SURE)
def test_the_curve_ends_at_the_error_rate_and_coverage_grows(pairs: list[tuple[float, bool]]) -> None:
    sure, wrong = np.array([s for s, _ in pairs]), np.array([w for _, w in pairs])
    curve = h.risk_coverage(sure, wrong)
    assert curve.answered[-1] == len(pairs)
    assert curve.risk[-1] == pytest.approx(wrong.mean())
    assert (np.diff(curve.answered) > 0).all()
    assert (np.diff(curve.sure_T) < 0).all()
    for threshold, risk in zip(curve.sure_T, curve.risk, strict=True):
        assert risk == pytest.approx(wrong[sure >= threshold].mean())


def test_sureness_that_ranks_errors_last_is_best() -> None:
    wrong = np.array([True, False, False, False])
    assert h.aurc(np.array([0.1, 0.2, 0.3, 0.4]), wrong) == pytest.approx(1 / 16)
    assert h.aurc(np.array([0.4, 0.3, 0.2, 0.1]), wrong) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert math.isnan(h.aurc(np.array([]), np.array([], dtype=bool)))
