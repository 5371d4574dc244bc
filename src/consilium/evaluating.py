"""``evaluate``: a trained bundle, or by name a pretrained model as it came."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from consilium.bundle import bundle_config, learned_apart
from consilium.console import reporting
from consilium.core.config import build
from consilium.core.errors import ConfigError
from consilium.core.evaluation import Evaluation
from consilium.core.reporter import Reporter
from consilium.data.cases.given import YAML
from consilium.data.config import DataConfig
from consilium.evaluation.config import EvaluationConfig, ReportConfig
from consilium.judge import Judging, given_probes, given_to_judge, judge_on
from consilium.manifest import local_bundle
from consilium.predictor import Predictor
from consilium.tasks.config import OneTask


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

    ``bundle`` may also be the YAML file of an experiment that says ``zero_shot: true``: then its pretrained model is
    judged as it came. A ``probes`` section beside the data section is asked, too.

    ``split`` is train, val, test or all; None means test, or all where ``data`` is not a YAML file. Writes
    report.html, metrics.json and tables into ``out`` (default: a folder ``evaluation-...`` in the bundle).
    ``on_bad_row`` takes the place of that of the data config. ``embeddings`` is a .parquet, .pt or .npz file that the
    embeddings of the judged cases go to, of an expert that answers with some. A case whose image cannot be read any
    more is left out; ``unread`` of the result counts these. How far it is shows on the screen, unless ``quiet``, or
    goes to ``reporter``.
    """
    target, vectors = (None if path is None else Path(path) for path in (out, embeddings))
    with reporting(reporter, quiet=quiet) as shown:
        if not str(bundle).endswith(YAML):
            return _evaluate_bundle(
                bundle,
                data=data,
                split=split,
                out=target,
                on_bad_row=on_bad_row,
                embeddings=vectors,
                device=device,
                reporter=shown,
            )
        from consilium.experiment import Experiment
        from consilium.session.untouched import evaluate_untouched  # which loads what trains

        return evaluate_untouched(
            Experiment.load(bundle),
            data=None if data is None else str(data),
            split=split,
            out=target,
            on_bad_row=on_bad_row,
            embeddings=vectors,
            device=device,
            reporter=shown,
        )


def _evaluate_bundle(
    bundle: str | Path,
    *,
    data: str | Path | None,
    split: str | None,
    out: Path | None,
    on_bad_row: Literal["stop", "quarantine"] | None,
    embeddings: Path | None,
    device: str,
    reporter: Reporter,
) -> Evaluation:
    """``evaluate`` for a trained bundle."""
    folder = local_bundle(bundle)
    tree = bundle_config(folder)
    if data is None and learned_apart(folder):
        raise ConfigError(
            f"{folder} is an ensemble whose members learned from different cases of their data (folds): each case "
            "taught some of them. Give cases that none of them has seen (--data)."
        )
    own = build(DataConfig, tree["data"], origin=str(folder / "config.yaml"))
    probes = None if data is not None else given_probes(tree, origin=str(folder))
    path = None if data is None else str(data)
    given = given_to_judge(path, split=split, own=own, probes=probes, on_bad_row=on_bad_row)
    beside = folder if folder == Path(bundle).expanduser() else Path()  # what is in the cache may be deleted
    judging = Judging(
        section=build(OneTask, {"task": tree["task"]}, origin=str(folder)).task,
        data=given.data,
        split=given.split,
        evaluation=build(EvaluationConfig, tree.get("evaluation", {}), origin=str(folder)),
        report=build(ReportConfig, tree.get("report", {}), origin=str(folder)),
        probes=given.probes,
        trained_on=own,
        is_own=data is None,
        embeddings=embeddings,
        command=f"consilium evaluate {folder} --split {given.split}" + ("" if data is None else f" --data {data}"),
    )
    predictor = Predictor.load(folder, device=device)
    return judge_on(
        predictor,
        judging,
        target=Path(out) if out is not None else beside / f"evaluation-{given.name}",
        reporter=reporter,
    )
