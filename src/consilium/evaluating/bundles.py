"""Judging a trained bundle on its own data or on other data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from consilium.bundle import bundle_config, learned_apart
from consilium.core.config import build
from consilium.core.errors import ConfigError
from consilium.core.evaluation import Evaluation
from consilium.core.reporter import Reporter
from consilium.data.config import DataConfig
from consilium.evaluation.config import EvaluationConfig, ReportConfig
from consilium.judge import Judging, given_probes, given_to_judge, judge_on
from consilium.predictor import Predictor
from consilium.tasks.config import OneTask


def evaluate_bundle(
    folder: Path,
    *,
    beside: Path,
    data: str | None,
    split: str | None,
    out: Path | None,
    on_bad_row: Literal["stop", "quarantine"] | None,
    embeddings: Path | None,
    device: str,
    reporter: Reporter,
) -> Evaluation:
    """``evaluate`` for the folder of a trained bundle; ``beside``: where its report goes unless ``out`` says so."""
    tree = bundle_config(folder)
    if data is None and learned_apart(folder):
        raise ConfigError(
            f"{folder} is an ensemble whose members learned from different cases of their data (folds): each case "
            "taught some of them. Give cases that none of them has seen (--data)."
        )
    own = build(DataConfig, tree["data"], origin=str(folder / "config.yaml"))
    probes = None if data is not None else given_probes(tree, origin=str(folder))
    given = given_to_judge(data, split=split, own=own, probes=probes, on_bad_row=on_bad_row)
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
        target=out if out is not None else beside / f"evaluation-{given.name}",
        reporter=reporter,
    )
