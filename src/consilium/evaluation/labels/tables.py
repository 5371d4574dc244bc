"""Rows of tables that several evaluators give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from consilium.evaluation import metrics as m
from consilium.evaluation.metrics import Bools, Floats, Ints


def confusion_rows(truth_N: Ints, predicted_N: Ints, *, names: Sequence[str]) -> list[dict[str, Any]]:
    """Cases of each pair of true and predicted class that occurs, and their share of the true class."""
    confusion_KK = m.confusion_matrix(truth_N, predicted_N, classes=len(names))
    support_K = confusion_KK.sum(axis=1)
    return [
        {
            "truth": names[i],
            "prediction": names[j],
            "cases": int(confusion_KK[i, j]),
            "share": float(confusion_KK[i, j] / support_K[i]),
        }
        for i, j in np.argwhere(confusion_KK)
    ]


def calibration_rows(confidence: Floats, correct: Bools, *, bins: int) -> list[dict[str, Any]]:
    """The bins of a reliability diagram, empty ones too."""
    found = m.calibration_bins(confidence, correct, bins=bins)
    return [
        {
            "from": float(found.edges[i]),
            "to": float(found.edges[i + 1]),
            "statements": int(found.statements_M[i]),
            "confidence": m.defined(found.confidence_M[i]),
            "frequency": m.defined(found.frequency_M[i]),
        }
        for i in range(bins)
    ]
