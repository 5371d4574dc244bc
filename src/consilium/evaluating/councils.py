"""Judging a council end to end: the router, the experts, and what the router costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from consilium.core.config import build
from consilium.core.errors import ConfigError
from consilium.core.evaluation import Evaluation
from consilium.core.licenses import license_warnings
from consilium.core.reporter import Reporter
from consilium.council import Council
from consilium.council.cases import load_cases, own_data
from consilium.council.judging import hear
from consilium.council.seats import ROUTER
from consilium.data.cases.cases import Cases
from consilium.data.cases.given import given_tree
from consilium.data.cases.shown import thumbnails
from consilium.evaluation.config import EvaluationConfig, ReportConfig
from consilium.evaluation.council.figures import CouncilCase
from consilium.evaluation.council.figures import evaluate_council as figures_of
from consilium.evaluation.council.report import council_parts
from consilium.evaluation.report.page import ReportContent, write_report
from consilium.evaluation.report.wording import unread_sentence
from consilium.judge import given_to_judge, tell


def evaluate_council(
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
    """``evaluate`` for the folder of a council; ``beside``: where its report goes unless ``out`` says so."""
    if data is None:
        raise ConfigError(
            f"{folder} is a council, which has no data of its own; give cases whose route and answer are known "
            "(--data)."
        )
    if embeddings is not None:
        raise ConfigError(f"--embeddings is {embeddings}, but the experts of a council have spaces of their own.")
    council = Council.load(folder, device=device)
    own = own_data(council, ROUTER, folder)
    given = given_to_judge(data, split=split, own=own, probes=None, on_bad_row=on_bad_row)
    found = load_cases(council, folder, given.data, split=given.split, reporter=reporter)
    cases, truths = found.cases, found.truths
    heard = hear(
        council,
        cases.table,
        truths.cases,
        columns=cases.table.columns(),
        progress=partial(reporter.progress, f"judge {given.split}"),
    )
    warnings = [unread_sentence(heard.unread, split=given.split)] if heard.unread else []
    for text in warnings:
        reporter.line(f"warning: {text}")
    sections = given_tree(data)
    config = build(EvaluationConfig, sections.get("evaluation", {}), origin=data)
    labelled = council.seats[ROUTER].labelled
    evaluation = figures_of(
        heard.cases,
        split=given.split,
        config=config,
        seen={} if labelled is None else labelled.seen,
        stages=heard.stages.rows(),
        unread=heard.unread,
        notes=truths.notes,
    )
    content = _content(
        council,
        evaluation,
        heard.cases,
        cases,
        warnings=warnings,
        report=build(ReportConfig, sections.get("report", {}), origin=data),
        confidence=config.confidence,
        command=f"consilium evaluate {folder} --split {given.split} --data {data}",
    )
    tell(evaluation, content.parts, reporter=reporter)
    reporter.line(f"report: {write_report(out or beside / f'evaluation-{given.name}', content)}")
    return evaluation


def _content(
    council: Council,
    evaluation: Evaluation,
    judged: Sequence[CouncilCase],
    cases: Cases,
    *,
    warnings: Sequence[str],
    report: ReportConfig,
    confidence: float,
    command: str,
) -> ReportContent:
    """What the report says."""
    split, manifest, parts = evaluation.split, council.manifest, council_parts(list(council.routing.experts))
    return ReportContent(
        title=f"{manifest.name}: {parts.about}",
        name=manifest.name,
        parts=parts,
        evaluations={split: evaluation},
        config=report,
        confidence=confidence,
        facts=_facts(council),
        data=_routes(judged, split=split),
        warnings=[*cases.notes, *warnings, *license_warnings(manifest.licenses or ())],
        licenses=manifest.licenses or (),
        command=command,
        thumbnail=thumbnails(cases, size=report.thumbnail_size, window=council.router.image.window),
    )


def _routes(cases: Sequence[CouncilCase], *, split: str) -> list[dict[str, Any]]:
    """The judged cases of each source and route."""
    counts = Counter((case.columns["source"], case.true_route) for case in cases)
    return [
        {"source": source, "split": split, "label": route, "cases": count}
        for (source, route), count in sorted(counts.items())
    ]


def _facts(council: Council) -> dict[str, str]:
    manifest = council.manifest
    members = {name: seat.manifest for name, seat in council.seats.items()}
    told = {f"Bundle of {name}": f"{own.name}, {own.created}" for name, own in members.items()}
    return {"Date": manifest.created, "Consilium": manifest.consilium_version, **told}
