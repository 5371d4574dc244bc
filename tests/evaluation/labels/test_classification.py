"""The classification evaluator: figures, intervals, tables, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilium.core.errors import ConfigError, DataError
from consilium.core.evaluation import Evaluator, Outputs
from consilium.core.labels import LabelTree
from consilium.evaluation.config import AnswersConfig, EvaluationConfig
from consilium.evaluation.labels.classification import ClassificationEvaluator
from tests.contracts.evaluator import EvaluatorContract

LABELS = LabelTree(["ct", "mri", "xray"])


def outputs(probabilities: list[list[float]], targets: object, *, sources: list[str] | None = None) -> Outputs:
    count = len(probabilities)
    return Outputs(
        arrays={"probabilities": np.array(probabilities, dtype=np.float32)},
        targets=np.array(targets),
        ids=[f"case-{n}" for n in range(count)],
        groups=[f"patient-{n // 2}" for n in range(count)],
        columns={"source": sources or ["a"] * count},
    )


def evaluator(*, multi_label: bool = False, **settings: object) -> ClassificationEvaluator:
    config = EvaluationConfig(**settings)
    return ClassificationEvaluator(LABELS, multi_label=multi_label, config=config, answers=AnswersConfig())


FOUR = outputs([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.5, 0.4], [0.05, 0.9, 0.05]], [0, 1, 2, 0])


class TestSingleLabel(EvaluatorContract):
    def evaluator(self) -> Evaluator:
        return evaluator(bootstrap_samples=20)

    def outputs(self) -> Outputs:
        return FOUR


class TestMultiLabel(EvaluatorContract):
    def evaluator(self) -> Evaluator:
        return evaluator(multi_label=True, bootstrap_samples=20)

    def outputs(self) -> Outputs:
        return replace(FOUR, targets=np.array([[1.0, 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1]]))


def test_single_label_figures_and_tables() -> None:
    result = evaluator().evaluate(FOUR, split="test")
    assert result.cases == 4
    assert result.split == "test"
    assert result.metrics["accuracy"] == 0.5
    assert result.metrics["balanced_accuracy"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert result.metrics == evaluator().quick(FOUR)
    interval = result.intervals["accuracy"]
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low <= 0.5 <= interval.high
    assert [row["id"] for row in result.tables["worst"]] == ["case-3", "case-2"]
    assert result.tables["worst"][0] == {
        "id": "case-3", "truth": "ct", "prediction": "mri", "label": "mri",
        "probability": pytest.approx(0.9), "truth_probability": pytest.approx(0.05),
    }  # fmt: skip
    assert result.tables["least_certain"][0]["id"] == "case-2"
    assert {"truth": "ct", "prediction": "mri", "cases": 1, "share": 0.5} in result.tables["confusion"]
    assert sum(row["statements"] for row in result.tables["calibration"]) == 4
    assert [row["support"] for row in result.tables["per_class"]] == [2, 1, 1]
    json.dumps(asdict(replace(result, draws={})), allow_nan=False)


def test_perfect_figures_keep_an_honest_interval() -> None:
    result = evaluator().evaluate(outputs([[0.9, 0.1, 0.0]] * 4, [0] * 4), split="test")
    accuracy = result.intervals["accuracy"]
    assert accuracy.value == 1.0
    assert accuracy.high == 1.0
    assert accuracy.low is not None
    assert accuracy.low < 0.5
    assert result.intervals["macro_f1"].low is None  # every resample gives 1: no interval is claimed
    assert result.metrics["macro_auroc"] is None
    assert result.metrics["quadratic_kappa"] is None


def test_no_samples_means_no_intervals() -> None:
    result = evaluator(bootstrap_samples=0).evaluate(FOUR, split="val")
    assert result.intervals["accuracy"].value == 0.5
    assert result.intervals["accuracy"].low is None


def test_a_column_value_where_a_figure_is_undefined_keeps_its_row() -> None:
    """No label applies in source b and none is named there, so there is nothing to have an F1 of."""
    given = outputs([[0.9, 0.1, 0.1], [0.1, 0.1, 0.1]], [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], sources=["a", "b"])
    result = evaluator(multi_label=True).evaluate(given, split="test")
    of_a, of_b = result.tables["per_source"]
    assert (of_a["macro_f1"], of_a["exact_match"]) == (1.0, 1.0)
    assert (of_b["macro_f1"], of_b["exact_match"]) == (None, 1.0)
    assert of_b["macro_f1_low"] is of_b["macro_f1_high"] is None
    assert list(of_a) == list(of_b)


def test_per_column_and_notes() -> None:
    given = outputs([[0.8, 0.1, 0.1]] * 3, [0, 0, 1], sources=["a", "a", "b"])
    result = evaluator(columns=["source", "sex"]).evaluate(given, split="test")
    assert [(row["source"], row["n"], row["accuracy"]) for row in result.tables["per_source"]] == [
        ("a", 2, 1.0), ("b", 1, 0.0),
    ]  # fmt: skip
    assert "sex" in result.tables["notes"][0]["note"]
    crowded = evaluator(max_column_values=1).evaluate(given, split="test")
    assert "per_source" not in crowded.tables
    assert "2 values" in crowded.tables["notes"][0]["note"]


def test_cases_without_a_label_are_left_out_and_counted() -> None:
    result = evaluator().evaluate(outputs([[0.8, 0.1, 0.1]] * 3, [0, -1, 0]), split="test")
    assert result.cases == 2
    assert "1 of 3" in result.tables["notes"][0]["note"]
    with pytest.raises(DataError, match="none of 3"):
        evaluator().quick(outputs([[0.8, 0.1, 0.1]] * 3, [-1, -1, -1]))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="do not fit"):
        evaluator().quick(outputs([[0.8, 0.2]], [0]))
    with pytest.raises(DataError, match=r"not finite.*case-1"):
        evaluator().quick(outputs([[0.8, 0.1, 0.1], [float("nan")] * 3], [0, 0]))


def test_multi_label() -> None:
    given = outputs([[0.9, 0.6, 0.1], [0.2, 0.8, 0.1], [0.1, 0.1, 0.95]], [[1.0, 1, 0], [0, 1, 1], [0, 0, 0]])
    result = evaluator(multi_label=True).evaluate(given, split="test")
    assert result.metrics["exact_match"] == pytest.approx(1 / 3)
    assert result.metrics["hamming_loss"] == pytest.approx(2 / 9)
    assert "accuracy" not in result.metrics
    assert "confusion" not in result.tables
    worst = result.tables["worst"][0]
    assert (worst["id"], worst["truth"], worst["prediction"], worst["label"]) == ("case-2", "", "xray", "xray")
    assert result.tables["least_certain"][0]["label"] == "mri"
    json.dumps(asdict(replace(result, draws={})), allow_nan=False)
    partly = outputs([[0.9, 0.6, 0.1]] * 2, [[1.0, 1, 0], [np.nan, 0, 0]])
    assert evaluator(multi_label=True).evaluate(partly, split="test").cases == 1


def test_directions() -> None:
    for multi_label in (False, True):
        one = evaluator(multi_label=multi_label)
        assert one.higher_is_better("macro_f1")
        assert not one.higher_is_better("log_loss")
        known = set(one.quick(FOUR if not multi_label else outputs([[0.9, 0.6, 0.1]], [[1.0, 0, 0]])))
        assert all(isinstance(one.higher_is_better(name), bool) for name in known)
    with pytest.raises(ConfigError, match="macro_f1"):
        evaluator().higher_is_better("macro_f2")


@settings(max_examples=40, deadline=None)
@given(st.data(), st.booleans())
def test_any_outputs_give_whole_json(data: st.DataObject, multi_label: bool) -> None:
    count = data.draw(st.integers(1, 8))

    def rows(cells: st.SearchStrategy[float]) -> list[list[float]]:
        return data.draw(st.lists(st.lists(cells, min_size=3, max_size=3), min_size=count, max_size=count))

    probabilities = rows(st.floats(0, 1, width=32))
    if multi_label:
        targets: object = rows(st.sampled_from([0.0, 1.0]))
    else:
        targets = [0, *data.draw(st.lists(st.integers(-1, 2), min_size=count - 1, max_size=count - 1))]
    result = evaluator(multi_label=multi_label, bootstrap_samples=5).evaluate(
        outputs(probabilities, targets), split="x"
    )
    json.dumps(asdict(replace(result, draws={})), allow_nan=False)
    for interval in result.intervals.values():
        assert (interval.low is None) == (interval.high is None)
    for row in result.tables["per_class"]:
        assert all(0 <= value <= 1 + 1e-9 for name, value in row.items() if isinstance(value, float))
