"""The report of a calibration on another site: one HTML page, JSON and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilium.core.files import write_json, write_text
from consilium.core.reporter import counted, format_table
from consilium.evaluation.labels import charts
from consilium.evaluation.labels.recalibration import SiteCalibration
from consilium.evaluation.report import wording
from consilium.evaluation.report.advice import advised
from consilium.evaluation.report.page import environment, to_csv
from consilium.evaluation.report.words import higher_is_better

PAGE, FIGURES, TABLE, DRIFT = "calibration.html", "calibration.json", "calibration.csv", "drift.csv"

_WHOLE = 20  # from which on the decimals of a mean of pixels or words say nothing


@dataclass(frozen=True)
class CalibrationContent:
    """All that the page says. ``knows_training``: the bundle says what the inputs of its training were like."""

    name: str
    site: str
    found: SiteCalibration
    drift: Sequence[dict[str, Any]]
    knows_training: bool
    confidence: float
    warnings: Sequence[str]
    command: str

    def sentence(self) -> str:
        """What became of the calibration error, and whether the cases decide it."""
        row = self.found.judged.row("calibration_error")
        cases = counted(self.found.cases, "case")
        groups = f" of {counted(self.found.groups, 'group')}" if self.found.groups < self.found.cases else ""
        spread = wording.difference_spread("calibration_error", row["difference_low"], row["difference_high"])
        shown = wording.difference("calibration_error", row["difference"])
        shown += f", {wording.plain(self.confidence)} interval {spread}" if spread else ""
        return (
            f"On {cases}{groups} of {self.site} the calibration error was {wording.number(row['before'])} and is "
            f"{wording.number(row['after'])} ({shown}). {verdict(row)}"
        )

    def diagrams(self) -> list[tuple[str, str]]:
        """The reliability diagrams before and after, with what they are called."""
        names = ("Before: as it was", "After: chosen on other cases of the site")
        return [
            (name, charts.reliability_diagram(own)) for name, own in zip(names, self.found.judged.bins, strict=True)
        ]

    @property
    def far(self) -> list[dict[str, Any]]:
        """What differs much from the training."""
        return [row for row in self.drift if row["far"]]

    def lines(self) -> list[str]:
        """The same for a screen."""
        shown = [
            {key: row[key] for key in ("figure", "before", "after", "difference", "difference_low", "difference_high")}
            for row in self.found.judged.rows
        ]
        tables = [format_table(shown, title=f"{self.site}: {counted(self.found.cases, 'case')}")]
        tables.append(format_table(self.found.changes, title="temperatures and thresholds"))
        if self.far:
            far = [{key: row[key] for key in ("what", "training", "site", "difference")} for row in self.far]
            tables.append(format_table(far, title="inputs that differ much from the training's"))
        return [*tables, *(f"note: {text}" for text in self.found.notes), self.sentence()]


def shown(row: dict[str, Any], side: str) -> str:
    """A row of the drift table for ``training`` or ``site``: a share in percent, a large number without decimals."""
    value = row[side]
    if value is not None and row["what"].startswith("share"):
        return wording.percent(value)
    return wording.number(round(value) if value is not None and value >= _WHOLE else value)


def verdict(row: dict[str, Any]) -> str:
    """Whether the interval of a difference leaves out that there is none."""
    low, high = row["difference_low"], row["difference_high"]
    if row["difference"] and (low is None or high is None):
        return "It differs, but these cases give no interval."
    if low is None or high is None or low <= 0 <= high:
        return "These cases do not show a difference."
    better = (row["difference"] > 0) == higher_is_better(row["figure"])
    return f"Here it is {'better' if better else 'worse'} than before."


def write_calibration(folder: Path, content: CalibrationContent) -> Path:
    """Write calibration.html, .json and .csv and drift.csv into ``folder``; the path of the page."""
    found = content.found
    write_text(folder / TABLE, to_csv(found.judged.rows))
    write_text(folder / DRIFT, to_csv(content.drift))
    before, after = found.judged.bins
    write_json(
        folder / FIGURES,
        {
            "site": content.site,
            "cases": found.cases,
            "groups": found.groups,
            "figures": found.judged.rows,
            "changes": found.changes,
            "reliability": {"before": before, "after": after},
            "drift": list(content.drift),
            "notes": found.notes,
        },
    )
    page = environment(escape_html=True).get_template("calibration.html.j2")
    write_text(
        folder / PAGE, page.render(content=content, warnings=advised(content.warnings), verdict=verdict, shown=shown)
    )
    return folder / PAGE
