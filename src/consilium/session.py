"""``train``: the one place where all sections of an experiment meet."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from consilium.core.errors import DataError, InterruptedRunError, MissingExtraError, TrainingError

try:
    from accelerate import Accelerator
    from accelerate.utils import set_seed
except ImportError:
    raise MissingExtraError("Training", "train") from None

from consilium.bundle import (
    MANIFEST,
    WEIGHTS,
    Predictor,
    case_outputs,
    choose_device,
    new_manifest,
    read_manifest,
    save_bundle,
)
from consilium.core.config import to_yaml
from consilium.core.contracts import Batch, Hook, Progress
from consilium.core.files import remove_leavings
from consilium.core.reporter import Reporter, Silent, format_table
from consilium.data.config import ImageConfig
from consilium.data.load import LoadedData, load_data
from consilium.data.loader import Loader, batch_count, training_requests
from consilium.data.mixture import build_mixture, coverage_warnings, mixture_table
from consilium.data.transforms import DeviceTransform
from consilium.evaluation.classification import ClassificationEvaluator
from consilium.experiment import Experiment
from consilium.judge import RunFacts, judge, write_judgement, write_summary
from consilium.models.weights import load_state, load_strict, parameter_counts
from consilium.tasks.classify import Classify, build_classify
from consilium.training.dryrun import dry_run, memory_advice
from consilium.training.hooks import RunLog, build_hooks
from consilium.training.loop import Training, best_folder, fit
from consilium.training.optim import Schedule, build_optimizer, warmup_steps
from consilium.training.plan import Plan, make_plan
from consilium.training.runs import CONFIG, open_run, read_state, write_state
from consilium.training.state import MODEL, checkpoints, load_checkpoint, set_random_state


@dataclass(frozen=True)
class RunResult:
    """One finished run: its bundle folder and the figures of every split."""

    folder: Path
    metrics: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class TrainResult:
    """A finished training: ``folder`` is the bundle, or holds one bundle per seed when there are several runs."""

    folder: Path
    runs: list[RunResult]

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
    reporter: Reporter | None = None,
) -> TrainResult | None:
    """Prepare, train, evaluate and report; returns the bundles, or None after a dry run.

    ``limit`` keeps so many cases of each split. ``resume`` goes on with the latest unfinished run.
    """
    reporter = reporter or Silent()
    data = load_data(
        experiment.data, multi_label=experiment.task.multi_label, needs=("train", "val"), limit=limit, reporter=reporter
    )
    if dry_run:
        _Session(experiment, data, seed=experiment.seed, reporter=reporter).try_out(precision=None)
        return None
    folder = open_run(experiment.output, name=experiment.name, config=experiment, limit=limit, resume=resume)
    state = read_state(folder)
    if state.data_fingerprint not in (None, data.store.manifest.fingerprint):
        raise DataError(
            f"the data changed since {folder} was started; a run cannot go on with other data. Start a new run."
        )
    state = state.model_copy(update={"status": "running", "data_fingerprint": data.store.manifest.fingerprint})
    write_state(folder, state)
    try:
        results = [
            _run_seed(experiment, data, folder=folder, number=number, precision=state.precision, reporter=reporter)
            for number in range(experiment.trainer.num_runs)
        ]
    except BaseException as error:
        interrupted = isinstance(error, InterruptedRunError | KeyboardInterrupt)
        with contextlib.suppress(OSError):  # a full disk must not hide what happened
            status = "interrupted" if interrupted else "failed"
            write_state(folder, read_state(folder).model_copy(update={"status": status}))
        if isinstance(error, OSError):
            raise TrainingError(
                f"{folder} could not be written: {error}. The checkpoints in it are whole; make room, or mend the "
                "disk, and "
                "give the same command with --resume."
            ) from error
        raise
    if len(results) > 1:
        write_summary(folder, {run.folder.name: run.metrics for run in results}, reporter=reporter)
    write_state(folder, read_state(folder).model_copy(update={"status": "finished"}))
    return TrainResult(folder, results)


def _run_seed(
    experiment: Experiment, data: LoadedData, *, folder: Path, number: int, precision: str | None, reporter: Reporter
) -> RunResult:
    """One run of ``num_runs``; a finished one is only read."""

    if experiment.trainer.num_runs > 1:
        folder = folder / f"seed-{experiment.seed + number}"
        folder.mkdir(exist_ok=True)
    if (folder / MANIFEST).is_file():
        return RunResult(folder, read_manifest(folder).metrics)
    run = _Session(experiment, data, seed=experiment.seed + number, reporter=reporter, folder=folder)
    precision = run.try_out(precision=precision)
    top = folder if experiment.trainer.num_runs == 1 else folder.parent
    write_state(top, read_state(top).model_copy(update={"precision": precision}))
    return run.complete(precision)


class _Session:
    """Everything of one seed: builds the parts, lets ``fit`` train them, judges and writes the bundle."""

    def __init__(
        self, experiment: Experiment, data: LoadedData, *, seed: int, reporter: Reporter, folder: Path | None = None
    ) -> None:
        self.experiment, self.data, self.seed, self.folder, self.reporter = experiment, data, seed, folder, reporter
        self.log = RunLog(folder / "log.txt" if folder else None, echo=reporter.line)
        self.device = choose_device(experiment.trainer.device)
        self._configure_torch()
        self.accelerator = Accelerator(cpu=self.device.type == "cpu")
        set_seed(seed)
        self.task = self._build_task()
        self.image = self._resolved_image()
        self.transform = DeviceTransform(self.image, augmentation=experiment.data.augmentation, seed=seed)
        self.mixture = build_mixture(data.cases, config=experiment.data, seed=seed)
        self.plan = self._make_plan()
        self.evaluator = ClassificationEvaluator(
            data.cases.labels, multi_label=experiment.task.multi_label, config=experiment.evaluation
        )

    def _configure_torch(self) -> None:
        trainer = self.experiment.trainer
        if trainer.threads is not None:
            torch.set_num_threads(trainer.threads)
        torch.use_deterministic_algorithms(trainer.deterministic)
        torch.backends.cudnn.benchmark = not trainer.deterministic

    def _build_task(self) -> Classify:
        cases = self.data.cases
        task = build_classify(
            self.experiment.task,
            labels=cases.labels,
            image_size=self.data.image.size,
            class_counts=cases.class_counts(),
            training_cases=len(cases.rows["train"]),
        )
        origin = self.experiment.trainer.init_from
        if origin is not None:
            path = Path(origin) / WEIGHTS if Path(origin).is_dir() else Path(origin)
            load_strict(task, load_state(path), origin=str(path))
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
        plan = make_plan([batch_count(length, config=loader) for length in lengths], config=trainer)
        warmup_steps(self.experiment.schedule, total_steps=plan.total_steps)
        return plan

    def try_out(self, *, precision: str | None) -> str:
        """Print what will happen, run a trial batch, and return the precision to train in."""
        cases, trainer = self.data.cases, self.experiment.trainer
        self.evaluator.higher_is_better(trainer.monitor)
        table = mixture_table(self.mixture, cases, sources=self.experiment.data.sources, epochs=trainer.max_epochs)
        self.mixture_rows = [dataclasses.asdict(row) for row in table]
        self.log.line(format_table(self.mixture_rows, title=f"mixture over {trainer.max_epochs} epochs"))
        self.warnings = [*cases.notes, *coverage_warnings(table)]
        for warning in coverage_warnings(table):
            self.log.line(f"warning: {warning}")
        self.parts = [dataclasses.asdict(part) for part in parameter_counts(self.task)]
        self.log.line(format_table(self.parts, title="parameters"))
        batch = next(self._batches(0, 0))
        with self._memory_advice():
            trial = dry_run(
                self.task,
                batch,
                transform=lambda batch: self.transform(batch, train=True),
                device=self.device,
                precision=precision or trainer.precision,
            )
        seconds = trial.seconds_per_batch * trainer.accumulate * self.plan.total_steps
        memory = "" if trial.memory_bytes is None else f", {trial.memory_bytes / 2**30:.1f} GiB at peak"
        self.log.line(
            f"trial step on {self.device}: {trial.precision}, {trial.seconds_per_batch:.2f} s a batch{memory}; "
            f"{self.plan.total_steps} steps take about {seconds / 60:.1f} min and validation"
        )
        return trial.precision

    def complete(self, precision: str) -> RunResult:
        """Train to the end, judge the best weights, write the bundle and the report."""
        assert self.folder is not None
        progress = self._fit(precision)
        return RunResult(self.folder, self._finish(progress, precision))

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        requests = training_requests(
            self.mixture,
            epoch=epoch,
            config=self.experiment.data.loader,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        for loaded in self._train_loader.load(requests[start:]):
            if loaded.errors or loaded.batch is None:
                row, error = loaded.errors[0]
                raise DataError(f"case {self.data.cases.table.ids[row]} cannot be used in training: {error}")
            yield loaded.batch

    @cached_property
    def _train_loader(self) -> Loader:
        data = self.experiment.data
        return Loader(
            self.data.cases.table,
            targets=self.data.cases.targets,
            image=self.image,
            augmentation=data.augmentation,
            config=data.loader,
            seed=self.seed,
        )

    @cached_property
    def _predictor(self) -> Predictor:
        return Predictor(
            self.task,
            image=self.image,
            labels=self.data.cases.labels,
            loader=self.experiment.data.loader,
            device=self.device,
            threshold=self.experiment.evaluation.threshold,
        )

    def _fit(self, precision: str) -> Progress:
        assert self.folder is not None
        experiment, trainer = self.experiment, self.experiment.trainer
        higher = self.evaluator.higher_is_better(trainer.monitor)
        optimizer = build_optimizer(experiment.optimizer, groups=self.task.parameter_groups())
        schedule = Schedule(
            experiment.schedule,
            optimizer=optimizer,
            total_steps=self.plan.total_steps,
            steps_per_epoch=self.plan.steps[0],
            higher_is_better=higher,
        )
        progress = Progress()
        remove_leavings(self.folder / "checkpoints")
        found = checkpoints(self.folder / "checkpoints")
        if found:
            state, progress = load_checkpoint(found[-1], module=self.task)
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            set_random_state(state["random"])
            self.log.line(f"resumed from {found[-1].name}: epoch {progress.epoch}, batch {progress.batch}")
        if trainer.compile:
            self.task.compile()
        training = Training(
            task=self.task,
            batches=self._batches,
            transform=lambda batch: self.transform(batch, train=True),
            validate=self._validate,
            case_ids=lambda rows: [self.data.cases.table.ids[row] for row in rows],
            plan=self.plan,
            optimizer=optimizer,
            schedule=schedule,
            config=trainer,
            accelerator=self.accelerator,
            precision=precision,
            higher_is_better=higher,
            checkpoints=self.folder / "checkpoints",
            hooks=self._hooks(progress.step),
        )
        with self._memory_advice():
            return fit(training, progress=progress)

    def _validate(self) -> dict[str, float | None]:
        return self.evaluator.quick(case_outputs(self._predictor, self.data.cases, "val"))

    def _hooks(self, resume_step: int) -> list[Hook]:
        assert self.folder is not None
        if not self.accelerator.is_main_process:
            return []
        return build_hooks(
            self.folder,
            log=self.log,
            reporter=self.reporter,
            metrics=self.evaluator.metric_names,
            groups=[group.name for group in self.task.parameter_groups()],
            resume_step=resume_step,
            log_every=self.experiment.trainer.log_every,
            monitor=self.experiment.trainer.monitor,
            wandb=(self.experiment.name, self.experiment.model_dump(mode="json"))
            if self.experiment.trainer.wandb
            else None,
        )

    def _finish(self, progress: Progress, precision: str) -> dict[str, dict[str, float | None]]:
        """Judge the best weights on validation and test, once, and write report and bundle."""
        assert self.folder is not None
        cases, experiment = self.data.cases, self.experiment
        best = best_folder(self.folder / "checkpoints", progress) / MODEL
        load_strict(self.task, load_state(best), origin=str(best))
        splits = [split for split in ("val", "test") if len(cases.rows[split])]
        if "test" not in splits:
            self.warnings.append("there is no test split: the validation figures chose the weights and are too good.")
        evaluations = judge(self._predictor, cases, self.evaluator, splits=splits, reporter=self.reporter)
        manifest = new_manifest(
            name=experiment.name,
            task=experiment.task,
            image=self.image,
            labels=cases.labels,
            class_counts=cases.class_counts(),
            training_cases=len(cases.rows["train"]),
            threshold=experiment.evaluation.threshold,
            seed=self.seed,
            data_fingerprint=self.data.store.manifest.fingerprint,
            metrics={split: dict(evaluation.metrics) for split, evaluation in evaluations.items()},
        )
        facts = RunFacts(
            precision=precision,
            device=str(self.device),
            seconds=progress.seconds,
            best_step=progress.best_step,
            steps=progress.step,
            parts=self.parts,
            mixture=self.mixture_rows,
            warnings=self.warnings,
            config_yaml=to_yaml(experiment),
            monitor=experiment.trainer.monitor,
            confidence=experiment.evaluation.confidence,
            command=f"consilium train {self.folder / CONFIG}",
        )
        if self.accelerator.is_main_process:
            write_judgement(
                self.folder,
                manifest=manifest,
                evaluations=evaluations,
                cases=cases,
                report=experiment.report,
                facts=facts,
            )
            save_bundle(self.folder, manifest=manifest, task=self.task)
            self.log.line(f"bundle and report.html are in {self.folder}")
        return manifest.metrics

    def _memory_advice(self) -> contextlib.AbstractContextManager[None]:
        batch_size, accumulate = self.experiment.data.loader.batch_size, self.experiment.trainer.accumulate
        return memory_advice(self.device, batch_size=batch_size, accumulate=accumulate, image_size=self.image.size)
