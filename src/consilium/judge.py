"""Judging a predictor: over the splits of a training, or over any data by its bundle."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from consilium.console import reporting
from consilium.core import places
from consilium.core.config import build, read_tree
from consilium.core.contracts import Evaluation, Evaluator, Outputs
from consilium.core.errors import BundleError, ConfigError, DataError
from consilium.core.licenses import license_warnings, recorded
from consilium.core.moved import up_to_date
from consilium.core.reporter import Reporter, counted, format_table
from consilium.core.section import TaskSection
from consilium.data.batches.readers import Images
from consilium.data.cases.cases import SPLITS, Cases, Studied
from consilium.data.cases.load import load_data
from consilium.data.config import DataConfig
from consilium.data.look.thumbnails import thumbnail
from consilium.data.sources.single import kind_of, single_source
from consilium.evaluation.config import EvaluationConfig, ReportConfig
from consilium.evaluation.labels.saliency import SaliencyMap
from consilium.evaluation.report.page import ReportContent, write_report
from consilium.evaluation.report.parts import ReportParts
from consilium.evaluation.report.wording import number
from consilium.manifest import Manifest, local_bundle, read_manifest
from consilium.predictions import check_embeddings, write_embeddings
from consilium.predictor import Predictor, case_outputs
from consilium.tasks.config import OneTask
from consilium.tasks.family import family_of, studying
from consilium.training.hooks import read_history

YAML = (".yaml", ".yml")


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
    parts: list[dict[str, Any]] = field(default_factory=list)
    mixture: list[dict[str, Any]] = field(default_factory=list)
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
        for part in self.parts:
            facts[f"Parameters of the {part['name']}"] = (
                f"{number(part['total'])} ({number(part['trainable'])} trained)"
            )
        return {name: value for name, value in facts.items() if value}


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


def set_aside(studied: Studied[Any], outputs: Mapping[str, Outputs], *, reporter: Reporter) -> Judgeable:
    """The cases that have outputs, and a warning for each split in which images could not be read."""
    warnings = []
    for split, own in outputs.items():
        if own.unread:
            name, reason = next(iter(own.unread.items()))
            warnings.append(
                f"{counted(len(own.unread), 'case')} of {split} could not be read and count in no figure (listed in "
                f"tables/{split}_unread.csv); the first is {name}: {reason}"
            )
            reporter.line(f"warning: {warnings[-1]}")
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
        reporter.line(format_table(headline(evaluations[split]), title=f"{split}: {len(own.ids)} cases"))
        for text in parts.console(evaluations[split]):
            reporter.line(text)
    return evaluations


def headline(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The figures with intervals as rows for a table."""
    return [
        {"metric": name, "value": interval.value, "from": interval.low, "to": interval.high}
        for name, interval in evaluation.intervals.items()
    ]


