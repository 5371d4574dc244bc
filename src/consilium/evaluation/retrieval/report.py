"""What tasks that answer with embeddings add to a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from consilium.core.evaluation import Evaluation
from consilium.core.reporter import format_table
from consilium.evaluation.report.parts import ReportParts
from consilium.evaluation.report.wording import cases_phrase, number, percent, with_interval
from consilium.evaluation.retrieval import charts
from consilium.evaluation.retrieval.cases import DIRECTIONS, FIGURES, LEVELS, figure_name

_WAYS = {
    "image_to_text": ("the right text", "of the images", "different texts"),
    "text_to_image": ("a right image", "of the texts", "images"),
}
LEVEL_TABLES = {level: "retrieval" if level == "text" else f"retrieval_{level}" for level in LEVELS}

_RIGHT = {"text": "same text", "instance": "own pair", "label": "same label"}


def retrieval_parts() -> ReportParts:
    """The parts of an image and text encoder."""
    return ReportParts(
        about="images and texts in one space",
        intended_use="An image and a text encoder with a common space, for research: finding texts for images and "
        "images for texts like those that it was trained with.",
        pipeline_tag="zero-shot-image-classification",
        headlines=("mean_recall", *(f"{way}_{figure}" for figure in ("recall_at_1", "median_rank") for way in _WAYS)),
        curves=("mean_recall", "image_to_text_recall_at_1", "text_to_image_recall_at_1"),
        summary=_summary,
        beside=_chance,
        limits=_limits,
        console=_console,
        by_column=("mean_recall", "image_to_text_recall_at_1", "text_to_image_recall_at_1"),
        screen=(
            "mean_recall",
            *(figure_name("text", way, figure) for way in DIRECTIONS for figure in FIGURES),
            "log_loss",
        ),
        results=_results,
        sections=("retrieval.html.j2", "space.html.j2"),
        galleries=("neighbours.html.j2",),
        calls={
            "recall_chart": charts.recall_chart,
            "similarity_chart": charts.similarity_chart,
            "map_chart": charts.map_chart,
        },
    )


def views_parts() -> ReportParts:
    """The parts of an image and text encoder of named views."""
    parts = retrieval_parts()
    return replace(
        parts,
        about="cases of several views and texts in one space",
        sections=("retrieval.html.j2", "views.html.j2", "space.html.j2"),
        results=_results_of_views,
        console=lambda evaluation: [*_console(evaluation), *_console_of_views(evaluation)],
    )


def _results_of_views(evaluation: Evaluation) -> dict[str, Any]:
    """As without views; and what is measured of each, and of both sides, as rows."""
    tables = ("retrieval_views", "symmetry", "exchange")
    return _results(evaluation) | {name: rows for name in tables if (rows := evaluation.tables.get(name))}


def _console_of_views(evaluation: Evaluation) -> list[str]:
    titles = {
        "retrieval_views": "retrieval by one view, in its own space",
        "symmetry": "cosine of the two views of a case, and of views of other groups",
        "exchange": "the two views exchanged",
    }
    hidden = ("_low", "_high", "_chance")
    return [
        format_table(
            [{name: value for name, value in row.items() if not name.endswith(hidden)} for row in rows],
            title=f"{evaluation.split}: {title}",
        )
        for table, title in titles.items()
        if (rows := evaluation.tables.get(table))
    ]


def rows_of(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The figures of both directions, each with what chance would give."""
    return evaluation.tables.get("retrieval", [])


def _summary(evaluation: Evaluation, confidence: float) -> list[str]:
    sentences: list[str] = []
    for row in rows_of(evaluation):
        right, queries, gallery = _WAYS[row["direction"]]
        interval = evaluation.intervals.get(f"{row['direction']}_recall_at_1")
        first = percent(row["recall_at_1"])
        if interval is not None:
            first = with_interval(f"{row['direction']}_recall_at_1", interval, confidence=confidence)
        where = f"On {cases_phrase(evaluation)} " if not sentences else ""
        sentences.append(
            f"{where}{right} of {number(row['gallery'])} {gallery} came first for {first} {queries}, and was among the "
            f"first ten for {percent(row['recall_at_10'])}."
        )
    return [sentence[:1].upper() + sentence[1:] for sentence in sentences]


def _chance(evaluation: Evaluation) -> list[str]:
    """What an order by chance would give."""
    shown = [f"{percent(row['recall_at_1_chance'])} {_WAYS[row['direction']][1]}" for row in rows_of(evaluation)]
    return [f"In an order by chance it would be first for {' and '.join(shown)}."] if shown else []


def _limits(evaluation: Evaluation | None) -> list[str]:
    return [
        "The nearest text is the nearest of those that it is compared with, whatever the image shows; a similarity is "
        "no probability of being right.",
        "Ranks depend on the size of the gallery: compare them only with figures over as many texts and images.",
    ]


def _results(evaluation: Evaluation) -> dict[str, Any]:
    """Everything that was measured: at each level, both ways, of all cases and of each value of a column."""
    figures = {
        level: {
            row["direction"]: {
                "queries": row["queries"],
                "gallery": row["gallery"],
                **{figure: _measured(row, figure) for figure in FIGURES},
            }
            for row in evaluation.tables.get(table, [])
        }
        for level, table in LEVEL_TABLES.items()
    }
    whole = {
        name: {"value": interval.value, "low": interval.low, "high": interval.high}
        for name, interval in evaluation.intervals.items()
        if name in ("mean_recall", "log_loss")
    }
    parts = {
        name: [
            {
                "value": row[name.removeprefix("per_")],
                "cases": row["n"],
                "groups": row["groups"],
                **_of_value(row),
            }
            for row in rows
        ]
        for name, rows in evaluation.tables.items()
        if name.startswith("per_")
    }
    notes = [row["note"] for row in evaluation.tables.get("notes", [])]
    counts = {"cases": evaluation.cases, "groups": evaluation.groups, "unread": evaluation.unread}
    return {**counts, **whole, **{level: own for level, own in figures.items() if own}, **parts, "notes": notes}


def _of_value(row: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of the queries with a value of a column, as those of all."""
    found: dict[str, Any] = {"mean_recall": _measured(row, "mean_recall")} if "mean_recall" in row else {}
    for level in LEVELS:
        ways: dict[str, Any] = {}
        for direction in DIRECTIONS:
            names = {figure: figure_name(level, direction, figure) for figure in FIGURES}
            own = {figure: _measured(row, name) for figure, name in names.items() if name in row}
            ways |= {direction: own} if own else {}
        found |= {level: ways} if ways else {}
    return found


def _measured(row: Mapping[str, Any], name: str) -> dict[str, float | None]:
    """A figure with its interval and what chance would give."""
    ends = {end: row.get(f"{name}_{end}") for end in ("low", "high", "chance")}
    return {"value": row[name], **{end: value for end, value in ends.items() if f"{name}_{end}" in row}}


def _console(evaluation: Evaluation) -> list[str]:
    shown = {
        "R@1": "recall_at_1",
        "chance": "recall_at_1_chance",
        "R@5": "recall_at_5",
        "R@10": "recall_at_10",
        "median rank": "median_rank",
        "mAP": "mean_average_precision",
    }
    rows = [
        {
            "right": _RIGHT[level],
            "direction": row["direction"].replace("_", " "),
            "gallery": row["gallery"],
            **{name: row[key] for name, key in shown.items()},
        }
        for level, table in LEVEL_TABLES.items()
        for row in evaluation.tables.get(table, [])
    ]
    return [format_table(rows, title=f"{evaluation.split}: retrieval")] if rows else []
