"""A fifth kind of task trains, resumes, is judged, reported, bundled and predicts, and nothing else was changed."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import consilium
from consilium.core.config import apply_overrides, build
from consilium.core.errors import BundleError, ConfigError
from consilium.experiment import Experiment
from consilium.session import train
from tests.contracts.family import FamilyContract
from tests.tiny import Recorder, Run
from tests.toy.house import toy_in_the_house

TREE: dict[str, Any] = {
    "name": "toy",
    "task": {"kind": "toy"},
    "data": {"image": {"size": [16, 16]}, "loader": {"batch_size": 4, "workers": 0}},
    "optimizer": {"kind": "adam", "learning_rate": 0.05},
    "schedule": {"kind": "constant"},
    "trainer": {"max_epochs": 2, "precision": "fp32", "device": "cpu", "log_every": 1},
    "report": {"cases": 2},
}


@pytest.fixture(scope="module", autouse=True)
def house() -> Iterator[None]:
    with toy_in_the_house():
        yield


def write(folder: Path) -> Path:
    """Grey images and how bright each is."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "table.csv"
    if table.is_file():
        return table
    random = np.random.default_rng(0)
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "split", "brightness"])
        for number in range(24):
            level = int(random.integers(0, 256))
            Image.new("RGB", (16, 16), (level, level, level)).save(folder / f"{number}.png")
            split = "val" if number % 6 == 4 else "test" if number % 6 == 5 else "train"
            writer.writerow([f"{number}.png", split, level / 255])
    return table


def experiment_of(folder: Path, *overrides: str) -> Experiment:
    places = {
        "data.sources": [{"kind": "csv", "name": "grey", "path": str(write(folder / "grey"))}],
        "data.store": {"root": str(folder / "stores")},
        "output.root": str(folder / "runs"),
    }
    own = [f"{key}={json.dumps(value)}" for key, value in places.items()]
    return build(Experiment, apply_overrides(TREE, [*own, *overrides], model=Experiment), origin="tests")


class TestToy(FamilyContract):
    @classmethod
    def experiment(cls, folder: Path, *overrides: str) -> Experiment:
        return experiment_of(folder, *overrides)

    @classmethod
    def queries(cls, experiment: Experiment) -> list[Any]:
        return [np.full((16, 16), level, np.uint8) for level in (0, 128, 255)]

    def test_the_screen_and_the_page_say_what_the_toy_says(self, run: Run) -> None:
        assert any("It is off by" in line for line in [(run.folder / "report.html").read_text(encoding="utf-8")])
        assert any(line.startswith("validation after step") and "error" in line for line in run.reporter.lines)


def test_classes_cannot_be_balanced_where_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sampling is class_balanced, but this task has no classes to balance"):
        train(experiment_of(tmp_path, "data.mixture.sampling=class_balanced"), reporter=Recorder())


def test_a_group_that_the_task_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the task has no group 'head'"):
        experiment_of(tmp_path, "optimizer.groups.head.learning_rate=0.1")


def test_a_bundle_of_a_family_that_is_gone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text(
        json.dumps({"format_version": 3, "task": {"kind": "dream"}}), encoding="utf-8"
    )
    with pytest.raises(
        BundleError, match=r"a task of kind 'dream', which this version .*it knows classify, align, fuse, toy"
    ):
        consilium.load(tmp_path)
