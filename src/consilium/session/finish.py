"""The end of a training: the model learns its calibration from validation, is judged, and is left as a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from consilium.bundle import save_bundle
from consilium.core.config import to_yaml
from consilium.core.reporter import Reporter, some
from consilium.core.section import Knowledge
from consilium.data.cases.load import LoadedData
from consilium.data.look.inputs import input_statistics
from consilium.evaluation.report.page import main_split
from consilium.evaluation.report.parts import AddedTable
from consilium.experiment import Experiment
from consilium.judge import RunFacts, judge, look_back, pictures, predict_splits, set_aside, write_judgement
from consilium.manifest import new_manifest
from consilium.predictor import Predictor
from consilium.session.results import RunResult
from consilium.tasks.family import family_of
from consilium.training.runs import CONFIG

SOLUTION = (
    "The penalty's strength at every node, chosen by the log loss of training cases that its fit did not see, and "
    "whether the last fit converged."
)


def finish(
    folder: Path,
    *,
    experiment: Experiment,
    data: LoadedData[Any],
    predictor: Predictor,
    seed: int,
    facts: RunFacts,
    members: Sequence[str] = (),
    reporter: Reporter,
) -> RunResult:
    """Judge on validation and test, once, and write report and bundle; ``members`` are the bundles inside it."""
    section, family = experiment.task, family_of(experiment.task)
    splits = [split for split in ("val", "test") if len(data.cases.rows[split])]
    knowledge = _taught(predictor, experiment, data, reporter=reporter)
    outputs = predict_splits(predictor, data.studied, splits, reporter=reporter)
    readable = set_aside(data.studied, outputs, reporter=reporter)
    studied, warnings = readable.studied, [*facts.warnings, *readable.warnings, *_unsolved(facts), *_untested(splits)]
    settled = family.settle(section, predictor.task, knowledge, outputs)
    evaluator = family.evaluator(section, settled.knowledge, evaluation=experiment.evaluation)
    parts = family.report(section, settled.knowledge)
    evaluations = judge(settled.outputs, evaluator, parts=parts, reporter=reporter)
    for doubt in family.doubts(section, evaluations["val"]):
        warnings.append(doubt)
        reporter.line(f"warning: {doubt}")
    main = main_split(evaluations)
    manifest = new_manifest(
        section,
        settled.knowledge,
        name=experiment.name,
        image=predictor.image,
        looks=experiment.evaluation.averaging,
        seed=seed,
        data_fingerprint=data.store.table.content,
        metrics={split: dict(evaluation.metrics) for split, evaluation in evaluations.items()},
        alpha=facts.alpha,
        licenses=predictor.task.licenses,
    )
    facts = replace(
        facts,
        warnings=warnings,
        config_yaml=to_yaml(experiment),
        monitor=experiment.monitor,
        confidence=experiment.evaluation.confidence,
        command=f"consilium train {folder / CONFIG}",
    )
    write_judgement(
        folder,
        manifest=manifest,
        evaluations=evaluations,
        studied=studied,
        parts=parts,
        maps=pictures(predictor, section, studied, settled.outputs, report=experiment.report, reporter=reporter),
        added=[*_solution(facts), *family.added(predictor.task, studied.cases, main, report=experiment.report)],
        report=experiment.report,
        facts=facts,
    )
    save_bundle(folder, manifest=manifest, task=predictor.task, members=members)
    return RunResult(folder, manifest.metrics, unread=sum(len(own.unread) for own in settled.outputs.values()))


def _taught(predictor: Predictor, experiment: Experiment, data: LoadedData[Any], *, reporter: Reporter) -> Knowledge:
    """What the training cases teach once the task has learned, and what they are like."""
    found = look_back(predictor, experiment.task, data.studied, evaluation=experiment.evaluation, reporter=reporter)
    inputs = input_statistics(data.cases.table.select(data.cases.rows["train"]), image=predictor.image)
    return found.model_copy(update={"inputs": inputs})


def _solution(facts: RunFacts) -> list[AddedTable]:
    """How a head that is fitted at once was found."""
    return [AddedTable("The fit of the head", SOLUTION, facts.solution, name="solution")] if facts.solution else []


def _untested(splits: Sequence[str]) -> list[str]:
    """A warning where nothing is left to test on."""
    none = "there is no test split: the validation figures chose the weights and are too good."
    return [] if "test" in splits else [none]


def _unsolved(facts: RunFacts) -> list[str]:
    """A warning where the fit of a head did not converge."""
    nodes = [str(row["node"]) for row in facts.solution if not row["converged"]]
    return [f"the fit of the head did not converge at {some(nodes, 5)}; its figures may be too low."] if nodes else []
