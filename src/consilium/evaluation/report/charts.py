"""Plots of the report as SVG text, styled by the classes in ``templates/report.css``.

Written out by hand: they inherit the page's fonts, print sharply, carry tooltips, need no plotting library at
run time and are the same byte for byte from run to run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from consilium.evaluation.report import svg


@dataclass(frozen=True)
class Series:
    """A named line of (x, y) points; ``tone`` picks its colour: a, b or c."""

    name: str
    points: Sequence[tuple[float, float]]
    tone: str = "a"


def interval_strip(value: float | None, low: float | None, high: float | None) -> str:
    """A share on [0, 1] as a dot with its interval as a whisker, for a table cell."""
    if value is None:
        return ""
    axis = svg.Axis(0.0, 1.0, 4.0, 96.0)
    whisker = "" if low is None or high is None else svg.line(axis.at(low), 8, axis.at(high), 8, "whisker")
    dot = f'<circle class="dot" cx="{axis.at(value):.1f}" cy="8" r="3.4"/>'
    return svg.drawing(100, 16, svg.line(4, 8, 96, 8, "rail") + whisker + dot, label=f"{value:.3f}", css="strip")


def line_chart(series: Sequence[Series], *, title: str, mark: float | None = None) -> str:
    """Lines over training steps; ``mark`` draws an upright line at a step. Empty when there is nothing to draw."""
    drawn = [Series(s.name, [(px, py) for px, py in s.points if math.isfinite(py)], s.tone) for s in series]
    points = [point for one in drawn for point in one.points]
    if not points:
        return ""
    last = max(1.0, *(step for step, _ in points))
    steps = svg.ticks(0, last, about=min(5, int(last)))
    levels = svg.ticks(min(value for _, value in points), max(value for _, value in points))
    x, y = svg.Axis(0, steps[-1], 52, 350), svg.Axis(levels[0], levels[-1], 200, 30)
    parts = [svg.text(8, 14, title, "chart-title"), svg.grid(x, y, steps, levels)]
    if mark is not None:
        at = x.at(mark)
        parts.append(svg.line(at, 26, at, 200, "mark") + svg.text(at, 22, "best", "tick", anchor="middle"))
    for place, one in enumerate(drawn):
        pixels = [(x.at(step), y.at(value)) for step, value in one.points]
        parts.append(svg.path(pixels, f"series {one.tone}"))
        if len(pixels) == 1:
            parts.append(f'<circle class="dot {one.tone}" cx="{pixels[0][0]:.1f}" cy="{pixels[0][1]:.1f}" r="3"/>')
        if len(drawn) > 1 and pixels:
            at = 52 + place * 104
            parts.append(
                svg.line(at, 238, at + 18, 238, f"series {one.tone}") + svg.text(at + 24, 242, one.name, "tick")
            )
    return svg.drawing(366, 248, "".join(parts), label=title, css="chart")
