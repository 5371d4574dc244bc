"""Temperatures against a grid and against truth that is known; thresholds against every one that there could be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.core.answers import FAR, answer
from consilium.core.labels import LabelTree
from consilium.evaluation.labels.calibration import (
    choose_distances,
    choose_label_threshold,
    choose_thresholds,
    fit_labels,
    fit_temperatures,
)
from consilium.evaluation.metrics import calibration_error

FLAT = LabelTree(["a", "b", "c", "d"])
TREE = LabelTree(["a", "b", "a.x", "a.y", "b.z", "a.y.u", "a.y.v"], nested=True)


def softmax(scores_NK: np.ndarray) -> np.ndarray:
    shares_NK: np.ndarray = np.exp(scores_NK - scores_NK.max(1, keepdims=True))
    return shares_NK / shares_NK.sum(1, keepdims=True)


def drawn(seed: int, cases: int, tree: LabelTree, *, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels that follow them exactly once the scores are divided by ``temperature``."""
    rng = np.random.default_rng(seed)
    true_NM = rng.normal(0, 2, (cases, len(tree)))
    targets_N = np.full(cases, -1)
    for group in tree.siblings:
        here = np.flatnonzero(targets_N == (-1 if group.parent is None else group.parent))
        for case in here:
            shares_K = softmax(true_NM[case : case + 1, list(group.ids)])[0]
            targets_N[case] = rng.choice(list(group.ids), p=shares_K)
    return (true_NM * temperature).astype(np.float32), targets_N


# -- Temperatures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", [FLAT, TREE], ids=["flat", "tree"])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_found(tree: LabelTree, temperature: float) -> None:
    logits_NM, targets_N = drawn(0, 2000 if tree is FLAT else 8000, tree, temperature=temperature)
    found = fit_temperatures(logits_NM, targets_N, labels=tree)
    assert found.keys() == {tree.name_of(group.parent) for group in tree.siblings}
    for group in tree.siblings:
        expected = temperature if len(group.ids) > 1 else 1.0
        assert found[tree.name_of(group.parent)] == pytest.approx(expected, rel=0.12)


@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([0.1, 1.0, 10.0, 100.0]))
def test_it_is_the_best_of_a_fine_grid(seed: int, cases: int, scale: float) -> None:
    """Also where labels have nothing to do with scores, and where scores are far too sure."""
    rng = np.random.default_rng(seed)
    logits_NM = (rng.normal(0, scale, (cases, len(TREE)))).astype(np.float32)
    targets_N = rng.integers(-1, len(TREE), cases)
    found = fit_temperatures(logits_NM, targets_N, labels=TREE)
    grid_G = np.exp(np.linspace(math.log(0.05), math.log(20), 400))
    for group in TREE.siblings:
        place = {node: number for number, node in enumerate(group.ids)}
        labelled = [(case, node) for case, target in enumerate(targets_N) if target >= 0 for node in TREE.path(target)]
        taught = [(case, place[node]) for case, node in labelled if node in place]
        own_NK = logits_NM[[case for case, _ in taught]][:, list(group.ids)].astype(np.float64)
        truth_N = np.array([number for _, number in taught], dtype=np.int64)

        def cost(temperatures_G: np.ndarray, own_NK: np.ndarray = own_NK, truth_N: np.ndarray = truth_N) -> np.ndarray:
            scaled_GNK = own_NK / temperatures_G[:, None, None]
            scaled_GNK -= scaled_GNK.max(2, keepdims=True)
            log_p_GN = scaled_GNK[:, np.arange(len(truth_N)), truth_N] - np.log(np.exp(scaled_GNK).sum(2))
            total_G: np.ndarray = np.log(temperatures_G) ** 2 / (2 * 0.5**2) - log_p_GN.sum(1)
            return total_G

        best = cost(grid_G).min()
        assert cost(np.array([found[TREE.name_of(group.parent)]]))[0] <= best + 1e-3 * (1 + best)


def test_few_cases_say_little_and_none_nothing() -> None:
    logits_NM, _ = drawn(1, 3, FLAT)
    right_N = logits_NM.argmax(1)
    for targets_N in (right_N, (right_N + 1) % 4):  # alone, the first ask for 0 and the second for infinity
        (found,) = fit_temperatures(logits_NM, targets_N, labels=FLAT).values()
        assert 0.5 < found < 2.5
    assert fit_temperatures(logits_NM, np.full(3, -1), labels=FLAT) == {"root": 1.0}
    assert fit_temperatures(logits_NM[:0], right_N[:0], labels=FLAT) == {"root": 1.0}


