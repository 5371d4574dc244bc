"""Which evaluator judges a task."""

from __future__ import annotations

from consilium.core.answers import Calibration
from consilium.core.contracts import Evaluator
from consilium.core.labels import LabelTree
from consilium.evaluation.classification import ClassificationEvaluator
from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.tree import TreeEvaluator


def build_evaluator(
    labels: LabelTree, *, multi_label: bool, config: EvaluationConfig, calibration: Calibration
) -> Evaluator:
    """The evaluator of a classification; ``calibration`` says when an answer of one label stops."""
    if multi_label:
        return ClassificationEvaluator(labels, multi_label=True, config=config)
    return TreeEvaluator(labels, config=config, calibration=calibration)
