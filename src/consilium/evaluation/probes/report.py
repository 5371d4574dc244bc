"""What probes add to a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from consilium.core.evaluation import Evaluation
from consilium.core.reporter import format_table
from consilium.evaluation.labels import charts as label_charts
from consilium.evaluation.probes.evaluate import MULTI, SINGLE
from consilium.evaluation.report import charts
from consilium.evaluation.report.parts import ReportParts
from consilium.evaluation.report.wording import number, percent, with_interval
from consilium.evaluation.report.words import PROBES

_HEADLINES = ("balanced_accuracy", "macro_auroc")


def with_probes(parts: ReportParts) -> ReportParts:
    """The parts of a task, and behind its own those of its probes."""

    def summary(evaluation: Evaluation, confidence: float) -> list[str]:
        return [*parts.summary(evaluation, confidence), *_summary(evaluation, confidence)]

    def beside(evaluation: Evaluation) -> list[str]:
        return [*parts.beside(evaluation), *_largest(evaluation)]

    def results(evaluation: Evaluation) -> dict[str, Any]:
        return {**parts.results(evaluation), "probes": _results(evaluation)}

    return replace(
        parts,
        results=results,
        headlines=(*parts.headlines, *(f"{probe}_{figure}" for probe in PROBES for figure in _HEADLINES)),
        summary=summary,
        beside=beside,
        sections=(*parts.sections, "probes.html.j2"),
        calls={
            **parts.calls,
            "probe_names": PROBES,
            "probe_figures": probe_figures,
            "probe_labels": _labels,
            "heat_map": label_charts.confusion_heat_map,
            "few_shot_chart": few_shot_chart,
        },
    )


def together(own: Evaluation | None, probes: Evaluation) -> Evaluation:
    """An evaluation with the figures and tables of probes beside its own; None: there is nothing but these."""
    if own is None:
        return probes
    notes = [*own.tables.get("notes", []), *probes.tables.get("notes", [])]
    return replace(
        own,
        metrics={**own.metrics, **probes.metrics},
        intervals={**own.intervals, **probes.intervals},
        draws={**own.draws, **probes.draws},
        tables={**own.tables, **probes.tables, **({"notes": notes} if notes else {})},
    )


def probe_figures(evaluation: Evaluation) -> tuple[str, ...]:
    """The figures of the table of probes: of single labels, or of several a case."""
    (first, *_) = evaluation.tables["probes"]
    return SINGLE if "accuracy" in first else MULTI


def probe_tables(evaluation: Evaluation) -> list[str]:
    """The probes for the screen."""
    shown = []
    if rows := evaluation.tables.get("probes"):
        figures = probe_figures(evaluation)
        table = [{key: row[key] for key in ("probe", "learned_from", *figures)} for row in rows]
        shown.append(format_table(table, title=f"{evaluation.split}: probes of the frozen image tower"))
    if rows := evaluation.tables.get("few_shot"):
        table = [{key: row[key] for key in ("images", "draws", *SINGLE[:3])} for row in rows]
        shown.append(format_table(table, title=f"{evaluation.split}: means of a few images a class"))
    return shown


def few_shot_chart(rows: Sequence[dict[str, Any]]) -> str:
    """Balanced accuracy over the number of images a class, with its interval as two further lines."""
    figure = "balanced_accuracy"
    lines = [charts.Series("mean", [(row["images"], row[figure]) for row in rows], "a")]
    if all(row[f"{figure}_low"] is not None for row in rows) and len(rows) > 1:
        for end, tone in (("low", "b"), ("high", "b")):
            lines.append(charts.Series(end, [(row["images"], row[f"{figure}_{end}"]) for row in rows], tone))
    return charts.line_chart(lines, title="Balanced accuracy over images a class")


def _results(evaluation: Evaluation) -> dict[str, Any]:
    """Of each probe all figures, those with an interval with its ends, and the figures of each class."""
    found: dict[str, Any] = {}
    for row in evaluation.tables.get("probes", []):
        probe = row["probe"]
        own = {name.removeprefix(f"{probe}_"): name for name in evaluation.metrics if name.startswith(f"{probe}_")}
        spans = {figure: evaluation.intervals.get(name) for figure, name in own.items()}
        figures = {
            figure: {
                "value": evaluation.metrics[name],
                "low": None if (span := spans[figure]) is None else span.low,
                "high": None if span is None else span.high,
            }
            for figure, name in own.items()
        }
        counts = {"learned_from": row["learned_from"], "cases": row["cases"]}
        found[probe] = {**counts, **figures, "per_class": evaluation.tables[f"{probe}_per_class"]}
    if few := evaluation.tables.get("few_shot"):
        found["few_shot"] = few
    return found


def _labels(evaluation: Evaluation, probe: str) -> list[str]:
    return [row["label"] for row in evaluation.tables[f"{probe}_per_class"]]


def _summary(evaluation: Evaluation, confidence: float) -> list[str]:
    """What each probe reached, in sentences."""
    said = {
        "zero_shot": "Asked by prompts alone (zero-shot)",
        "knn": "By votes of the nearest training images",
        "linear": "By a linear head on its frozen features",
    }
    sentences = []
    for row in evaluation.tables.get("probes", []):
        figure = "accuracy" if "accuracy" in row else "macro_auroc"
        interval = evaluation.intervals.get(f"{row['probe']}_{figure}")
        if interval is None:
            continue
        shown = with_interval(figure, interval, confidence=confidence)
        what = (
            f"it named the right label in {shown}" if figure == "accuracy" else f"it reached a macro AUROC of {shown}"
        )
        of = f" of {number(row['cases'])} labelled cases" if figure == "accuracy" else ""
        sentences.append(f"{said[row['probe']]} {what}{of}.")
    return sentences


def _largest(evaluation: Evaluation) -> list[str]:
    """What a model would reach that looks at nothing."""
    for row in evaluation.tables.get("probes", []):
        classes = evaluation.tables[f"{row['probe']}_per_class"]
        if "accuracy" in row and (cases := sum(own["support"] for own in classes)):
            largest = max(classes, key=lambda own: own["support"])
            share = percent(largest["support"] / cases)
            return [f"Always naming the label of most cases, {largest['label']}, would be right in {share}."]
    return []
