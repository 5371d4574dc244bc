"""Charts of retrieval as SVG text: recall over k, similarities of pairs, and a map of the space."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from consilium.evaluation.report import svg

WAYS = {"image_to_text": ("image to text", "a"), "text_to_image": ("text to image", "b")}
_COLOURS = 6  # labels or sources that have a colour of their own; the others share one
_NAME = 34  # characters of a name in the key of the map


def recall_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """The share of queries with a right answer among the first k, both ways, with chance; k on a logarithmic scale."""
    most = max(row["k"] for row in rows)
    if most == 1:
        return ""
    x, y = svg.Axis(0, math.log10(most), 52, 350), svg.Axis(0, 1, 200, 30)
    levels = [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    parts = [svg.text(8, 14, "Recall among the first k", "chart-title"), svg.grid(x, y, [], levels)]
    marks = [factor * 10**power for power in range(7) for factor in (1, 2, 5)]
    shown = [k for k in marks if k <= most]
    for k in shown if most <= 200 else [k for k in shown if str(k)[0] == "1"]:
        parts.append(svg.text(x.at(math.log10(k)), 217, f"{k:,}".replace(",", " "), "tick", anchor="middle"))
    for place, (direction, (name, tone)) in enumerate(WAYS.items()):
        own = [row for row in rows if row["direction"] == direction]
        for key, css in (("chance", "ideal"), ("recall", f"series {tone}")):
            points = [(x.at(math.log10(row["k"])), y.at(row[key])) for row in own]
            parts.append(svg.path(points, f"{css} open"))
        at = 52 + place * 110
        parts.append(svg.line(at, 238, at + 18, 238, f"series {tone}") + svg.text(at + 24, 242, name, "tick"))
    parts.append(svg.line(272, 238, 290, 238, "ideal") + svg.text(296, 242, "chance", "tick"))
    return svg.drawing(366, 248, "".join(parts), label="Recall over k, both ways", css="chart")


def similarity_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """How similar matched and unmatched pairs are: the share of each in bins of cosine similarity."""
    xs = svg.ticks(rows[0]["from"], rows[-1]["to"])
    top = svg.ticks(0, max(max(row["matched"], row["unmatched"]) for row in rows), about=4)
    x, y = svg.Axis(xs[0], xs[-1], 52, 350), svg.Axis(0, top[-1], 200, 30)
    parts = [svg.text(8, 14, "Similarity of pairs", "chart-title"), svg.grid(x, y, xs, top)]
    for place, (key, name, tone) in enumerate((("matched", "matched", "a"), ("unmatched", "not matched", "b"))):
        steps = [(x.at(row[end]), y.at(row[key])) for row in rows for end in ("from", "to")]
        outline = [(steps[0][0], y.start), *steps, (steps[-1][0], y.start)]
        parts += [svg.path(outline, f"density {tone}"), svg.path(outline, f"series {tone}")]
        at = 52 + place * 110
        parts.append(svg.line(at, 238, at + 18, 238, f"series {tone}") + svg.text(at + 24, 242, name, "tick"))
    return svg.drawing(366, 248, "".join(parts), label="Similarity of matched and unmatched pairs", css="chart")


def map_chart(rows: Sequence[Mapping[str, Any]], axes: Sequence[Mapping[str, Any]]) -> str:
    """Images (discs) and texts (rings) on two principal components, coloured by label, or by source without labels."""
    key = "label" if any(row["label"] for row in rows) else "source"
    counts = Counter(row[key] for row in rows if row[key])
    names = sorted(counts, key=lambda name: (-counts[name], name))[:_COLOURS]
    tones = {name: f"t{number}" for number, name in enumerate(names)}
    xs, ys = (svg.ticks(min(row[axis] for row in rows), max(row[axis] for row in rows)) for axis in "xy")
    x, y = svg.Axis(xs[0], xs[-1], 52, 560), svg.Axis(ys[0], ys[-1], 400, 14)
    parts = [svg.grid(x, y, xs, ys)]
    for number, axis in enumerate(axes):
        words = f"component {axis['axis']}: {100 * axis['variance']:.1f} % of the variance"
        where = (12, 207) if number else (306, 436)
        parts.append(svg.text(*where, words, "axis-title", anchor="middle", turn=bool(number)))
    for row in rows:
        tone = tones.get(row[key], "rest")
        tip = f"<title>{escape(row['side'])} {escape(row['id'])}{escape(': ' * bool(row[key]) + row[key])}</title>"
        place = f'cx="{x.at(row["x"]):.1f}" cy="{y.at(row["y"]):.1f}" r="3.6"'
        parts.append(f'<circle class="point {row["side"]} {tone}" {place}>{tip}</circle>')
    rest = len(counts) > len(names) or any(not row[key] for row in rows)
    keys = [("image", "rest", "image"), ("text", "rest", "text")]
    keys += [("image", tones[name], svg.short(name, _NAME)) for name in names]
    keys += [("image", "rest", f"other or no {key}")] * rest
    for line, (side, tone, name) in enumerate(keys):
        top = 24 + 22 * line + 12 * (line > 1)
        parts.append(f'<circle class="point {side} {tone}" cx="590" cy="{top}" r="4.5"/>')
        parts.append(svg.text(602, top + 4, name, "tick"))
    return svg.drawing(830, 444, "".join(parts), label="Map of the common space", css="chart map")
