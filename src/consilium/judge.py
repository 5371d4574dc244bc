"""Judging a predictor: over the splits of a training, or over any data by its bundle."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from consilium.bundle import Predictor, case_outputs
from consilium.console import reporting
from consilium.core import places
from consilium.core.answers import Calibration
from consilium.core.archives import is_archive
from consilium.core.config import build, read_tree
from consilium.core.contracts import Evaluation, Evaluator, Outputs
from consilium.core.errors import BundleError, ConfigError, DataError, ImageError
from consilium.core.files import write_json
from consilium.core.labels import ROOT, LabelTree, class_order, indented, reading_order
from consilium.core.reporter import Reporter, counted, format_table
from consilium.data.config import DataConfig, ImageConfig
from consilium.data.dataset import SPLITS, LabelledCases
from consilium.data.load import load_data
from consilium.evaluation.config import EvaluationConfig, ReportConfig
from consilium.evaluation.evaluator import build_evaluator
from consilium.evaluation.report import ReportContent, write_report
from consilium.evaluation.saliency import SaliencyMap
from consilium.evaluation.statistics import mean_and_deviation
from consilium.evaluation.wording import beside_accuracy, number
from consilium.manifest import Manifest, local_bundle, read_manifest
from consilium.occlusion import saliency_maps
from consilium.tasks.config import TaskConfig
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


def evaluator_of(
    task: TaskConfig, *, labels: LabelTree, config: EvaluationConfig, calibration: Calibration
) -> Evaluator:
    """The evaluator of a task with these labels."""
    order, multi_label = task.tree.order, task.multi_label
    return build_evaluator(labels, multi_label=multi_label, config=config, calibration=calibration, order=order)


@dataclass(frozen=True)
class Judgeable:
    """Cases whose images could be read, and what a report says of the others."""

    cases: LabelledCases
    warnings: list[str]


def predict_splits(
    predictor: Predictor, cases: LabelledCases, splits: Sequence[str], *, reporter: Reporter
) -> dict[str, Outputs]:
    """The predictor's outputs over each split."""
    if predictor.averaging.looks > 1:
        reporter.line(f"evaluation.averaging: the model sees each image {predictor.averaging.looks} times")
    return {
        split: case_outputs(predictor, cases, split, progress=partial(reporter.progress, f"judge {split}"))
        for split in splits
    }


def set_aside(cases: LabelledCases, outputs: Mapping[str, Outputs], *, reporter: Reporter) -> Judgeable:
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
    return Judgeable(cases.without({name for own in outputs.values() for name in own.unread}), warnings)


def judge(outputs: Mapping[str, Outputs], evaluator: Evaluator, *, reporter: Reporter) -> dict[str, Evaluation]:
    """Everything the evaluator says about each split; the headline is printed."""
    evaluations = {}
    for split, own in outputs.items():
        found = evaluator.evaluate(own, split=split)
        unread = [{"id": name, "reason": reason} for name, reason in own.unread.items()]
        evaluations[split] = replace(found, tables={**found.tables, "unread": unread}) if unread else found
        reporter.line(format_table(headline(evaluations[split]), title=f"{split}: {len(own.ids)} cases"))
        for sentence in beside_accuracy(evaluations[split]):
            reporter.line(sentence)
        if tree := tree_rows(evaluations[split]):
            reporter.line(format_table(tree, title=f"{split}: the label tree"))
    return evaluations


