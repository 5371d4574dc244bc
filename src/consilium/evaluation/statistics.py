"""Uncertainty: the bootstrap over groups, Wilson's interval, several runs and their paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from consilium.core.evaluation import Interval
from consilium.evaluation.metrics import Floats

# Resamples are drawn in blocks of about this many numbers (4 MB): they stay in the cache, and memory does not grow.
_BLOCK = 500_000
_VARIATES = 100  # of Student's t for each resample, so that the ends of an interval hardly depend on them


@dataclass(frozen=True)
class MeanAndDeviation:
    """Mean and sample standard deviation (n - 1) of a figure over runs; deviation is None for one run."""

    mean: float
    deviation: float | None
    runs: int


def bootstrap_groups(
    groups: Sequence[str], statistic: Callable[[Floats], Mapping[str, Floats]], *, samples: int, seed: int
) -> dict[str, Floats]:
    """Draws of figures from resamples of whole groups (the cluster bootstrap).

    Cases of one patient are alike, so resampling cases would make intervals too narrow: as many groups as there
    are are drawn with replacement, and a case counts as often as its group was drawn (Davison and Hinkley,
    "Bootstrap Methods and their Application", 1997, section 3.8).

    ``groups`` names the group of each of N cases. ``statistic`` maps weights [R, N] to figures by name, each
    [R, ...]. The result holds [samples, ...] by name, the same for the same seed whatever the block size.
    """
    group_N = np.unique(np.asarray(groups), return_inverse=True)[1]
    count = int(group_N.max()) + 1
    random = np.random.default_rng(seed)
    block = max(1, min(samples, _BLOCK // len(group_N)))
    draws: dict[str, list[Floats]] = {}
    for start in range(0, samples, block):
        rows = min(block, samples - start)
        drawn_RG = random.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
        counts_RG = np.bincount(drawn_RG.ravel(), minlength=rows * count).reshape(rows, count)
        weights_NR = counts_RG.T.astype(float, order="C")[group_N]  # figures take the weights of a case at once
        for name, values in statistic(weights_NR.T).items():
            draws.setdefault(name, []).append(values)
    return {name: np.concatenate(parts) for name, parts in draws.items()}


def percentile_interval(value: float, draws_R: Floats, *, confidence: float) -> Interval:
    """The percentile interval of bootstrap draws around ``value``.

    Undefined draws (a class that a resample lacks) are left out. There is no interval, so low and high are None,
    when less than half of the draws are defined, or when all are equal: a figure of exactly 1 on few cases is
    not known without error, which the bootstrap cannot show (see ``wilson_interval``).
    """
    defined = draws_R[~np.isnan(draws_R)]
    if len(defined) == 0 or 2 * len(defined) < len(draws_R) or np.ptp(defined) < 1e-12:
        return Interval(value)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def figure_interval(
    value: float, draws_R: Floats | None, *, groups: Sequence[str], share: bool, confidence: float
) -> Interval:
    """The bootstrap interval; Wilson's, over groups, for a share of exactly 0 or 1, where no resample differs."""
    if draws_R is None or math.isnan(value):
        return Interval(value)
    if share and value in (0.0, 1.0):
        return wilson_interval(value, len(set(groups)), confidence=confidence)
    return percentile_interval(value, draws_R, confidence=confidence)


def wilson_interval(proportion: float, count: int, *, confidence: float) -> Interval:
    """The score interval of a proportion of ``count`` independent trials (Wilson, JASA 22, 1927)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    scale = 1 + z * z / count
    centre = (proportion + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(proportion * (1 - proportion) / count + z * z / (4 * count * count))
    return Interval(proportion, max(0.0, centre - half), min(1.0, centre + half))


def mean_and_deviation(values: Sequence[float]) -> MeanAndDeviation:
    """Mean and sample standard deviation of a figure over one or more runs."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return MeanAndDeviation(float(np.mean(values)), deviation, len(values))


def paired_interval(differences_S: Floats, draws_SR: Floats, *, confidence: float, seed: int) -> Interval:
    """The mean paired difference of S trainings and its interval, over test cases and over trainings.

    ``differences_S`` has the difference of each seed, ``draws_SR`` [S, R] the same in R resamples of whole groups, each
    of which is one for all seeds. How much the mean varies with the groups, its resamples show. How much it varies with
    the seed is the variance of ``differences_S`` less what the cases alone explain of it (components of variance of a
    two-way layout: Searle, Casella and McCulloch, "Variance Components", 1992); since so few seeds only estimate it,
    that part follows Student's t with S - 1 degrees of freedom. One training says nothing of others: its interval is
    over test cases alone.

    Resamples in which a figure is undefined are left out; low and high are None when that is more than half of them,
    or when the same difference, other than 0, is in all: then too few cases were seen, which no resample can show.
    """
    seeds, value = len(differences_S), float(np.mean(differences_S))
    draws_SD = draws_SR[:, ~np.isnan(draws_SR).any(axis=0)]
    if not draws_SD.size or 2 * draws_SD.shape[1] < draws_SR.shape[1]:
        return Interval(value)
    possible = means_D = draws_SD.mean(axis=0)
    if seeds > 1:
        explained = (draws_SD.var(axis=1).mean() - means_D.var()) * seeds / (seeds - 1)
        spread = math.sqrt(max(0.0, float(np.var(differences_S, ddof=1)) - explained) / seeds)
        variates = np.random.default_rng(seed).standard_t(seeds - 1, size=(_VARIATES, len(means_D)))
        possible = means_D + spread * variates
    if np.ptp(possible) < 1e-12 and abs(value) > 1e-12:
        return Interval(value)
    low, high = np.quantile(possible, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))
