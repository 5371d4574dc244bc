"""The report of a cross-validation: one HTML page, JSON and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from consilium.core.evaluation import Evaluation, Interval
from consilium.core.files import write_json, write_text
from consilium.core.reporter import counted, figures
from consilium.evaluation.report import wording
from consilium.evaluation.report.advice import advised, gathered
from consilium.evaluation.report.page import environment, to_csv
from consilium.evaluation.report.parts import ReportParts
from consilium.evaluation.report.words import title
from consilium.evaluation.statistics import MeanAndDeviation, mean_and_deviation

PAGE, FIGURES, ROWS = "crossval.html", "crossval.json", "crossval.csv"


@dataclass(frozen=True)
class FoldFigures:
    """What one fold gave: cases of each split, the figures of test, what was odd, and the folder of its bundle."""

    name: str
    folder: str
    train: int
    val: int
    test: int
    metrics: Mapping[str, float | None]
    intervals: Mapping[str, Interval]
    notes: Sequence[str] = ()

    def __repr__(self) -> str:
        return f"<FoldFigures of {self.name}: {counted(self.test, 'test case')}, {figures(self.metrics)}>"


@dataclass(frozen=True)
class CrossvalContent:
    """All that the report of a cross-validation says.

    ``what`` says in words how it was divided; ``by_value`` that each fold is a value that was left out.
    ``skipped`` gives for each value that has no fold the reason.
    """

    name: str
    what: str
    by_value: bool
    folds: Sequence[FoldFigures]
    pooled: Evaluation
    parts: ReportParts
    skipped: Mapping[str, str]
    notes: Sequence[str]
    confidence: float
    command: str
    config_yaml: str

    @property
    def headlines(self) -> list[str]:
        """The figures that are told; those of answers that may stop are the folds' own, and are not pooled."""
        found = [self.pooled.intervals, *(fold.intervals for fold in self.folds)]
        return [name for name in self.parts.headlines if any(name in intervals for intervals in found)]

    @property
    def share(self) -> str:
        """The figure that is drawn."""
        return self.headlines[0]

    @property
    def means(self) -> dict[str, MeanAndDeviation]:
        """Mean and deviation of every figure over the folds in which it is defined."""
        names = dict.fromkeys(name for fold in self.folds for name in fold.metrics)
        values = {
            name: [value for fold in self.folds if (value := fold.metrics.get(name)) is not None] for name in names
        }
        return {name: mean_and_deviation(found) for name, found in values.items() if found}

    def sentences(self) -> list[str]:
        """The result in words, most important first."""
        share = self.share
        count = wording.number(self.pooled.cases)
        tested = f"{count} cases were each tested once, by a model that had not seen them"
        pooled, mean = self.pooled.intervals.get(share), self.means.get(share)
        if pooled is not None:
            shown = wording.with_interval(share, pooled, confidence=self.confidence)
            predicate = self.parts.pooled.predicates.get(share)
            tested += f": {shown} {predicate}" if predicate else f": {title(share)} {shown}"
        elif mean is not None:
            tested += f": {title(share)} {wording.figure(share, mean.mean)} as the mean over the folds"
        sentences = [f"{tested}."]
        ranked = sorted(
            (fold for fold in self.folds if fold.metrics.get(share) is not None),
            key=lambda fold: fold.metrics[share] or 0,
        )
        sentences += self.parts.beside(self.pooled)
        if len(ranked) > 1:
            lowest, highest = (
                f"{wording.figure(share, fold.metrics[share])} ({fold.name})" for fold in (ranked[0], ranked[-1])
            )
            sentences.append(f"{'Value by value' if self.by_value else 'Fold by fold'} from {lowest} to {highest}.")
        return sentences

    def cautions(self) -> list[str]:
        """What a reader must know before believing the figures."""
        spread = (
            "The standard deviation over the values says how much they differ, not how exactly the mean is known"
            if self.by_value
            else "The standard deviation over the folds is not a standard error"
        )
        return [
            f"{spread}: the trainings share most of their cases, and no estimate of the variance from one "
            "cross-validation is unbiased (Bengio & Grandvalet, JMLR 5, 2004).",
            *(self.parts.pooled.cautions if self.pooled.metrics else ()),
            *self.parts.cautions(self.pooled),
            *(f"{value} was not tested: {reason}" for value, reason in self.skipped.items()),
            *gathered({fold.name: fold.notes for fold in self.folds}),
            *self.notes,
        ]

    def rows(self) -> list[dict[str, Any]]:
        """A row per fold: cases, and the figures that are told."""
        return [
            {
                "fold": fold.name,
                "train": fold.train,
                "val": fold.val,
                "test": fold.test,
                **{name: fold.metrics.get(name) for name in self.headlines},
            }
            for fold in self.folds
        ]

    def summary_rows(self) -> list[dict[str, Any]]:
        """The figures over all folds: mean, standard deviation and, where answers are pooled, those with intervals."""
        rows: list[dict[str, Any]] = []
        for name in self.headlines:
            mean, pooled = self.means.get(name), self.pooled.intervals.get(name)
            rows.append(
                {
                    "figure": name,
                    "mean": mean.mean if mean else None,
                    "deviation": mean.deviation if mean else None,
                    "folds": mean.runs if mean else 0,
                }
            )
            if self.pooled.metrics:
                rows[-1] |= {
                    "pooled": self.pooled.metrics.get(name),
                    "from": pooled.low if pooled else None,
                    "to": pooled.high if pooled else None,
                }
        return rows


def write_crossval(folder: Path, content: CrossvalContent) -> Path:
    """Write crossval.html, crossval.json and crossval.csv into ``folder``; the path of the HTML."""
    intervals = {name: asdict(interval) for name, interval in content.pooled.intervals.items()}
    write_json(
        folder / FIGURES,
        {
            "name": content.name,
            "what": content.what,
            "folds": [asdict(fold) for fold in content.folds],
            "means": {
                name: {"mean": found.mean, "deviation": found.deviation, "folds": found.runs}
                for name, found in content.means.items()
            },
            "pooled": {
                "cases": content.pooled.cases,
                "groups": content.pooled.groups,
                "metrics": content.pooled.metrics,
                "intervals": intervals,
                "tables": content.pooled.tables,
            },
            "skipped": dict(content.skipped),
            "notes": content.cautions(),
        },
    )
    write_text(folder / ROWS, to_csv([_csv_row(fold) for fold in content.folds]))
    template = environment(escape_html=True, package=content.parts.package).get_template("crossval.html.j2")
    shown = template.render(**content.parts.calls, content=content, warnings=advised(content.cautions()))
    write_text(folder / PAGE, shown)
    return folder / PAGE


def _csv_row(fold: FoldFigures) -> dict[str, Any]:
    row: dict[str, Any] = {"fold": fold.name, "train": fold.train, "val": fold.val, "test": fold.test}
    for name, value in fold.metrics.items():
        row[name] = value
        if name in fold.intervals:
            row[f"{name}_low"], row[f"{name}_high"] = fold.intervals[name].low, fold.intervals[name].high
    return {**row, "folder": fold.folder}
