"""What the demo works with: the configs beside this file, and the tables of the embedded data."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilium.core.config import read_tree
from consilium.data.cases.renames import new_name
from consilium.demo import demo_data_path
from consilium.experiment import Experiment


@dataclass(frozen=True)
class DemoImage:
    """A row of the table of modalities, with the label that the router's tree gives it."""

    path: Path
    label: str
    source: str
    split: str


def demo_experiment(name: str, out: Path, changes: Mapping[str, Any] | None = None) -> Experiment:
    """One of the demo's configs, with its places and with dotted keys changed."""
    config = Path(__file__).with_name(f"{name}.yaml")
    places = {
        f"data.sources.{number}.path": str(demo_data_path() / Path(source["path"]).name)
        for number, source in enumerate(read_tree(config)["data"]["sources"])
    }
    values = {**places, "data.store.root": str(out / "stores"), "output.root": str(out), **(changes or {})}
    # JSON is YAML, so a path with any character in it stays one string.
    return Experiment.load(config, overrides=[f"{key}={json.dumps(value)}" for key, value in values.items()])


def demo_images() -> list[DemoImage]:
    """The images of all modalities."""
    table = demo_data_path() / "modality.csv"
    new_names = read_tree(Path(__file__).with_name("router.yaml"))["data"]["rename_labels"]
    with table.open(encoding="utf-8", newline="") as file:
        return [
            DemoImage(table.parent / row["image"], new_name(row["label"], new_names), row["source"], row["split"])
            for row in csv.DictReader(file)
        ]


def demo_captions(name: str) -> dict[Path, dict[str, Any]]:
    """The rows of a table of captioned images, by the path of the image."""
    table = demo_data_path() / f"{name}.jsonl"
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    return {table.parent / row["modalities"][0]["value"]: row for row in rows}
