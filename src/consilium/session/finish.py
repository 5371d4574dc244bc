"""The end of a training: the model learns its calibration from validation, is judged, and is left as a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from consilium.bundle import Predictor, recalibrated, save_bundle
from consilium.core.answers import Calibration
from consilium.core.config import to_yaml
from consilium.core.contracts import Outputs
from consilium.core.reporter import Reporter, counted, figures
from consilium.data.load import LoadedData
from consilium.evaluation.calibration import choose_thresholds, fit_temperatures
from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.report import main_split
from consilium.evaluation.wording import rough_thresholds
from consilium.experiment import Experiment
from consilium.judge import RunFacts, evaluator_of, judge, predict_splits, set_aside, write_judgement
from consilium.manifest import new_manifest
from consilium.occlusion import saliency_maps
from consilium.tasks.answering import Answering
from consilium.training.runs import CONFIG


@dataclass(frozen=True)
class RunResult:
    """One finished run: its bundle folder, the figures of every split, and how many cases could not be judged."""

    folder: Path
    metrics: dict[str, dict[str, float | None]]
    unread: int = 0

    def __repr__(self) -> str:
        return f"<RunResult {self.folder}: {self.headline()}>"

    def headline(self) -> str:
        """The first figures of the split that is told at length, and how many cases are missing in all."""
        split = main_split(self.metrics)
        missing = f", {counted(self.unread, 'case')} not judged" if self.unread else ""
        return f"{split} {figures(self.metrics[split])}{missing}"


def finish(
    folder: Path,
    *,
    experiment: Experiment,
    data: LoadedData,
    predictor: Predictor,
    seed: int,
    facts: RunFacts,
    reporter: Reporter,
) -> RunResult:
    """Judge on validation and test, once, and write report and bundle; ``facts`` are what the training knows."""
    task, splits = experiment.task, [split for split in ("val", "test") if len(data.cases.rows[split])]
    outputs = predict_splits(predictor, data.cases, splits, reporter=reporter)
    readable = set_aside(data.cases, outputs, reporter=reporter)
    cases, warnings = readable.cases, [*facts.warnings, *readable.warnings]
    if "test" not in splits:
        warnings.append("there is no test split: the validation figures chose the weights and are too good.")
    calibration, outputs = _calibrated(predictor.task, outputs, config=experiment.evaluation)
    evaluator = evaluator_of(task, labels=cases.labels, config=experiment.evaluation, calibration=calibration)
    evaluations = judge(outputs, evaluator, reporter=reporter)
    if experiment.evaluation.wanted_accuracy is not None:
        rough = rough_thresholds(evaluations["val"])
        warnings += rough
        for warning in rough:
            reporter.line(f"warning: {warning}")
    manifest = new_manifest(
        name=experiment.name,
        task=task,
        image=predictor.image,
        labels=cases.labels,
        class_counts=cases.class_counts(),
        training_cases=len(cases.rows["train"]),
        threshold=experiment.evaluation.threshold,
        averaging=experiment.evaluation.averaging,
        calibration=calibration,
        seed=seed,
        data_fingerprint=data.store.table.content,
        metrics={split: dict(evaluation.metrics) for split, evaluation in evaluations.items()},
    )
    facts = replace(
        facts,
        warnings=warnings,
        config_yaml=to_yaml(experiment),
        monitor=experiment.trainer.monitor,
        confidence=experiment.evaluation.confidence,
        command=f"consilium train {folder / CONFIG}",
    )
    write_judgement(
        folder,
        manifest=manifest,
        evaluations=evaluations,
        cases=cases,
        maps=saliency_maps(predictor, cases, outputs, report=experiment.report, reporter=reporter),
        report=experiment.report,
        facts=facts,
    )
    save_bundle(folder, manifest=manifest, task=predictor.task)
    return RunResult(folder, manifest.metrics, unread=sum(len(own.unread) for own in outputs.values()))


def _calibrated(
    task: Answering, outputs: Mapping[str, Outputs], *, config: EvaluationConfig
) -> tuple[Calibration, dict[str, Outputs]]:
    """What validation teaches about the probabilities, and the outputs as they then are."""
    if task.multi_label:
        return Calibration(), dict(outputs)
    val = outputs["val"]
    logits_NM, targets_N = val.arrays["logits"], val.targets
    calibration = task.calibration  # empty, but for a router that grew
    if config.calibrate:
        fitted = fit_temperatures(logits_NM, targets_N, labels=task.labels)
        temperatures = {**fitted, **calibration.temperatures}
        calibration = calibration.model_copy(update={"temperatures": temperatures})
    task.calibrate(calibration)
    wanted, given = config.wanted_accuracy, []
    if wanted is None:  # a router that grew keeps its thresholds, and needs some for levels that it did not have
        wanted, given = calibration.wanted_accuracy, calibration.thresholds
    if wanted is not None:
        thresholds = choose_thresholds(
            recalibrated(task, val).arrays["probabilities"],
            targets_N,
            labels=task.labels,
            wanted_accuracy=wanted,
            given=given,
        )
        calibration = calibration.model_copy(update={"thresholds": thresholds, "wanted_accuracy": wanted})
        task.calibrate(calibration)
    return calibration, {split: recalibrated(task, own) for split, own in outputs.items()}
