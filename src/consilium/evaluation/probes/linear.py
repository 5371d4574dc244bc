"""The linear probe: a logistic head on frozen features, its strength chosen by left-out groups.

Axes in names: T training image, K class, F number of a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from consilium.core.errors import DataError
from consilium.evaluation.logistic import FOLDS, Chosen, choose_linear
from consilium.evaluation.metrics import Floats


def choose_probe(
    features_TF: Floats,
    targets_TK: Floats,
    groups: Sequence[str],
    *,
    multi_label: bool,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Chosen:
    """The head with the strength of least mean log loss on groups that its fit did not see.

    The groups are divided into five folds, or fewer where there are fewer groups; one group is a DataError.
    """
    names, group_T = np.unique(np.asarray(groups), return_inverse=True)
    folds = min(FOLDS, len(names))
    if folds < 2:
        raise DataError(
            "probes.linear chooses its strength on groups that are left out of train, and all training cases are of "
            f"one group ({names[0]}). Name the column of the patient (columns.group of a source)."
        )
    fold_G = np.random.default_rng(seed).permutation(len(names)) % folds
    return choose_linear(features_TF, targets_TK, fold_G[group_T], multi_label=multi_label, progress=progress)
