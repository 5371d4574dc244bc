"""What a training begins with: its config with what pretrained models bring, and its studied cases."""

from __future__ import annotations

from typing import Any

from consilium.core.reporter import Reporter
from consilium.data.cases.load import LoadedData, load_data
from consilium.experiment import Experiment
from consilium.session.origin import with_start
from consilium.tasks.family import studying


def begin(
    experiment: Experiment, *, limit: int | None = None, reporter: Reporter
) -> tuple[Experiment, LoadedData[Any]]:
    """The whole config, and the data that it trains on; ``limit`` keeps so many cases of each split."""
    experiment, known = with_start(experiment)
    task, config = experiment.task, experiment.data
    if task.staged:  # each stage measures its own statistics
        config = config.model_copy(update={"image": config.image.model_copy(update={"statistics": "given"})})
    data = load_data(
        config,
        needs=task.needs,
        study=studying(task, learns=True),
        known=known,
        splits=("train", "val"),
        limit=limit,
        training=True,
        reporter=reporter,
    )
    return experiment, data
