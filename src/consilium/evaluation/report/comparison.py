"""The report of a comparison: paired differences of trainings, one HTML page, JSON and CSV.

Axes in names: S seed, R resample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from consilium.core.evaluation import Evaluation
from consilium.core.files import write_json, write_text
from consilium.core.reporter import counted, figures
from consilium.evaluation.report import svg, wording
from consilium.evaluation.report.advice import advised, gathered
from consilium.evaluation.report.page import environment, to_csv
from consilium.evaluation.report.parts import ReportParts
from consilium.evaluation.report.words import higher_is_better, is_share, title
from consilium.evaluation.statistics import MeanAndDeviation, mean_and_deviation, paired_interval

PAGE, FIGURES, ROWS = "compare.html", "compare.json", "compare.csv"


@dataclass(frozen=True)
class ComparedRun:
    """One training: its config, its seed, its bundle, the figures of validation and test, and what was odd."""

    name: str
    seed: int
    folder: str
    val: Mapping[str, float | None]
    test: Evaluation = field(repr=False)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Difference:
    """A test figure of a config less that of the first one: the mean over seeds, its interval, and of each seed.

    ``better`` counts the seeds in which the config is better, whichever direction that is.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: Sequence[float]
    better: int

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def equal(self) -> bool:
        """Whether no seed and no resample makes a difference."""
        return self.low == self.high == 0 and not any(self.seeds)


