"""A calibration chosen on a site's cases: what it mends, what it leaves, and that no case judges what it chose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from consilium.core.answers import Calibration
from consilium.core.errors import DataError
from consilium.core.evaluation import Outputs
from consilium.core.labels import LabelTree
from consilium.evaluation.config import AnswersConfig, EvaluationConfig
from consilium.evaluation.labels.recalibration import SiteCalibration
from consilium.tasks.answers import site
from consilium.tasks.answers.answering import Answering
from consilium.tasks.answers.settle import recalibrated
from consilium.tasks.answers.targets import LabelKnowledge
from tests.evaluation.labels.test_calibration import FLAT, TREE, drawn


class Scores(Answering):
    """A task of which only the scores count."""

    step = parameter_groups = lambda self, *_: NotImplemented  # type: ignore[assignment]


def outputs_of(task: Answering, logits_NK: np.ndarray, targets: np.ndarray, groups: list[str] | None = None) -> Outputs:
    ids = [str(number) for number in range(len(logits_NK))]
    empty = Outputs({"logits": logits_NK.astype(np.float32)}, targets, ids, groups or ids, {})
    return recalibrated(task, empty)


def calibrated(
    labels: LabelTree, logits_NK: np.ndarray, targets: np.ndarray, *, old: Calibration | None = None, **options: Any
) -> tuple[SiteCalibration, Answering]:
    multi_label = targets.ndim == 2
    task = Scores(labels, multi_label=multi_label)
    calibration = old or Calibration()
    task.calibrate(calibration)
    knowledge = LabelKnowledge(
        labels=list(labels.names),
        nested=labels.nested,
        class_counts=[5] * len(labels),
        training_cases=20,
        calibration=calibration,
    )
    groups = options.pop("groups", None)
    found = site.calibrate_on_site(
        task,
        knowledge,
        outputs_of(task, logits_NK, targets, groups),
        config=AnswersConfig(**options),
        evaluation=EvaluationConfig(bootstrap_samples=200),
    )
    return found, task


@pytest.mark.parametrize("labels", [FLAT, TREE], ids=["flat", "tree"])
def test_a_model_that_is_too_sure_is_mended(labels: LabelTree) -> None:
    logits_NM, targets_N = drawn(1, 600, labels, temperature=4.0)
    found, task = calibrated(labels, logits_NM, targets_N)
    for figure in ("calibration_error", "log_loss"):
        row = found.judged.row(figure)
        assert row["difference_high"] < 0
        assert row["before_low"] > row["after_high"]
    assert found.calibration.temperatures["root"] == pytest.approx(4.0, rel=0.2)
    assert task.calibration == found.calibration
    if labels is FLAT:
        assert found.judged.row("accuracy")["difference"] == 0  # one temperature changes no order


def test_a_model_that_is_right_about_itself_stays_as_it_is() -> None:
    logits_NM, targets_N = drawn(2, 600, FLAT)
    found, _ = calibrated(FLAT, logits_NM, targets_N)
    row = found.judged.row("log_loss")
    assert row["difference_low"] <= 0 <= row["difference_high"]


def test_labels_that_are_rarer_at_the_site_are_mended_by_offsets() -> None:
    rng = np.random.default_rng(3)
    logits_NK = rng.normal(0, 2, (500, 3))
    truth_NK = rng.random((500, 3)) < 1 / (1 + np.exp(-(logits_NK / 2 - 2)))
    found, task = calibrated(LabelTree(["a", "b", "c"]), logits_NK, truth_NK.astype(np.float32))
    assert found.judged.row("calibration_error")["difference_high"] < 0
    assert found.judged.row("log_loss")["difference_high"] < 0
    assert task.threshold != 0.5
    assert [row["what"] for row in found.changes] == ["temperature", "threshold", "offset", "offset", "offset"]


def test_a_node_without_cases_keeps_its_temperature() -> None:
    logits_NM, targets_N = drawn(4, 300, TREE, temperature=2.0)
    stays = ~np.isin(targets_N, [TREE.index(name) for name in ("a.y.u", "a.y.v")])
    old = Calibration(temperatures={"root": 1.0, "a": 1.0, "b": 1.0, "a.y": 7.0})
    found, _ = calibrated(TREE, logits_NM[stays], targets_N[stays], old=old)
    assert found.calibration.temperatures["a.y"] == 7.0
    assert found.calibration.temperatures["root"] == pytest.approx(2.0, rel=0.3)
    assert any("no case of" in note and "a.y.u" in note for note in found.notes)


def test_thresholds_are_for_the_accuracy_that_the_bundle_wanted() -> None:
    logits_NM, targets_N = drawn(5, 800, FLAT, temperature=3.0)
    found, _ = calibrated(FLAT, logits_NM, targets_N, old=Calibration(thresholds=[0.2], wanted_accuracy=0.95))
    row = found.judged.row("answered_accuracy")
    assert row["before"] < 0.9
    assert row["after"] == pytest.approx(0.95, abs=0.04)
    assert found.judged.row("coverage")["difference"] < 0
    (change,) = [own for own in found.changes if own["what"] == "threshold"]
    assert change["before"] == 0.2
    assert change["after"] == found.calibration.thresholds[0]


def test_no_case_judges_what_it_or_its_patient_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_NM, targets_N = drawn(6, 90, FLAT)
    groups = [f"p{number % 30}" for number in range(90)]
    chose: list[set[str]] = []
    judged: list[set[str]] = []
    choose, state = site._chosen, site.stated_answers

    def spying_choose(task: Any, knowledge: Any, outputs: Outputs, **options: Any) -> Calibration:
        chose.append(set(outputs.groups))
        return choose(task, knowledge, outputs, **options)

    def spying_state(outputs: Outputs, **options: Any) -> Any:
        judged.append(set(outputs.groups))
        return state(outputs, **options)

    monkeypatch.setattr(site, "_chosen", spying_choose)
    monkeypatch.setattr(site, "stated_answers", spying_state)
    calibrated(FLAT, logits_NM, targets_N, groups=groups)
    before, *folds = judged
    *parts, whole = chose
    assert before == whole == set(groups)
    assert len(folds) == len(parts) == site.FOLDS
    for own, others in zip(folds, parts, strict=True):
        assert not own & others
        assert own | others == set(groups)
    assert sorted(name for own in folds for name in own) == sorted(set(groups))


def test_scores_that_say_nothing_of_labels_look_no_better_afterwards() -> None:
    """What is fitted to noise must not look like knowledge: with the judged cases left out it is worth nothing."""
    rng = np.random.default_rng(7)
    logits_NK, truth_NK = rng.normal(0, 0.01, (40, 6)), (rng.random((40, 6)) < 0.5).astype(np.float32)
    found, _ = calibrated(LabelTree(list("abcdef")), logits_NK, truth_NK)
    assert found.judged.row("log_loss")["after"] >= found.judged.row("log_loss")["before"]


def test_too_few_patients_are_refused_however_many_images_they_have() -> None:
    logits_NM, targets_N = drawn(8, 200, FLAT)
    with pytest.raises(DataError, match=r"200 labelled cases of 10 groups .* Label 10 more groups"):
        calibrated(FLAT, logits_NM, targets_N, groups=[str(number % 10) for number in range(200)])


def test_a_case_without_a_label_is_not_counted() -> None:
    logits_NM, targets_N = drawn(9, 60, FLAT)
    targets_N[::2] = -1
    found, task = calibrated(FLAT, logits_NM, targets_N)
    assert (found.cases, found.groups) == (30, 30)
    assert torch.isfinite(task.temperatures_K).all()
