"""What the training cases teach a trained classifier before it is judged: distances, and what it has seen.

Axes in names: N case, F feature.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from consilium.core.contracts import Batch
from consilium.data.case import SOURCE_COLUMNS
from consilium.data.cases.cases import Cases
from consilium.evaluation.config import EvaluationConfig
from consilium.models.distance import Moments
from consilium.tasks.classify.task import Classify


def measure_distances(task: Classify, targets: np.ndarray, *, show: Callable[[Callable[[Batch], None]], None]) -> None:
    """Give the task the distances to the training cases; a router that grew keeps those to its own classes.

    ``targets`` are the ids of the labels of all cases of the table.
    """
    moments = Moments(nodes=len(task.labels), features=task.tower.num_features)

    @torch.no_grad()
    def see(batch: Batch) -> None:
        moments.add(task.features(batch).float().cpu().numpy(), targets[batch.rows_B.numpy()])

    show(see)
    if task.distance is None:
        task.distance = moments.fitted(task.labels).to(task.temperatures_K.device)
    else:
        task.distance.add_means(moments)


def seen_values(cases: Cases, evaluation: EvaluationConfig) -> dict[str, list[str]]:
    """The values of training cases in the columns of sources and of figures, where they are not too many."""
    columns = cases.table.select(cases.rows["train"]).columns()
    names = dict.fromkeys([*evaluation.columns, *SOURCE_COLUMNS])
    found = {name: sorted(set(columns[name]) - {""}) for name in names if name in columns}
    return {name: values for name, values in found.items() if len(values) <= evaluation.max_column_values}