def test_cases_that_stop_at_a_node_say_nothing_of_the_levels_below() -> None:
    logits_NM, targets_N = drawn(2, 300, TREE, temperature=2.0)
    more_NM, _ = drawn(3, 300, TREE, temperature=9.0)
    at_a = np.zeros(300, dtype=np.int64)
    alone = fit_temperatures(logits_NM, targets_N, labels=TREE)
    both = fit_temperatures(np.vstack([logits_NM, more_NM]), np.append(targets_N, at_a), labels=TREE)
    assert both["root"] != alone["root"]
    assert {name: both[name] for name in ("a", "a.y", "b")} == {name: alone[name] for name in ("a", "a.y", "b")}


def test_held_out_cases_are_better_calibrated_and_answered_alike() -> None:
    logits_NK, targets_N = drawn(4, 2000, FLAT, temperature=3.0)
    (temperature,) = fit_temperatures(logits_NK[:1000], targets_N[:1000], labels=FLAT).values()
    held_NK, truth_N = logits_NK[1000:], targets_N[1000:]

    def error(probabilities_NK: np.ndarray) -> float:
        sure_N = probabilities_NK.max(1)
        return float(calibration_error(sure_N, probabilities_NK.argmax(1) == truth_N, bins=15))

    before, after = softmax(held_NK), softmax(held_NK / temperature)
    assert error(before) > 0.15
    assert error(after) < 0.05
    assert (before.argmax(1) == after.argmax(1)).all()


# -- Thresholds ---------------------------------------------------------------------------------------------------


@st.composite
def judged(draw: st.DrawFn) -> tuple[LabelTree, np.ndarray, np.ndarray]:
    """A tree with probabilities of paths, many of them equal, and labels; a few cases have none."""
    tree = draw(st.sampled_from([FLAT, TREE]))
    cases = draw(st.integers(1, 12))
    row = st.lists(st.integers(1, 3), min_size=len(tree), max_size=len(tree))
    shares_NM = np.array(draw(st.lists(row, min_size=cases, max_size=cases)), dtype=np.float64)
    for group in tree.siblings:
        shares_NM[:, list(group.ids)] /= shares_NM[:, list(group.ids)].sum(1, keepdims=True)
    probabilities_NM = np.stack([shares_NM[:, list(tree.path(n))].prod(1) for n in range(len(tree))], axis=1)
    targets = draw(st.lists(st.integers(-1, len(tree) - 1), min_size=cases, max_size=cases))
    return tree, probabilities_NM.astype(np.float32), np.array(targets)


@given(judged(), st.sampled_from([0.01, 0.5, 0.6, 0.75, 0.99]))
def test_thresholds_answer_the_most_that_is_right_often_enough(
    given_: tuple[LabelTree, np.ndarray, np.ndarray], wanted: float
) -> None:
    tree, probabilities_NM, targets_N = given_
    thresholds = choose_thresholds(probabilities_NM, targets_N, labels=tree, wanted_accuracy=wanted)
    assert len(thresholds) == tree.levels
    whole = answer(probabilities_NM, labels=tree)
    still = np.ones(len(targets_N), dtype=bool)  # answered at the levels above
    for level, threshold in enumerate(thresholds):
        known = (tree.paths_ML[targets_N, level] >= 0) | np.isin(targets_N, tree.leaf_ids)
        reaches = (targets_N >= 0) & known & (whole.paths_NL[:, level] >= 0) & still
        sure_N = whole.probabilities_NL[:, level]
        right_N = whole.paths_NL[:, level] == tree.paths_ML[targets_N, level]
        most = 0
        for least in np.unique(sure_N[reaches]):  # every threshold that makes a difference
            answered = reaches & (sure_N >= least)
            if right_N[answered].mean() >= wanted:
                most = max(most, int(answered.sum()))
        answered = reaches & (sure_N >= (np.inf if threshold is None else threshold))
        assert answered.sum() == most
        assert (threshold is None) == (most == 0)
        still &= sure_N >= (np.inf if threshold is None else threshold)


