"""``consilium demo``: the whole path on the embedded data."""

from __future__ import annotations

import json
from pathlib import Path

from consilium.core.reporter import Reporter, format_table
from consilium.demo import demo_data_path
from consilium.experiment import Experiment
from consilium.session import TrainResult, train

EXAMPLES = 6


def run_demo(out: Path, *, reporter: Reporter) -> TrainResult:
    """Prepare, train, judge and report the demo router, then predict a few held-out images."""
    from consilium.bundle import Predictor

    # JSON is YAML, so a path with any character in it stays one string.
    places = {
        "data.sources.0.path": demo_data_path() / "modality.csv",
        "data.store.root": out / "stores",
        "output.root": out,
    }
    overrides = [f"{key}={json.dumps(str(path))}" for key, path in places.items()]
    experiment = Experiment.load(Path(__file__).with_name("router.yaml"), overrides=overrides)
    result = train(experiment, reporter=reporter)
    assert result is not None
    held_out = _held_out(demo_data_path() / "modality.csv")
    predictor = Predictor.load(result.bundle)
    rows = [
        {"image": image.name, "true": label, "predicted": record["label"], "probability": record["probability"]}
        for (image, label), record in zip(held_out, predictor.predict([image for image, _ in held_out]), strict=True)
    ]
    reporter.line(format_table(rows, title="a few held-out images"))
    reporter.line(f"report: {(result.bundle / 'report.html').resolve()}")
    return result


def _held_out(table: Path) -> list[tuple[Path, str]]:
    """The first test image of every few classes."""
    import csv

    first: dict[str, Path] = {}
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["split"] == "test":
                first.setdefault(row["label"], table.parent / row["image"])
    labels = sorted(first)
    return [(first[label], label) for label in labels[:: max(len(labels) // EXAMPLES, 1)][:EXAMPLES]]
