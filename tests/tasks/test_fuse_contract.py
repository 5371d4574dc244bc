"""Fuse keeps the contract of families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import consilium
from consilium.calibrating import calibrate
from consilium.core.config import apply_overrides, build
from consilium.data.batches.rows import Query
from consilium.ensembling import ensemble
from consilium.evaluating import evaluate
from consilium.experiment import Experiment
from consilium.session import train
from tests.contracts.family import FamilyContract
from tests.tiny import Recorder, Run

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 210)}
SHAPES = ("round", "flat")
TREE: dict[str, Any] = {
    "name": "fused",
    "task": {
        "kind": "fuse",
        "vision": {"name": "test_vit", "pretrained": False},
        "text": {"name": "tiny", "pretrained": False, "context_length": 16, "vocabulary_size": 256},
        "width": 16,
        "masking": {"image": 0.2, "text": 0.3},
        "auxiliary": {"image": 0.3, "text": 0.3},
    },
    "data": {"image": {"size": [32, 32]}, "loader": {"batch_size": 8, "workers": 0}},
    "optimizer": {"kind": "adamw", "learning_rate": 1e-3},
    "schedule": {"kind": "constant"},
    "trainer": {"max_epochs": 2, "precision": "fp32", "device": "cpu", "log_every": 1},
    "evaluation": {"bootstrap_samples": 20},
    "report": {"cases": 2},
}


def write(folder: Path) -> Path:
    """Squares whose colour the image tells and whose shape the text tells; every seventh lacks one of them."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "pairs.jsonl"
    if table.is_file():
        return table
    random, rows = np.random.default_rng(0), []
    for number in range(90):
        colour, shape = list(COLOURS)[number % 3], SHAPES[number // 3 % 2]
        pixels_HWC = np.array(COLOURS[colour]) + random.integers(-30, 30, (32, 32, 3))
        Image.fromarray(pixels_HWC.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        split = ("train", "train", "train", "val", "test")[number // 6 % 5]
        row = {"id": f"case{number}", "label": f"{colour}_{shape}", "split": split}
        if number % 7 != 0:
            row["text"] = f"it is {shape}, and number {number}"
        if number % 7 != 3:
            row["image"] = f"{number}.png"
        rows.append(row)
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return table


def experiment_of(folder: Path, *overrides: str) -> Experiment:
    """The small experiment, with overrides."""
    places = {
        "data.sources": [{"kind": "jsonl", "name": "pairs", "path": str(write(folder / "pairs"))}],
        "data.store": {"root": str(folder / "stores")},
        "output.root": str(folder / "runs"),
    }
    own = [f"{key}={json.dumps(value)}" for key, value in places.items()]
    return build(Experiment, apply_overrides(TREE, [*own, *overrides], model=Experiment), origin="tests")


class TestFuse(FamilyContract):
    @classmethod
    def experiment(cls, folder: Path, *overrides: str) -> Experiment:
        return experiment_of(folder, *overrides)

    @classmethod
    def queries(cls, experiment: Experiment) -> list[Any]:
        red = np.full((32, 32, 3), COLOURS["red"], dtype=np.uint8)
        return [Query(red, "it is round"), Query(red), Query(text="it is flat")]

    def test_a_site_calibrates_it_with_cases_that_lack_a_modality(self, run: Run, tmp_path: Path) -> None:
        found = calibrate(run.folder, data=write(tmp_path / "site"), out=tmp_path / "new", device="cpu", quiet=True)
        asked = self.queries(Experiment.load(run.folder / "config.yaml"))
        before, after = (consilium.load(own, device="cpu").predict(asked) for own in (run.folder, found.bundle))
        for old, new in zip(before, after, strict=True):
            assert (new["label"], new["modalities"]) == (old["label"], old["modalities"])
            assert new["probabilities"] != old["probabilities"]
        (texts,) = [row for row in found.drift if row["what"] == "share of cases with a text"]
        assert texts["site"] == pytest.approx(77 / 90, abs=1e-6)
        assert not texts["far"]

    def test_two_seeds_answer_as_one_also_without_a_modality(self, run: Run, home: Path, tmp_path: Path) -> None:
        result = train(self.experiment(home, "seed=1", "output.variation=other"), reporter=Recorder())
        assert result is not None
        both = ensemble([run.folder, result.bundle], out=tmp_path / "both", quiet=True)
        asked = self.queries(Experiment.load(run.folder / "config.yaml"))
        one, two, together = (
            consilium.load(own, device="cpu").predict(asked) for own in (run.folder, result.bundle, both)
        )
        for first, second, record in zip(one, two, together, strict=True):
            assert record["modalities"] == first["modalities"]
            assert record["disagreement"] >= 0
            for label, probability in record["probabilities"].items():
                mean = (first["probabilities"][label] + second["probabilities"][label]) / 2
                assert probability == pytest.approx(mean, abs=2e-6)
        judged = evaluate(both, out=tmp_path / "judged", device="cpu", quiet=True)
        assert "modalities" in judged.tables
