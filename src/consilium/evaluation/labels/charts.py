"""Charts of labels as SVG text: confusion, reliability, and risk over coverage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import chain
from typing import Any

import numpy as np

from consilium.evaluation.report import svg

_SHOWN_CLASSES = 60  # a larger confusion matrix is cut to the classes with the most errors
_SLANT = math.radians(52)  # of the column labels of a confusion matrix
_TONES = ("a", "b", "c")  # of the signs of doubt, of which there are three
_STEADY = 10  # answers from which on a share of wrong ones is drawn
_NUMBERED_CLASSES = 30  # up to here every cell carries its count


def confusion_heat_map(labels: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Cases by true class (row) and predicted class (column), shaded by the share of the true class."""
    index = {label: number for number, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for row in rows:
        counts[index[row["truth"]], index[row["prediction"]]] = row["cases"]
    kept = most_confused(counts)
    support = counts.sum(axis=1)
    cell = 34 if len(kept) <= 16 else 30 if len(kept) <= _NUMBERED_CLASSES else 14
    widths = [svg.WIDTH * len(svg.short(labels[k])) for k in kept]
    left, size = max(14 + max(widths), 68), cell * len(kept)  # beside the labels at least the words above them
    top = 36 + max(widths) * math.sin(_SLANT)
    right = max(cell * (place + 0.5) + width * math.cos(_SLANT) - size for place, width in enumerate(widths))
    right = max(right, 62 - size / 2)
    parts = [svg.text(left + cell * len(kept) / 2, 14, "named by the model", "axis-title", anchor="middle")]
    parts.append(svg.text(0, top - 8, "true class", "axis-title"))
    for place, k in enumerate(kept):
        middle = cell * (place + 0.5)
        parts.append(svg.text(left - 8, top + middle + 4, svg.short(labels[k]), "tick", anchor="end", title=labels[k]))
        corner = f'transform="translate({left + middle:.1f} {top - 8:.1f}) rotate({-math.degrees(_SLANT):.0f})"'
        parts.append(
            f'<text class="tick" {corner}>{escape(svg.short(labels[k]))}<title>{escape(labels[k])}</title></text>'
        )
        for other, j in enumerate(kept):
            share = counts[k, j] / support[k] if support[k] else 0.0
            parts.append(
                _cell(left + cell * other, top + cell * place, cell, int(counts[k, j]), share, labels[k], labels[j])
            )
    return svg.drawing(
        left + size + max(right, 0) + 4, top + size + 4, "".join(parts), label="Confusion matrix", css="confusion"
    )


def most_confused(counts: np.ndarray) -> list[int]:
    """The classes to draw, in label order: all, or the 60 with the most errors as truth or prediction."""
    errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    return sorted(int(k) for k in np.argsort(-errors, kind="stable")[:_SHOWN_CLASSES])


def _cell(x: float, y: float, size: int, count: int, share: float, truth: str, named: str) -> str:
    tone = ("right" if truth == named else "wrong") if count else "none"
    shade = f' style="fill-opacity:{0.1 + 0.9 * share:.3f}"' if count else ""
    place = f'x="{x + 1:.1f}" y="{y + 1:.1f}" width="{size - 2}" height="{size - 2}"'
    box = f'<rect class="cell {tone}" {place} rx="2"{shade}>'
    tip = f"<title>{escape(truth)} named {escape(named)}: {count} ({100 * share:.1f} %)</title></rect>"
    if not count or size < 30:
        return box + tip
    light = " light" if share > 0.75 else ""  # where white has the better contrast
    return box + tip + svg.text(x + size / 2, y + size / 2 + 4, str(count), f"count{light}", anchor="middle")


def reliability_diagram(bins: Sequence[Mapping[str, Any]]) -> str:
    """Share right against stated confidence, a dot per bin, with how many statements each bin holds."""
    x, y, strip = svg.Axis(0, 1, 48, 368), svg.Axis(0, 1, 330, 10), svg.Axis(0, 1, 420, 362)
    parts = [svg.grid(x, y, [0, 0.2, 0.4, 0.6, 0.8, 1.0], [0, 0.2, 0.4, 0.6, 0.8, 1.0])]
    parts.append(svg.line(x.at(0), y.at(0), x.at(1), y.at(1), "ideal"))
    filled = [row for row in bins if row["statements"]]
    most = max((row["statements"] for row in filled), default=1)
    points = [(x.at(row["confidence"]), y.at(row["frequency"])) for row in filled]
    parts += [
        svg.line(px, y.at(row["confidence"]), px, py, "gap") for (px, py), row in zip(points, filled, strict=True)
    ]
    parts.append(svg.path(points, "series a"))
    for (px, py), row in zip(points, filled, strict=True):
        told = f"{row['statements']} statements, {row['confidence']:.2f} stated, {row['frequency']:.2f} right"
        radius = 2.5 + 4.5 * math.sqrt(row["statements"] / most)
        parts.append(f'<circle class="dot" cx="{px:.1f}" cy="{py:.1f}" r="{radius:.1f}"><title>{told}</title></circle>')
        wide = x.at(row["to"]) - x.at(row["from"]) - 2
        tall = strip.at(0) - strip.at(row["statements"] / most)
        parts.append(
            f'<rect class="bar" x="{x.at(row["from"]) + 1:.1f}" y="{420 - tall:.1f}" width="{wide:.1f}" '
            f'height="{max(tall, 1):.1f}"><title>{told}</title></rect>'
        )
    parts.append(svg.text(14, 170, "share right", "axis-title", anchor="middle", turn=True))
    parts.append(svg.text(208, 440, "stated confidence; bars: how often it is stated", "axis-title", anchor="middle"))
    return svg.drawing(380, 446, "".join(parts), label="Reliability diagram", css="reliability")


def small_reliability(title: str, bins: Sequence[Mapping[str, Any]]) -> str:
    """The same for one of several plots side by side, without the figures of its bins."""
    x, y = svg.Axis(0, 1, 34, 184), svg.Axis(0, 1, 174, 24)
    filled = [row for row in bins if row["statements"]]
    most = max((row["statements"] for row in filled), default=1)
    parts = [svg.text(34, 14, svg.short(title, 24), "chart-title", title=title)]
    parts.append(svg.grid(x, y, [0, 0.5, 1.0], [0, 0.5, 1.0]) + svg.line(x.at(0), y.at(0), x.at(1), y.at(1), "ideal"))
    for row in filled:
        told = f"{row['statements']} cases, {row['confidence']:.2f} stated, {row['frequency']:.2f} right"
        place = f'cx="{x.at(row["confidence"]):.1f}" cy="{y.at(row["frequency"]):.1f}"'
        radius = 1.5 + 3.5 * math.sqrt(row["statements"] / most)
        parts.append(f'<circle class="dot" {place} r="{radius:.1f}"><title>{told}</title></circle>')
    return svg.drawing(196, 196, "".join(parts), label=f"Reliability at {title}", css="chart")


def risk_coverage(
    rows: Sequence[Mapping[str, Any]],
    *,
    point: tuple[float, float] | None,
    wanted: float | None,
    further: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> str:
    """Share of wrong answers against share of cases answered; marked are what is set, and what was asked for.

    ``further`` curves are those of other signs than the probability, by name.
    """
    curves = {"probability": _steady(rows), **{name: _steady(own) for name, own in (further or {}).items()}}
    drawn = list(chain.from_iterable(curves.values()))
    limits = [] if wanted is None else [round(100 * (1 - wanted), 6)]
    marked = [] if point is None else [(100 * point[0], 100 * point[1])]
    levels = svg.ticks(0, max([1.0, *limits, *(risk for _, risk in (*drawn, *marked))]))
    x, y = svg.Axis(0, 100, 48, 388), svg.Axis(levels[0], levels[-1], 230, 16)
    parts = [svg.grid(x, y, [0, 20, 40, 60, 80, 100], levels)]
    for limit in limits:
        parts.append(svg.line(x.start, y.at(limit), x.end, y.at(limit), "ideal"))
        parts.append(svg.text(x.start + 4, y.at(limit) - 5, f"asked: at most {limit:g} %", "tick"))
    for place, (tone, (name, points)) in enumerate(zip(_TONES, curves.items(), strict=False)):
        parts.append(svg.path([(x.at(share), y.at(risk)) for share, risk in points], f"series {tone}"))
        if further:
            at = 48 + place * 118
            parts.append(svg.line(at, 288, at + 18, 288, f"series {tone}") + svg.text(at + 24, 292, name, "tick"))
    for share, risk in marked:
        tip = f"<title>{share:.1f} % answered, {risk:.1f} % of these wrong</title>"
        parts.append(f'<circle class="dot b" cx="{x.at(share):.1f}" cy="{y.at(risk):.1f}" r="5">{tip}</circle>')
    parts.append(svg.text(14, 123, "% wrong of the answered", "axis-title", anchor="middle", turn=True))
    parts.append(svg.text(218, 268, "% of cases answered, the surest first", "axis-title", anchor="middle"))
    height = 300 if further else 276
    return svg.drawing(400, height, "".join(parts), label="Wrong answers against answered cases", css="chart")


def _steady(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """The points of a curve in percent, from some answers on."""
    steady = [row for row in rows if row["answered"] >= _STEADY]
    return [(100 * row["coverage"], 100 * row["risk"]) for row in (steady if len(steady) > 1 else rows)]
