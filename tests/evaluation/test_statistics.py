"""The bootstrap over groups, Wilson's interval, mean and deviation."""

from __future__ import annotations

import statistics as plain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from consilium.evaluation import statistics as ours


def mean_of(values_N: np.ndarray):
    return lambda weights: {"mean": weights @ values_N / weights.sum(axis=-1)}


@settings(max_examples=40)
@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=20), st.integers(0, 5))
def test_groups_are_drawn_whole(groups: list[str], seed: int) -> None:
    drawn = ours.bootstrap_groups(groups, lambda weights: {"weights": weights}, samples=7, seed=seed)["weights"]
    assert drawn.shape == (7, len(groups))
    first = [groups.index(group) for group in groups]
    np.testing.assert_array_equal(drawn, drawn[:, first])  # a group's cases count alike
    once = [groups.index(group) for group in set(groups)]
    np.testing.assert_array_equal(drawn[:, once].sum(axis=1), len(set(groups)))  # as many draws as groups


def test_draws_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def weights(seed: int) -> np.ndarray:
        groups = [str(n // 3) for n in range(30)]
        return ours.bootstrap_groups(groups, lambda drawn: {"weights": drawn}, samples=50, seed=seed)["weights"]

    whole = weights(1)
    monkeypatch.setattr(ours, "_BLOCK", 7 * 30)
    np.testing.assert_array_equal(weights(1), whole)
    assert not np.array_equal(weights(2), whole)


def test_no_samples_give_no_draws() -> None:
    assert ours.bootstrap_groups(["a"], mean_of(np.ones(1)), samples=0, seed=0) == {}


def test_intervals_cover_the_truth_only_when_groups_are_drawn_whole() -> None:
    random = np.random.default_rng(0)
    patients, images, trials = 40, 6, 150
    covered = {"by patient": 0, "by image": 0}
    for trial in range(trials):
        # What an image shows is mostly what its patient is: images of one patient say nearly the same.
        level = random.normal(size=(patients, 1))
        values = (level + 0.3 * random.normal(size=(patients, images))).ravel()
        for name, groups in (
            ("by patient", np.repeat(np.arange(patients), images)),
            ("by image", np.arange(values.size)),
        ):
            draws = ours.bootstrap_groups([str(g) for g in groups], mean_of(values), samples=300, seed=trial)["mean"]
            interval = ours.percentile_interval(values.mean(), draws, confidence=0.95)
            assert interval.low is not None
            assert interval.high is not None
            covered[name] += interval.low <= 0.0 <= interval.high
    assert 0.88 <= covered["by patient"] / trials <= 0.99
    assert covered["by image"] / trials < 0.75


def test_percentile_interval_is_the_quantiles() -> None:
    draws = np.random.default_rng(0).normal(size=5000)
    interval = ours.percentile_interval(0.1, draws, confidence=0.9)
    assert interval.value == 0.1
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(draws, [0.05, 0.95])))


def test_undefined_draws() -> None:
    draws = np.array([0.1, 0.2, 0.3, np.nan])
    assert ours.percentile_interval(0.2, draws, confidence=0.95).low == pytest.approx(0.105)
    assert ours.percentile_interval(0.2, np.array([0.1, 0.2, np.nan, np.nan, np.nan]), confidence=0.95).low is None
    assert ours.percentile_interval(1.0, np.ones(100), confidence=0.95).high is None


@given(st.integers(1, 500), st.data(), st.sampled_from([0.9, 0.95, 0.99]))
def test_wilson_is_scipys(count: int, data: st.DataObject, confidence: float) -> None:
    right = data.draw(st.integers(0, count))
    interval = ours.wilson_interval(right / count, count, confidence=confidence)
    theirs = binomtest(right, count).proportion_ci(confidence, method="wilson")
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_mean_and_deviation() -> None:
    found = ours.mean_and_deviation([0.8, 0.9, 0.85])
    assert (found.mean, found.deviation, found.runs) == (
        pytest.approx(0.85), pytest.approx(plain.stdev([0.8, 0.9, 0.85])), 3,
    )  # fmt: skip
    assert ours.mean_and_deviation([0.8]).deviation is None
