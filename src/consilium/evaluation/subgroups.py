"""The values of a column, by which figures are given apart, and how far apart they are.

Axes in names: N case, R resample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.metrics import Floats, Ints
from consilium.evaluation.statistics import bootstrap_groups, percentile_interval

ENOUGH = 10  # groups from which on a value takes part in a gap


def subgroups(
    columns: Mapping[str, Sequence[str]], column: str, *, config: EvaluationConfig, notes: list[str]
) -> dict[str, Ints]:
    """The rows of each value of a column, the most frequent first; none, and a note, where it cannot be told apart."""
    if column not in columns:
        notes.append(f"There is no column '{column}'; the columns are: {', '.join(sorted(columns))}.")
        return {}
    sizes = Counter(columns[column])
    if len(sizes) > config.max_column_values:
        notes.append(
            f"Column '{column}' has {len(sizes)} values and is left out; evaluation.max_column_values is "
            f"{config.max_column_values}."
        )
        return {}
    values_N = np.array(columns[column])
    return {value: np.flatnonzero(values_N == value) for value in by_size(sizes)}


def by_size(counts: Counter[str]) -> list[str]:
    """The values, the most frequent first."""
    return [value for value, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def gap_row(
    column: str,
    figure: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    groups: Mapping[str, list[str]],
    statistic: Callable[[str, Floats], Floats],
    config: EvaluationConfig,
) -> dict[str, Any] | None:
    """The two values of a column that are furthest apart in a figure, and the interval of their difference.

    ``rows`` are the table of the column, ``groups`` the groups of the cases of each value, and ``statistic`` gives the
    figure [R] of a value for weights [R, N] of its cases. Values with few groups take no part; of fewer than two there
    is no gap. Both values are resampled together, since a patient may have cases of either. The pair is chosen because
    it differs most, so its interval is that of all pairs at once (Bonferroni: the error is divided by their number).
    """
    taking_part = [row for row in rows if row["groups"] >= ENOUGH and row[figure] is not None]
    if len(taking_part) < 2:
        return None
    highest, lowest = (best(taking_part, key=lambda row: row[figure]) for best in (max, min))
    high, low = highest[column], lowest[column]
    size, pairs = len(groups[high]), len(list(combinations(taking_part, 2)))
    draws = bootstrap_groups(
        groups[high] + groups[low],
        lambda weights: {"gap": statistic(high, weights[:, :size]) - statistic(low, weights[:, size:])},
        samples=config.bootstrap_samples,
        seed=config.seed,
    )
    gap = highest[figure] - lowest[figure]
    confidence = 1 - (1 - config.confidence) / pairs
    interval = percentile_interval(gap, draws.get("gap", np.array([])), confidence=confidence)
    return {
        "column": column, "figure": figure, "values": len(taking_part), "highest": high, "lowest": low,
        "gap": gap, "gap_low": interval.low, "gap_high": interval.high,
    }  # fmt: skip
