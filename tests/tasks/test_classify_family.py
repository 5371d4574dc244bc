"""What classify answers to the house."""

from __future__ import annotations

import pytest

from consilium.core.errors import DataError
from consilium.evaluation.config import AnswersConfig, DistanceConfig, EvaluationConfig
from consilium.evaluation.labels.classification import ClassificationEvaluator
from consilium.evaluation.labels.tree import TreeEvaluator
from consilium.tasks.answers.targets import LabelKnowledge
from consilium.tasks.classify.config import ClassifyConfig
from consilium.tasks.family import family_of


def knowledge(*labels: str) -> LabelKnowledge:
    return LabelKnowledge(labels=list(labels), class_counts=[1] * len(labels), training_cases=len(labels))


def test_which_evaluator() -> None:
    for section, kind in (
        (ClassifyConfig(multi_label=True), ClassificationEvaluator),
        (ClassifyConfig(), TreeEvaluator),
    ):
        found = family_of(section).evaluator(section, knowledge("ct", "mri"), evaluation=EvaluationConfig())
        assert isinstance(found, kind)


def test_a_label_that_is_called_as_no_answer_is() -> None:
    known, section = knowledge("ct", "unknown"), ClassifyConfig()
    family_of(section).evaluator(section, known, evaluation=EvaluationConfig())
    for key, answers in {
        "wanted_accuracy": AnswersConfig(wanted_accuracy=0.9),
        "distance": AnswersConfig(distance=DistanceConfig()),
    }.items():
        section = ClassifyConfig(answers=answers)
        told = rf"a label is 'unknown', .*{key} .*another name \(data.rename_labels: {{unknown: other}}\)"
        with pytest.raises(DataError, match=told):
            family_of(section).evaluator(section, known, evaluation=EvaluationConfig())