def growing(tree: LabelTree, cases: int, seed: int) -> np.ndarray:
    """Distances that grow down the tree; of a label there may be no training case."""
    steps_NM = np.random.default_rng(seed).integers(0, 4, (cases, len(tree))).astype(np.float32)
    distances_NM = np.stack([steps_NM[:, list(tree.path(node))].sum(1) for node in range(len(tree))], axis=1)
    distances_NM[:, tree.leaf_ids[seed % len(tree.leaf_ids)]] = FAR
    return distances_NM


@given(judged(), st.integers(0, 99), st.sampled_from([0.3, 0.5, 0.9, 1.0]))
def test_the_smallest_distance_is_chosen_that_lets_the_share_pass(
    given_: tuple[LabelTree, np.ndarray, np.ndarray], seed: int, share: float
) -> None:
    tree, probabilities_NM, _ = given_
    distances_NM = growing(tree, len(probabilities_NM), seed)
    limits = choose_distances(probabilities_NM, distances_NM, labels=tree, share=share)
    kept = choose_distances(probabilities_NM, distances_NM, labels=tree, share=share, given=[7.0])
    assert len(limits) == len(kept) == tree.levels
    assert kept[0] == 7.0
    paths_NL = answer(probabilities_NM, labels=tree).paths_NL
    for level, limit in enumerate(limits):
        nodes = paths_NL[:, level]
        own = sorted(float(distances_NM[case, node]) for case, node in enumerate(nodes) if node >= 0)
        own = [distance for distance in own if distance < FAR]
        if not own:
            assert limit == (limits[level - 1] if level else 0.0)
            assert kept[level] == kept[max(level - 1, 0)]
            continue
        assert level == 0 or kept[level] == limit
        assert sum(distance <= limit for distance in own) >= share * len(own)
        smaller = [distance for distance in own if distance < limit * (1 - 2e-4)]
        assert len(smaller) < share * len(own)


def test_answers_that_distance_stops_do_not_count_for_the_threshold() -> None:
    """The wrong one lies far away, so that the others may all be answered."""
    probabilities_NK = np.array([[0.9, 0.1], [0.7, 0.3], [0.6, 0.4]], dtype=np.float32)
    targets_N, distances_NK = np.array([0, 1, 0]), np.array([[1.0, 3.0], [8.0, 9.0], [2.0, 3.0]])
    two = LabelTree(["a", "b"])
    (alone,) = choose_thresholds(probabilities_NK, targets_N, labels=two, wanted_accuracy=0.9)
    (beside,) = choose_thresholds(
        probabilities_NK, targets_N, labels=two, wanted_accuracy=0.9, distances_NM=distances_NK, limits=[5.0]
    )
    assert alone is not None
    assert beside is not None
    assert 0.7 < alone < 0.9
    assert beside < 0.6


def test_an_answer_below_a_label_that_ends_above_is_wrong() -> None:
    """Half of what is called a child of a is b, which ends at the first level: no second level is right often."""
    tree = LabelTree(["a", "a.x", "a.y", "b"], nested=True)
    probabilities_NM = np.array([[0.9, 0.8, 0.1, 0.1]] * 4)
    found = choose_thresholds(probabilities_NM, np.array([1, 1, 3, 3]), labels=tree, wanted_accuracy=0.6, given=[0.5])
    assert found == [0.5, None]
    at_a = choose_thresholds(probabilities_NM, np.array([1, 1, 0, -1]), labels=tree, wanted_accuracy=0.6, given=[0.5])
    assert at_a[1] == pytest.approx(0.8, abs=1e-3)


def chosen(sure: list[float], right: list[bool], wanted: float) -> float | None:
    """The threshold of two classes, of cases that are so sure and right or wrong."""
    probabilities_NK = np.array([[p, 1 - p] for p in sure], dtype=np.float32)
    targets_N = np.where(right, 0, 1)
    (found,) = choose_thresholds(probabilities_NK, targets_N, labels=LabelTree(["a", "b"]), wanted_accuracy=wanted)
    return found


