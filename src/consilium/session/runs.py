"""``train``: the data of an experiment, a folder, and a run in it for every seed."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from consilium.console import reporting
from consilium.core.config import to_yaml
from consilium.core.errors import ConfigError
from consilium.core.files import write_text
from consilium.core.reporter import Reporter
from consilium.data.load import load_data
from consilium.evaluation.report import read_unread
from consilium.experiment import Experiment, check_experiment
from consilium.judge import write_summary
from consilium.manifest import MANIFEST, read_manifest
from consilium.session.cascade import CascadeTraining
from consilium.session.finish import RunResult
from consilium.session.growth import read_growth
from consilium.session.seed import Session
from consilium.training.processes import build_accelerator, on_main
from consilium.training.runs import CONFIG, copy_run, find_run, new_run, read_state, remove_others, try_copy, working_in
from consilium.training.tracking import check_wandb


@dataclass(frozen=True)
class TrainResult:
    """A finished training: ``folder`` is the bundle, or holds one bundle per seed when there are several runs."""

    folder: Path
    runs: list[RunResult]

    def __repr__(self) -> str:
        several = f"{len(self.runs)} runs, the first: " if len(self.runs) > 1 else ""
        return f"<TrainResult {self.folder}: {several}{self.runs[0].headline()}>"

    @property
    def unread(self) -> int:
        """Validation and test cases that were not judged, since an image of theirs could not be read."""
        return sum(run.unread for run in self.runs)

    @property
    def bundle(self) -> Path:
        """The (first) bundle."""
        return self.runs[0].folder


def train(
    experiment: Experiment,
    *,
    limit: int | None = None,
    dry_run: bool = False,
    resume: bool = False,
    quiet: bool = False,
    reporter: Reporter | None = None,
) -> TrainResult | None:
    """Prepare, train, evaluate and report; returns the bundles, or None after a dry run.

    ``limit`` keeps so many cases of each split. ``resume`` goes on with the latest unfinished run. How far it is shows
    on the screen, unless ``quiet``, or goes to ``reporter``. Ctrl-C leaves a checkpoint and raises a KeyboardInterrupt
    that says where it is.
    """
    check_experiment(experiment)
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; expected 1 or more, the cases to keep of each split.")
    if experiment.trainer.wandb:
        check_wandb()
    accelerator = build_accelerator(experiment.trainer.device)
    with reporting(reporter, quiet=quiet or not accelerator.is_main_process) as shown:
        return _train(experiment, accelerator, limit=limit, dry_run=dry_run, resume=resume, reporter=shown)


def _train(
    experiment: Experiment,
    accelerator: Accelerator,
    *,
    limit: int | None,
    dry_run: bool,
    resume: bool,
    reporter: Reporter,
) -> TrainResult | None:
    growth = None if experiment.task.add_to is None else read_growth(experiment.task.add_to)
    if growth is not None:
        experiment = growth.adopted(experiment)
    task, config = experiment.task, experiment.data
    if task.tree.head == "cascade":  # each of its networks has statistics of its own
        config = config.model_copy(update={"image": config.image.model_copy(update={"statistics": "given"})})
    data = load_data(
        config,
        multi_label=task.multi_label,
        labels=task.tree.labels(),
        nested=task.tree.nested,
        known=None if growth is None else growth.known,
        needs=("train", "val"),
        limit=limit,
        training=True,
        reporter=reporter,
    )
    if growth is not None:
        reporter.line(growth.check(data.cases))
    session = CascadeTraining if task.tree.head == "cascade" else Session
    first = session(experiment, data, accelerator=accelerator, seed=experiment.seed, reporter=reporter)
    find = partial(find_run, experiment.output, name=experiment.name, config=experiment, limit=limit, resume=resume)
    make = partial(new_run, experiment.output, name=experiment.name, config=experiment, limit=limit)
    found = on_main(accelerator, lambda: find(data_fingerprints=data.store.fingerprints))
    # Whatever is wrong with the config or the data shows before a folder is made.
    precision = first.try_out(precision=None if found is None else read_state(found).precision)
    if dry_run:
        if found is not None:
            reporter.line(f"this would go on with {found}")
        return None
    folder = found or on_main(accelerator, lambda: make(data_fingerprint=data.store.table.content, precision=precision))
    with working_in(folder) if accelerator.is_main_process else contextlib.nullcontext():
        if experiment.output.copy_to is not None:
            on_main(accelerator, lambda: try_copy(folder, experiment.output, name=experiment.name))
        results = [_run_seed(first, folder=folder, number=number, precision=precision) for number in range(first.runs)]
        if len(results) > 1 and accelerator.is_main_process:
            write_summary(folder, {run.folder.name: run.metrics for run in results}, reporter=reporter)
    if experiment.output.copy_to is not None:
        on_main(accelerator, lambda: copy_run(folder, experiment.output, name=experiment.name, reporter=reporter))
    if experiment.output.if_exists == "replace" and accelerator.is_main_process:
        remove_others(experiment.output, name=experiment.name, keep=folder)
    return TrainResult(folder, results)


def _run_seed(first: Session | CascadeTraining, *, folder: Path, number: int, precision: str) -> RunResult:
    """One run of ``num_runs``; a finished one is only read. ``first`` is the session of the first seed."""
    seed = first.seed + number
    if first.runs > 1:
        folder = folder / f"seed-{seed}"
        folder.mkdir(exist_ok=True)
        if first.accelerator.is_main_process:  # a bundle of its own, with the config that repeats it
            trainer = first.experiment.trainer.model_copy(update={"num_runs": 1})
            own = first.experiment.model_copy(update={"seed": seed, "trainer": trainer})
            write_text(folder / CONFIG, to_yaml(own))
    if (folder / MANIFEST).is_file():
        return RunResult(folder, read_manifest(folder).metrics, unread=len(read_unread(folder)))
    run = first
    if number:
        session = type(first)
        run = session(first.experiment, first.data, accelerator=first.accelerator, seed=seed, reporter=first.reporter)
        run.try_out(precision=precision)
    return run.complete(folder, precision)
