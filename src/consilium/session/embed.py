"""``data embed``: the features of frozen towers, computed ahead of a training."""

from __future__ import annotations

from consilium.console import reporting
from consilium.core.errors import ConfigError
from consilium.core.reporter import Reporter
from consilium.experiment import Experiment, check_experiment
from consilium.session.begin import begin
from consilium.session.train import Session
from consilium.training.frozen import Filled
from consilium.training.processes import build_accelerator


def embed(experiment: Experiment, *, quiet: bool = False, reporter: Reporter | None = None) -> list[Filled]:
    """Compute what the frozen towers of an experiment make of its images and texts, as far as it is not there.

    A training of it then computes none of them. A pass that is interrupted goes on where it was. A task without a
    frozen tower is a ConfigError.
    """
    check_experiment(experiment)
    if experiment.task.staged:
        raise ConfigError(
            "a cascade trains its nodes one by one, and each computes its own features; train it as it is."
        )
    accelerator = build_accelerator(experiment.trainer.device)
    with reporting(reporter, quiet=quiet or not accelerator.is_main_process) as shown:
        experiment, data = begin(experiment, reporter=shown)
        found: list[Filled] = []
        for number in range(experiment.trainer.num_runs):  # another seed may draw other cases
            seed = experiment.seed + number
            session = Session(experiment, data, accelerator=accelerator, seed=seed, reporter=shown)
            if not session.feed.frozen:
                raise ConfigError(
                    "no tower of this task stays frozen while nothing changes what it sees, so that there is nothing "
                    "to compute ahead. Set task.text.freeze.kind: tower (or that of task.vision, without "
                    "data.augmentation), and leave trainer.cache_features true."
                )
            found += session.feed.fill()
            session.close()
    return found
