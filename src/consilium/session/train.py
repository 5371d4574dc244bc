"""``train``: the data of an experiment, a folder, and a run in it for every seed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from consilium.console import reporting
from consilium.core.config import to_yaml
from consilium.core.contracts import Hook, Progress
from consilium.core.errors import ConfigError
from consilium.core.files import remove_leavings, write_text
from consilium.core.reporter import Reporter
from consilium.core.section import Knowledge
from consilium.core.task import Task
from consilium.data.batches.laterality import sides_of
from consilium.data.batches.loader import batch_sizes
from consilium.data.batches.transforms import DeviceTransform
from consilium.data.cases.load import LoadedData
from consilium.data.cases.mixture import build_mixture
from consilium.evaluation.config import AveragingConfig
from consilium.evaluation.report.page import read_unread
from consilium.experiment import Experiment, check_experiment
from consilium.judge import RunFacts
from consilium.manifest import MANIFEST, read_manifest
from consilium.models.lora import adapter_notes, merge_adapters, refuse_unmoved_adapters, save_adapters
from consilium.predictor import Predictor, case_outputs
from consilium.session.begin import begin
from consilium.session.finish import finish
from consilium.session.interpolation import Interpolation
from consilium.session.origin import load_bundle, load_first, trained_groups
from consilium.session.outlook import look_ahead, resolved_image
from consilium.session.results import RunResult, TrainResult, write_summary
from consilium.session.stages import StagedTraining
from consilium.tasks.family import family_of
from consilium.training.averaging import MovingAverage
from consilium.training.dryrun import dry_run, memory_advice
from consilium.training.feed import Feed
from consilium.training.hooks import RunLog, build_hooks
from consilium.training.loop import Training, fit, load_best, refuse_non_finite, restored
from consilium.training.monitor import build_monitor
from consilium.training.optim import Schedule, build_optimizer, warmup_steps
from consilium.training.plan import Plan, make_plan
from consilium.training.processes import build_accelerator, configure, on_main
from consilium.training.runs import CONFIG, copy_run, find_run, new_run, read_state, remove_others, try_copy, working_in
from consilium.training.state import checkpoints, remove_weights, restore_frozen, saved_start
from consilium.training.tracking import check_wandb, wandb_run


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
    experiment, data = begin(experiment, limit=limit, reporter=reporter)
    build = partial(StagedTraining, make=Session) if experiment.task.staged else Session
    session = partial(build, experiment, data, accelerator=accelerator, reporter=reporter)
    first = session(seed=experiment.seed)
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
        run_seed = partial(_run_seed, first, session, folder=folder, precision=precision)
        results = [run_seed(number=number) for number in range(first.runs)]
        if len(results) > 1 and accelerator.is_main_process:
            write_summary(folder, {run.folder.name: run.metrics for run in results}, reporter=reporter)
    if experiment.output.copy_to is not None:
        on_main(accelerator, lambda: copy_run(folder, experiment.output, name=experiment.name, reporter=reporter))
    if experiment.output.if_exists == "replace" and accelerator.is_main_process:
        remove_others(experiment.output, name=experiment.name, keep=folder)
    return TrainResult(folder, results)


def _run_seed(
    first: Session | StagedTraining,
    session: Callable[..., Session | StagedTraining],
    *,
    folder: Path,
    number: int,
    precision: str,
) -> RunResult:
    """One run of ``num_runs``; a finished one is only read. ``first`` is the first, ``session`` makes another."""
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
        run = session(seed=seed)
        run.try_out(precision=precision)
    return run.complete(folder, precision)


class Session:
    """Everything of one seed: builds the parts, lets ``fit`` train them, judges and writes the bundle."""

    def __init__(
        self, experiment: Experiment, data: LoadedData[Any], *, accelerator: Accelerator, seed: int, reporter: Reporter
    ) -> None:
        self.experiment, self.data, self.seed, self.reporter = experiment, data, seed, reporter
        self.accelerator, self.device = accelerator, accelerator.device
        self.runs = experiment.trainer.num_runs
        self.log = RunLog(echo=reporter.line)
        self.unread: set[str] = set()  # validation cases of which it was said that they are not judged
        configure(experiment.trainer)
        set_seed(seed)
        self.task = self._build_task()
        self.optimizer = build_optimizer(experiment.optimizer, groups=self.task.parameter_groups())
        self.image = resolved_image(data.image, self.task.image_input(), log=self.log)
        augmentation = experiment.data.augmentation
        mirrored = augmentation.views == "mirrored"
        sides_N2 = sides_of(data.cases.table, self.task.views) if mirrored else None
        self.transform = DeviceTransform(self.image, augmentation=augmentation, seed=seed, sides_N2=sides_N2)
        self.mixture = build_mixture(data.studied, config=experiment.data, seed=seed)
        self.plan = self._make_plan()
        self.feed = self._make_feed()
        family = family_of(experiment.task)
        self.evaluator = family.evaluator(experiment.task, self.knowledge, evaluation=experiment.evaluation)
        self.parts = family.report(experiment.task, self.knowledge)
        self.monitor = build_monitor(experiment.monitor, self.evaluator)
        self.mixed = Interpolation(self.task, experiment, self.monitor) if experiment.trainer.alphas else None
        if accelerator.num_processes > 1:  # the weights are the same everywhere, what is dropped out is not
            set_seed(seed, device_specific=True)

    @property
    def knowledge(self) -> Knowledge:
        """What the training cases taught."""
        knowledge: Knowledge = self.data.studied.knowledge
        return knowledge

    def _build_task(self) -> Task:
        section = self.experiment.task
        bundles = section.borrows if section.origin is None else (section.origin,)
        members = {name: load_bundle(name) for name in bundles}
        task: Task = family_of(section).build(
            section, self.knowledge, image=self.data.image, members=members, weights=section.origin is None
        )
        for note in (*task.notes(), *adapter_notes(task)):
            self.log.line(note)
        task.inherit(own.task for name, own in members.items() if name == section.origin)  # towers bring theirs
        if self.experiment.trainer.init_from is not None:
            load_first(task, self.experiment.trainer.init_from)
        task = task.to(self.device).to(memory_format=torch.channels_last)
        if note := task.keep_start(trained_groups(self.experiment)):
            self.log.line(note)
        return task

    def _make_plan(self) -> Plan:
        trainer, loader = self.experiment.trainer, self.experiment.data.loader
        sizes = [batch_sizes(self.mixture, epoch=epoch, config=loader) for epoch in range(self.experiment.epochs)]
        self.fewest = max(min(map(min, sizes)) // self.accelerator.num_processes, 1)
        plan = make_plan([len(own) for own in sizes], config=trainer)
        warmup_steps(self.experiment.rates, total_steps=plan.total_steps, steps_per_epoch=plan.steps[0])
        return plan

    def _make_feed(self) -> Feed:
        return Feed(
            self.task,
            self.data.studied,
            image=self.image,
            config=self.experiment.data,
            trainer=self.experiment.trainer,
            mixture=self.mixture,
            plan=self.plan,
            seed=self.seed,
            accelerator=self.accelerator,
            log=self.log,
            reporter=self.reporter,
        )

    @property
    def steps(self) -> int:
        """The optimizer steps of the whole training."""
        return self.plan.total_steps

    def close(self) -> None:
        """End the processes that decode images."""
        self.feed.close()

    def try_out(self, *, precision: str | None) -> str:
        """Print what will happen, run a trial batch, and return the precision to train in."""
        trainer = self.experiment.trainer
        self.outlook = look_ahead(
            self.experiment, self.data.cases, mixture=self.mixture, plan=self.plan, task=self.task, log=self.log
        )
        with self._memory_advice():
            batch = self.feed.first()
            trial = dry_run(
                self.task,
                batch,
                transform=lambda batch: self.transform(batch, train=True),
                device=self.device,
                precision=self.feed.precision(precision or trainer.precision),
                fewest=self.fewest,
            )
        seconds = trial.seconds_per_batch * trainer.accumulate * self.plan.total_steps
        for key, found in self.task.found().items():
            self.log.line(f"{key}: auto is {found} here")
        memory = "" if trial.memory_bytes is None else f", {trial.memory_bytes / 2**30:.1f} GiB at peak"
        self.log.line(
            f"trial step on {self.device}: {trial.precision}, {trial.seconds_per_batch:.2f} s a batch{memory}; "
            f"{self.plan.total_steps} steps take about {seconds / 60:.1f} min and validation"
        )
        return on_main(self.accelerator, lambda: trial.precision)

    def complete(self, folder: Path, precision: str) -> RunResult:
        """Train to the end, judge the best weights, write the bundle and the report into ``folder``."""
        if self.accelerator.is_main_process:
            self.log.open(folder / "log.txt")
        if restore_frozen(folder / "checkpoints", self.task):
            self.log.line("note: the frozen weights are not those that the run began with; it goes on with its own")
            self.close()
            self.feed = self._make_feed()
        with self._memory_advice():
            self.feed.fill()
        progress = self._fit(folder, precision)
        self.feed.close()
        return on_main(self.accelerator, lambda: self._finish(folder, progress, precision))

    def _predictor(self, looks: AveragingConfig) -> Predictor:
        return Predictor(
            self.task,
            self.knowledge,
            image=self.image,
            loader=self.experiment.data.loader,
            device=self.device,
            looks=looks,
            cached=self.feed.judged,
        )

    def _fit(self, folder: Path, precision: str) -> Progress:
        experiment, trainer = self.experiment, self.experiment.trainer
        schedule = Schedule(
            experiment.rates,
            optimizer=self.optimizer,
            total_steps=self.plan.total_steps,
            steps_per_epoch=self.plan.steps[0],
            floors=experiment.optimizer.floors,
        )
        training = Training(
            task=self.task,
            batches=self.feed.batches,
            transform=lambda batch: self.transform(batch, train=True),
            validate=partial(self._validate, folder / "checkpoints"),
            case_ids=lambda rows: [self.data.cases.table.ids[row] for row in rows],
            plan=self.plan,
            optimizer=self.optimizer,
            schedule=schedule,
            config=trainer,
            accelerator=self.accelerator,
            precision=precision,
            monitor=self.monitor,
            checkpoints=folder / "checkpoints",
            keeps_start=trained_groups(experiment) if self.mixed or experiment.task.holds_start else (),
            solving=partial(self.reporter.progress, "fit") if experiment.task.solved else None,
            average=None if trainer.ema is None else MovingAverage(self.task, trainer.ema),
        )
        progress = restored(training)
        if found := checkpoints(folder / "checkpoints"):
            self.log.line(f"resumed from {found[-1].name}: epoch {progress.epoch}, batch {progress.batch}")
        if self.accelerator.is_main_process:  # what a killed start left, and best weights of steps that come again
            remove_leavings(folder / "checkpoints")
            remove_weights(folder / "checkpoints", keep=progress.best_step)
        if trainer.compile:
            self.task.compile()
        training.hooks = self._hooks(folder, progress.step)
        with self._memory_advice():
            return fit(training, progress=progress)

    def _validate(self, checkpoints: Path) -> dict[str, float | None]:
        outputs = case_outputs(self._predictor(AveragingConfig()), self.data.studied, "val")
        for name in outputs.unread.keys() - self.unread:
            self.log.line(f"warning: case {name} is not judged: {outputs.unread[name]}")
        self.unread.update(outputs.unread)
        refuse_non_finite(outputs, folder=checkpoints)
        return self.evaluator.quick(outputs)

    def _hooks(self, folder: Path, resume_step: int) -> list[Hook]:
        if not self.accelerator.is_main_process:
            return []
        experiment = self.experiment
        return build_hooks(
            folder,
            log=self.log,
            reporter=self.reporter,
            metrics=self.evaluator.metric_names,
            groups=[group.name for group in self.task.parameter_groups()],
            resume_step=resume_step,
            log_every=self.plan.log_every,
            monitor=self.monitor,
            shown=(*self.parts.curves, "log_loss"),
            cached="images" in self.feed.frozen,
            wandb=wandb_run(experiment.trainer, name=experiment.name, config=experiment.model_dump(mode="json")),
        )

    def _finish(self, folder: Path, progress: Progress, precision: str) -> RunResult:
        """Judge the best weights, once, and write report and bundle."""
        refuse_unmoved_adapters(self.task)  # of the last step: the best may lie in a warm-up
        load_best(folder / "checkpoints", self.task, progress=progress)
        if self.mixed is not None:
            begun = saved_start(folder / "checkpoints", self.task)
            self.mixed.apply(begun, validate=partial(self._validate, folder / "checkpoints"))
            self.log.line(self.mixed.table())
        save_adapters(self.task, folder / "adapters")
        merge_adapters(self.task)
        undefined = [self.monitor.undefined()] if progress.best_metric is None else []
        facts = RunFacts(
            precision=precision,
            device=str(self.device),
            seconds=progress.seconds,
            best_step=progress.best_step,
            steps=progress.step,
            tables=self.outlook.tables,
            solution=progress.solution,
            alpha=None if self.mixed is None else self.mixed.alpha,
            warnings=[*self.outlook.warnings, *undefined],
        )
        result = finish(
            folder,
            experiment=self.experiment,
            data=self.data,
            predictor=self._predictor(self.experiment.evaluation.averaging),
            seed=self.seed,
            facts=facts,
            reporter=self.reporter,
        )
        if self.mixed is not None:
            self.mixed.report(folder)
        self.log.line(f"bundle and report.html are in {folder}")
        return result

    def _memory_advice(self) -> contextlib.AbstractContextManager[None]:
        batch_size = self.experiment.data.loader.batch_size
        advice = self.experiment.task.saves_memory.format(accumulate=self.experiment.trainer.accumulate)
        return memory_advice(self.device, batch_size=batch_size, image_size=self.image.size, advice=advice)