@dataclass(frozen=True)
class ComparisonContent:
    """All that the report of a comparison says.

    ``names`` of the configs, of which all others are compared with the first. ``decides`` is the figure that was named
    before any training. ``changes`` has a row for each key that the configs do not share: ``key``, and the value of
    each by its name. ``same_validation``: all chose their weights on the same cases. ``confidence`` is that of all
    intervals of one figure together.
    """

    names: Sequence[str]
    seeds: Sequence[int]
    decides: str
    runs: Sequence[ComparedRun]
    parts: ReportParts
    changes: Sequence[Mapping[str, str]]
    same_validation: bool
    notes: Sequence[str]
    confidence: float
    seed: int
    command: str
    configs: Mapping[str, str]

    @property
    def baseline(self) -> str:
        """The config that the others are compared with."""
        return self.names[0]

    @property
    def level(self) -> float:
        """The confidence of one interval, so that those of all comparisons hold together (Bonferroni)."""
        return 1 - (1 - self.confidence) / (len(self.names) - 1)

    @property
    def shown_level(self) -> str:
        """The same in words."""
        return f"{100 * self.level:.3g}\N{NO-BREAK SPACE}%"

    @property
    def figures(self) -> list[str]:
        """The figures of test that are compared: the one that decides, then the headlines; all runs have them."""
        headlines = [name for name in self.parts.headlines if name in self.runs[0].test.intervals]
        names = dict.fromkeys([self.decides, *headlines])
        return [name for name in names if all(run.test.metrics.get(name) is not None for run in self.runs)]

    @property
    def shown_tables(self) -> list[str]:
        """The tables of test that are compared, too; all runs have them."""
        return [name for name in self.parts.compared if all(name in run.test.tables for run in self.runs)]

    def of(self, name: str) -> list[ComparedRun]:
        """The trainings of a config, by seed."""
        return sorted((run for run in self.runs if run.name == name), key=lambda run: run.seed)

    def test(self, name: str, figure: str) -> MeanAndDeviation:
        """A test figure over the seeds."""
        return mean_and_deviation([_value(run.test, figure) for run in self.of(name)])

    def val(self, name: str) -> float | None:
        """The mean on validation of the figure that decides; None where it is not defined."""
        values = [run.val.get(self.decides) for run in self.of(name)]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if len(known) == len(values) else None

    @cached_property
    def differences(self) -> dict[str, dict[str, Difference]]:
        """Every config but the first against the first, by figure."""
        first = [run.test for run in self.of(self.baseline)]
        return {
            name: {
                figure: paired_difference(
                    first, [run.test for run in self.of(name)], figure, confidence=self.level, seed=self.seed
                )
                for figure in self.figures
            }
            for name in self.names[1:]
        }

    # -- In words -------------------------------------------------------------------------------------------------

    def sentences(self) -> list[str]:
        """The result, most important first."""
        figure, test = self.decides, self.runs[0].test
        if figure in self.figures:
            told = [self._verdict(name, self.differences[name][figure]) for name in self.names[1:]]
        else:
            told = [f"{title(figure)}, which was to decide, is not defined on these test cases: nothing is decided."]
        on_validation = self._on_validation()
        count = len(self.seeds)
        with_seeds = f"the same {count} seeds" if count > 1 else f"seed {self.seeds[0]}"
        return [
            *told,
            f"{title(figure)} decides, as was settled before the first training"
            + (f"; {on_validation}." if on_validation else "."),
            f"All were trained with {with_seeds} and judged on the same {wording.cases_phrase(test)}.",
        ]

    def _verdict(self, name: str, found: Difference) -> str:
        figure, first = self.decides, self.baseline
        if found.equal:
            return (
                f"{name} and {first} have the same {title(figure)}, with every seed and in every resample of the cases."
            )
        shown = wording.difference(figure, found.mean)
        if spread := wording.difference_spread(figure, found.low, found.high):
            shown += f" ({self.shown_level} interval {spread})"
        count = len(self.seeds)
        seeds = f"better with {found.better} of {counted(count, 'seed')}"
        if found.decided:
            better = "better" if (found.mean > 0) == higher_is_better(figure) else "worse"
            return f"{name} is {better} than {first}: {title(figure)} {shown}, {seeds}."
        if found.low is None:
            return f"{name} less {first}: {title(figure)} {shown}, {seeds}; without an interval nothing is decided."
        return f"{name} and {first} are not told apart: {title(figure)} {shown}, {seeds}."

    def _on_validation(self) -> str:
        values = {name: self.val(name) for name in self.names}
        known = {name: value for name, value in values.items() if value is not None}
        if len(known) < len(values) or not self.same_validation:
            return ""
        best = (max if higher_is_better(self.decides) else min)(known.values())
        chosen = [name for name, value in known.items() if value == best]
        shown = ", ".join(f"{wording.figure(self.decides, value)} for {name}" for name, value in known.items())
        equal = len(chosen) == len(known)
        return f"on validation it is {shown} (means over seeds)" + (
            "" if equal else f", which speaks for {' and '.join(chosen)}"
        )

    def cautions(self) -> list[str]:
        """What a reader must know before believing the figures."""
        others = len(self.names) - 1
        return [
            *self.notes,
            "The intervals are over the test cases (whole groups are drawn anew) and over trainings with other seeds. "
            "They are not over other divisions of the data, which cross-validation shows, nor over other hospitals.",
            self._on_seeds(),
            *([f"{others} configs are compared with {self.baseline}: each interval is of {self.shown_level}, so that "
               f"those of a figure hold together with {100 * self.confidence:g}\N{NO-BREAK SPACE}% (Bonferroni)."]
              if others > 1 else []),
            f"Only {title(self.decides)} decides. Of many other figures some differ by chance, also by more than their "
            "interval.",
            *self._without_interval(),
            *wording.cautions(self.runs[0].test),
            *gathered({f"{run.name} with seed {run.seed}": run.notes for run in self.runs}),
        ]  # fmt: skip

    def _without_interval(self) -> list[str]:
        """Why the figure that decides has no interval, where it has none."""
        drawn = self.runs[0].test.draws
        if not drawn:
            return ["There are no intervals, since evaluation.bootstrap_samples is 0."]
        if self.decides in drawn:
            return []
        return [f"{title(self.decides)} is not bootstrapped; as trainer.monitor these would be: {', '.join(drawn)}."]

    def _on_seeds(self) -> str:
        count = len(self.seeds)
        if count == 1:
            return (
                "One seed says nothing of other trainings: the intervals are over the test cases alone, and another "
                "seed may turn the result around. Take three or more."
            )
        return (
            f"{count} seeds say roughly how much trainings vary. The intervals allow for that (Student's t with "
            f"{count - 1} degree{'s' if count > 2 else ''} of freedom), and are wider than with more seeds. One that "
            "holds 0 does not say that there is no difference, only that these seeds and cases do not show it."
        )

    def rows(self) -> list[dict[str, Any]]:
        """A row for each figure and config: mean and deviation over seeds, and the difference to the first."""
        rows = []
        for figure in self.figures:
            for name in self.names:
                mean = self.test(name, figure)
                found = self.differences[name][figure] if name != self.baseline else None
                rows.append(
                    {
                        "figure": figure,
                        "config": name,
                        "mean": mean.mean,
                        "deviation": mean.deviation,
                        "difference": found.mean if found else None,
                        "from": found.low if found else None,
                        "to": found.high if found else None,
                        "better": f"{found.better} of {len(found.seeds)}" if found else "",
                    }
                )
        return rows

    def __repr__(self) -> str:
        found = {name: own[self.decides].mean for name, own in self.differences.items() if self.decides in own}
        return f"<ComparisonContent: {self.decides} less {self.baseline}: {figures(found)}>"


