"""``consilium demo``: the whole path on the embedded data."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilium.core.reporter import Reporter, format_table
from consilium.data.cases.renames import new_name
from consilium.demo import demo_data_path
from consilium.evaluation.report.page import add_table
from consilium.experiment import Experiment
from consilium.predictor import Predictor
from consilium.session import TrainResult, train

EXAMPLES = 6
UNSURE = 5  # answers shown that stop above a leaf, or are unknown
# What the second training never sees: sources whole, or one class of a source that stays in others.
UNSEEN: list[dict[str, list[str]]] = [
    {"meta.source": ["chase", "scanpy"]},
    {"meta.source": ["vqa_rad"], "label": ["radiology.mri", "radiology.xray.chest"]},
    {"meta.source": ["dsb2018"], "label": ["microscopy.histopathology"]},
]
UNSEEN_TEXT = (
    "The same router was trained once more without these sources, and then answered their images. The figures above "
    "are of sources that it knows; for images of another hospital or another camera expect figures like these."
)


@dataclass(frozen=True)
class _Image:
    """A row of the demo's table, with the label that the tree gives it."""

    path: Path
    label: str
    source: str
    split: str


@dataclass(frozen=True)
class _Bars:
    """Shows how far a training is and leaves its lines out: they are those of the first, said again."""

    reporter: Reporter

    def line(self, text: str) -> None:
        pass

    def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
        self.reporter.progress(name, done, total, text)


def run_demo(out: Path, *, reporter: Reporter) -> TrainResult:
    """Train, judge and report the demo router, predict held-out images, and do it again without some sources."""
    experiment = _experiment(out)
    result = train(experiment, reporter=reporter)
    assert result is not None
    images = _images(experiment.data.rename_labels)
    _show_answers(result.bundle, [image for image in images if image.split == "test"], reporter=reporter)
    unseen = _unseen(out, images, reporter=reporter)
    title = "Sources that the router has never seen"
    reporter.line(format_table(unseen, title=title.lower()))
    add_table(result.bundle, title=title, text=UNSEEN_TEXT, rows=unseen)
    reporter.line(f"report: {(result.bundle / 'report.html').resolve()}")
    return result


def _experiment(out: Path, changes: Mapping[str, Any] | None = None) -> Experiment:
    """The demo's experiment with its places, and dotted keys changed."""
    places = {
        "data.sources.0.path": str(demo_data_path() / "modality.csv"),
        "data.store.root": str(out / "stores"),
        "output.root": str(out),
    }
    # JSON is YAML, so a path with any character in it stays one string.
    overrides = [f"{key}={json.dumps(value)}" for key, value in {**places, **(changes or {})}.items()]
    return Experiment.load(Path(__file__).with_name("router.yaml"), overrides=overrides)


def _images(new_names: Mapping[str, str]) -> list[_Image]:
    table = demo_data_path() / "modality.csv"
    with table.open(encoding="utf-8", newline="") as file:
        return [
            _Image(table.parent / row["image"], new_name(row["label"], new_names), row["source"], row["split"])
            for row in csv.DictReader(file)
        ]


def _show_answers(bundle: Path, images: Sequence[_Image], *, reporter: Reporter) -> None:
    """The first image of every few labels, and those that the router does not answer whole."""
    records = Predictor.load(bundle).predict([image.path for image in images])
    answered = list(zip(images, records, strict=True))
    first = {image.label: (image, record) for image, record in reversed(answered)}
    labels = sorted(first)
    shown = [first[label] for label in labels[:: max(len(labels) // EXAMPLES, 1)][:EXAMPLES]]
    reporter.line(format_table([_row(*pair) for pair in shown], title="a few held-out images"))
    unsure = [(image, record) for image, record in answered if not _is_whole(record)]
    unsure.sort(key=lambda pair: pair[1]["path"][-1]["probability"])
    title = f"{len(unsure)} of {len(images)} held-out images are not answered whole; the least sure"
    reporter.line(format_table([_row(*pair) for pair in unsure[:UNSURE]], title=title))


def _is_whole(record: dict[str, Any]) -> bool:
    """Whether the answer goes down to a leaf."""
    return bool(record["label"] == record["path"][-1]["label"])


def _row(image: _Image, record: dict[str, Any]) -> dict[str, Any]:
    likeliest = record["path"][-1]
    return {
        "image": image.path.name,
        "true": image.label,
        "answer": record["label"],
        "likeliest": likeliest["label"],
        "probability": likeliest["probability"],
    }


def _unseen(out: Path, images: Sequence[_Image], *, reporter: Reporter) -> list[dict[str, Any]]:
    """Train without some sources, and say how their images are answered."""
    reporter.line("the same router is trained again without some of its sources ...")
    experiment = _experiment(out, {"name": "demo_unseen", "data.split.leave_out": UNSEEN})
    result = train(experiment, reporter=_Bars(reporter))
    assert result is not None
    cells: dict[tuple[str, str], list[_Image]] = {}
    for image in images:
        if any(_matches(image, cell) for cell in UNSEEN):
            cells.setdefault((image.source, image.label), []).append(image)
    predictor = Predictor.load(result.bundle)
    return [
        {"source never seen": source, "label": label, **_figures(own, predictor)}
        for (source, label), own in sorted(cells.items())
    ]


def _matches(image: _Image, cell: Mapping[str, Sequence[str]]) -> bool:
    own = {"meta.source": image.source, "label": image.label}
    return all(own[column] in values for column, values in cell.items())


def _figures(images: Sequence[_Image], predictor: Predictor) -> dict[str, Any]:
    """How many are named right, how many are answered whole, and how many of these are right."""
    records = predictor.predict([image.path for image in images])
    right = [record["path"][-1]["label"] == image.label for image, record in zip(images, records, strict=True)]
    whole = [_is_whole(record) for record in records]
    of_answered = [ok for ok, answered in zip(right, whole, strict=True) if answered]
    return {
        "images": len(images),
        "named right": sum(right) / len(right),
        "answered whole": sum(whole) / len(whole),
        "right of these": sum(of_answered) / len(of_answered) if of_answered else "-",
    }
