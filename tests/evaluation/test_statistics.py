"""The bootstrap over groups, Wilson's interval, mean and deviation, and paired differences."""

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


# -- Paired differences -------------------------------------------------------------------------------------------


def trainings(
    random: np.random.Generator, *, groups: int, seeds: int, shift: float, of_seed: float, of_group: float, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Differences by seed whose truth is ``shift``, and their draws; the three deviations are those of a mean."""
    values_SG = shift + random.normal(0, of_seed, (seeds, 1)) + random.normal(0, of_group, groups) * groups**0.5
    values_SG += random.normal(0, noise, (seeds, groups)) * groups**0.5
    weights_RG = random.multinomial(groups, np.full(groups, 1 / groups), size=300) / groups
    return values_SG.mean(axis=1), values_SG @ weights_RG.T


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("of_seed", "of_group", "noise"),
    [(1, 0, 0), (1, 0.5, 0.5), (0.5, 1, 0.5), (0, 0, 1), (0, 1, 0), (0.5, 0.5, 1)],
    ids=str,
)
def test_a_known_difference_lies_in_its_interval_about_as_often_as_is_said(
    monkeypatch: pytest.MonkeyPatch, seeds: int, of_seed: float, of_group: float, noise: float
) -> None:
    monkeypatch.setattr(ours, "_VARIATES", 10)  # quicker
    random = np.random.default_rng(seeds)
    held, rounds = 0, 200
    for _ in range(rounds):
        found = ours.paired_interval(
            *trainings(random, groups=40, seeds=seeds, shift=2, of_seed=of_seed, of_group=of_group, noise=noise),
            confidence=0.9,
            seed=0,
        )
        held += found.low < 2 < found.high  # type: ignore[operator]
    assert 0.84 <= held / rounds <= 0.965


def test_the_interval_by_another_way() -> None:
    """The same components of variance from sums of squares, and quantiles of another draw of Student's t."""
    random = np.random.default_rng(1)
    seeds_S, draws_SR = trainings(random, groups=30, seeds=4, shift=1, of_seed=1, of_group=0.3, noise=0.5)
    found = ours.paired_interval(seeds_S, draws_SR, confidence=0.9, seed=0)
    own = [plain.pvariance(row) for row in draws_SR.tolist()]
    together = plain.pvariance([plain.fmean(column) for column in draws_SR.T.tolist()])
    explained = (plain.fmean(own) - together) / (1 - 1 / 4)
    spread = ((plain.variance(seeds_S.tolist()) - explained) / 4) ** 0.5
    possible = draws_SR.mean(axis=0)[:, None] + spread * np.random.default_rng(7).standard_t(3, size=(300, 1000))
    assert found.value == pytest.approx(plain.fmean(seeds_S.tolist()))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(possible, [0.05, 0.95])), abs=0.05)
    assert ours.paired_interval(seeds_S, draws_SR, confidence=0.9, seed=0) == found
    wider = ours.paired_interval(seeds_S, draws_SR, confidence=0.99, seed=0)
    assert wider.low < found.low < found.high < wider.high  # type: ignore[operator]


def test_one_training_has_the_interval_of_its_cases() -> None:
    random = np.random.default_rng(2)
    seeds_S, draws_SR = trainings(random, groups=30, seeds=1, shift=0, of_seed=1, of_group=1, noise=0)
    found = ours.paired_interval(seeds_S, draws_SR, confidence=0.95, seed=0)
    expected = ours.percentile_interval(float(seeds_S[0]), draws_SR[0], confidence=0.95)
    assert found == expected


def test_a_model_against_itself_differs_by_nothing() -> None:
    assert ours.paired_interval(np.zeros(3), np.zeros((3, 50)), confidence=0.95, seed=0) == ours.Interval(0, 0, 0)


def test_differences_that_no_resample_can_show_have_no_interval() -> None:
    same, nothing = np.ones((3, 50)), np.full((3, 50), np.nan)
    assert ours.paired_interval(np.ones(3), same, confidence=0.95, seed=0) == ours.Interval(1.0)
    assert ours.paired_interval(np.ones(3), nothing, confidence=0.95, seed=0) == ours.Interval(1.0)
    assert ours.paired_interval(np.ones(3), same[:, :0], confidence=0.95, seed=0) == ours.Interval(1.0)
    some = np.random.default_rng(0).normal(1, 1, (3, 50))
    some[1, :20] = np.nan  # a resample that one model leaves undefined is left out for all
    found = ours.paired_interval(np.ones(3), some, confidence=0.95, seed=0)
    assert found == ours.paired_interval(np.ones(3), some[:, 20:], confidence=0.95, seed=0)
    assert found.low is not None
