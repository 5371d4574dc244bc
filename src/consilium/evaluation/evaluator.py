"""Which evaluator judges a task."""

from __future__ import annotations

from collections.abc import Sequence

from consilium.core.answers import UNKNOWN, Calibration
from consilium.core.contracts import Evaluator
from consilium.core.errors import DataError
from consilium.core.labels import LabelTree
from consilium.evaluation.classification import ClassificationEvaluator
from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.tree import TreeEvaluator


def build_evaluator(
    labels: LabelTree,
    *,
    multi_label: bool,
    config: EvaluationConfig,
    calibration: Calibration,
    order: Sequence[str] = (),
) -> Evaluator:
    """The evaluator of a classification; ``calibration`` says when an answer of one label stops.

    ``order`` has the labels from the lowest to the highest grade, where somebody gave it (``task.tree.order``).
    With a ``wanted_accuracy`` a label that is called as no answer is, "unknown", is a DataError.
    """
    if multi_label:
        return ClassificationEvaluator(labels, multi_label=True, config=config)
    if config.wanted_accuracy is not None and UNKNOWN in labels.names:
        raise DataError(
            f"a label is '{UNKNOWN}', which is also what evaluation.wanted_accuracy answers where the model is not "
            f"sure. Give the label another name (data.rename_labels: {{{UNKNOWN}: other}})."
        )
    return TreeEvaluator(labels, config=config, calibration=calibration, order=order)
