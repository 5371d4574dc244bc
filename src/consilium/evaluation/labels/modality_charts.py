"""Charts of modalities as SVG text: what is left without them, how each is learned, and both sides of a lack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from consilium.evaluation.report import svg
from consilium.evaluation.report.charts import Series, line_chart
from consilium.evaluation.report.comparison import ComparedRun
from consilium.evaluation.report.words import alone

_TONES = ("a", "b", "c")  # of the modalities, of which there are at most three
_CELL, _TALL = 58, 30  # of the map


def modality_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """The macro F1 against the share of cases that lose each modality, a line for each."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.get("lost") is not None and row.get("macro_f1") is not None:
            lines.setdefault(row["lost"], [(0.0, rows[0]["macro_f1"])]).append((100 * row["share"], row["macro_f1"]))
    series = [Series(f"{name} lost", points, tone) for (name, points), tone in zip(lines.items(), _TONES, strict=False)]
    return line_chart(series, title="macro F1, by % of cases that lose it")


def modality_curves(history: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> list[str]:
    """Over the steps of a training: the macro F1 of each modality alone on validation, and its share of gradient."""

    def lines(column: str) -> list[Series]:
        return [
            Series(name, [(float(row["step"]), float(row[own])) for row in history if row.get(own)], tone)
            for name, tone in zip(modalities, _TONES, strict=False)
            for own in [column.format(name)]
        ]

    charts = [
        line_chart(lines(f"val_{alone('{}')}"), title="macro F1 of each alone, validation"),
        line_chart(lines("train_gradient_{}"), title="Share of the gradient"),
    ]
    return [chart for chart in charts if chart]


def modality_map(runs: Sequence[ComparedRun]) -> str:
    """The macro F1 of every config (row) where modalities are missing at test (column), the mean over seeds."""
    values: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for row in run.test.tables["modalities"]:
            if (figure := row.get("macro_f1")) is not None:
                values.setdefault(run.name, {}).setdefault(row["what"], []).append(figure)
    means = {name: {what: sum(own) / len(own) for what, own in found.items()} for name, found in values.items()}
    columns = list(dict.fromkeys(what for found in means.values() for what in found))
    every = [value for found in means.values() for value in found.values()]
    low, spread = min(every), max(max(every) - min(every), 1e-9)
    left = 16 + max(svg.WIDTH * len(svg.short(name, 30)) for name in means)
    top = 16 + max(svg.WIDTH * len(what) for what in columns)
    parts = []
    for place, what in enumerate(columns):
        x = left + _CELL * (place + 0.5) + 4
        turned = f'transform="translate({x:.1f} {top - 8:.1f}) rotate(-90)"'
        parts.append(f'<text class="tick" {turned}>{escape(what)}</text>')
    for line, (name, found) in enumerate(means.items()):
        y = top + _TALL * line
        parts.append(svg.text(left - 8, y + _TALL / 2 + 4, svg.short(name, 30), "tick", anchor="end", title=name))
        for place, what in enumerate(columns):
            if (value := found.get(what)) is not None:
                x, shade = left + _CELL * place, 0.08 + 0.72 * (value - low) / spread
                box = f'x="{x + 1}" y="{y + 1}" width="{_CELL - 2}" height="{_TALL - 2}" rx="2"'
                tip = f"<title>{escape(name)}, {escape(what)}: {value:.3f}</title>"
                parts.append(f'<rect class="cell right" {box} style="fill-opacity:{shade:.3f}">{tip}</rect>')
                light = " light" if shade > 0.6 else ""
                parts.append(
                    svg.text(x + _CELL / 2, y + _TALL / 2 + 4, f"{value:.3f}", f"count{light}", anchor="middle")
                )
    size = left + _CELL * len(columns) + 4, top + _TALL * len(means) + 4
    return svg.drawing(*size, "".join(parts), label="macro F1 by what is missing", css="confusion")
