"""Figures that are shares of cases, estimated with their intervals.

Axes in names: N case, X figure of one kind (level, node), R resample; ``...`` is the R of the weights, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilium.core.evaluation import Interval
from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.metrics import Bools, Floats, as_weights, defined, ratio
from consilium.evaluation.statistics import bootstrap_groups, figure_interval


@dataclass(frozen=True)
class Share:
    """A figure that is a sum over cases divided by another: ``part`` and ``of`` are [N] or, for X figures, [N, X]."""

    part: NDArray[Any]
    of: NDArray[Any]

    def value(self, weights: Floats | None = None) -> Floats:
        """The figure, [...] or [..., X]; nan where there is nothing to divide by."""
        weights = as_weights(weights, len(self.part))
        return ratio(weights @ self.part, weights @ self.of)

    def among(self, cases_N: Bools) -> Share:
        """The same of some of the cases."""
        return Share(self.part[cases_N], self.of[cases_N])


@dataclass(frozen=True)
class Estimates:
    """Figures, their bootstrap draws, and of the shares what they are shares of."""

    values: dict[str, Floats]
    draws: dict[str, Floats]
    shares: dict[str, Share]
    groups: list[str]
    confidence: float

    def interval(self, name: str, column: int | None = None) -> Interval:
        """A figure, or one of its columns, with its interval."""
        at = ... if column is None else (..., column)
        share = self.shares.get(name)
        groups = self.groups if share is None else [self.groups[n] for n in np.flatnonzero(share.of[at])]
        return figure_interval(
            float(self.values[name][at]),
            self.draws[name][at] if name in self.draws else None,
            groups=groups,
            share=share is not None,
            confidence=self.confidence,
        )

    def cells(self, name: str, key: str, column: int | None = None) -> dict[str, float | None]:
        """The same for the row of a table."""
        found = self.interval(name, column)
        return {key: defined(found.value), f"{key}_low": found.low, f"{key}_high": found.high}


def mean(values_N: Floats, weights: Floats | None) -> Floats:
    """The mean over cases, [...]."""
    weights = as_weights(weights, len(values_N))
    return np.asarray(weights @ values_N / weights.sum(axis=-1))


def estimate_means(values: Mapping[str, Floats], groups: list[str], *, config: EvaluationConfig) -> Estimates:
    """Means over cases [N] of any numbers, with their bootstrap over groups."""
    return estimate({}, groups, config=config, extra={name: partial(mean, own_N) for name, own_N in values.items()})


def estimate(
    shares: dict[str, Share],
    groups: list[str],
    *,
    config: EvaluationConfig,
    extra: Mapping[str, Callable[[Floats | None], Floats]] | None = None,
) -> Estimates:
    """Shares, and ``extra`` figures of weights, with their bootstrap over groups."""
    figures = {name: share.value for name, share in shares.items()} | dict(extra or {})
    draws = bootstrap_groups(
        groups,
        lambda weights: {name: figure(weights) for name, figure in figures.items()},
        samples=config.bootstrap_samples,
        seed=config.seed,
    )
    values = {name: figure(None) for name, figure in figures.items()}
    return Estimates(values, draws, shares, groups, config.confidence)
