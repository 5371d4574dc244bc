"""What the report of a comparison says: which is better, by how much, and what that is worth."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilium.core.evaluation import Evaluation, Outputs
from consilium.core.labels import LabelTree
from consilium.evaluation.config import AnswersConfig, EvaluationConfig
from consilium.evaluation.labels.classification import ClassificationEvaluator
from consilium.evaluation.labels.report import label_parts
from consilium.evaluation.report.comparison import (
    ComparedRun,
    ComparisonContent,
    difference_plot,
    paired_difference,
    write_comparison,
)

LABELS = LabelTree(["ct", "mri"])
EVALUATOR = ClassificationEvaluator(
    LABELS, multi_label=False, config=EvaluationConfig(bootstrap_samples=100), answers=AnswersConfig()
)
CASES = 120


def judged(skill: float, *, seed: int, cases: int = CASES) -> Evaluation:
    """A model that names so large a share right; which cases are hard is the same for all."""
    truth_N, hard_N = np.arange(cases) % 2, np.random.default_rng(0).random(cases)
    noise_N = np.random.default_rng(seed).normal(0, 0.05, cases)
    right_N = hard_N + noise_N < skill
    named_N = np.where(right_N, truth_N, 1 - truth_N)
    ids = [str(n) for n in range(cases)]
    probabilities = np.where(named_N[:, None] == [0, 1], 0.8, 0.2)
    outputs = Outputs({"probabilities": probabilities}, truth_N, ids, [str(n // 2) for n in range(cases)], {})
    return EVALUATOR.evaluate(outputs, split="test")


def content(skills: Mapping[str, float], *, seeds: Sequence[int] = (0, 1, 2), **changed: Any) -> ComparisonContent:
    runs = [
        ComparedRun(name, seed, f"runs/{name}-{seed}", {"macro_f1": skill}, judged(skill, seed=10 * seed + number))
        for seed in seeds
        for number, (name, skill) in enumerate(skills.items())
    ]
    plain: dict[str, Any] = {
        "names": list(skills),
        "seeds": seeds,
        "decides": "macro_f1",
        "runs": runs,
        "parts": label_parts(LABELS.leaves),
        "changes": [{"key": "optimizer.learning_rate", **dict.fromkeys(skills, "0.1")}],
        "same_validation": True,
        "notes": [],
        "confidence": 0.95,
        "seed": 0,
        "command": "consilium compare a.yaml b.yaml --runs 3",
        "configs": {name: f"name: {name}\n" for name in skills},
    }
    return ComparisonContent(**{**plain, **changed})


def test_a_difference_is_that_of_each_seed_and_its_interval_that_of_paired_draws() -> None:
    found = content({"a": 0.7, "b": 0.8})
    difference = found.differences["b"]["accuracy"]
    pairs = list(zip(found.of("a"), found.of("b"), strict=True))
    own = [b.test.metrics["accuracy"] - a.test.metrics["accuracy"] for a, b in pairs]  # type: ignore[operator]
    assert difference.seeds == own
    assert difference.mean == pytest.approx(np.mean(own))
    assert difference.better == 3
    assert difference.decided
    assert difference.low < difference.mean < difference.high  # type: ignore[operator]
    # Which cases are hard is the same for both, so that one interval of a figure is wider than that of the difference.
    alone = found.runs[0].test.intervals["accuracy"]
    assert difference.high - difference.low < alone.high - alone.low  # type: ignore[operator]


def test_both_ways_are_the_same() -> None:
    a, b = ([judged(skill, seed=seed) for seed in (1, 2, 3)] for skill in (0.7, 0.75))
    there = paired_difference(a, b, "macro_f1", confidence=0.95, seed=0)
    back = paired_difference(b, a, "macro_f1", confidence=0.95, seed=0)
    assert (back.mean, back.better) == (pytest.approx(-there.mean), 3 - there.better)
    assert (back.low, back.high) == (pytest.approx(-there.high, abs=0.01), pytest.approx(-there.low, abs=0.01))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("skills", "sentence"),
    [
        ({"a": 0.6, "b": 0.9}, "b is better than a: Macro F1 +0.3"),
        ({"a": 0.9, "b": 0.6}, "b is worse than a: Macro F1 \N{MINUS SIGN}0.3"),
        ({"a": 0.8, "b": 0.801}, "b and a are not told apart: Macro F1 "),
    ],
    ids=str,
)
def test_which_is_better(skills: dict[str, float], sentence: str) -> None:
    assert content(skills).sentences()[0].startswith(sentence)


def test_lower_is_better_where_it_is() -> None:
    found = content({"a": 0.6, "b": 0.79}, decides="calibration_error")
    difference = found.differences["b"]["calibration_error"]
    assert difference.mean < 0
    assert difference.better == 3
    assert found.sentences()[0].startswith("b is better than a: Calibration error \N{MINUS SIGN}0.")
    assert "← better than a" in difference_plot(found, "calibration_error")
    assert "better than a →" in difference_plot(found, "accuracy")


def test_the_same_model_differs_by_nothing() -> None:
    one = content({"a": 0.8, "b": 0.8})
    runs = [replace(run, test=next(own.test for own in one.of("a") if own.seed == run.seed)) for run in one.runs]
    found = replace(one, runs=runs)
    assert found.sentences()[0].startswith("b and a have the same Macro F1, with every seed")
    for difference in found.differences["b"].values():
        assert (difference.mean, difference.low, difference.high, difference.better) == (0, 0, 0, 0)
    ET.fromstring(difference_plot(found, "macro_f1"))


def test_several_comparisons_hold_together() -> None:
    two, three = content({"a": 0.7, "b": 0.75}), content({"a": 0.7, "b": 0.75, "c": 0.75})
    assert (two.level, three.level) == (pytest.approx(0.95), pytest.approx(0.975))
    narrow, wide = (found.differences["b"]["accuracy"] for found in (two, three))
    assert wide.low < narrow.low < narrow.high < wide.high  # type: ignore[operator]
    assert any("each interval is of 97.5" in text for text in three.cautions())
    assert not any("Bonferroni" in text for text in two.cautions())


def test_what_few_seeds_say() -> None:
    one, five = content({"a": 0.7, "b": 0.8}, seeds=[3]), content({"a": 0.7, "b": 0.8}, seeds=range(5))
    assert any(text.startswith("One seed says nothing of other trainings") for text in one.cautions())
    assert any("5 seeds say roughly" in text and "4 degrees of freedom" in text for text in five.cautions())
    assert one.test("a", "accuracy").deviation is None
    assert "better with 1 of 1 seed." in one.sentences()[0]


def test_validation_is_told_where_it_compares() -> None:
    skills = {"a": 0.7, "b": 0.75, "c": 0.75}
    assert "0.700 for a, 0.750 for b, 0.750 for c (means over seeds), which speaks for b and c." in " ".join(
        content(skills).sentences()
    )
    assert "on validation" not in " ".join(content(skills, same_validation=False).sentences())


def test_a_figure_that_is_not_bootstrapped_or_not_defined_decides_nothing(tmp_path: Path) -> None:
    found = content({"a": 0.6, "b": 0.9}, decides="macro_aupr")
    assert found.figures[0] == "macro_aupr"
    assert "without an interval nothing is decided" in found.sentences()[0]
    assert any(
        "Macro AUPR is not bootstrapped; as trainer.monitor these would be: " in text for text in found.cautions()
    )
    write_comparison(tmp_path, found)
    none = [replace(run, test=replace(run.test, draws={})) for run in found.runs]
    assert "There are no intervals, since evaluation.bootstrap_samples is 0." in replace(found, runs=none).cautions()
    found = content({"a": 0.6, "b": 0.9}, decides="quadratic_kappa")
    runs = [
        replace(run, test=replace(run.test, metrics={**run.test.metrics, "quadratic_kappa": None}))
        for run in found.runs
    ]
    page = write_comparison(tmp_path, replace(found, runs=runs)).read_text(encoding="utf-8")
    assert "Quadratic kappa, which was to decide, is not defined on these test cases: nothing is decided." in page
    assert "Accuracy" in page


def test_what_is_written(tmp_path: Path) -> None:
    found = content({"a": 0.6, "b<i>": 0.7, "c": 0.9}, notes=["the budgets differ: x is 1 for a, 2 for c."])
    page = write_comparison(tmp_path, found).read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "b&lt;i&gt;" in page
    assert "<i>" not in page
    assert "src=" not in page
    for told in (
        "the budgets differ",
        "optimizer",
        "Before you rely on this",
        "runs/c-2",
        "(decides)",
        "lower is better",
    ):
        assert told in page
    tree = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
    assert tree["decides"] == "macro_f1"
    assert tree["differences"]["c"]["macro_f1"]["seeds"] == found.differences["c"]["macro_f1"].seeds
    assert len(tree["runs"]) == 9
    rows = list(csv.DictReader((tmp_path / "compare.csv").open(encoding="utf-8")))
    assert [row["config"] for row in rows[:3]] == ["a", "b<i>", "c"]
    assert float(rows[2]["from"]) == found.differences["c"]["macro_f1"].low
    assert rows[0]["from"] == rows[0]["better"] == ""


def test_the_drawing_holds_all_that_it_shows() -> None:
    drawing = ET.fromstring(difference_plot(content({"a": 0.6, "b": 0.7, "c": 0.9}), "accuracy"))
    circles = [own for own in drawing.iter() if own.tag.endswith("circle")]
    assert len(circles) == 2 * (1 + 3)
    width, height = (float(drawing.attrib[side]) for side in ("width", "height"))
    for circle in circles:
        assert 0 < float(circle.attrib["cx"]) < width
        assert 0 < float(circle.attrib["cy"]) < height
    texts = [own.text for own in drawing.iter() if own.tag.endswith("text")]
    assert "difference in Accuracy, percentage points" in texts
