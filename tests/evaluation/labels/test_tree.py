"""The evaluator of answers: figures, tables, and what it does with little."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilium.core.answers import Calibration, answer
from consilium.core.errors import ConfigError, DataError
from consilium.core.evaluation import Evaluator, Outputs
from consilium.core.labels import LabelTree
from consilium.evaluation.config import AnswersConfig, EvaluationConfig
from consilium.evaluation.labels.classification import ClassificationEvaluator
from consilium.evaluation.labels.tree import TreeEvaluator
from tests.contracts.evaluator import EvaluatorContract
from tests.evaluation.trees import TREES, outputs, paths

RAD = LabelTree(["ct", "mri", "xray"])
TREE = LabelTree(["rad", "rad.ct", "rad.mri", "mic", "mic.blood"], nested=True)
#                rad  ct   mri  mic  blood, each among its siblings
SHARES = np.array(
    [
        [0.9, 0.8, 0.2, 0.1, 1.0],  # rad.ct, sure
        [0.9, 0.6, 0.4, 0.1, 1.0],  # rad.ct, but which of the two is not sure
        [0.6, 0.9, 0.1, 0.4, 1.0],  # not sure at all
        [0.2, 0.9, 0.1, 0.8, 1.0],  # mic.blood
    ]
)
FOUR = Outputs(
    arrays={"conditionals": SHARES, "probabilities": paths(SHARES, TREE)},
    targets=np.array([1, 2, 4, 0]),  # ct, mri, blood, and radiology of some kind
    ids=["a", "b", "c", "d"],
    groups=["p", "p", "q", "r"],
    columns={"source": ["x", "y", "y", "y"]},
)


def evaluator(
    labels: LabelTree, *, thresholds: list[float | None] | None = None, wanted: float | None = None, samples: int = 20
) -> TreeEvaluator:
    calibration = Calibration(temperatures={"root": 1.5}, thresholds=thresholds or [], wanted_accuracy=wanted)
    config = EvaluationConfig(bootstrap_samples=samples)
    return TreeEvaluator(labels, config=config, answers=AnswersConfig(), calibration=calibration)


class TestFlat(EvaluatorContract):
    def evaluator(self) -> Evaluator:
        return evaluator(RAD, thresholds=[0.6], wanted=0.9)

    def outputs(self) -> Outputs:
        return outputs(RAD, [0, 1, 2, 0, -1, 1, 2], skill=1.0)


class TestNested(EvaluatorContract):
    def evaluator(self) -> Evaluator:
        return evaluator(TREE, thresholds=[0.6, 0.5], wanted=0.9)

    def outputs(self) -> Outputs:
        return outputs(TREE, [0, 1, 2, 3, 4, -1, 2, 1], skill=1.0)


def test_figures_of_a_tree() -> None:
    found = evaluator(TREE, thresholds=[0.7, 0.6], wanted=0.9).quick(FOUR)
    # Answered: rad.ct (right), rad (right), unknown, mic (cut at rad's level, wrong): 3 right nodes of 4 said, 7 true.
    assert found["hierarchical_precision"] == pytest.approx(3 / 4)
    assert found["hierarchical_recall"] == pytest.approx(3 / 7)
    assert found["hierarchical_f1"] == pytest.approx(2 * 3 / (4 + 7))
    assert found["hierarchical_f1_whole"] == pytest.approx(2 * 3 / (7 + 7))
    assert found["coverage"] == pytest.approx(3 / 4)
    assert found["answered_accuracy"] == pytest.approx(2 / 3)
    assert found["accuracy"] == pytest.approx(1 / 3)  # of the leaves: ct, not mri, not blood
    assert found["aurc"] == pytest.approx((0 + 2 / 3 + 2 / 3) / 3)  # 0.72 is right, 0.54 twice wrong


def test_tables_of_a_tree() -> None:
    found = evaluator(TREE, thresholds=[0.7, 0.6], wanted=0.9).evaluate(FOUR, split="test")
    assert (found.cases, found.groups) == (4, 3)
    told = ("level", "cases", "threshold", "accuracy", "answered", "answered_accuracy")
    assert [[row[key] for key in told] for row in found.tables["levels"]] == [
        [1, 4, 0.7, 0.5, 0.75, pytest.approx(2 / 3)],
        [2, 3, 0.6, pytest.approx(1 / 3), pytest.approx(1 / 3), 1.0],
        ["whole path", 3, None, pytest.approx(1 / 3), pytest.approx(1 / 3), 1.0],
    ]
    assert [[row[key] for key in ("node", "parent", "cases", "predicted")] for row in found.tables["nodes"]] == [
        ["rad", "root", 3, 3], ["rad.ct", "rad", 1, 3], ["rad.mri", "rad", 1, 0], ["mic", "root", 1, 1],
        ["mic.blood", "mic", 1, 0],
    ]  # fmt: skip
    assert found.tables["nodes"][2]["precision"] is None
    told = ("node", "children", "cases", "accuracy", "temperature")
    assert [[row[key] for key in told] for row in found.tables["decisions"]] == [
        ["root", 2, 4, 0.5, 1.5], ["rad", 2, 2, 0.5, 1.0],
    ]  # fmt: skip
    assert {"node": "rad", "truth": "rad.mri", "prediction": "rad.ct", "cases": 1, "share": 1.0} in found.tables[
        "decision_confusion"
    ]
    bins = [row for row in found.tables["decision_calibration"] if row["node"] == "rad"]
    assert sum(row["statements"] for row in bins) == 2
    assert [row["n"] for row in found.tables["per_source"]] == [2, 1]
    assert {row["source"]: row["coverage"] for row in found.tables["per_source"]} == {"x": 1.0, "y": 0.5}
    notes = " ".join(row["note"] for row in found.tables["notes"])
    assert "1 of 4 cases have no label at a leaf" in notes
    assert "stops above the leaves" in notes


def test_without_thresholds_a_flat_task_has_its_figures_and_the_curve() -> None:
    given = outputs(RAD, [0, 1, 2, 0, 1, -1])
    found = evaluator(RAD).evaluate(given, split="val")
    config = EvaluationConfig(bootstrap_samples=20)
    plain = ClassificationEvaluator(RAD, multi_label=False, config=config, answers=AnswersConfig())
    classes = plain.evaluate(given, split="val")
    assert {name: found.metrics[name] for name in plain.metric_names} == classes.metrics
    assert found.metrics["coverage"] == 1.0
    assert found.metrics["answered_accuracy"] == found.metrics["accuracy"]
    assert not {name for name in found.metrics if name.startswith("hierarchical")}
    assert set(found.tables) == {*classes.tables, "risk_coverage"}
    assert set(found.intervals) == {*classes.intervals, "aurc"}
    last = found.tables["risk_coverage"][-1]
    assert last["coverage"] == 1.0
    assert last["risk"] == pytest.approx(1 - found.metrics["accuracy"])


def test_the_operating_point_lies_on_the_curve_of_a_flat_task() -> None:
    given = outputs(RAD, [n % 3 for n in range(60)], skill=1.0)
    for threshold in (0.4, 0.55, 0.7):
        found = evaluator(RAD, thresholds=[threshold]).evaluate(given, split="test")
        (row,) = found.tables["levels"]
        assert row["answered"] == found.metrics["coverage"]
        point = min(
            (one for one in found.tables["risk_coverage"] if one["threshold"] >= threshold),
            key=lambda one: one["threshold"],
        )
        assert point["coverage"] == pytest.approx(row["answered"])
        assert 1 - point["risk"] == pytest.approx(row["answered_accuracy"])


@given(st.integers(0, 100))
@settings(max_examples=10)
def test_signs_of_doubt_are_judged_side_by_side_by_their_own_order(seed: int) -> None:
    """What is large where the probability is small orders cases as that does."""
    given = outputs(TREE, [0, 1, 2, 3, 4] * 6, seed=seed, skill=1.0)
    config = EvaluationConfig(bootstrap_samples=20, columns=["source"])
    judge = TreeEvaluator(
        TREE, config=config, answers=AnswersConfig(), calibration=Calibration(), seen={"source": ["a"], "age": ["4"]}
    )
    paths_NL = answer(given.arrays["probabilities"], labels=TREE).paths_NL
    sure_N = given.arrays["probabilities"][np.arange(30), paths_NL.max(1)]  # here a child has a larger id
    signs = {
        "like": {"distances": np.repeat(1 - sure_N[:, None], 5, axis=1), "disagreement": sure_N},
        "unlike": {"distances": np.repeat(sure_N[:, None], 5, axis=1), "disagreement": 1 - sure_N},
    }
    rows = {}
    for name, arrays in signs.items():
        found = judge.evaluate(replace(given, arrays={**given.arrays, **arrays}), split="test")
        assert found.metrics == judge.evaluate(given, split="test").metrics
        json.dumps(asdict(replace(found, draws={})), allow_nan=False)
        rows[name] = {(row.pop("sign"), row.pop("never_seen")): row for row in found.tables["doubt"]}
    for new, cases in {"": 18, "source": 9}.items():  # three labels in five are leaves
        assert rows["like"]["probability", new]["cases"] == cases
        assert rows["like"]["distance", new] == rows["like"]["probability", new]
        assert rows["like"]["disagreement", new] == rows["unlike"]["distance", new]
        assert rows["unlike"]["disagreement", new] == rows["like"]["probability", new]
    assert len(rows["like"]) == 6
    curves = [row for row in found.tables["doubt_curves"] if (row["sign"], row["never_seen"]) == ("probability", "")]
    assert [{**row, "sign": "", "never_seen": ""} for row in curves] == [
        {"sign": "", "never_seen": "", **row} for row in found.tables["risk_coverage"]
    ]


@pytest.mark.parametrize("labels", [RAD, TREE], ids=["flat", "tree"])
def test_limits_of_distance_alone_leave_answers_out(labels: LabelTree) -> None:
    given = outputs(labels, [*labels.leaf_ids] * 6)
    distances_NM = np.tile(np.arange(len(given.ids), dtype=np.float32)[:, None], len(labels))
    given = replace(given, arrays={**given.arrays, "distances": distances_NM})
    calibration = Calibration(distances=[len(given.ids) / 2 - 1] * labels.levels)
    judge = TreeEvaluator(
        labels, config=EvaluationConfig(bootstrap_samples=0), answers=AnswersConfig(), calibration=calibration
    )
    found = judge.evaluate(given, split="test")
    assert found.metrics["coverage"] == 0.5
    assert [row.get("distance") for row in found.tables["levels"]] == [
        *calibration.distances, *([None] if labels.nested else []),
    ]  # fmt: skip
    assert all(row["answered"] == 0.5 for row in found.tables["levels"])


def test_the_curve_is_thinned() -> None:
    rows = evaluator(RAD, samples=0).evaluate(outputs(RAD, [0] * 1000), split="test").tables["risk_coverage"]
    assert len(rows) == 200
    assert (rows[0]["answered"], rows[-1]["answered"]) == (1, 1000)


@pytest.mark.parametrize("labels", [RAD, TREE], ids=["flat", "tree"])
def test_nothing_is_answered(labels: LabelTree) -> None:
    given = outputs(labels, [labels.leaf_ids[0]] * 6)
    found = evaluator(labels, thresholds=[None], wanted=0.99).evaluate(given, split="test")
    assert found.metrics["coverage"] == 0.0
    assert found.metrics["answered_accuracy"] is None
    assert "answered_accuracy" not in found.intervals
    if labels.nested:
        assert found.metrics["hierarchical_precision"] is None
        assert found.metrics["hierarchical_recall"] == found.metrics["hierarchical_f1"] == 0.0
    assert found.tables["levels"][0]["answered_accuracy"] is None


def test_labels_that_all_stop_above_the_leaves_are_judged_so_far() -> None:
    given = outputs(TREE, [0, 0, 3, 0], skill=4.0)
    found = evaluator(TREE).evaluate(given, split="new")
    assert found.cases == 4
    assert found.metrics["accuracy"] is found.metrics["aurc"] is None
    assert found.metrics["hierarchical_f1"] is not None
    assert [row["cases"] for row in found.tables["levels"]] == [4, 0, 0]
    assert "risk_coverage" not in found.tables
    assert evaluator(TREE).quick(given) == found.metrics


def test_a_tree_without_a_decision() -> None:
    labels = LabelTree(["a", "a.b"], nested=True)
    found = evaluator(labels).evaluate(outputs(labels, [1, 1, 0]), split="test")
    assert "decisions" not in found.tables
    assert found.metrics["hierarchical_f1"] == 1.0
    low = found.intervals["hierarchical_f1"].low
    assert low is not None
    assert low < 0.7  # two patients prove little


def test_the_classes_are_those_of_the_likeliest_path() -> None:
    """From the top the likelier child: that need not be the likeliest leaf of all."""
    shares = np.array([[0.6, 0.4, 0.6, 0.4, 1.0]])  # rad.mri has 0.36, mic.blood 0.4
    given = replace(
        FOUR, arrays={"conditionals": shares, "probabilities": paths(shares, TREE)}, targets=np.array([2]),
        ids=["a"], groups=["p"], columns={"source": ["x"]},
    )  # fmt: skip
    assert evaluator(TREE).quick(given)["accuracy"] == 1.0


def test_directions_and_names() -> None:
    for labels in (RAD, TREE):
        one = evaluator(labels)
        assert list(one.quick(outputs(labels, [labels.leaf_ids[0]]))) == list(one.metric_names)
        assert [name for name in one.metric_names if not one.higher_is_better(name)] == [
            "calibration_error", "log_loss", "brier", "aurc",
        ]  # fmt: skip
        with pytest.raises(ConfigError, match="answered_accuracy"):
            one.higher_is_better("hierarchical_f2")
    with pytest.raises(ConfigError, match="its metrics are"):
        evaluator(RAD).higher_is_better("hierarchical_f1")


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="do not fit"):
        evaluator(TREE).quick(outputs(RAD, [0]))
    with pytest.raises(DataError, match="none of 2"):
        evaluator(TREE).quick(outputs(TREE, [-1, -1]))
    broken = outputs(TREE, [0, 1])
    broken.arrays["probabilities"][0, 0] = np.nan  # also where the label stops above the leaves
    with pytest.raises(DataError, match=r"not finite.*case-0"):
        evaluator(TREE).quick(broken)


def test_one_long_text_among_the_columns_takes_its_own_room_alone() -> None:
    given = outputs(RAD, [0, 1, 2] * 100)
    given.columns["caption"] = ["", "x" * 100_000, *[""] * 298]
    tracemalloc.start()
    try:
        evaluator(RAD).quick(given)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_tree_gives_whole_json_and_consistent_tables(data: st.DataObject) -> None:
    nested = data.draw(st.booleans())
    labels = LabelTree.from_labels([data.draw(st.sampled_from(TREES))], nested=nested)
    truth = [0, *data.draw(st.lists(st.integers(-1, len(labels) - 1), max_size=9))]
    thresholds = data.draw(st.lists(st.none() | st.floats(0, 1), max_size=labels.levels))
    given = outputs(labels, truth, seed=data.draw(st.integers(0, 99)))
    one = evaluator(labels, thresholds=thresholds, samples=5)
    found = one.evaluate(given, split="x")
    json.dumps(asdict(replace(found, draws={})), allow_nan=False)
    assert found.metrics == one.quick(given)
    for row in found.tables.get("levels", []):
        shares = [value for key, value in row.items() if isinstance(value, float) and key != "threshold"]
        assert all(0 <= share <= 1 for share in shares)
    labelled = [n for n, node in enumerate(truth) if node >= 0]
    given_depths = answer(given.arrays["probabilities"], labels=labels, thresholds=thresholds).depths_N[labelled]
    assert found.metrics["coverage"] == pytest.approx(np.mean(given_depths > 0))
