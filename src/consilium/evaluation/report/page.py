"""The report of a run or an evaluation: one HTML file, JSON, CSV tables and a model card."""

from __future__ import annotations

import base64
import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilium.core.evaluation import Evaluation
from consilium.core.files import write_json, write_text
from consilium.core.labels import reading_order
from consilium.core.licenses import License
from consilium.evaluation.config import ReportConfig
from consilium.evaluation.labels.saliency import OcclusionMap, SaliencyMap
from consilium.evaluation.report import charts, wording, words
from consilium.evaluation.report.advice import advised
from consilium.evaluation.report.parts import ReportParts
from consilium.evaluation.statistics import MeanAndDeviation

if TYPE_CHECKING:
    from jinja2 import Environment

REPORT, METRICS, CARD, TABLES = "report.html", "metrics.json", "MODEL_CARD.md", "tables"
RESULTS = "evaluation_results.json"
WARNINGS = f"{TABLES}/warnings.csv"
_ADDED = "<!-- added later -->"  # where ``add_table`` puts its section


@dataclass(frozen=True)
class ReportContent:
    """All that a report says. Only ``title``, ``parts`` and ``evaluations`` are needed; what is empty is left out.

    ``evaluations`` by split; ``test`` is told at length, or the first where there is no test. ``facts`` are shown in
    their order (version, date, seed, device ...). ``history`` holds rows of history.csv: ``step``, ``train_loss``,
    ``learning_rate_<group>``, ``val_<metric>``; empty cells are gaps. ``data`` holds rows of ``source``, ``split``,
    ``label``, ``cases``; ``mixture`` and ``sources`` rows of any columns. ``licenses`` are those of the weights that
    the training started from. ``thumbnail`` gives the image of a case id as JPEG or PNG bytes, None where there is
    none; it is asked for the shown cases only. ``maps`` are shown in their order, unless pictures are left out.
    """

    title: str
    parts: ReportParts
    evaluations: Mapping[str, Evaluation]
    config: ReportConfig = field(default_factory=ReportConfig)
    name: str = "model"
    confidence: float = 0.95
    facts: Mapping[str, str] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    monitor: str = ""
    best_step: int | None = None
    runs: Mapping[str, MeanAndDeviation] = field(default_factory=dict)
    data: Sequence[Mapping[str, Any]] = ()
    mixture: Sequence[Mapping[str, Any]] = ()
    sources: Sequence[Mapping[str, Any]] = ()
    licenses: Sequence[License] = ()
    warnings: Sequence[str] = ()
    config_yaml: str = ""
    command: str = ""
    thumbnail: Callable[[str], bytes | None] | None = None
    text: Callable[[str, int], str | None] | None = None
    maps: Sequence[SaliencyMap] = ()

    @property
    def main(self) -> Evaluation | None:
        """The evaluation told at length."""
        return self.evaluations[main_split(self.evaluations)] if self.evaluations else None


def main_split(splits: Iterable[str]) -> str:
    """The split that a report tells at length: test, or the first where there is no test."""
    names = list(splits)
    return "test" if "test" in names else names[0]


def write_report(folder: Path, content: ReportContent) -> Path:
    """Write report.html, metrics.json, tables/*.csv and MODEL_CARD.md into ``folder``; the path of the HTML.

    Tasks whose figures do not fit the plain list of metrics.json also have an evaluation_results.json.
    """
    figures = {}
    for split, evaluation in content.evaluations.items():
        intervals = {name: asdict(interval) for name, interval in evaluation.intervals.items()}
        figures[split] = {
            "cases": evaluation.cases,
            "unread": evaluation.unread,
            "groups": evaluation.groups,
            "metrics": evaluation.metrics,
            "intervals": intervals,
            **content.parts.figures(evaluation),
        }
        for name, rows in evaluation.tables.items():
            write_text(folder / TABLES / f"{split}_{name}.csv", to_csv(rows))
    write_json(folder / METRICS, figures)
    results = {split: content.parts.results(evaluation) for split, evaluation in content.evaluations.items()}
    (folder / RESULTS).unlink(missing_ok=True)  # of an earlier report
    if any(results.values()):
        write_json(folder / RESULTS, results)
    (folder / WARNINGS).unlink(missing_ok=True)  # of an earlier report
    if content.warnings:
        write_text(folder / WARNINGS, to_csv([{"warning": text} for text in content.warnings]))
    write_text(folder / CARD, _render("MODEL_CARD.md.j2", content, escape_html=False))
    write_text(folder / REPORT, _render("report.html.j2", content, escape_html=True))
    return folder / REPORT