def evaluate(
    bundle: str | Path,
    *,
    data: str | Path | None = None,
    split: str | None = None,
    out: str | Path | None = None,
    on_bad_row: Literal["stop", "quarantine"] | None = None,
    embeddings: str | Path | None = None,
    device: str = "auto",
    quiet: bool = False,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Judge a bundle on its own data, or on ``data``: a YAML file with a data section, a folder, csv, parquet or jsonl.

    ``split`` is train, val, test or all; None means test, or all where ``data`` is not a YAML file. Writes
    report.html, metrics.json and tables into ``out`` (default: a folder ``evaluation-...`` in the bundle).
    ``on_bad_row`` takes the place of that of the data config. ``embeddings`` is a .parquet, .pt or .npz file that the
    embeddings of the judged cases go to, of an expert that answers with some. A case whose image cannot be read any
    more is left out; ``unread`` of the result counts these. How far it is shows on the screen, unless ``quiet``, or
    goes to ``reporter``.
    """
    with reporting(reporter, quiet=quiet) as shown:
        return _evaluate(
            bundle,
            data=data,
            split=split,
            out=out,
            on_bad_row=on_bad_row,
            embeddings=None if embeddings is None else Path(embeddings),
            device=device,
            reporter=shown,
        )


def _evaluate(
    bundle: str | Path,
    *,
    data: str | Path | None,
    split: str | None,
    out: str | Path | None,
    on_bad_row: Literal["stop", "quarantine"] | None,
    embeddings: Path | None,
    device: str,
    reporter: Reporter,
) -> Evaluation:
    folder = local_bundle(bundle)
    manifest = read_manifest(folder)
    tree = _bundle_config(folder)
    own = build(DataConfig, tree["data"], origin=str(folder / "config.yaml"))
    config = own if data is None else _data_config(str(data), own=own)
    if on_bad_row is not None:
        config = config.model_copy(update={"on_bad_row": on_bad_row})
    if split is None:
        split = "test" if data is None or Path(data).suffix in YAML else "all"
    if split not in (*SPLITS, "all"):
        raise ConfigError(f"split is '{split}'; expected {', '.join(SPLITS)} or all.")
    evaluation_config = build(EvaluationConfig, tree.get("evaluation", {}), origin=str(folder))
    section: TaskSection = build(OneTask, {"task": tree["task"]}, origin=str(folder)).task
    predictor = Predictor.load(folder, device=device)
    if embeddings is not None:
        check_embeddings(embeddings, task=predictor.task)
    studied = _studied(config, predictor, split=split, manifest=manifest, is_own=data is None, reporter=reporter)
    evaluator = family_of(section).evaluator(section, predictor.knowledge, evaluation=evaluation_config)
    outputs = predict_splits(predictor, studied, [split], reporter=reporter)
    if embeddings is not None:
        write_embeddings(embeddings, outputs[split], task=predictor.task)
    readable = set_aside(studied, outputs, reporter=reporter)
    studied = readable.studied
    parts = family_of(section).report(section, predictor.knowledge)
    evaluations = judge(outputs, evaluator, parts=parts, reporter=reporter)
    _refuse_undefined(evaluations[split])
    name = split if data is None else f"{Path(data).stem}-{split}"
    beside = folder if folder == Path(bundle).expanduser() else Path()  # what is in the cache may be deleted
    target = Path(out) if out is not None else beside / f"evaluation-{name}"
    report = build(ReportConfig, tree.get("report", {}), origin=str(folder))
    write_judgement(
        target,
        manifest=manifest,
        evaluations=evaluations,
        studied=studied,
        maps=pictures(predictor, section, studied, outputs, report=report, reporter=reporter),
        report=report,
        facts=RunFacts(
            confidence=evaluation_config.confidence,
            warnings=[*studied.cases.notes, *readable.warnings],
            command=f"consilium evaluate {folder} --split {split}" + ("" if data is None else f" --data {data}"),
        ),
    )
    reporter.line(f"report: {target / 'report.html'}")
    return evaluations[split]


def _studied(
    config: DataConfig, predictor: Predictor, *, split: str, manifest: Manifest, is_own: bool, reporter: Reporter
) -> Studied[Any]:
    """The cases to judge; of the bundle's own data it is noted when they changed since the training."""
    loaded = load_data(
        config,
        needs=manifest.task.needs,
        study=studying(manifest.task, learns=False),
        known=predictor.knowledge,
        splits=() if split == "all" else (split,),
        reporter=reporter,
    )
    studied, cases = loaded.studied, loaded.cases
    if is_own and manifest.data_fingerprint not in loaded.store.fingerprints:
        cases.notes.append("the data changed since the training; this may be another test set.")
        reporter.line(f"note: {cases.notes[-1]}")
    if split != "all":
        return studied
    return replace(studied, cases=replace(cases, rows={"all": np.arange(len(cases.table))}))


def _refuse_undefined(evaluation: Evaluation) -> None:
    """Cases that no figure is defined for are a DataError."""
    if all(value is None for value in evaluation.metrics.values()):
        notes = " ".join(row["note"] for row in evaluation.tables.get("notes", []))
        cases = counted(evaluation.cases, "case")
        raise DataError(f"the {cases} of {evaluation.split} cannot be judged. {notes}".strip())


def _bundle_config(folder: Path) -> dict[str, Any]:
    """The config that a bundle was trained with, by this version or an earlier one."""
    path = folder / "config.yaml"
    try:
        tree = up_to_date(read_tree(path))
    except ConfigError as error:
        raise BundleError(f"bundle {folder} cannot be judged: {error} Copy the bundle again.") from error
    for section in ("task", "data"):
        if not isinstance(tree.get(section), dict):
            raise BundleError(f"{path} is damaged: it has no `{section}` section. Copy the bundle again.")
    return tree


def _data_config(path: str, *, own: DataConfig) -> DataConfig:
    """The data section of a YAML file (a whole experiment, or a data section alone), or one source with defaults."""
    if Path(path).suffix in YAML:
        tree = read_tree(path)
        return build(DataConfig, tree.get("data", tree), origin=path)
    kind = kind_of(path)
    if kind is None:
        there = bool(path) and places.facts(places.absolute(path)) is not None
        what = f"'{path}'" + ("" if there else f", which does not exist (looked from {os.getcwd()})")
        raise ConfigError(
            f"the data to judge on is {what}; expected a YAML file with a `data` section (as in a recipe), a folder of "
            "{label}/images (also as a .zip or .tar), or a .csv, .parquet or .jsonl file. Images without labels are "
            "for `consilium predict`."
        )
    if kind == "folder" and places.exists(places.join(places.absolute(path), "store.json")):
        raise ConfigError(f"the data to judge on is {path}, a prepared store; give the YAML file it was prepared from.")
    tree = {"sources": [single_source(path, kind)], "store": own.store.model_dump(), "on_bad_row": own.on_bad_row}
    return build(DataConfig, tree, origin=path)


def write_judgement(
    folder: Path,
    *,
    manifest: Manifest,
    evaluations: Mapping[str, Evaluation],
    studied: Studied[Any],
    maps: Sequence[SaliencyMap],
    report: ReportConfig,
    facts: RunFacts,
) -> Path:
    """Write report.html, metrics.json, tables and the model card into ``folder``; the path of the HTML."""
    cases = studied.cases
    parts = family_of(manifest.task).report(manifest.task, studied.knowledge)
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
        data=_data_rows(cases),
        mixture=facts.mixture,
        warnings=[*facts.warnings, *license_warnings(licenses)],
        licenses=licenses,
        config_yaml=facts.config_yaml,
        command=facts.command,
        text=_texts(cases),
        thumbnail=_thumbnails(cases, size=report.thumbnail_size, window=manifest.image.window),
        maps=maps,
    )
    return write_report(folder, content)


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
    plain = Predictor(
        predictor.task, predictor.knowledge, image=predictor.image, loader=predictor.loader, device=predictor.device
    )

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


def _data_rows(cases: Cases) -> list[dict[str, Any]]:
    """Cases per source, split and label; without a label per source and split."""
    table = cases.table
    counts = Counter(
        (table.sources[row], split, label)
        for split, rows in cases.rows.items()
        for row in rows.tolist()
        for label in table.labels[row] or [""]
    )
    return [
        {"source": source, "split": split, **({"label": label} if label else {}), "cases": count}
        for (source, split, label), count in sorted(counts.items())
    ]


def _texts(cases: Cases) -> Callable[[str, int], str | None]:
    """The texts of a case by its id and their number, from 1."""
    row_of = {name: row for row, name in enumerate(cases.table.ids)}
    return lambda case, number: next(iter(cases.table.captions(row_of[case])[number - 1 :]), None)


def _thumbnails(cases: Cases, *, size: int, window: tuple[float, float] | None) -> Callable[[str], bytes | None]:
    """JPEG thumbnails by case id, made when asked for."""
    row_of = {name: row for row, name in enumerate(cases.table.ids)}

    def small(case: str) -> bytes | None:
        images = cases.table.images(row_of[case])
        return thumbnail(images[0], size=size, window=window) if images else None

    return small