def paired_difference(
    first: Sequence[Evaluation], other: Sequence[Evaluation], figure: str, *, confidence: float, seed: int
) -> Difference:
    """``other`` less ``first`` in a figure; both lists by seed, all over the same cases with the same resamples.

    There is no interval where a figure is not bootstrapped.
    """
    pairs = list(zip(first, other, strict=True))
    seeds = [_value(b, figure) - _value(a, figure) for a, b in pairs]
    sign = 1 if higher_is_better(figure) else -1
    better = sum(sign * value > 0 for value in seeds)
    if not all(figure in one.draws for one in (*first, *other)):
        return Difference(float(np.mean(seeds)), None, None, seeds, better)
    draws_SR = np.array([b.draws[figure] - a.draws[figure] for a, b in pairs])
    found = paired_interval(np.array(seeds), draws_SR, confidence=confidence, seed=seed)
    return Difference(found.value, found.low, found.high, seeds, better)


def _value(evaluation: Evaluation, figure: str) -> float:
    value = evaluation.metrics[figure]
    assert value is not None, "undefined figures are not compared"
    return value


def difference_plot(content: ComparisonContent, figure: str) -> str:
    """For every config but the first a row: its interval, its mean, and a circle for each seed, beside zero."""
    found = {name: own[figure] for name, own in content.differences.items()}
    scale = 100 if is_share(figure) else 1
    values = [scale * value for one in found.values() for value in (0.0, *one.seeds, one.low or 0.0, one.high or 0.0)]
    ticks = svg.ticks(min(values), max(values))
    x, row = svg.Axis(ticks[0], ticks[-1], 190, 650), 40
    bottom = row * len(found) + 10
    parts = [svg.line(x.at(value), 6, x.at(value), bottom, "grid") for value in ticks]
    parts += [
        svg.text(x.at(value), bottom + 17, f"{value:+g}" if value else "0", "tick", anchor="middle") for value in ticks
    ]
    parts.append(svg.line(x.at(0), 6, x.at(0), bottom, "ideal"))
    for number, (name, one) in enumerate(found.items()):
        y = row * number + row / 2 + 6
        parts.append(svg.text(180, y + 4, svg.short(name, 26), "tick", anchor="end", title=name))
        if one.low is not None and one.high is not None:
            parts.append(svg.line(x.at(scale * one.low), y, x.at(scale * one.high), y, "whisker"))
        parts.append(f'<circle class="dot" cx="{x.at(scale * one.mean):.1f}" cy="{y:.1f}" r="4.5"/>')
        parts += [
            f'<circle class="seed" cx="{x.at(scale * value):.1f}" cy="{y + 11:.1f}" r="2.6"/>' for value in one.seeds
        ]
    better = f"better than {svg.short(content.baseline, 26)}"
    grows = higher_is_better(figure)
    parts.append(
        svg.text(
            x.at(0) + (8 if grows else -8),
            bottom + 36,
            f"{better} →" if grows else f"← {better}",
            "axis-title",
            anchor="start" if grows else "end",
        )
    )
    unit = f"difference in {title(figure)}" + (", percentage points" if scale == 100 else "")
    parts.append(svg.text((x.start + x.end) / 2, bottom + 54, unit, "axis-title", anchor="middle"))
    label = f"{title(figure)}: difference to {content.baseline}"
    return svg.drawing(670, bottom + 62, "".join(parts), label=label, css="chart wide")


def write_comparison(folder: Path, content: ComparisonContent) -> Path:
    """Write compare.html, compare.json and compare.csv into ``folder``; the path of the HTML."""
    write_json(
        folder / FIGURES,
        {
            "names": list(content.names),
            "seeds": list(content.seeds),
            "decides": content.decides,
            "confidence": content.confidence,
            "level": content.level,
            "runs": [
                {
                    "config": run.name,
                    "seed": run.seed,
                    "folder": run.folder,
                    "val": dict(run.val),
                    "test": run.test.metrics,
                    **{name: run.test.tables[name] for name in content.shown_tables},
                }
                for run in content.runs
            ],
            "differences": {
                name: {figure: asdict(found) for figure, found in own.items()}
                for name, own in content.differences.items()
            },
            "changes": [dict(row) for row in content.changes],
            "sentences": content.sentences(),
            "notes": content.cautions(),
        },
    )
    write_text(folder / ROWS, to_csv(content.rows()))
    template = environment(escape_html=True).get_template("compare.html.j2")
    page = template.render(
        content=content,
        warnings=advised(content.cautions()),
        difference_plot=difference_plot,
        **content.parts.calls,
    )
    write_text(folder / PAGE, page)
    return folder / PAGE
