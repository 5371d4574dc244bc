"""A training of several stages: ordinary runs one after another, whose bundles make one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from consilium.bundle import load_member
from consilium.core.config import build, merge, to_yaml
from consilium.core.errors import ConfigError, ConsiliumError
from consilium.core.files import write_text
from consilium.core.licenses import License, license_warnings
from consilium.core.reporter import Reporter, Silent, counted, format_table
from consilium.core.task import Task
from consilium.data.cases.cases import Cases, Studied
from consilium.data.cases.filters import Filtered, filtered
from consilium.data.cases.load import LoadedData, measured
from consilium.data.config import FilterConfig, ImageConfig
from consilium.experiment import Experiment
from consilium.judge import RunFacts
from consilium.manifest import MANIFEST, read_manifest
from consilium.models.weights import parameter_counts
from consilium.predictor import Predictor
from consilium.session.finish import finish
from consilium.session.results import RunResult
from consilium.tasks.family import Stage, family_of, studying
from consilium.training.hooks import RunLog
from consilium.training.processes import on_main
from consilium.training.runs import CONFIG


class Run(Protocol):
    """One seed of a training."""

    @property
    def steps(self) -> int:
        """The optimizer steps to come."""
        ...

    @property
    def task(self) -> Task:
        """What it trains."""
        ...

    def try_out(self, *, precision: str | None) -> str:
        """Run a trial batch; returns the precision to train in."""
        ...

    def complete(self, folder: Path, precision: str) -> RunResult:
        """Train to the end and leave a bundle."""
        ...

    def close(self) -> None:
        """End the processes that it has started."""
        ...


@dataclass(frozen=True)
class _Part:
    """One stage as an experiment of its own, that `consilium train` could repeat, and its cases."""

    stage: Stage
    experiment: Experiment
    studied: Studied[Any]


class StagedTraining:
    """Trains the stages into folders of their own, each an ordinary run, and makes them one bundle.

    A run that stopped goes on with the stage it stopped at: finished stages are not trained again.
    """

    def __init__(
        self,
        experiment: Experiment,
        data: LoadedData[Any],
        *,
        accelerator: Accelerator,
        seed: int,
        reporter: Reporter,
        make: Callable[..., Run],
    ) -> None:
        """``make`` builds an ordinary run from what this takes."""
        self.make = make
        self.experiment, self.data, self.seed, self.reporter = experiment, data, seed, reporter
        self.accelerator = accelerator
        self.runs = experiment.trainer.num_runs
        self.log = RunLog(echo=reporter.line)
        self.family = family_of(experiment.task)
        stages = self.family.stages(experiment.task, data.studied.knowledge)
        if experiment.trainer.init_from is not None:
            raise ConfigError(
                f"trainer.init_from is {experiment.trainer.init_from}, but this training has "
                f"{counted(len(stages), 'stage')}, each with weights of its own. Leave it out; "
                "task.vision.pretrained takes a file of weights for all towers."
            )
        self.stages = [self._run(stage) for stage in stages]

    def _run(self, stage: Stage) -> _Part:
        own = {
            "name": f"{self.experiment.name}-{Path(stage.folder).name}",
            "seed": self.seed,
            "trainer": {"num_runs": 1},
        }
        tree = merge(merge(self.experiment.model_dump(mode="json"), stage.changes), own)
        experiment = build(Experiment, tree, origin=f"stage {stage.name}").model_copy(update={"task": stage.section})
        node, cases = experiment.data.filters.node, self.data.cases
        if node != self.experiment.data.filters.node:  # limits and other filters were kept to before
            cases = Cases.of(filtered(Filtered(cases.used()), config=FilterConfig(node=node), seed=0))
        return _Part(stage, experiment, studying(stage.section, learns=True)(cases, known=None))

    def try_out(self, *, precision: str | None) -> str:
        """A trial batch for every stage, before hours are spent on the first; returns the precision to train in."""
        rows, licenses = [], list[License]()
        for run in self.stages:
            image = run.experiment.data.image
            if image.statistics == "data":  # measured when its turn comes
                image = image.model_copy(update={"statistics": "given"})
            with _named(run.stage):
                session = self._session(run, image, Silent())
                precision = session.try_out(precision=precision)
                session.close()
            licenses += session.task.licenses
            rows.append({"stage": run.stage.name, **run.studied.cases.counts(), "steps": session.steps})
        self.log.line(format_table(rows, title=counted(len(rows), "stage")))
        for warning in license_warnings(licenses):
            self.log.line(f"warning: {warning}")
        assert precision is not None, "there is a stage"
        return precision

    def complete(self, folder: Path, precision: str) -> RunResult:
        """Train the stages that are not finished, then judge the whole and write its bundle into ``folder``."""
        if self.accelerator.is_main_process:
            self.log.open(folder / "log.txt")
        for number, run in enumerate(self.stages, start=1):
            place = folder / run.stage.folder
            what = f"stage {number} of {len(self.stages)}: {run.stage.name}"
            if (place / MANIFEST).is_file():
                self.log.line(f"{what} is finished: {place}")
                continue
            self.log.line(f"{what}, {counted(len(run.studied.cases.rows['train']), 'training case')}")
            with _named(run.stage):
                self._train(run, place, precision)
        return on_main(self.accelerator, lambda: self._finish(folder, precision))

    def _train(self, run: _Part, place: Path, precision: str) -> None:
        place.mkdir(parents=True, exist_ok=True)
        if self.accelerator.is_main_process:
            write_text(place / CONFIG, to_yaml(run.experiment))
        image = measured(run.experiment.data.image, self.data.store, run.studied.cases, self.reporter)
        session = self._session(run, image, self.reporter)
        session.try_out(precision=precision)
        session.complete(place, precision)

    def _session(self, run: _Part, image: ImageConfig, reporter: Reporter) -> Run:
        data = replace(self.data, studied=run.studied, image=image)
        return self.make(run.experiment, data, accelerator=self.accelerator, seed=self.seed, reporter=reporter)

    def _finish(self, folder: Path, precision: str) -> RunResult:
        """Judge the stages as one task, settled on validation as a whole."""
        experiment, device, knowledge = self.experiment, self.accelerator.device, self.data.studied.knowledge
        folders = [run.stage.folder for run in self.stages]
        members = {name: load_member(folder / name, read_manifest(folder / name)) for name in folders}
        image = self.family.image(members)
        task = self.family.build(experiment.task, knowledge, image=image, members=members, weights=False)
        task.inherit(member.task for member in members.values())
        task.to(device).to(memory_format=torch.channels_last)
        predictor = Predictor(
            task,
            knowledge,
            image=image,
            loader=experiment.data.loader,
            device=device,
            looks=experiment.evaluation.averaging,
        )
        parts = [
            {**asdict(part), "name": f"{part.name} of {run.stage.name}"}
            for run in self.stages
            for part in parameter_counts(members[run.stage.folder].task)
        ]
        warnings = list(self.data.cases.notes)
        facts = RunFacts(precision=precision, device=str(device), tables={"parts": parts}, warnings=warnings)
        result = finish(
            folder,
            experiment=experiment,
            data=self.data,
            predictor=predictor,
            seed=self.seed,
            facts=facts,
            members=folders,
            reporter=self.reporter,
        )
        self.log.line(f"the bundle of all stages and its report.html are in {folder}")
        return result


@contextlib.contextmanager
def _named(stage: Stage) -> Iterator[None]:
    """Let an error say which stage it stopped."""
    try:
        yield
    except ConsiliumError as error:
        error.args = (f"stage {stage.name}: {error}",)
        raise
