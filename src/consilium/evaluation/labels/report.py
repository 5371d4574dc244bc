"""What tasks that answer with labels add to a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from consilium.core.evaluation import Evaluation
from consilium.core.labels import ROOT, indented
from consilium.core.reporter import format_table
from consilium.evaluation.labels import charts, tree_plots
from consilium.evaluation.labels import wording as label_wording
from consilium.evaluation.report.parts import PooledParts, ReportParts

_POOLED = PooledParts(
    sections=("label_confusion.html.j2",),
    predicates={"accuracy": "were named right", "exact_match": "were given every label right"},
    undefined="a fold of one class has no AUROC",
    cautions=(
        "The pooled figures put answers of different models into one list. Shares of right answers bear that; a rank "
        "(AUROC) or a calibration does less well, where the models are not equally sure.",
    ),
)


def label_parts(labels: Sequence[str]) -> ReportParts:
    """The parts of a classifier with these classes, in reading order."""
    return ReportParts(
        about=f"{len(labels)} classes",
        intended_use=f"An image classifier with {len(labels)} classes, for research: sorting and routing medical "
        "images that look like its training data.",
        pipeline_tag="image-classification",
        headlines=(
            "accuracy",
            "exact_match",
            "balanced_accuracy",
            "macro_f1",
            "hierarchical_f1",
            "micro_f1",
            "macro_auroc",
            "calibration_error",
            "coverage",
            "answered_accuracy",
        ),
        curves=("accuracy", "macro_f1", "macro_auroc"),
        summary=_summary,
        beside=label_wording.beside_accuracy,
        cautions=label_wording.cautions,
        limits=_limits,
        meaning=label_wording.meaning,
        console=_console,
        by_column=("accuracy", "exact_match", "macro_f1", "coverage", "answered_accuracy"),
        sections=("labels.html.j2",),
        galleries=("label_cases.html.j2",),
        card="labels.md.j2",
        pooled=_POOLED,
        calls={"said": label_wording, "plots": charts, "tree_plots": tree_plots},
        figures=lambda evaluation: {"largest_class": label_wording.largest_class(evaluation)},
        labels=tuple(labels),
    )


def _summary(evaluation: Evaluation, confidence: float) -> list[str]:
    return label_wording.summary(evaluation, confidence=confidence)


def _limits(evaluation: Evaluation | None) -> list[str]:
    """What the classifier does with other images, its most frequent mistakes, and whether it can be believed."""
    found = [label_wording.limit(evaluation)]
    if evaluation is None:
        return found
    if mistakes := label_wording.confusions(evaluation, at_most=6):
        found.append(f"Its most frequent mistakes: {'; '.join(mistakes)}.")
    return [*found, *filter(None, [label_wording.calibration_sentence(evaluation)])]


def _console(evaluation: Evaluation) -> list[str]:
    lines = label_wording.beside_accuracy(evaluation)
    if tree := tree_rows(evaluation):
        lines.append(format_table(tree, title=f"{evaluation.split}: the label tree"))
    return lines


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
