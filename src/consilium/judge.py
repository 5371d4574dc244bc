"""Judging a predictor: over the splits of a training, or over any data by its bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from consilium.core.config import build
from consilium.core.contracts import Batch
from consilium.core.errors import ConfigError, DataError
from consilium.core.evaluation import Evaluation, Evaluator, Outputs
from consilium.core.licenses import license_warnings, recorded
from consilium.core.reporter import Reporter, counted, format_table
from consilium.core.section import Knowledge, TaskSection
from consilium.data.batches.readers import Images
from consilium.data.cases.cases import SPLITS, Studied
from consilium.data.cases.given import YAML, given_data, given_tree
from consilium.data.cases.load import load_data
from consilium.data.cases.shown import data_rows, texts, thumbnails
from consilium.data.config import DataConfig
from consilium.evaluation.config import EvaluationConfig, ReportConfig
from consilium.evaluation.labels.saliency import SaliencyMap
from consilium.evaluation.probes.config import OneProbes, ProbesConfig
from consilium.evaluation.probes.report import probe_tables, together, with_probes
from consilium.evaluation.report.page import ReportContent, add_table, write_report
from consilium.evaluation.report.parts import AddedTable, ReportParts
from consilium.evaluation.report.wording import number, unread_sentence
from consilium.manifest import Manifest
from consilium.predictions import check_embeddings, write_embeddings
from consilium.predictor import Predictor, case_outputs
from consilium.probing import probe
from consilium.tasks.family import family_of, studying
from consilium.training.hooks import read_history


@dataclass(frozen=True)
class RunFacts:
    """What a report says about the training; nothing where a bundle is judged on other data later."""

    precision: str = ""
    device: str = ""
    seconds: float | None = None
    best_step: int | None = None
    steps: int | None = None
    monitor: str = "macro_f1"
    confidence: float = 0.95
    alpha: float | None = None  # share of what was learned in the weights; the rest is the start
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # mixture, sources and parts
    solution: list[dict[str, Any]] = field(default_factory=list)  # of a task that is solved in one step
    warnings: list[str] = field(default_factory=list)
    config_yaml: str = ""
    command: str = ""

    def shown(self) -> dict[str, str]:
        """The facts as a report lists them."""
        facts = {"Device": self.device, "Precision": self.precision}
        if self.seconds is not None:
            facts["Time"] = f"{self.seconds / 60:.1f} minutes of training steps"
        if self.steps is not None:
            facts["Steps"] = f"{self.steps} (best at {self.best_step} by {self.monitor})"
        for part in self.tables.get("parts", []):
            facts[f"Parameters of the {part['name']}"] = (
                f"{number(part['total'])} ({number(part['trainable'])} trained)"
            )
        return {name: value for name, value in facts.items() if value}


@dataclass(frozen=True)
class Judging:
    """What a model is judged on, and how.

    ``trained_on`` is the data of its own training, None where it had none; with ``is_own`` it is the data judged on.
    """

    section: TaskSection
    data: DataConfig
    split: str
    evaluation: EvaluationConfig
    report: ReportConfig
    probes: ProbesConfig | None
    trained_on: DataConfig | None
    is_own: bool
    command: str
    embeddings: Path | None = None
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Judgeable:
    """Cases whose images could be read, and what a report says of the others."""

    studied: Studied[Any]
    warnings: list[str]


def predict_splits(
    predictor: Predictor, studied: Studied[Any], splits: Sequence[str], *, reporter: Reporter
) -> dict[str, Outputs]:
    """The predictor's outputs over each split."""
    if predictor.looks.looks > 1:
        reporter.line(f"evaluation.averaging: the model sees each image {predictor.looks.looks} times")
    return {
        split: case_outputs(predictor, studied, split, progress=partial(reporter.progress, f"judge {split}"))
        for split in splits
    }


def look_back(
    predictor: Predictor,
    section: TaskSection,
    studied: Studied[Any],
    *,
    evaluation: EvaluationConfig,
    reporter: Reporter,
) -> Knowledge:
    """What the training cases teach the trained task before it is judged; it sees them as the predictor reads them."""

    def show(see: Callable[[Batch], None]) -> None:
        def ask(batch: Batch) -> Mapping[str, Any]:
            see(batch)
            return {}

        case_outputs(predictor, studied, "train", ask=ask, progress=partial(reporter.progress, "look back"))

    found: Knowledge = family_of(section).look_back(section, predictor.task, studied, evaluation=evaluation, show=show)
    return found


def set_aside(studied: Studied[Any], outputs: Mapping[str, Outputs], *, reporter: Reporter) -> Judgeable:
    """The cases that have outputs, and a warning for each split in which images could not be read."""
    warnings = [unread_sentence(own.unread, split=split) for split, own in outputs.items() if own.unread]
    for text in warnings:
        reporter.line(f"warning: {text}")
    return Judgeable(studied.without({name for own in outputs.values() for name in own.unread}), warnings)


