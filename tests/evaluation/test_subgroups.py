"""How far apart the values of a column are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.metrics import Floats
from consilium.evaluation.subgroups import gap_row

CONFIG = EvaluationConfig(bootstrap_samples=2000)


def gap(right: dict[str, list[bool]], *, groups: dict[str, list[str]] | None = None) -> dict[str, Any] | None:
    """The gap of the accuracy between values whose cases are right or not."""
    own = groups or {value: [f"{value}{n}" for n in range(len(cases))] for value, cases in right.items()}
    rows = [
        {"site": value, "groups": len(set(own[value])), "accuracy": float(np.mean(cases))}
        for value, cases in right.items()
    ]

    def accuracy(value: str, weights_RN: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            return np.asarray(weights_RN @ np.array(right[value], float) / weights_RN.sum(1))

    return gap_row("site", "accuracy", rows, groups=own, statistic=accuracy, config=CONFIG)


def test_the_gap_is_between_the_highest_and_the_lowest_value() -> None:
    found = gap({"a": [True] * 90 + [False] * 10, "b": [True, False] * 50, "c": [True] * 70 + [False] * 30})
    assert found is not None
    assert (found["highest"], found["lowest"], found["values"]) == ("a", "b", 3)
    assert found["gap"] == pytest.approx(0.4)
    assert 0.2 < found["gap_low"] < 0.4 < found["gap_high"] < 0.6


def test_the_interval_allows_for_the_choice_of_the_pair() -> None:
    pair = {"a": [True] * 40 + [False] * 10, "b": [True] * 25 + [False] * 25}
    among_many = {**pair, **{f"x{n}": [True] * 33 + [False] * 17 for n in range(6)}}
    of_two, of_eight = gap(pair), gap(among_many)
    assert of_two is not None
    assert of_eight is not None
    assert of_eight["gap_low"] < of_two["gap_low"]
    assert of_eight["gap_high"] > of_two["gap_high"]


def test_values_without_a_difference_have_an_interval_around_nothing() -> None:
    found = gap({"a": [True] * 41 + [False] * 9, "b": [True] * 40 + [False] * 10})
    assert found is not None
    assert found["gap_low"] < 0 < found["gap_high"]


def test_few_groups_take_no_part() -> None:
    assert gap({"a": [True] * 50, "b": [False] * 9}) is None
    one_patient = {"a": [f"a{n}" for n in range(50)], "b": ["b"] * 50}
    assert gap({"a": [True] * 50, "b": [False] * 50}, groups=one_patient) is None


def test_a_group_in_both_values_is_drawn_for_both() -> None:
    right = {"a": [True, False] * 20, "b": [True, False] * 20}
    shared = [f"p{n}" for n in range(40)]
    found = gap(right, groups={"a": shared, "b": shared})
    assert found is not None
    assert (found["gap"], found["gap_low"], found["gap_high"]) == (0.0, None, None)  # the same in every resample
