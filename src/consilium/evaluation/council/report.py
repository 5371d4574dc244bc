"""What a council adds to a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from consilium.core.evaluation import Evaluation
from consilium.core.reporter import counted, format_table
from consilium.evaluation.council.figures import (
    COST,
    ELSEWHERE,
    END_TO_END,
    FIGURES,
    NOT_JUDGED,
    ORACLE,
    PASSED,
    RIGHT,
    ROUTED,
    SILENT,
    judged,
)
from consilium.evaluation.labels import charts
from consilium.evaluation.report import wording
from consilium.evaluation.report.parts import ReportParts

_FEW = 12  # names in a sentence


def council_parts(experts: Sequence[str]) -> ReportParts:
    """The parts of a council whose experts sit at these nodes."""
    return ReportParts(
        about=f"a council of {counted(len(experts), 'expert')}",
        intended_use=f"A router and {counted(len(experts), 'expert')} ({wording.listed(list(experts), _FEW)}), for "
        "research on medical images that look like their training data.",
        pipeline_tag="image-classification",
        headlines=FIGURES,
        curves=(),
        summary=_summary,
        console=_console,
        by_column=(END_TO_END, ORACLE, ROUTED),
        sections=("council.html.j2",),
        galleries=("council_cases.html.j2",),
        calls={"plots": charts, "routes": routes, "gone_wrong": gone_wrong},
    )


def _summary(evaluation: Evaluation, confidence: float) -> list[str]:
    """The result, and what the router costs."""
    intervals = evaluation.intervals
    if END_TO_END not in intervals:
        routed = wording.with_interval(ROUTED, intervals[ROUTED], confidence=confidence)
        return [f"Of {wording.cases_phrase(evaluation)}, {routed} went to the right expert. No answer could be judged."]
    end = wording.with_interval(END_TO_END, intervals[END_TO_END], confidence=confidence)
    oracle = wording.figure(ORACLE, intervals[ORACLE].value)
    cost = intervals[COST]
    spread = wording.difference_spread(COST, cost.low, cost.high)
    lost = f"{100 * cost.value:.1f} points" + (f" ({wording.plain(confidence)} interval {spread})" if spread else "")
    known, every = judged(evaluation), wording.cases_phrase(evaluation)
    of = every if known == evaluation.cases else f"the {wording.number(known)} whose answer is known, of {every}"
    return [
        f"Of {of}, {end} got the right answer of the right expert, or rightly none.",
        f"With the true route of every case it would be {oracle}: the router costs {lost}.",
    ]


def _console(evaluation: Evaluation) -> list[str]:
    tables = evaluation.tables
    experts = [
        {key: row[key] for key in ("expert", "n", "asked", "of_others", "judged", ROUTED, END_TO_END, ORACLE)}
        for row in tables["per_expert"]
    ]
    lines = [format_table(experts, title=f"{evaluation.split}: the cases of each expert")]
    if tables["no_expert"]:
        lines.append(format_table(tables["no_expert"], title=f"{evaluation.split}: routes without an expert"))
    if unseen := [row for row in tables["seen"] if row["the router has"] == "never seen"]:
        shown = [{key: row[key] for key in ("column", "n", ROUTED, END_TO_END, ORACLE)} for row in unseen]
        lines.append(format_table(shown, title=f"{evaluation.split}: values that the router has never seen"))
    lines.append(format_table(tables["stages"], title="time of each stage"))
    return [*lines, *(f"note: {text}" for text in wording.notes(evaluation))]


def routes(evaluation: Evaluation) -> list[str]:
    """All routes that are true or answered, in their order; 'unknown' comes last."""
    names = {row[side] for row in evaluation.tables["confusion"] for side in ("truth", "prediction")}
    return sorted(names, key=lambda name: (name == "unknown", name))


def gone_wrong(evaluation: Evaluation, at_most: int) -> list[dict[str, Any]]:
    """The surest wrong cases, at most one of a group: wrong experts first, then wrong answers."""
    wrong = [row for row in evaluation.tables["cases"] if row["outcome"] not in (RIGHT, PASSED, NOT_JUDGED)]
    ordered = sorted(wrong, key=lambda row: (row["outcome"] not in (ELSEWHERE, SILENT), -row["sure"]))
    first = {row["group"]: row for row in reversed(ordered)}
    return [row for row in ordered if first[row["group"]] is row][:at_most]