def add_table(
    folder: Path, *, title: str, text: str, rows: Sequence[Mapping[str, Any]], name: str | None = None
) -> None:
    """Add a section with a table to the report in a folder: figures that came after it was written.

    With a ``name`` the rows are in ``tables/{name}.csv``, too.
    """
    if name is not None:
        write_text(folder / TABLES / f"{name}.csv", to_csv(rows))
    section = environment(escape_html=True).get_template("added.html.j2").render(title=title, text=text, rows=rows)
    page = (folder / REPORT).read_text(encoding="utf-8")
    write_text(folder / REPORT, page.replace(_ADDED, section + _ADDED, 1))


def read_warnings(folder: Path) -> list[str]:
    """What the report in a folder warns of beside its figures; nothing where an earlier version wrote it."""
    return _column(folder / WARNINGS, "warning")


def read_unread(folder: Path) -> set[str]:
    """The cases that the report in a folder does not judge, since an image of theirs could not be read."""
    return {name for path in (folder / TABLES).glob("*_unread.csv") for name in _column(path, "id")}


def _column(path: Path, name: str) -> list[str]:
    """A column of a table that a report wrote; nothing where it wrote none."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV text; the columns are all keys in the order they first occur."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return text.getvalue()


@cache  # a run with several seeds writes many reports, and compiling the templates takes longer than filling them
def environment(*, escape_html: bool, package: str = "consilium.evaluation") -> Environment:
    """Jinja2 with the templates of reports and those of a ``package``, and what they call."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys(("consilium.evaluation", package))]),
        autoescape=escape_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "percent": wording.percent,
        "number": wording.number,
        "md": escape_markdown,
        "soft": soft_breaks,
        "middle": shortened,
    }
    environment.filters.update(filters)
    environment.globals |= {
        "words": wording,
        "title": words.title,
        "is_rank": words.is_rank,
        "higher_is_better": words.higher_is_better,
        "strip": charts.interval_strip,
    }
    return environment


def _render(template: str, content: ReportContent, *, escape_html: bool) -> str:
    from markupsafe import Markup

    main = content.main
    loaded = environment(escape_html=escape_html, package=content.parts.package).get_template(template)
    return loaded.render(
        **content.parts.calls,
        content=content,
        main=main,
        added=Markup(_ADDED),
        warnings=advised([*(content.parts.cautions(main) if main else []), *content.warnings]),
        headlines=[name for name in content.parts.headlines if main is not None and name in main.intervals],
        columns=[name for name in main.tables if name.startswith("per_") and name != "per_class"] if main else [],
        curves=_curves(content) if escape_html else [],
        picture=partial(_picture, content),
        maps=_maps(content) if escape_html else [],
        pictures=content.config.images and content.thumbnail is not None,
        pivots=[table for key in ("label", "source") if (table := pivot(content.data, key=key))],
    )


