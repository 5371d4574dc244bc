"""``calibrate``: temperatures and thresholds of a bundle, chosen anew on the labelled cases of another site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from consilium.bundle import bundle_config, copy_bundle, learned_apart, read_known
from consilium.console import reporting
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
from consilium.manifest import MANIFEST, Manifest, local_bundle, read_manifest
from consilium.predictor import Predictor
from consilium.tasks.config import OneTask
from consilium.tasks.family import Site, family_of


@dataclass(frozen=True)
class CalibrateResult:
    """The new bundle, each figure before and after, how the inputs differ, and cases that could not be read."""

    bundle: Path
    figures: list[dict[str, Any]]
    drift: list[dict[str, Any]]
    unread: int


def calibrate(
    bundle: str | Path,
    *,
    data: str | Path,
    out: str | Path,
    name: str | None = None,
    split: str | None = None,
    wanted_accuracy: float | None = None,
    on_bad_row: Literal["stop", "quarantine"] | None = None,
    device: str = "auto",
    quiet: bool = False,
    reporter: Reporter | None = None,
) -> CalibrateResult:
    """Write a bundle into ``out`` that answers as the labelled cases of ``data`` teach, with a report beside it.

    ``data`` and ``split`` are as ``evaluate`` takes them. ``name`` is what the calibration is called (default: that of
    the file or folder). ``wanted_accuracy``: of answers, which thresholds are chosen for (default: that of the bundle).
    The weights stay; the new bundle also keeps every calibration that the old one knew (see ``restore``). Figures
    before and after are those of cases that did not choose the calibration that answered them. Data of other labels,
    too few cases and cases that the bundle learned from are errors.
    """
    target, path = Path(out).expanduser(), str(data)
    with reporting(reporter, quiet=quiet) as shown:
        _refuse_existing(target)
        folder = local_bundle(bundle)
        judging = _judging(folder, path, split=split, on_bad_row=on_bad_row)
        predictor = Predictor.load(folder, device=device)
        studied = cases_to_judge(judging, known=predictor.knowledge, fingerprint="", reporter=shown)
        outputs = predict_splits(predictor, studied, [judging.split], reporter=shown)
        readable = set_aside(studied, outputs, reporter=shown)
        own = outputs[judging.split]
        site = Site(name or Path(path).stem, path, wanted_accuracy)
        recalibrated = family_of(judging.section).recalibrated(
            judging.section, predictor.task, predictor.knowledge, own, site=site, evaluation=judging.evaluation
        )
        found, manifest = recalibrated.found, predictor.manifest
        assert manifest is not None
        content = CalibrationContent(
            name=manifest.name,
            site=site.name,
            found=found,
            drift=_drift(readable.studied, judging.split, predictor, label_shares=found.label_shares),
            knows_training=predictor.knowledge.inputs is not None,
            confidence=judging.evaluation.confidence,
            warnings=[*studied.cases.notes, *readable.warnings, *found.notes],
            command=_command(folder, site, split=judging.split, target=target),
        )
        with atomic_folder(target) as work:
            figures = {site.name: {row["figure"]: row["after"] for row in found.judged.rows}}
            _write(work, folder, manifest, recalibrated.knowledge, figures=figures)
            write_calibration(work, content)
        for line in [*content.lines(), f"bundle: {target}", f"report: {target / PAGE}"]:
            shown.line(line)
        return CalibrateResult(target, found.judged.rows, list(content.drift), len(own.unread))


def _command(folder: Path, site: Site, *, split: str, target: Path) -> str:
    wanted = "" if site.wanted_accuracy is None else f" --wanted-accuracy {site.wanted_accuracy:g}"
    return f"consilium calibrate {folder} --data {site.data} --split {split} --name {site.name}{wanted} --out {target}"


def restore(bundle: str | Path, *, name: str, out: str | Path) -> Path:
    """Write a calibrated bundle into ``out`` that answers by its calibration ``name`` (``training``: the first)."""
    target = Path(out).expanduser()
    _refuse_existing(target)
    folder = local_bundle(bundle)
    manifest = read_manifest(folder)
    knowledge = family_of(manifest.task).restored(read_known(folder, manifest).knowledge, name)
    with atomic_folder(target) as work:
        _write(work, folder, manifest, knowledge, figures={})
    return target


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise ConfigError(f"--out is {target}, which exists already; name a new folder for the calibrated bundle.")


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


def _drift(
    studied: Studied[Any],
    split: str,
    predictor: Predictor,
    *,
    label_shares: Mapping[str, tuple[float | None, float]],
) -> list[dict[str, Any]]:
    """How the cases of the site differ from those of the training, as far as the bundle knows these."""
    cases = studied.cases.table.select(studied.cases.rows[split])
    inputs = input_statistics(cases, image=predictor.image)
    return drift_rows(predictor.knowledge.inputs, inputs, labels=label_shares)


def _write(
    work: Path, folder: Path, manifest: Manifest, knowledge: Knowledge, *, figures: Mapping[str, dict[str, Any]]
) -> None:
    """The bundle in ``folder`` again, with other knowledge; its manifest comes last."""
    copy_bundle(folder, work)
    changed = {"knowledge": knowledge.model_dump(mode="json"), "metrics": {**manifest.metrics, **figures}}
    write_json(work / MANIFEST, manifest.model_copy(update=changed).model_dump(mode="json"))
