"""What every evaluator must keep; an evaluator's own tests subclass ``EvaluatorContract``.

class TestTree(EvaluatorContract):
    def evaluator(self): ...
    def outputs(self): ...
"""

from __future__ import annotations

import copy
import json
import math
from abc import ABC, abstractmethod
from dataclasses import asdict, replace

import numpy as np
import pytest

from consilium.core.errors import ConfigError
from consilium.core.evaluation import Evaluator, Outputs


class EvaluatorContract(ABC):
    """Abstract tests of ``consilium.core.evaluation.Evaluator``."""

    @abstractmethod
    def evaluator(self) -> Evaluator:
        """The evaluator, with a few bootstrap samples."""

    @abstractmethod
    def outputs(self) -> Outputs:
        """Outputs over at least four cases, some of them wrong."""

    def test_quick_gives_the_figures_that_are_named(self) -> None:
        found = self.evaluator().quick(self.outputs())
        assert list(found) == list(self.evaluator().metric_names)
        assert all(value is None or math.isfinite(value) for value in found.values())
        assert any(value is not None for value in found.values())

    def test_evaluate_says_the_same_and_more(self) -> None:
        found = self.evaluator().evaluate(self.outputs(), split="val")
        assert found.split == "val"
        assert found.metrics == self.evaluator().quick(self.outputs())
        for name, interval in found.intervals.items():
            assert interval.value == pytest.approx(found.metrics[name])
            assert (interval.low is None) == (interval.high is None)
            assert interval.low is None or 0 <= interval.low <= interval.high  # type: ignore[operator]
        assert all(found.tables.values())  # what is empty is left out
        json.dumps(asdict(replace(found, draws={})), allow_nan=False)

    def test_draws_are_those_of_the_intervals_and_do_not_depend_on_the_order_of_cases(self) -> None:
        """The differences of two models on the same cases are paired by them."""
        outputs = self.outputs()
        found = self.evaluator().evaluate(outputs, split="test")
        mixed = self.evaluator().evaluate(reordered(outputs), split="test")
        assert found.draws
        assert set(found.draws) <= set(self.evaluator().metric_names)
        assert found.draws.keys() >= found.intervals.keys()
        for name, draws_R in found.draws.items():
            np.testing.assert_allclose(mixed.draws[name], draws_R, atol=1e-9, equal_nan=True)
            interval = found.intervals.get(name)
            if interval is not None and interval.low is not None and interval.value not in (0.0, 1.0):
                assert np.nanmin(draws_R) <= interval.low <= interval.high <= np.nanmax(draws_R)

    def test_judging_twice_gives_the_same_and_changes_nothing(self) -> None:
        evaluator, outputs = self.evaluator(), self.outputs()
        before = copy.deepcopy(outputs)
        assert evaluator.evaluate(outputs, split="a") == self.evaluator().evaluate(outputs, split="a")
        for name, array in before.arrays.items():
            np.testing.assert_array_equal(outputs.arrays[name], array)
        np.testing.assert_array_equal(outputs.targets, before.targets)
        assert replace(outputs, arrays={}, targets=None) == replace(before, arrays={}, targets=None)

    def test_the_order_of_cases_does_not_matter(self) -> None:
        outputs = self.outputs()
        found, expected = self.evaluator().quick(reordered(outputs)), self.evaluator().quick(outputs)
        assert found == {name: None if value is None else pytest.approx(value) for name, value in expected.items()}

    def test_every_figure_has_a_direction_and_an_unknown_one_is_refused_by_name(self) -> None:
        evaluator = self.evaluator()
        assert {evaluator.higher_is_better(name) for name in evaluator.metric_names} == {True, False}
        with pytest.raises(ConfigError, match=evaluator.metric_names[-1]):
            evaluator.higher_is_better("no_such_figure")


def reordered(outputs: Outputs) -> Outputs:
    """The same cases in another order."""
    rows = np.random.default_rng(0).permutation(len(outputs.ids))
    return Outputs(
        arrays={name: array[rows] for name, array in outputs.arrays.items()},
        targets=None if outputs.targets is None else outputs.targets[rows],
        ids=[outputs.ids[row] for row in rows],
        groups=[outputs.groups[row] for row in rows],
        columns={name: [values[row] for row in rows] for name, values in outputs.columns.items()},
        labels=[outputs.labels[row] for row in rows] if outputs.labels else [],
    )
