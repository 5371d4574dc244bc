"""What tasks that answer with embeddings add to a report."""

from __future__ import annotations

from typing import Any

from consilium.core.contracts import Evaluation
from consilium.core.reporter import format_table
from consilium.evaluation.report.parts import ReportParts
from consilium.evaluation.report.wording import cases_phrase, number, percent, with_interval

_WAYS = {
    "image_to_text": ("the right text", "of the images", "different texts"),
    "text_to_image": ("a right image", "of the texts", "images"),
}


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
        sections=("retrieval.html.j2",),
        galleries=("neighbours.html.j2",),
    )


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


def _console(evaluation: Evaluation) -> list[str]:
    rows = [
        {
            "direction": row["direction"].replace("_", " "),
            "gallery": row["gallery"],
            **{
                figure: row[key]
                for figure, key in (
                    ("R@1", "recall_at_1"),
                    ("chance", "recall_at_1_chance"),
                    ("R@5", "recall_at_5"),
                    ("R@10", "recall_at_10"),
                    ("median rank", "median_rank"),
                    ("mAP", "mean_average_precision"),
                )
            },
        }
        for row in rows_of(evaluation)
    ]
    return [format_table(rows, title=f"{evaluation.split}: retrieval")] if rows else []
