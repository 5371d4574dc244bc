"""Plots of the report as SVG text, styled by the classes in ``templates/report.css``.

Written out by hand: they inherit the page's fonts, print sharply, carry tooltips, need no plotting library at
run time and are the same byte for byte from run to run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

_SHOWN_CLASSES = 60  # a larger confusion matrix is cut to the classes with the most errors
_SLANT = math.radians(52)  # of the column labels of a confusion matrix
_WIDTH = 6.9  # pixels a character of such a label takes, at most
_NUMBERED_CLASSES = 30  # up to here every cell carries its count


@dataclass(frozen=True)
class Series:
    """A named line of (x, y) points; ``tone`` picks its colour: a, b or c."""

    name: str
    points: Sequence[tuple[float, float]]
    tone: str = "a"


@dataclass(frozen=True)
class _Axis:
    """Maps values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def interval_strip(value: float | None, low: float | None, high: float | None) -> str:
    """A share on [0, 1] as a dot with its interval as a whisker, for a table cell."""
    if value is None:
        return ""
    axis = _Axis(0.0, 1.0, 4.0, 96.0)
    whisker = "" if low is None or high is None else _line(axis.at(low), 8, axis.at(high), 8, "whisker")
    dot = f'<circle class="dot" cx="{axis.at(value):.1f}" cy="8" r="3.4"/>'
    return _svg(100, 16, _line(4, 8, 96, 8, "rail") + whisker + dot, label=f"{value:.3f}", css="strip")


def confusion_heat_map(labels: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Cases by true class (row) and predicted class (column), shaded by the share of the true class."""
    index = {label: number for number, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for row in rows:
        counts[index[row["truth"]], index[row["prediction"]]] = row["cases"]
    kept = most_confused(counts)
    support = counts.sum(axis=1)
    cell = 34 if len(kept) <= 16 else 30 if len(kept) <= _NUMBERED_CLASSES else 14
    widths = [_WIDTH * len(_short(labels[k])) for k in kept]
    left, size = 14 + max(widths), cell * len(kept)
    top = 30 + max(widths) * math.sin(_SLANT)
    right = max(cell * (place + 0.5) + width * math.cos(_SLANT) - size for place, width in enumerate(widths))
    parts = [_text(left + cell * len(kept) / 2, 14, "named by the model", "axis-title", anchor="middle")]
    parts.append(_text(0, top - 8, "true class", "axis-title"))
    for place, k in enumerate(kept):
        middle = cell * (place + 0.5)
        parts.append(_text(left - 8, top + middle + 4, _short(labels[k]), "tick", anchor="end", title=labels[k]))
        corner = f'transform="translate({left + middle:.1f} {top - 8:.1f}) rotate({-math.degrees(_SLANT):.0f})"'
        parts.append(
            f'<text class="tick" {corner}>{escape(_short(labels[k]))}<title>{escape(labels[k])}</title></text>'
        )
        for other, j in enumerate(kept):
            share = counts[k, j] / support[k] if support[k] else 0.0
            parts.append(
                _cell(left + cell * other, top + cell * place, cell, int(counts[k, j]), share, labels[k], labels[j])
            )
    return _svg(
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
    return box + tip + _text(x + size / 2, y + size / 2 + 4, str(count), f"count{light}", anchor="middle")


def reliability_diagram(bins: Sequence[Mapping[str, Any]]) -> str:
    """Share right against stated confidence, a dot per bin, with how many statements each bin holds."""
    x, y, strip = _Axis(0, 1, 48, 368), _Axis(0, 1, 330, 10), _Axis(0, 1, 420, 362)
    parts = [_grid(x, y, [0, 0.2, 0.4, 0.6, 0.8, 1.0], [0, 0.2, 0.4, 0.6, 0.8, 1.0])]
    parts.append(_line(x.at(0), y.at(0), x.at(1), y.at(1), "ideal"))
    filled = [row for row in bins if row["statements"]]
    most = max((row["statements"] for row in filled), default=1)
    points = [(x.at(row["confidence"]), y.at(row["frequency"])) for row in filled]
    parts += [_line(px, y.at(row["confidence"]), px, py, "gap") for (px, py), row in zip(points, filled, strict=True)]
    parts.append(_path(points, "series a"))
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
    parts.append(_text(14, 170, "share right", "axis-title", anchor="middle", turn=True))
    parts.append(_text(208, 440, "stated confidence; bars: how often it is stated", "axis-title", anchor="middle"))
    return _svg(380, 446, "".join(parts), label="Reliability diagram", css="reliability")


def line_chart(series: Sequence[Series], *, title: str, mark: float | None = None) -> str:
    """Lines over training steps; ``mark`` draws an upright line at a step. Empty when there is nothing to draw."""
    drawn = [Series(s.name, [(px, py) for px, py in s.points if math.isfinite(py)], s.tone) for s in series]
    points = [point for one in drawn for point in one.points]
    if not points:
        return ""
    last = max(1.0, *(step for step, _ in points))
    steps = ticks(0, last, about=min(5, int(last)))
    levels = ticks(min(value for _, value in points), max(value for _, value in points))
    x, y = _Axis(0, steps[-1], 52, 350), _Axis(levels[0], levels[-1], 200, 30)
    parts = [_text(8, 14, title, "chart-title"), _grid(x, y, steps, levels)]
    if mark is not None:
        at = x.at(mark)
        parts.append(_line(at, 26, at, 200, "mark") + _text(at, 22, "best", "tick", anchor="middle"))
    for place, one in enumerate(drawn):
        pixels = [(x.at(step), y.at(value)) for step, value in one.points]
        parts.append(_path(pixels, f"series {one.tone}"))
        if len(pixels) == 1:
            parts.append(f'<circle class="dot {one.tone}" cx="{pixels[0][0]:.1f}" cy="{pixels[0][1]:.1f}" r="3"/>')
        if len(drawn) > 1 and pixels:
            at = 52 + place * 104
            parts.append(_line(at, 238, at + 18, 238, f"series {one.tone}") + _text(at + 24, 242, one.name, "tick"))
    return _svg(366, 248, "".join(parts), label=title, css="chart")


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers, evenly apart, that enclose [low, high]."""
    reach = max(abs(low), abs(high))
    if high - low <= max(1e-9 * reach, 1e-300):  # the digits of a tick could not tell them apart
        pad = reach * 0.05 if reach > 1e-300 else 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]


