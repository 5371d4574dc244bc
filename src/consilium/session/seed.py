"""One seed of a training: its parts are built, trained, judged, and left as a bundle."""

from __future__ import annotations

import contextlib
import dataclasses
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from consilium.bundle import Predictor, case_outputs
from consilium.core.answers import Calibration
from consilium.core.contracts import Evaluator, Hook, Outputs, Progress
from consilium.core.errors import ConfigError, WeightsError
from consilium.core.files import remove_leavings
from consilium.core.labels import class_order
from consilium.core.reporter import Reporter, format_table
from consilium.data.config import ImageConfig
from consilium.data.load import LoadedData
from consilium.data.loader import batch_count, fewest_cases
from consilium.data.mixture import build_mixture, coverage_warnings, mixture_table
from consilium.data.transforms import DeviceTransform
from consilium.evaluation.config import AveragingConfig
from consilium.evaluation.tree import ANSWERED
from consilium.experiment import Experiment
from consilium.judge import RunFacts, evaluator_of
from consilium.manifest import weights_file
from consilium.models.parts import first_names
from consilium.models.weights import load_state, load_strict, parameter_counts
from consilium.session.finish import RunResult, finish
from consilium.tasks.classify import Classify, build_classify, grown_classify
from consilium.training.dryrun import dry_run, memory_advice
from consilium.training.feed import Feed
from consilium.training.hooks import RunLog, build_hooks
from consilium.training.loop import Training, best_folder, fit, refuse_non_finite
from consilium.training.monitor import TIE_BREAKER, Monitor
from consilium.training.optim import Schedule, build_optimizer, warmup_steps
from consilium.training.plan import Plan, make_plan
from consilium.training.processes import on_main
from consilium.training.state import MODEL, checkpoints, load_checkpoint, remove_weights, set_random_state


