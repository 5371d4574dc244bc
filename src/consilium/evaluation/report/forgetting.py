"""The report of what a training forgot: one HTML page, JSON and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from consilium.core.evaluation import Evaluation, Interval
from consilium.core.files import write_json, write_text
from consilium.evaluation.report import charts, wording
from consilium.evaluation.report.advice import advised
from consilium.evaluation.report.page import environment, to_csv
from consilium.evaluation.report.words import higher_is_better, is_rank, title
from consilium.evaluation.statistics import paired_interval

PAGE, FIGURES, ROWS = "forgetting.html", "forgetting.json", "forgetting.csv"
_DRAWN = 3  # charts of a data set


@dataclass(frozen=True)
class Curve:
    """One data set, judged at every alpha, from 0, the start, to 1, the bundle.

    ``figures`` are those that a report shows, the most important first.
    """

    name: str
    figures: Sequence[str]
    evaluations: Mapping[float, Evaluation]
    confidence: float

    @property
    def before(self) -> Evaluation:
        """The figures of the start."""
        return self.evaluations[0.0]

    @property
    def after(self) -> Evaluation:
        """The figures of the bundle."""
        return self.evaluations[1.0]

    @cached_property
    def shown(self) -> list[str]:
        """The figures that are defined at every alpha."""
        known = [set(own.intervals) for own in self.evaluations.values()]
        return [name for name in self.figures if all(name in own for own in known)]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Of each figure the start, the end, the paired difference with its interval, and the best alpha."""
        found = []
        for name in self.shown:
            values = {alpha: own.intervals[name].value for alpha, own in self.evaluations.items()}
            best = (max if higher_is_better(name) else min)(values, key=lambda alpha: values[alpha])
            difference = self.difference(name)
            found.append(
                {
                    "figure": name,
                    "before": values[0.0],
                    "after": values[1.0],
                    "difference": difference.value,
                    "difference_low": difference.low,
                    "difference_high": difference.high,
                    "best_alpha": best,
                    "at_best": values[best],
                }
            )
        return found

    def difference(self, name: str) -> Interval:
        """The end less the start, over the same resamples of groups."""
        change = self.after.intervals[name].value - self.before.intervals[name].value
        draws = [own.draws.get(name) for own in (self.before, self.after)]
        if draws[0] is None or draws[1] is None:
            return Interval(change)
        import numpy as np

        return paired_interval(np.array([change]), (draws[1] - draws[0])[None], confidence=self.confidence, seed=0)

    def sentence(self) -> str:
        """What became of the first figure."""
        if not self.shown:
            return f"On {self.name} no figure is defined at every alpha."
        name, difference = self.shown[0], self.difference(self.shown[0])
        before, after = (wording.figure(name, own.intervals[name].value) for own in (self.before, self.after))
        spread = wording.difference_spread(name, difference.low, difference.high)
        shown = wording.difference(name, difference.value) + (f", {self._level} interval {spread}" if spread else "")
        decided = difference.low is not None and difference.high is not None and difference.low * difference.high > 0
        better = (difference.value > 0) == higher_is_better(name)
        verdict = ("it gained" if better else "it forgot") if decided else "no difference is shown"
        return (
            f"On {self.name} ({wording.cases_phrase(self.after)}): {title(name)} {before} before, {after} after "
            f"({shown}): {verdict}."
        )

    @property
    def _level(self) -> str:
        return wording.plain(self.confidence)

    def charts(self) -> list[str]:
        """The curves over alpha, of the first figures that are no ranks."""
        drawn = [name for name in self.shown if not is_rank(name)][:_DRAWN]
        points = {
            name: [(alpha, own.intervals[name].value) for alpha, own in self.evaluations.items()] for name in drawn
        }
        return [charts.line_chart([charts.Series(name, own)], title=title(name)) for name, own in points.items()]

    def every(self) -> list[dict[str, Any]]:
        """Each figure at each alpha."""
        return [
            {
                "data": self.name,
                "alpha": alpha,
                "figure": name,
                "value": own.metrics[name],
                "low": own.intervals[name].low if name in own.intervals else None,
                "high": own.intervals[name].high if name in own.intervals else None,
            }
            for alpha, own in self.evaluations.items()
            for name in own.metrics
        ]


@dataclass(frozen=True)
class ForgettingContent:
    """All that the page says; ``start`` is what the training began with, in words."""

    name: str
    start: str
    curves: Sequence[Curve]
    notes: Sequence[str]
    command: str

    @property
    def alphas(self) -> list[float]:
        """The shares of what was learned that were tried."""
        return list(self.curves[0].evaluations)


def write_forgetting(folder: Path, content: ForgettingContent) -> Path:
    """Write forgetting.html, forgetting.json and forgetting.csv into ``folder``; the path of the page."""
    write_text(folder / ROWS, to_csv([row for curve in content.curves for row in curve.every()]))
    figures = {curve.name: curve.rows for curve in content.curves}
    write_json(folder / FIGURES, {"start": content.start, "alphas": content.alphas, "data": figures})
    cautions = [text for curve in content.curves for text in wording.on_the_split(curve.after)]
    page = environment(escape_html=True).get_template("forgetting.html.j2")
    warnings = advised(list(dict.fromkeys([*content.notes, *cautions])))
    write_text(folder / PAGE, page.render(content=content, warnings=warnings))
    return folder / PAGE
