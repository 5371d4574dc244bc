"""Calibrating one bundle: what is chosen on a site's cases, what it is worth, and the bundle that knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from consilium.bundle import bundle_config, copy_bundle, learned_apart, read_known
from consilium.core.config import build
from consilium.core.errors import ConfigError
from consilium.core.files import atomic_folder, write_json
from consilium.core.reporter import Reporter
from consilium.core.section import Knowledge
from consilium.data.cases.cases import Studied
from consilium.data.config import DataConfig
from consilium.data.look.inputs import input_statistics
from consilium.evaluation.config import EvaluationConfig, ReportConfig
from consilium.evaluation.drift import drift_rows
from consilium.evaluation.report.calibration import PAGE, CalibrationContent, write_calibration
from consilium.judge import Judging, cases_to_judge, given_to_judge, predict_splits, set_aside
from consilium.manifest import MANIFEST, Manifest, read_manifest
from consilium.predictor import Predictor
from consilium.tasks.config import OneTask
from consilium.tasks.family import Site, family_of


@dataclass(frozen=True)
class CalibrateResult:
    """The new bundle, each figure before and after, how the inputs differ, and cases that could not be read.

    Of a council the rows of ``figures`` and ``drift`` name the bundle that they are of (``member``).
    """

    bundle: Path
    figures: list[dict[str, Any]]
    drift: list[dict[str, Any]]
    unread: int


@dataclass(frozen=True)
class Calibrated:
    """What a bundle knows with a calibration of a site's cases, what its page says, and cases that cannot be read."""

    knowledge: Knowledge
    content: CalibrationContent
    unread: int

    def write(self, work: Path, folder: Path, manifest: Manifest) -> None:
        """The bundle in ``folder`` again, with this knowledge, into ``work``."""
        figures = {self.content.site: {row["figure"]: row["after"] for row in self.content.found.judged.rows}}
        write_bundle(work, folder, manifest, self.knowledge, figures=figures)


def calibrate_bundle(
    folder: Path,
    *,
    data: str,
    target: Path,
    name: str | None,
    split: str | None,
    wanted_accuracy: float | None,
    on_bad_row: Literal["stop", "quarantine"] | None,
    device: str,
    reporter: Reporter,
) -> CalibrateResult:
    """``calibrate`` for the folder of a trained bundle."""
    judging = _judging(folder, data, split=split, on_bad_row=on_bad_row)
    predictor = Predictor.load(folder, device=device)
    assert predictor.manifest is not None
    studied = cases_to_judge(judging, known=predictor.knowledge, fingerprint="", reporter=reporter)
    site = Site(name or Path(data).stem, data, wanted_accuracy)
    calibrated = calibrated_on(
        predictor,
        studied,
        split=judging.split,
        site=site,
        evaluation=judging.evaluation,
        command=command_of(folder, site, split=judging.split, target=target),
        reporter=reporter,
    )
    content = calibrated.content
    with atomic_folder(target) as work:
        calibrated.write(work, folder, predictor.manifest)
        write_calibration(work, content)
    for line in [*content.lines(), f"bundle: {target}", f"report: {target / PAGE}"]:
        reporter.line(line)
    return CalibrateResult(target, content.found.judged.rows, list(content.drift), calibrated.unread)


def calibrated_on(
    predictor: Predictor,
    studied: Studied[Any],
    *,
    split: str,
    site: Site,
    evaluation: EvaluationConfig,
    command: str,
    reporter: Reporter,
) -> Calibrated:
    """A calibration chosen on the cases of a split, and judged on cases that did not choose it."""
    manifest = predictor.manifest
    assert manifest is not None
    outputs = predict_splits(predictor, studied, [split], reporter=reporter)
    readable = set_aside(studied, outputs, reporter=reporter)
    section = manifest.task
    recalibrated = family_of(section).recalibrated(
        section, predictor.task, predictor.knowledge, outputs[split], site=site, evaluation=evaluation
    )
    cases = readable.studied.cases
    inputs = input_statistics(cases.table.select(cases.rows[split]), image=predictor.image)
    content = CalibrationContent(
        name=manifest.name,
        site=site.name,
        found=recalibrated.found,
        drift=drift_rows(predictor.knowledge.inputs, inputs, labels=recalibrated.found.label_shares),
        knows_training=predictor.knowledge.inputs is not None,
        confidence=evaluation.confidence,
        warnings=[*studied.cases.notes, *readable.warnings, *recalibrated.found.notes],
        command=command,
    )
    return Calibrated(recalibrated.knowledge, content, len(outputs[split].unread))


def restore_bundle(folder: Path, target: Path, *, name: str) -> None:
    """``restore`` for the folder of a trained bundle."""
    manifest = read_manifest(folder)
    knowledge = family_of(manifest.task).restored(read_known(folder, manifest).knowledge, name)
    with atomic_folder(target) as work:
        write_bundle(work, folder, manifest, knowledge, figures={})


def command_of(folder: Path, site: Site, *, split: str, target: Path) -> str:
    """The command that does the same again."""
    wanted = "" if site.wanted_accuracy is None else f" --wanted-accuracy {site.wanted_accuracy:g}"
    return f"consilium calibrate {folder} --data {site.data} --split {split} --name {site.name}{wanted} --out {target}"


def _judging(
    folder: Path, path: str, *, split: str | None, on_bad_row: Literal["stop", "quarantine"] | None
) -> Judging:
    """What to calibrate on, and how to judge it; cases that the bundle learned from are a ConfigError."""
    tree = bundle_config(folder)
    section = build(OneTask, {"task": tree["task"]}, origin=str(folder)).task
    if "probabilities" not in section.gives:
        raise ConfigError(
            f"{folder} answers with {', '.join(section.gives)}, which no temperature or threshold decides; only "
            "bundles that answer with labels are calibrated."
        )
    own = build(DataConfig, tree["data"], origin=str(folder / "config.yaml"))
    given = given_to_judge(path, split=split, own=own, probes=None, on_bad_row=on_bad_row)
    if given.data.sources == own.sources and (given.split in ("train", "all") or learned_apart(folder)):
        raise ConfigError(
            f"the split {given.split} of these data taught the bundle its weights: it is surer there than of any new "
            "case. Calibrate on cases that it has not learned from (--split test, or data of the site)."
        )
    return Judging(
        section=section,
        data=given.data,
        split=given.split,
        evaluation=build(EvaluationConfig, tree.get("evaluation", {}), origin=str(folder)),
        report=ReportConfig(),
        probes=None,
        trained_on=own,
        is_own=False,
        command="",
    )


def write_bundle(
    work: Path, folder: Path, manifest: Manifest, knowledge: Knowledge, *, figures: Mapping[str, dict[str, Any]]
) -> None:
    """The bundle in ``folder`` again, with other knowledge; its manifest comes last."""
    copy_bundle(folder, work)
    changed = {"knowledge": knowledge.model_dump(mode="json"), "metrics": {**manifest.metrics, **figures}}
    write_json(work / MANIFEST, manifest.model_copy(update=changed).model_dump(mode="json"))