class Session:
    """Everything of one seed: builds the parts, lets ``fit`` train them, judges and writes the bundle."""

    def __init__(
        self, experiment: Experiment, data: LoadedData, *, accelerator: Accelerator, seed: int, reporter: Reporter
    ) -> None:
        self.experiment, self.data, self.seed, self.reporter = experiment, data, seed, reporter
        self.accelerator, self.device = accelerator, accelerator.device
        self.runs = experiment.trainer.num_runs
        self.log = RunLog(echo=reporter.line)
        self.unread: set[str] = set()
        self._configure_torch()
        set_seed(seed)
        self.task = self._build_task()
        self.image = self._resolved_image()
        self.transform = DeviceTransform(self.image, augmentation=experiment.data.augmentation, seed=seed)
        self.mixture = build_mixture(data.cases, config=experiment.data, seed=seed)
        self.plan = self._make_plan()
        self.feed = self._make_feed()
        self.evaluator = self._evaluator()
        self.monitor = self._monitor()
        if accelerator.num_processes > 1:  # the weights are the same everywhere, what is dropped out is not
            set_seed(seed, device_specific=True)

    def _configure_torch(self) -> None:
        trainer = self.experiment.trainer
        if trainer.threads is not None:
            torch.set_num_threads(trainer.threads)
        torch.use_deterministic_algorithms(trainer.deterministic)
        torch.backends.cudnn.benchmark = not trainer.deterministic

    def _evaluator(self) -> Evaluator:
        labels, config = self.data.cases.labels, self.experiment.evaluation
        return evaluator_of(self.experiment.task, labels=labels, config=config, calibration=Calibration())

    def _monitor(self) -> Monitor:
        """What chooses the best weights; a metric that cannot is a ConfigError."""
        name = self.experiment.trainer.monitor
        if name in ANSWERED:
            raise ConfigError(
                f"trainer.monitor is {name}, which depends on thresholds that are chosen after the training; "
                "accuracy, macro_f1 or aurc can choose the weights."
            )
        labels = self.data.cases.labels.leaves
        if (
            name == "quadratic_kappa"
            and len(labels) > 2
            and not class_order(labels, given=self.experiment.task.tree.order)
        ):
            raise ConfigError(
                "trainer.monitor is quadratic_kappa, which needs the order of the labels, and nothing says which that "
                f"is. Give it as task.tree.nodes, from the lowest to the highest: [{', '.join(labels)}], rearranged."
            )
        higher = self.evaluator.higher_is_better(name)
        return Monitor(name, higher_is_better=higher, tie_breaker=None if name == TIE_BREAKER else TIE_BREAKER)

    def _build_task(self) -> Classify:
        cases, config = self.data.cases, self.experiment.task
        counts, total = cases.class_counts(), len(cases.rows["train"])
        if config.add_to is not None:
            old = Predictor.load(config.add_to, device="cpu").task
            assert isinstance(old, Classify)
            task = grown_classify(old, config=config, labels=cases.labels, class_counts=counts, training_cases=total)
        else:
            size = self.data.image.size
            task = build_classify(
                config, labels=cases.labels, image_size=size, class_counts=counts, training_cases=total
            )
            if task.tower.weights_note:
                self.log.line(f"task.vision.pretrained: {task.tower.weights_note}")
        origin = self.experiment.trainer.init_from
        if origin is not None:
            state = load_state(weights_file(origin))
            if not state.keys() & task.state_dict().keys():
                raise WeightsError(
                    f"trainer.init_from: the weights in {origin} do not fit the model, of which they hold nothing, but "
                    f"{first_names(state)}. Give a bundle of this kind of task; the weights of a tower alone belong to "
                    "task.vision.pretrained."
                )
            load_strict(task, state, origin=origin)
        return task.to(self.device).to(memory_format=torch.channels_last)

    def _resolved_image(self) -> ImageConfig:
        image, expected = self.data.image, self.task.tower.pretrained_input
        own = {"mean": expected.mean, "std": expected.std}
        if image.statistics == "model":
            return image.model_copy(update={**own, "statistics": "given"})
        differs = max(abs(a - b) for a, b in zip(image.mean, expected.mean, strict=True)) > 0.05
        if self.experiment.task.vision.pretrained is not False and differs:
            self.log.line(
                f"note: the pretrained tower expects mean {expected.mean} and std {expected.std}, data.image has "
                f"{image.mean} and {image.std}; data.image.statistics: model takes the tower's."
            )
        return image

    def _make_plan(self) -> Plan:
        trainer, loader = self.experiment.trainer, self.experiment.data.loader
        lengths = [self.mixture.length(epoch) for epoch in range(trainer.max_epochs)]
        processes = self.accelerator.num_processes
        self.fewest = min(fewest_cases(length, config=loader, processes=processes) for length in lengths)
        plan = make_plan([batch_count(length, config=loader) for length in lengths], config=trainer)
        warmup_steps(self.experiment.schedule, total_steps=plan.total_steps)
        return plan

    def _make_feed(self) -> Feed:
        return Feed(
            self.task,
            self.data.cases,
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

    def try_out(self, *, precision: str | None) -> str:
        """Print what will happen, run a trial batch, and return the precision to train in."""
        cases, trainer = self.data.cases, self.experiment.trainer
        batches = [count for count in self.plan.batches if count]
        column, batch_size = self.experiment.data.mixture.source_column, self.experiment.data.loader.batch_size
        table = mixture_table(self.mixture, cases, column=column, batches=batches, batch_size=batch_size)
        self.mixture_rows = [dataclasses.asdict(row) for row in table]
        self.log.line(format_table(self.mixture_rows, title=f"mixture over {len(batches)} epochs"))
        self.warnings = [*cases.notes, *coverage_warnings(table)]
        for warning in coverage_warnings(table):
            self.log.line(f"warning: {warning}")
        self.parts = [dataclasses.asdict(part) for part in parameter_counts(self.task)]
        self.log.line(format_table(self.parts, title="parameters"))
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
        with self._memory_advice():
            self.feed.fill()
        progress = self._fit(folder, precision)
        self.feed.close()
        return on_main(self.accelerator, lambda: self._finish(folder, progress, precision))

    def _predictor(self, averaging: AveragingConfig) -> Predictor:
        return Predictor(
            self.task,
            image=self.image,
            labels=self.data.cases.labels,
            loader=self.experiment.data.loader,
            device=self.device,
            threshold=self.experiment.evaluation.threshold,
            averaging=averaging,
            cached=self.feed.judged if averaging.looks == 1 else None,
        )

    def _fit(self, folder: Path, precision: str) -> Progress:
        experiment, trainer = self.experiment, self.experiment.trainer
        optimizer = build_optimizer(experiment.optimizer, groups=self.task.parameter_groups())
        schedule = Schedule(
            experiment.schedule,
            optimizer=optimizer,
            total_steps=self.plan.total_steps,
            steps_per_epoch=self.plan.steps[0],
        )
        progress = Progress()
        found = checkpoints(folder / "checkpoints")
        if found:
            state, progress = load_checkpoint(found[-1], module=self.task)
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            states = state["random"]  # one per process
            set_random_state(states[self.accelerator.process_index % len(states)])
            self.log.line(f"resumed from {found[-1].name}: epoch {progress.epoch}, batch {progress.batch}")
        if self.accelerator.is_main_process:  # what a killed start left, and best weights of steps that come again
            remove_leavings(folder / "checkpoints")
            remove_weights(folder / "checkpoints", keep=progress.best_step)
        if trainer.compile:
            self.task.compile()
        training = Training(
            task=self.task,
            batches=self.feed.batches,
            transform=lambda batch: self.transform(batch, train=True),
            validate=partial(self._validate, folder / "checkpoints"),
            case_ids=lambda rows: [self.data.cases.table.ids[row] for row in rows],
            plan=self.plan,
            optimizer=optimizer,
            schedule=schedule,
            config=trainer,
            accelerator=self.accelerator,
            precision=precision,
            monitor=self.monitor,
            checkpoints=folder / "checkpoints",
            hooks=self._hooks(folder, progress.step),
        )
        with self._memory_advice():
            return fit(training, progress=progress)

    def _validate(self, checkpoints: Path) -> dict[str, float | None]:
        outputs = case_outputs(self._predictor(AveragingConfig()), self.data.cases, "val")
        self._warn_of_unread(outputs)
        refuse_non_finite(outputs, folder=checkpoints)
        return self.evaluator.quick(outputs)

    def _warn_of_unread(self, outputs: Outputs) -> None:
        """Say once of each validation case that it is not judged."""
        for name in outputs.unread.keys() - self.unread:
            self.log.line(f"warning: case {name} is not judged: {outputs.unread[name]}")
        self.unread.update(outputs.unread)

    def _hooks(self, folder: Path, resume_step: int) -> list[Hook]:
        if not self.accelerator.is_main_process:
            return []
        return build_hooks(
            folder,
            log=self.log,
            reporter=self.reporter,
            metrics=self.evaluator.metric_names,
            groups=[group.name for group in self.task.parameter_groups()],
            resume_step=resume_step,
            log_every=self.experiment.trainer.log_every,
            monitor=self.monitor,
            cached=self.feed.frozen is not None,
            wandb=(self.experiment.name, self.experiment.model_dump(mode="json"))
            if self.experiment.trainer.wandb
            else None,
        )

    def _finish(self, folder: Path, progress: Progress, precision: str) -> RunResult:
        """Judge the best weights, once, and write report and bundle."""
        best = best_folder(folder / "checkpoints", progress) / MODEL
        load_strict(self.task, load_state(best), origin=str(best))
        if progress.best_metric is None:
            self.warnings.append(self.monitor.undefined())
        facts = RunFacts(
            precision=precision,
            device=str(self.device),
            seconds=progress.seconds,
            best_step=progress.best_step,
            steps=progress.step,
            parts=self.parts,
            mixture=self.mixture_rows,
            warnings=self.warnings,
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
        self.log.line(f"bundle and report.html are in {folder}")
        return result

    def _memory_advice(self) -> contextlib.AbstractContextManager[None]:
        batch_size, accumulate = self.experiment.data.loader.batch_size, self.experiment.trainer.accumulate
        return memory_advice(self.device, batch_size=batch_size, accumulate=accumulate, image_size=self.image.size)
