"""Classify keeps the contract of families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from consilium.experiment import Experiment
from tests.conftest import write_images
from tests.contracts.family import FamilyContract
from tests.tiny import tiny_experiment


class TestClassify(FamilyContract):
    @classmethod
    def experiment(cls, folder: Path, *overrides: str) -> Experiment:
        images = folder / "images"
        if not images.is_dir():
            write_images(images)
        own = ["trainer.max_steps=null", "trainer.max_epochs=2", "optimizer.learning_rate=0.01"]
        return tiny_experiment(images, folder / "runs", *own, *overrides)

    @classmethod
    def queries(cls, experiment: Experiment) -> list[Any]:
        random = np.random.default_rng(0)
        return [random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(3)]