def judge(
    outputs: Mapping[str, Outputs], evaluator: Evaluator, *, parts: ReportParts, reporter: Reporter
) -> dict[str, Evaluation]:
    """Everything the evaluator says about each split; the headline is printed."""
    evaluations = {}
    for split, own in outputs.items():
        found = evaluator.evaluate(own, split=split)
        unread = [{"id": name, "reason": reason} for name, reason in own.unread.items()]
        evaluations[split] = replace(found, tables={**found.tables, "unread": unread}) if unread else found
        tell(evaluations[split], parts, reporter=reporter)
    return evaluations


def tell(evaluation: Evaluation, parts: ReportParts, *, reporter: Reporter) -> None:
    """Print the headline, and what else the task says of its figures."""
    rows = [row for row in headline(evaluation) if not parts.screen or row["metric"] in parts.screen]
    reporter.line(format_table(rows, title=f"{evaluation.split}: {evaluation.cases} cases"))
    for text in parts.console(evaluation):
        reporter.line(text)


def headline(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The figures with intervals as rows for a table."""
    return [
        {"metric": name, "value": interval.value, "from": interval.low, "to": interval.high}
        for name, interval in evaluation.intervals.items()
    ]


@dataclass(frozen=True)
class Judged:
    """What was found, in which cases, and how a report shows it."""

    evaluation: Evaluation
    studied: Studied[Any]
    outputs: Mapping[str, Outputs]
    parts: ReportParts
    warnings: list[str]


def judge_on(predictor: Predictor, judging: Judging, *, target: Path, reporter: Reporter) -> Evaluation:
    """Judge a predictor that has a manifest, and write the report into ``target``."""
    manifest = predictor.manifest
    assert manifest is not None
    if judging.embeddings is not None:
        check_embeddings(judging.embeddings, task=predictor.task)
    studied = cases_to_judge(
        judging, known=predictor.knowledge, fingerprint=manifest.data_fingerprint, reporter=reporter
    )
    found = find(predictor, judging, studied, reporter=reporter)
    if judging.embeddings is not None:
        write_embeddings(judging.embeddings, found.outputs[judging.split], task=predictor.task)
    maps = pictures(predictor, judging.section, found.studied, found.outputs, report=judging.report, reporter=reporter)
    write_judgement(
        target,
        manifest=manifest,
        evaluations={judging.split: found.evaluation},
        studied=found.studied,
        parts=found.parts,
        maps=maps,
        added=family_of(judging.section).added(
            predictor.task, found.studied.cases, judging.split, report=judging.report
        ),
        report=judging.report,
        facts=RunFacts(
            confidence=judging.evaluation.confidence,
            warnings=[*judging.warnings, *studied.cases.notes, *found.warnings],
            command=judging.command,
        ),
    )
    reporter.line(f"report: {target / 'report.html'}")
    return found.evaluation


def find(predictor: Predictor, judging: Judging, studied: Studied[Any], *, reporter: Reporter) -> Judged:
    """Everything that the evaluator of the task and the probes say of the cases; the headline is printed."""
    section, split, family = judging.section, judging.split, family_of(judging.section)
    parts = family.report(section, predictor.knowledge)
    outputs: dict[str, Outputs] = {}
    if judging.probes is None or section.needs.text != "must" or studied.cases.has_text(split):
        outputs = predict_splits(predictor, studied, [split], reporter=reporter)
    evaluator = family.evaluator(section, predictor.knowledge, evaluation=judging.evaluation)
    evaluations = judge(outputs, evaluator, parts=parts, reporter=reporter)
    if judging.probes is not None:
        probed = probe(
            predictor,
            studied,
            judging.probes,
            split=split,
            evaluation=judging.evaluation,
            trained_on=judging.trained_on,
            reporter=reporter,
        )
        parts, outputs = with_probes(parts), outputs or {split: probed.outputs}
        evaluations[split] = together(evaluations.get(split), probed.evaluation)
        for text in probe_tables(probed.evaluation):
            reporter.line(text)
    _refuse_undefined(evaluations[split])
    readable = set_aside(studied, outputs, reporter=reporter)
    return Judged(evaluations[split], readable.studied, outputs, parts, readable.warnings)


def _refuse_undefined(evaluation: Evaluation) -> None:
    """Cases that no figure is defined for are a DataError."""
    if evaluation.metrics and all(value is None for value in evaluation.metrics.values()):
        notes = " ".join(row["note"] for row in evaluation.tables.get("notes", []))
        cases = counted(evaluation.cases, "case")
        raise DataError(f"the {cases} of {evaluation.split} cannot be judged. {notes}".strip())


@dataclass(frozen=True)
class Given:
    """What a model is to be judged on; ``name`` is for the folder of the report."""

    data: DataConfig
    split: str
    probes: ProbesConfig | None
    name: str


def given_to_judge(
    path: str | None,
    *,
    split: str | None,
    own: DataConfig,
    probes: ProbesConfig | None,
    on_bad_row: Literal["stop", "quarantine"] | None = None,
) -> Given:
    """The data, split and probes of a path; without one the model's own data and ``probes``.

    ``split`` None means test, or all where the path is no YAML file. ``on_bad_row`` takes the place of the data's.
    """
    if split is None:
        split = "test" if path is None or Path(path).suffix in YAML else "all"
    if split not in (*SPLITS, "all"):
        raise ConfigError(f"split is '{split}'; expected {', '.join(SPLITS)} or all.")
    data, name = own, split
    if path is not None:
        tree = given_tree(path)
        data, probes = given_data(path, tree=tree, own=own), given_probes(tree, origin=path)
        name = f"{Path(path).stem}-{split}"
    if on_bad_row is not None:
        data = data.model_copy(update={"on_bad_row": on_bad_row})
    return Given(data, split, probes, name)


def given_probes(tree: Mapping[str, Any], *, origin: str) -> ProbesConfig | None:
    """The ``probes`` section beside a data section; None where there is none."""
    section = tree.get("probes")
    return None if section is None else build(OneProbes, {"probes": section}, origin=origin).probes


def cases_to_judge(judging: Judging, *, known: Knowledge | None, fingerprint: str, reporter: Reporter) -> Studied[Any]:
    """The cases to judge; of the model's own data it is noted when they changed since the training."""
    section, split = judging.section, judging.split
    needs = section.needs
    if judging.probes is not None:  # which ask for labels, and do without a text
        needs = replace(needs, label="may", text="may" if needs.text == "must" else needs.text)
    loaded = load_data(
        judging.data,
        needs=needs,
        study=studying(section, learns=False),
        known=known,
        splits=() if split == "all" else (split,),
        reporter=reporter,
    )
    studied, cases = loaded.studied, loaded.cases
    if judging.is_own and fingerprint not in loaded.store.fingerprints:
        cases.notes.append("the data changed since the training; this may be another test set.")
        reporter.line(f"note: {cases.notes[-1]}")
    if split != "all":
        return studied
    return replace(studied, cases=replace(cases, rows={"all": np.arange(len(cases.table))}))


def write_judgement(
    folder: Path,
    *,
    manifest: Manifest,
    evaluations: Mapping[str, Evaluation],
    studied: Studied[Any],
    parts: ReportParts,
    maps: Sequence[SaliencyMap],
    added: Sequence[AddedTable],
    report: ReportConfig,
    facts: RunFacts,
) -> Path:
    """Write report.html, metrics.json, tables and the model card into ``folder``; the path of the HTML."""
    cases = studied.cases
    licenses = recorded(manifest.licenses, source=manifest.name)
    content = ReportContent(
        title=f"{manifest.name}: {parts.about}",
        name=manifest.name,
        parts=parts,
        evaluations=evaluations,
        config=report,
        confidence=facts.confidence,
        facts={**_origin(manifest), **facts.shown()},
        history=read_history(folder / "history.csv"),
        monitor=facts.monitor,
        best_step=facts.best_step,
        data=data_rows(cases),
        mixture=facts.tables.get("mixture", []),
        sources=facts.tables.get("sources", []),
        warnings=[*facts.warnings, *license_warnings(licenses)],
        licenses=licenses,
        config_yaml=facts.config_yaml,
        command=facts.command,
        text=texts(cases),
        thumbnail=thumbnails(cases, size=report.thumbnail_size, window=manifest.image.window),
        maps=maps,
    )
    path = write_report(folder, content)
    for own in added:
        add_table(folder, title=own.title, text=own.text, rows=own.rows, name=own.name)
    return path


def pictures(
    predictor: Predictor,
    section: TaskSection,
    studied: Studied[Any],
    outputs: Mapping[str, Outputs],
    *,
    report: ReportConfig,
    reporter: Reporter,
) -> list[SaliencyMap]:
    """What the family shows of its answers; images are read and seen once, whatever the predictor does else."""
    plain = predictor.once

    def ask(source: Images, rows: np.ndarray, *, progress: Callable[[int, int], None]) -> Mapping[str, np.ndarray]:
        return plain.arrays(source, rows, progress=progress).by_name

    return family_of(section).pictures(
        predictor.task, studied, outputs, image=predictor.image, ask=ask, report=report, reporter=reporter
    )


def _origin(manifest: Manifest) -> dict[str, str]:
    height, width = manifest.image.size
    return {
        "Date": manifest.created,
        "Consilium": manifest.consilium_version,
        **manifest.task.towers,
        "Image size": f"{height} x {width} pixels",
        "Looks at an image": str(manifest.looks.looks),
        "Seed": str(manifest.seed),
        "Training cases": str(manifest.knowledge["training_cases"]),
        "Data fingerprint": manifest.data_fingerprint,
    }