def soft_breaks(text: str) -> str:
    """Escaped text that may break after the joints of a label."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([._/-])(?=\w)", r"\1<wbr>", str(escape(text))))


def shortened(text: str, at_most: int) -> str:
    """A text with its middle left out where it is too long: ids of one folder differ at the end, of many at both."""
    if len(text) <= at_most:
        return text
    head = (at_most - 1) // 2
    return f"{text[:head]}…{text[head + 1 - at_most :]}"


def escape_markdown(text: Any) -> str:
    """Text that Markdown shows as it is, in a table cell too."""
    text = " ".join(str(text).split())
    return "".join(f"\\{sign}" if sign in r"\`*_[]<>|#" else sign for sign in text)


def pivot(rows: Sequence[Mapping[str, Any]], *, key: str) -> list[dict[str, Any]]:
    """Cases by ``key`` (row) and split (column), with totals; empty when no row has the key."""
    order = {"train": 0, "val": 1, "test": 2, "unlabelled": 3}
    splits = sorted({str(row["split"]) for row in rows}, key=lambda split: (order.get(split, 9), split))
    table: dict[str, dict[str, Any]] = {}
    for row in rows:
        if key not in row:
            continue
        line = table.setdefault(str(row[key]), {key: row[key], **dict.fromkeys(splits, 0), "all": 0})
        line[str(row["split"])] += row["cases"]
        line["all"] += row["cases"]
    return [table[name] for name in reading_order(sorted(table))]


# -- Curves -----------------------------------------------------------------------------------------------------


def _curves(content: ReportContent) -> list[str]:
    columns = dict.fromkeys(name for row in content.history for name in row)
    points = {name: _points(content.history, name) for name in columns}
    drawn = [
        charts.line_chart(
            [
                charts.Series("training loss", smooth(points.get("train_loss", [])), "a"),
                charts.Series("validation log loss", points.get("val_log_loss", []), "b"),
            ],
            title="Loss",
            mark=content.best_step,
        ),
        charts.line_chart(
            [
                charts.Series(words.title(name), points.get(f"val_{name}", []), tone)
                for name, tone in zip(
                    dict.fromkeys(filter(None, [content.monitor, *content.parts.curves])), "abc", strict=False
                )
            ],
            title="Validation figures",
            mark=content.best_step,
        ),
        charts.line_chart(
            [
                charts.Series(name.removeprefix("learning_rate_"), values, tone)
                for (name, values), tone in zip(
                    ((n, v) for n, v in points.items() if n.startswith("learning_rate_")), "abc", strict=False
                )
            ],
            title="Learning rate",
        ),
    ]
    return [chart for chart in drawn if chart]


def _points(history: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(float(row["step"]), float(row[name])) for row in history if row.get(name) not in (None, "")]


def smooth(points: Sequence[tuple[float, float]], *, at_most: int = 120) -> list[tuple[float, float]]:
    """Means of equal runs of points, so that a long noisy curve reads; short ones stay as they are."""
    size = max(1, math.ceil(len(points) / at_most))
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [(run[-1][0], sum(y for _, y in run) / len(run)) for run in runs]


# -- Cases ------------------------------------------------------------------------------------------------------


def _picture(content: ReportContent, case: str) -> str | None:
    """The picture of a case as a data URL; None where there is none, or none is wanted."""
    found = content.thumbnail(case) if content.config.images and content.thumbnail is not None else None
    return None if found is None else _data_url(found, size=content.config.thumbnail_size)


def _maps(content: ReportContent) -> list[dict[str, Any]]:
    """Every map with its two pictures."""
    if not content.config.images:
        return []
    return [drawn(own, size=content.config.thumbnail_size) for own in content.maps]


def drawn(own: OcclusionMap, *, size: int) -> dict[str, Any]:
    """A map with its two pictures as data URLs, ``size`` pixels on their longer side."""
    pictures = {"picture": own.image(size=size), "heat": own.heat(size=size)}
    return {"map": own, **{name: _data_url(image, size=size) for name, image in pictures.items()}}


def _data_url(image: bytes, *, size: int) -> str | None:
    """A small JPEG as a data URL; drawn anew, so that no metadata of the file (names, places) gets out."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image)) as opened:
            small = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    small.thumbnail((size, size))
    small.info.clear()
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85)
    return jpeg_url(out.getvalue())


def jpeg_url(jpeg: bytes) -> str:
    """A JPEG as a data URL."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
