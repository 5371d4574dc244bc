"""How long a training will be, from its data alone; no model is built."""

from __future__ import annotations

import os
from functools import partial

from consilium.core.reporter import Reporter
from consilium.core.section import Knowledge
from consilium.data.batches.loader import batch_sizes
from consilium.data.cases.cases import Cases, Studied
from consilium.data.cases.load import studied_cases
from consilium.data.cases.mixture import build_mixture
from consilium.data.store.prepare import prepare
from consilium.experiment import Experiment
from consilium.training.plan import Plan, make_plan


def elsewhere(experiment: Experiment) -> list[str]:
    """The sources that do not lie on this machine."""
    return [source.path for source in experiment.data.sources if not os.path.exists(os.path.expanduser(source.path))]


def planned(experiment: Experiment, *, reporter: Reporter) -> Plan:
    """The steps of a training of captioned images; its data is prepared, as the training would."""
    data, epochs = experiment.data, experiment.trainer.max_epochs
    table = prepare(data, reporter=reporter).store.table
    studied = studied_cases(table, config=data, needs=experiment.task.needs, study=_unstudied)
    mixture = build_mixture(studied, config=data, seed=experiment.seed)
    sizes = partial(batch_sizes, mixture, config=data.loader)
    return make_plan([len(sizes(epoch=epoch)) for epoch in range(epochs)], config=experiment.trainer)


def _unstudied(cases: Cases, *, known: Knowledge | None) -> Studied[Knowledge]:
    return Studied(cases, Knowledge(training_cases=len(cases.rows["train"])))
