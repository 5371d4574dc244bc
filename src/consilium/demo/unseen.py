"""The demo's second look at the router: trained again without some sources, and asked about these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilium.core.reporter import Reporter, format_table
from consilium.demo.setting import DemoImage, demo_experiment, demo_images
from consilium.evaluation.report.page import add_table
from consilium.predictor import Predictor
from consilium.session import train

# What the second training never sees: sources whole, or one class of a source that stays in others.
UNSEEN: list[dict[str, list[str]]] = [
    {"meta.source": ["chase", "scanpy"]},
    {"meta.source": ["vqa_rad"], "label": ["radiology.mri", "radiology.xray.chest"]},
    {"meta.source": ["dsb2018"], "label": ["microscopy.histopathology"]},
]
TITLE = "Sources that the router has never seen"
TEXT = (
    "The same router was trained once more without these sources, and then answered their images. But for scanpy, the "
    "figures above are of sources that it knows; for images of another hospital or another camera expect these."
)


@dataclass(frozen=True)
class _Bars:
    """Shows how far a training is and leaves its lines out: they are those of the first, said again."""

    reporter: Reporter

    def line(self, text: str) -> None:
        pass

    def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
        self.reporter.progress(name, done, total, text)


def judge_unseen(out: Path, *, report: Path, reporter: Reporter) -> None:
    """Train without some sources, say how their images are answered, and add that to the report in a folder."""
    reporter.line("the same router is trained again without some of its sources ...")
    changes = {"name": "demo_unseen", "data.filters.sub_sources": None, "data.split.leave_out": UNSEEN}
    experiment = demo_experiment("router", out, changes)
    result = train(experiment, reporter=_Bars(reporter))
    assert result is not None
    cells: dict[tuple[str, str], list[DemoImage]] = {}
    for image in demo_images():
        if any(_matches(image, cell) for cell in UNSEEN):
            cells.setdefault((image.source, image.label), []).append(image)
    predictor = Predictor.load(result.bundle)
    rows = [
        {"source never seen": source, "label": label, **_figures(own, predictor)}
        for (source, label), own in sorted(cells.items())
    ]
    reporter.line(format_table(rows, title=TITLE.lower()))
    add_table(report, title=TITLE, text=TEXT, rows=rows)


def _matches(image: DemoImage, cell: Mapping[str, Sequence[str]]) -> bool:
    own = {"meta.source": image.source, "label": image.label}
    return all(own[column] in values for column, values in cell.items())


def _figures(images: Sequence[DemoImage], predictor: Predictor) -> dict[str, Any]:
    """How many are named right, how many are answered whole, and how many of these are right."""
    records = predictor.predict([image.path for image in images])
    right = [record["path"][-1]["label"] == image.label for image, record in zip(images, records, strict=True)]
    whole = [record["label"] == record["path"][-1]["label"] for record in records]
    of_answered = [ok for ok, answered in zip(right, whole, strict=True) if answered]
    return {
        "images": len(images),
        "named right": sum(right) / len(right),
        "answered whole": sum(whole) / len(whole),
        "right of these": sum(of_answered) / len(of_answered) if of_answered else "-",
    }
