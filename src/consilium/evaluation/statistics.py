"""Uncertainty: the bootstrap over groups, Wilson's interval, mean and deviation of several runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from consilium.core.contracts import Interval
from consilium.evaluation.metrics import Floats

# Resamples are drawn in blocks of about this many numbers (32 MB), so memory does not grow with the set.
_BLOCK = 4_000_000


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
        for name, values in statistic(counts_RG[:, group_N].astype(float)).items():
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
