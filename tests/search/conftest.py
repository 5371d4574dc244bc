"""An expert of captioned squares, its collection, and another expert."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from consilium.predictor import Predictor
from tests.tasks.test_align_contract import train_pairs
from tests.tiny import Run


@pytest.fixture(scope="package")
def expert(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained on 48 squares of four colours, of which 24 texts are different; no test changes it."""
    return train_pairs(tmp_path_factory.mktemp("expert"), "trainer.max_steps=4")


@pytest.fixture(scope="package")
def model(expert: Run) -> Predictor:
    return Predictor.load(expert.folder, device="cpu", batch_size=8, workers=0)


@pytest.fixture(scope="package")
def store(expert: Run) -> Path:
    """The prepared store of the expert's 48 cases."""
    (found,) = (expert.folder.parents[2] / "stores").glob("pairs-*")
    return found


@pytest.fixture
def squares(expert: Run, tmp_path: Path) -> Path:
    """A folder of the expert's first 12 images, which a test may change."""
    folder = tmp_path / "squares"
    folder.mkdir()
    for number in range(12):
        shutil.copy(expert.folder.parents[2] / "pairs" / f"{number}.png", folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="package")
def other(expert: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that differs from the expert in its weights alone."""
    folder = tmp_path_factory.mktemp("other")
    manifest = json.loads((expert.folder / "bundle.json").read_text(encoding="utf-8"))
    weights = load_file(expert.folder / "model.safetensors")
    save_file(
        {name: own * 1.01 if own.is_floating_point() else own for name, own in weights.items()},
        folder / "model.safetensors",
    )
    manifest["files"] = {"model.safetensors": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()}
    (folder / "bundle.json").write_text(json.dumps({**manifest, "name": "other"}), encoding="utf-8")
    return folder