def _grid(x: _Axis, y: _Axis, xs: Sequence[float], ys: Sequence[float]) -> str:
    parts = []
    for value in ys:
        parts.append(_line(x.start, y.at(value), x.end, y.at(value), "grid"))
        parts.append(_text(x.start - 7, y.at(value) + 4, _tick(value), "tick", anchor="end"))
    parts += [_text(x.at(value), y.start + 17, _tick(value), "tick", anchor="middle") for value in xs]
    return "".join(parts)


def _tick(value: float) -> str:
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


def _short(label: str, at_most: int = 28) -> str:
    return label if len(label) <= at_most else f"{label[: at_most // 2 - 1]}…{label[-(at_most // 2) :]}"


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _path(points: Sequence[tuple[float, float]], css: str) -> str:
    joined = " ".join(f"{'M' if n == 0 else 'L'}{x:.1f} {y:.1f}" for n, (x, y) in enumerate(points))
    return f'<path class="{css}" d="{joined}"/>'


def _text(
    x: float, y: float, text: str, css: str, *, anchor: str = "start", turn: bool = False, title: str | None = None
) -> str:
    where = f'transform="translate({x:.1f} {y:.1f}) rotate(-90)"' if turn else f'x="{x:.1f}" y="{y:.1f}"'
    tip = "" if title is None else f"<title>{escape(title)}</title>"
    return f'<text class="{css}" {where} text-anchor="{anchor}">{escape(text)}{tip}</text>'


def _svg(width: float, height: float, content: str, *, label: str, css: str) -> str:
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return f'<svg class="{css}" {size} role="img" aria-label="{escape(label, quote=True)}">{content}</svg>'
