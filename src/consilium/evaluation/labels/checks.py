"""Whether a task's outputs can be judged."""

from __future__ import annotations

import numpy as np

from consilium.core.errors import DataError
from consilium.core.evaluation import Outputs
from consilium.core.labels import LabelTree
from consilium.evaluation.metrics import Bools


def check_outputs(outputs: Outputs, *, labels: LabelTree, multi_label: bool) -> Bools:
    """Which cases have a label, [N]; outputs that do not fit, or are no finite numbers for these, are a DataError.

    A case has none where its target is -1, or nan in a multi-label row.
    """
    probabilities, targets = np.asarray(outputs.arrays["probabilities"]), np.asarray(outputs.known_targets)
    expected = (len(outputs.ids), len(labels))
    if probabilities.shape != expected or targets.shape != (expected if multi_label else expected[:1]):
        raise DataError(
            f"probabilities {probabilities.shape} and targets {targets.shape} do not fit {expected[0]} cases of "
            f"{expected[1]} {'multi-label ' if multi_label else ''}classes; check that the bundle and the data share "
            "their labels."
        )
    known_N = ~np.isnan(targets).any(axis=1) if multi_label else targets >= 0
    if not known_N.any():
        raise DataError(f"none of {expected[0]} cases has a label; evaluation needs labelled cases.")
    broken = np.flatnonzero(known_N & ~np.isfinite(probabilities).all(axis=1))
    if len(broken):
        raise DataError(
            f"the probabilities of {len(broken)} of {expected[0]} cases are not finite numbers (the first: "
            f"{outputs.ids[broken[0]]}); the model's weights are damaged or have diverged."
        )
    return np.asarray(known_N)
