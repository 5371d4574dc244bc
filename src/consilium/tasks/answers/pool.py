"""The answers of several models to the cases that each was tested on, in one list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from consilium.core.answers import Calibration
from consilium.core.evaluation import Outputs
from consilium.core.labels import LabelTree
from consilium.tasks.answers.targets import LabelKnowledge

KnowledgeT = TypeVar("KnowledgeT", bound=LabelKnowledge)


def pool(tested: Sequence[tuple[KnowledgeT, Outputs]], *, multi_label: bool) -> tuple[KnowledgeT, Outputs]:
    """The answers over all labels; a label that a training lacked has probability 0 in its answers."""
    labels = LabelTree.from_labels([known.labels for known, _ in tested], nested=tested[0][0].nested)
    probabilities, targets = [], []
    for known, outputs in tested:
        places = np.array([labels.index(label) for label in known.labels])
        probabilities.append(_spread(outputs.arrays["probabilities"], places, len(labels)))
        own = outputs.known_targets
        targets.append(_spread(own, places, len(labels)) if multi_label else places[own])
    columns = sorted({name for _, outputs in tested for name in outputs.columns})
    unknown = {
        "class_counts": [0] * len(labels),
        "training_cases": 0,
        "calibration": Calibration(),
        "calibrations": [],
        "seen": {},
    }
    together = tested[0][0].model_copy(update={"labels": list(labels.names), **unknown})
    return together, Outputs(
        arrays={"probabilities": np.concatenate(probabilities)},
        targets=np.concatenate(targets),
        ids=[name for _, outputs in tested for name in outputs.ids],
        groups=[group for _, outputs in tested for group in outputs.groups],
        columns={
            name: [value for _, outputs in tested for value in outputs.columns.get(name, [""] * len(outputs.ids))]
            for name in columns
        },
    )


def _spread(array_NL: np.ndarray, places: np.ndarray, classes: int) -> np.ndarray:
    spread_NK = np.zeros((len(array_NL), classes), dtype=array_NL.dtype)
    spread_NK[:, places] = array_NL
    return spread_NK