def headline(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The figures with intervals as rows for a table."""
    return [
        {"metric": name, "value": interval.value, "from": interval.low, "to": interval.high}
        for name, interval in evaluation.intervals.items()
    ]


def tree_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The label tree as rows for a table: of every node its cases, how many are found, and the choice below it."""
    choices = {row["node"]: row for row in evaluation.tables.get("decisions", [])}
    nodes = evaluation.tables.get("nodes", [])
    cases = sum(row["cases"] for row in nodes if row["parent"] == ROOT)
    top = [{"node": ROOT, "cases": cases, "recall": None, "precision": None}] if nodes else []
    return [
        {
            "node": indented(row["node"]),
            "cases": row["cases"],
            "recall": row["recall"],
            "precision": row["precision"],
            "right child": choices.get(row["node"], {}).get("accuracy"),
            "temperature": choices.get(row["node"], {}).get("temperature"),
        }
        for row in [*top, *_depth_first(nodes, above=ROOT)]
    ]


def _depth_first(nodes: Sequence[Mapping[str, Any]], *, above: str) -> Iterator[Mapping[str, Any]]:
    """The rows below a node, each followed by those below it; what was added to a router is last among the ids."""
    for row in nodes:
        if row["parent"] == above:
            yield row
            yield from _depth_first(nodes, above=row["node"])


def evaluate(
    bundle: str | Path,
    *,
    data: str | Path | None = None,
    split: str | None = None,
    out: str | Path | None = None,
    on_bad_row: Literal["stop", "quarantine"] | None = None,
    device: str = "auto",
    quiet: bool = False,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Judge a bundle on its own data, or on ``data``: a YAML file with a data section, a folder, csv, parquet or jsonl.

    ``split`` is train, val, test or all; None means test, or all where ``data`` is not a YAML file. Writes
    report.html, metrics.json and tables into ``out`` (default: a folder ``evaluation-...`` in the bundle).
    ``on_bad_row`` takes the place of that of the data config. A case whose image cannot be read any more is left out;
    ``unread`` of the result counts these. How far it is shows on the screen, unless ``quiet``, or goes to ``reporter``.
    """
    with reporting(reporter, quiet=quiet) as shown:
        return _evaluate(bundle, data=data, split=split, out=out, on_bad_row=on_bad_row, device=device, reporter=shown)


def _evaluate(
    bundle: str | Path,
    *,
    data: str | Path | None,
    split: str | None,
    out: str | Path | None,
    on_bad_row: Literal["stop", "quarantine"] | None,
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
    predictor = Predictor.load(folder, device=device)
    cases = _cases(
        config, split=split, manifest=manifest, labels=predictor.labels, is_own=data is None, reporter=reporter
    )
    evaluator = evaluator_of(
        manifest.task, labels=predictor.labels, config=evaluation_config, calibration=manifest.calibration
    )
    outputs = predict_splits(predictor, cases, [split], reporter=reporter)
    readable = set_aside(cases, outputs, reporter=reporter)
    cases = readable.cases
    evaluations = judge(outputs, evaluator, reporter=reporter)
    name = split if data is None else f"{Path(data).stem}-{split}"
    beside = folder if folder == Path(bundle).expanduser() else Path()  # what is in the cache may be deleted
    target = Path(out) if out is not None else beside / f"evaluation-{name}"
    report = build(ReportConfig, tree.get("report", {}), origin=str(folder))
    write_judgement(
        target,
        manifest=manifest,
        evaluations=evaluations,
        cases=cases,
        maps=saliency_maps(predictor, cases, outputs, report=report, reporter=reporter),
        report=report,
        facts=RunFacts(
            confidence=evaluation_config.confidence,
            warnings=[*cases.notes, *readable.warnings],
            command=f"consilium evaluate {folder} --split {split}" + ("" if data is None else f" --data {data}"),
        ),
    )
    reporter.line(f"report: {target / 'report.html'}")
    return evaluations[split]


def _cases(
    config: DataConfig, *, split: str, manifest: Manifest, labels: LabelTree, is_own: bool, reporter: Reporter
) -> LabelledCases:
    """The cases to judge; of the bundle's own data it is noted when they changed since the training."""
    needs = () if split == "all" else (split,)
    loaded = load_data(config, multi_label=manifest.task.multi_label, needs=needs, labels=labels, reporter=reporter)
    cases = loaded.cases
    if not len(cases.table):
        raise DataError(
            "none of these cases has a label that can be judged. Say where labels are (columns.label of a source in a "
            "YAML file); `consilium predict` answers images without labels."
        )
    if is_own and manifest.data_fingerprint not in loaded.store.fingerprints:
        cases.notes.append("the data changed since the training; this may be another test set.")
        reporter.line(f"note: {cases.notes[-1]}")
    return cases if split != "all" else replace(cases, rows={"all": np.arange(len(cases.table))})


def _bundle_config(folder: Path) -> dict[str, Any]:
    """The config that a bundle was trained with."""
    path = folder / "config.yaml"
    try:
        tree = read_tree(path)
    except ConfigError as error:
        raise BundleError(f"bundle {folder} cannot be judged: {error} Copy the bundle again.") from error
    if not isinstance(tree.get("data"), dict):
        raise BundleError(f"{path} is damaged: it has no `data` section. Copy the bundle again.")
    return tree


def _data_config(path: str, *, own: DataConfig) -> DataConfig:
    """The data section of a YAML file (a whole experiment, or a data section alone), or one source with defaults."""
    suffix = Path(path.removesuffix(".gz")).suffix
    if suffix in YAML:
        tree = read_tree(path)
        return build(DataConfig, tree.get("data", tree), origin=path)
    found = places.facts(places.absolute(path)) if path else None
    is_folder = is_archive(path) or (found is not None and not found.is_file)
    kind = "folder" if is_folder else suffix.removeprefix(".")
    if kind not in ("folder", "csv", "parquet", "jsonl"):
        what = f"'{path}'" + ("" if found is not None else f", which does not exist (looked from {os.getcwd()})")
        raise ConfigError(
            f"the data to judge on is {what}; expected a YAML file with a `data` section (as in a recipe), a folder of "
            "{label}/images (also as a .zip or .tar), or a .csv, .parquet or .jsonl file. Images without labels are "
            "for `consilium predict`."
        )
    if is_folder and places.exists(places.join(places.absolute(path), "store.json")):
        raise ConfigError(f"the data to judge on is {path}, a prepared store; give the YAML file it was prepared from.")
    source = {"kind": kind, "name": re.sub(r"[^A-Za-z0-9_.-]", "_", Path(path).stem).strip(".") or "data", "path": path}
    store = own.store.model_dump()
    return build(DataConfig, {"sources": [source], "store": store, "on_bad_row": own.on_bad_row}, origin=path)


def write_judgement(
    folder: Path,
    *,
    manifest: Manifest,
    evaluations: Mapping[str, Evaluation],
    cases: LabelledCases,
    maps: Sequence[SaliencyMap],
    report: ReportConfig,
    facts: RunFacts,
) -> Path:
    """Write report.html, metrics.json, tables and the model card into ``folder``; the path of the HTML."""
    labels = cases.labels
    content = ReportContent(
        title=f"{manifest.name}: {len(labels.leaves)} classes",
        name=manifest.name,
        labels=class_order(labels.leaves, given=manifest.task.tree.order) or reading_order(labels.leaves),
        evaluations=evaluations,
        config=report,
        confidence=facts.confidence,
        facts={**_origin(manifest), **facts.shown()},
        history=read_history(folder / "history.csv"),
        monitor=facts.monitor,
        best_step=facts.best_step,
        data=_data_rows(cases),
        mixture=facts.mixture,
        warnings=facts.warnings,
        config_yaml=facts.config_yaml,
        command=facts.command,
        thumbnail=_thumbnails(cases, size=report.thumbnail_size, window=manifest.image.window),
        maps=maps,
    )
    return write_report(folder, content)


def _origin(manifest: Manifest) -> dict[str, str]:
    height, width = manifest.image.size
    return {
        "Date": manifest.created,
        "Consilium": manifest.consilium_version,
        "Tower": manifest.task.vision.name,
        "Image size": f"{height} x {width} pixels",
        "Looks at an image": str(manifest.averaging.looks),
        "Seed": str(manifest.seed),
        "Training cases": str(manifest.training_cases),
        "Data fingerprint": manifest.data_fingerprint,
    }


def _data_rows(cases: LabelledCases) -> list[dict[str, Any]]:
    """Cases per source, split and label."""
    table = cases.table
    counts = Counter(
        (table.sources[row], split, label)
        for split, rows in cases.rows.items()
        for row in rows.tolist()
        for label in table.labels[row]
    )
    return [{"source": s, "split": p, "label": k, "cases": n} for (s, p, k), n in sorted(counts.items())]


def _thumbnails(
    cases: LabelledCases, *, size: int, window: tuple[float, float] | None
) -> Callable[[str], bytes | None]:
    """JPEG thumbnails by case id, made when asked for."""
    row_of = {name: row for row, name in enumerate(cases.table.ids)}

    def thumbnail(case: str) -> bytes | None:
        import simplejpeg

        from consilium.data.images import load_view, read_bytes

        images = cases.table.images(row_of[case])
        if not images:
            return None
        image = ImageConfig(size=(size, size), fit="pad", window=window)
        try:
            pixels = load_view(read_bytes(images[0]), name=case, image=image, box=None)
        except ImageError:  # gone since it was judged
            return None
        encoded: bytes = simplejpeg.encode_jpeg(pixels, quality=85)
        return encoded

    return thumbnail


def write_summary(
    folder: Path, runs: Mapping[str, Mapping[str, Mapping[str, float | None]]], *, reporter: Reporter
) -> None:
    """Mean and deviation of every figure over several runs: printed, and in ``summary.json``."""
    first = next(iter(runs.values()))
    summary: dict[str, list[dict[str, Any]]] = {}
    for split, metrics in first.items():
        rows = []
        for name in metrics:
            values = [value for run in runs.values() if (value := run[split][name]) is not None]
            if len(values) == len(runs):
                found = mean_and_deviation(values)
                rows.append({"metric": name, "mean": found.mean, "deviation": found.deviation, "runs": len(values)})
        summary[split] = rows
        reporter.line(format_table(rows, title=f"{split}: mean and standard deviation over {len(runs)} runs"))
    write_json(folder / "summary.json", {"runs": list(runs), "splits": summary})
