"""The picture of a label tree with its figures, and the small plots of its inner nodes, as SVG text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import count
from typing import Any

from consilium.core.labels import ROOT
from consilium.evaluation.labels import charts
from consilium.evaluation.report import svg
from consilium.evaluation.report.wording import number, percent

_ROW, _BOX, _GAP = 36, 28, 66  # pixels from node to node, height of one, and from one level to the next
_TOP = 26  # of the first row; above it stand the levels
_SHOWN_DECISIONS = 12  # of more inner nodes only those with the most errors are drawn


def tree_picture(nodes: Sequence[Mapping[str, Any]], decisions: Sequence[Mapping[str, Any]], *, cases: int) -> str:
    """The tree from left to right: every node with the share found of its cases, every fork with the share right.

    ``nodes`` and ``decisions`` are the tables of the evaluator, ``cases`` how many cases there are in all.
    """
    root = {"node": ROOT, "parent": None, "cases": cases, "recall": None}
    row_of = {ROOT: root, **{row["node"]: row for row in nodes}}
    children: dict[str, list[str]] = {name: [] for name in row_of}
    for row in nodes:
        children[row["parent"]].append(row["node"])
    right_of = {row["node"]: row["accuracy"] for row in decisions}
    y_of, levels = _places(children)
    parts: list[str] = []
    edge: dict[str, float] = {}  # where the box of a node ends
    left = 2.0
    for depth, names in enumerate(levels):
        width = max(_width(row_of[name]) for name in names)
        if depth:
            parts.append(svg.text(left, 12, f"level {depth}", "axis-title"))
        for name in names:
            above = row_of[name]["parent"]
            if above is not None:
                parts.append(_branch(edge[above], y_of[above], left, y_of[name]))
            parts.append(_node(row_of[name], left, y_of[name], width))
            if right_of.get(name) is not None:
                parts.append(_fork(left + width, y_of[name], right_of[name], name))
            edge[name] = left + width
        left += width + _GAP
    height = _TOP + _ROW * sum(not below for below in children.values())
    return svg.drawing(left - _GAP + 2, height, "".join(parts), label="The label tree", css="tree")


def _places(children: Mapping[str, Sequence[str]]) -> tuple[dict[str, float], list[list[str]]]:
    """The height of every node: leaves in rows, others midway between their children; and the names by level."""
    y_of: dict[str, float] = {}
    levels: list[list[str]] = []
    rows = count()

    def place(name: str, depth: int) -> None:
        if depth == len(levels):
            levels.append([])
        levels[depth].append(name)
        for child in children[name]:
            place(child, depth + 1)
        below = [y_of[child] for child in children[name]]
        y_of[name] = (below[0] + below[-1]) / 2 if below else _TOP + _ROW * (next(rows) + 0.5)

    place(ROOT, 0)
    return y_of, levels


def _told(row: Mapping[str, Any]) -> tuple[str, str]:
    """The name of a node and the figures beside it."""
    if row["parent"] is None:
        return "all cases", number(row["cases"])
    name = svg.short(row["node"].rpartition(".")[2])
    return name, f"{percent(row['recall'], 0)} of {number(row['cases'])}" if row["cases"] else "no cases"


def _width(row: Mapping[str, Any]) -> float:
    return 30 + svg.WIDTH * sum(map(len, _told(row)))


def _node(row: Mapping[str, Any], x: float, y: float, width: float) -> str:
    name, figures = _told(row)
    top, recall = y - _BOX / 2, row["recall"]
    tip = row["node"]
    bar = ""
    if recall is not None:
        tip = f"{tip}: {percent(recall)} of its {number(row['cases'])} cases found"
        if row["precision"] is not None:
            tip += f"; of {number(row['predicted'])} cases put here {percent(row['precision'])} are right"
        bar = _bar("missed", x, top, width) + (_bar("found", x, top, width * recall) if recall else "")
        bar += f'<rect class="lack" x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{_BOX}" rx="3" '
        bar += f'style="fill-opacity:{0.5 * (1 - recall):.3f}"/>'
    css = "node" if row["cases"] else "node none"
    box = f'<rect class="{css}" x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{_BOX}" rx="3"/>'
    words = svg.text(x + 9, y + 3, name, "node-name") + svg.text(x + width - 9, y + 3, figures, "tick", anchor="end")
    return f"<g><title>{escape(tip)}</title>{box}{bar}{words}</g>"


def _bar(css: str, x: float, top: float, width: float) -> str:
    return f'<rect class="{css}" x="{x:.1f}" y="{top + _BOX - 4:.1f}" width="{width:.1f}" height="4"/>'


def _branch(x0: float, y0: float, x1: float, y1: float) -> str:
    return f'<path class="branch" d="M{x0:.1f} {y0:.1f}H{x1 - 14:.1f}V{y1:.1f}H{x1:.1f}"/>'


def _fork(x: float, y: float, right: float, name: str) -> str:
    tip = f"of the cases whose label is below {name}, {percent(right)} take the right branch"
    return svg.text(x + (_GAP - 14) / 2, y - 5, percent(right, 0), "fork", anchor="middle", title=tip)


# -- Inner nodes ------------------------------------------------------------------------------------------------


def decision_plots(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[Any]]:
    """Of the inner nodes, those with the most errors first: their confusion (where there is one) and reliability."""
    confusions, reliabilities = [], []
    mistakes = {row["node"]: row["cases"] * (1 - (row["accuracy"] or 0.0)) for row in tables["decisions"]}
    judged = [row["node"] for row in tables["decisions"] if row["cases"]]
    children: dict[str, list[str]] = {}
    for row in tables["nodes"]:
        children.setdefault(row["parent"], []).append(row["node"].rpartition(".")[2])
    for name in sorted(judged, key=lambda name: -mistakes[name])[:_SHOWN_DECISIONS]:
        pairs = [row for row in tables["decision_confusion"] if row["node"] == name]
        bins = [row for row in tables["decision_calibration"] if row["node"] == name]
        reliabilities.append(charts.small_reliability(name, bins))
        if mistakes[name] > 0:
            short = [{**row, **{key: row[key].rpartition(".")[2] for key in ("truth", "prediction")}} for row in pairs]
            confusions.append({"node": name, "plot": charts.confusion_heat_map(children[name], short)})
    return {"confusions": confusions, "reliabilities": reliabilities}
