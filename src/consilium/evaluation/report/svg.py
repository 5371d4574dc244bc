"""Parts of the drawings of a report as SVG text: lines, words, axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 6.9  # pixels a character of a tick takes, at most


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers, evenly apart, that enclose [low, high]."""
    reach = max(abs(low), abs(high))
    if high - low <= max(1e-9 * reach, 1e-300):  # the digits of a tick could not tell them apart
        pad = reach * 0.05
        low, high = (low - pad, high + pad) if reach > 1e-300 else (0.0, 1.0)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]


def grid(x: Axis, y: Axis, xs: Sequence[float], ys: Sequence[float]) -> str:
    """Level lines at ``ys`` with their figures, and the figures of ``xs`` below."""
    parts = []
    for value in ys:
        parts.append(line(x.start, y.at(value), x.end, y.at(value), "grid"))
        parts.append(text(x.start - 7, y.at(value) + 4, _tick(value), "tick", anchor="end"))
    parts += [text(x.at(value), y.start + 17, _tick(value), "tick", anchor="middle") for value in xs]
    return "".join(parts)


def _tick(value: float) -> str:
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


def short(label: str, at_most: int = 28) -> str:
    """A label, its middle left out when it is long."""
    return label if len(label) <= at_most else f"{label[: at_most // 2 - 1]}…{label[-(at_most // 2) :]}"


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """A straight line."""
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def path(points: Sequence[tuple[float, float]], css: str) -> str:
    """A line through points."""
    joined = " ".join(f"{'M' if n == 0 else 'L'}{x:.1f} {y:.1f}" for n, (x, y) in enumerate(points))
    return f'<path class="{css}" d="{joined}"/>'


def text(
    x: float, y: float, words: str, css: str, *, anchor: str = "start", turn: bool = False, title: str | None = None
) -> str:
    """Words at a place; ``title`` shows when the pointer rests on them."""
    where = f'transform="translate({x:.1f} {y:.1f}) rotate(-90)"' if turn else f'x="{x:.1f}" y="{y:.1f}"'
    tip = "" if title is None else f"<title>{escape(title)}</title>"
    return f'<text class="{css}" {where} text-anchor="{anchor}">{escape(words)}{tip}</text>'


def drawing(width: float, height: float, content: str, *, label: str, css: str) -> str:
    """A whole drawing; ``label`` is read to those who cannot see it."""
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return f'<svg class="{css}" {size} role="img" aria-label="{escape(label, quote=True)}">{content}</svg>'