@pytest.mark.parametrize(
    ("sure", "right", "wanted", "between"),
    [
        ([0.9, 0.8, 0.7], [True, True, True], 0.9, (0.69, 0.7)),
        ([0.9, 0.8, 0.7], [True, True, False], 0.9, (0.79, 0.8)),
        ([0.9, 0.8, 0.7], [True, True, False], 0.66, (0.69, 0.7)),
        ([0.9, 0.8, 0.7, 0.6], [True, False, True, True], 0.75, (0.59, 0.6)),  # not good at 0.8, and good again below
        ([0.9, 0.8, 0.8], [True, True, False], 0.9, (0.89, 0.9)),  # equal ones are answered together
        ([0.75, 0.75 - 2**-24], [True, False], 0.9, (0.75 - 2**-24, 0.75)),  # neighbours in float32
        ([0.9, 0.8], [False, False], 0.5, None),
    ],
    ids=str,
)
def test_a_threshold_is_a_little_below_the_least_sure_that_it_answers(
    sure: list[float], right: list[bool], wanted: float, between: tuple[float, float] | None
) -> None:
    found = chosen(sure, right, wanted)
    if between is None:
        assert found is None
    else:
        assert found is not None
        assert between[0] < found < between[1]


@given(st.lists(st.tuples(st.integers(501, 1000), st.booleans()), min_size=1, max_size=20), st.integers(0, 1000))
def test_rounding_in_another_batch_changes_no_answer(cases: list[tuple[int, bool]], seed: int) -> None:
    sure_N = np.array([thousandths / 1000 for thousandths, _ in cases])
    found = chosen(sure_N.tolist(), [right for _, right in cases], 0.7)
    if found is not None:
        moved_N = (sure_N * (1 + np.random.default_rng(seed).uniform(-9e-5, 9e-5, len(sure_N)))).astype(np.float32)
        assert ((moved_N >= found) == (sure_N.astype(np.float32) >= found)).all()


# -- Any number of labels a case ----------------------------------------------------------------------------------


def test_a_known_temperature_and_known_offsets_are_found() -> None:
    rng = np.random.default_rng(5)
    scores_NK, offsets_K = rng.normal(0, 3, (4000, 3)), np.array([-1.5, 0.0, 2.0])
    truth_NK = rng.random((4000, 3)) < 1 / (1 + np.exp(-(scores_NK / 2.5 + offsets_K)))
    temperature, found_K = fit_labels(scores_NK, truth_NK)
    assert temperature == pytest.approx(2.5, rel=0.1)
    assert found_K == pytest.approx(offsets_K, abs=0.2)


@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([0.1, 1.0, 30.0]))
def test_nothing_near_what_is_found_is_better(seed: int, cases: int, scale: float) -> None:
    """Also where a label is in all cases or in none, and where scores say nothing of labels."""
    rng = np.random.default_rng(seed)
    scores_NK = rng.normal(0, scale, (cases, 2))
    truth_NK = rng.random((cases, 2)) < rng.choice([0.0, 0.5, 1.0])
    temperature, offsets_K = fit_labels(scores_NK, truth_NK)

    def cost(log_t: float, b_K: np.ndarray) -> float:
        total_NK = scores_NK / math.exp(log_t) + b_K
        loss = np.logaddexp(0, np.where(truth_NK, -total_NK, total_NK)).sum()
        return float(loss + log_t**2 / (2 * 0.5**2) + (b_K**2).sum() / 8)

    best = cost(math.log(temperature), np.array(offsets_K))
    for step in (-0.05, 0.05):
        assert best <= cost(math.log(temperature) + step, np.array(offsets_K)) + 1e-4
        for move_K in np.eye(2) * step:
            assert best <= cost(math.log(temperature), np.array(offsets_K) + move_K) + 1e-4


@given(st.integers(0, 10_000), st.integers(1, 10))
def test_no_threshold_gives_labels_with_a_higher_f1(seed: int, cases: int) -> None:
    rng = np.random.default_rng(seed)
    sure_NK = rng.choice([0.05, 0.2, 0.35, 0.5, 0.8, 0.99], (cases, 3)).astype(np.float32)
    truth_NK = rng.random((cases, 3)) < 0.4
    found = choose_label_threshold(sure_NK, truth_NK)

    def f1(threshold: float) -> float:
        given_NK = sure_NK >= threshold
        return float(2 * (given_NK & truth_NK).sum() / max(1, given_NK.sum() + truth_NK.sum()))

    if not truth_NK.any():
        assert found is None
    else:
        assert found is not None
        assert f1(found) == pytest.approx(max(f1(threshold) for threshold in np.linspace(0, 1.01, 203)))
