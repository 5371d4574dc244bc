"""An unevenly labelled image folder, and a frozen tower whose head can be trained by hand beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from consilium.data.images.reading import load_view
from consilium.tasks.answers.targets import LabelKnowledge
from consilium.tasks.classify.task import build_classify
from tests.conftest import write_images
from tests.tiny import FULL_BATCH, Run, tiny_experiment

COUNTS = {"ct": 12, "mri": 6, "xray": 6}


@pytest.fixture(scope="session")
def uneven_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training images, half of them ``ct``."""
    root = write_images(tmp_path_factory.mktemp("uneven") / "images", splits={"train": 12, "val": 3, "test": 3})
    for label, count in COUNTS.items():
        for image in range(count, 12):
            (root / "train" / label / f"{image:03d}.jpg").unlink()
    return root


@dataclass(frozen=True)
class Probe:
    """A frozen tower with a known head: ``start`` holds its weights, ``features_NF`` what the head sees of train.

    The head's weights are 0 and its bias is [1, 0, 0], so that every case has these scores at the first step.
    """

    images: Path
    start: Path
    features_NF: Tensor
    targets_N: Tensor

    @property
    def overrides(self) -> list[str]:
        """Two steps over all training images in which only the head learns, from ``start``; the last is the best."""
        frozen = "task.vision.freeze.kind=tower"
        last = ["trainer.max_epochs=2", "trainer.validate_every=100"]
        return [FULL_BATCH, frozen, f"trainer.init_from={self.start}", *last]


@pytest.fixture(scope="session")
def probe(uneven_images: Path, tiny_run: Run) -> Probe:
    state = load_file(tiny_run.folder / "model.safetensors")
    state["head.1.weight"] = torch.zeros_like(state["head.1.weight"])
    state["head.1.bias"] = torch.tensor([1.0, 0.0, 0.0])
    start = uneven_images.parent / "start.safetensors"
    save_file(state, start)
    config = tiny_experiment(uneven_images, uneven_images)
    knowledge = LabelKnowledge(labels=list(COUNTS), class_counts=[1, 1, 1], training_cases=3)
    task = build_classify(config.task, knowledge, image_size=config.data.image.size).eval()
    task.load_state_dict(state)
    images, targets = [], []
    for number, (label, count) in enumerate(COUNTS.items()):
        for image in range(count):
            data = (uneven_images / "train" / label / f"{image:03d}.jpg").read_bytes()
            images.append(load_view(data, name=label, image=config.data.image, box=None))
            targets.append(number)
    mean_C, std_C = torch.tensor(config.data.image.mean), torch.tensor(config.data.image.std)
    images_NHWC = (torch.from_numpy(np.stack(images)) / 255 - mean_C) / std_C
    with torch.no_grad():
        features_NF = task.tower(images_NHWC.permute(0, 3, 1, 2))
    return Probe(uneven_images, start, features_NF, torch.tensor(targets))
