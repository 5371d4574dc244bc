"""What all tests share: one thread, no network, seeded small images."""

from __future__ import annotations

import os

# Before torch or a hub client is imported: two spinning OpenMP threads beside a busy neighbour are many times
# slower than one, and no test may reach out.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # it asks Google about each bucket

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

if TYPE_CHECKING:
    from tests.tiny import Run, TrainTiny

# A test sees the same files whether or not they have reached the disk, and each training waits for that sixty times.
os.fsync = lambda _: None

settings.register_profile("local", deadline=None, max_examples=50)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


class ImageFolder(Protocol):
    """Makes a folder of images; see the fixture ``image_folder``."""

    def __call__(
        self,
        root: Path | None = None,
        *,
        labels: Sequence[str] = ("ct", "mri", "xray"),
        splits: Mapping[str, int] | None = None,
        size: tuple[int, int] = (32, 40),
        suffix: str = ".jpg",
        seed: int = 0,
    ) -> Path:
        """Write the images and return ``root``."""
        ...


def coloured_image(*, label: int, labels: int, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A noisy image, [height, width], whose mean colour tells its label: a model learns it in a few steps."""
    colour = np.array(colorsys.hsv_to_rgb(label / labels, 0.8, 0.8)) * 255
    noise = rng.normal(0.0, 40.0, size=(*size, 3))
    return Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8))


def write_images(
    root: Path,
    *,
    labels: Sequence[str] = ("ct", "mri", "xray"),
    splits: Mapping[str, int] | None = None,
    size: tuple[int, int] = (32, 40),
    suffix: str = ".jpg",
    seed: int = 0,
) -> Path:
    """What the fixture ``image_folder`` does, into a given folder."""
    rng = np.random.default_rng(seed)
    for split, count in (splits or {"train": 8, "val": 4, "test": 4}).items():
        for number, label in enumerate(labels):
            folder = root / split / label
            folder.mkdir(parents=True, exist_ok=True)
            for image in range(count):
                picture = coloured_image(label=number, labels=len(labels), size=size, rng=rng)
                picture.save(folder / f"{image:03d}{suffix}")
    return root


@pytest.fixture
def image_folder(tmp_path: Path) -> ImageFolder:
    """Writes ``{root}/{split}/{label}/{number}.jpg`` with a learnable colour for each label, seeded.

    ``splits`` gives the images per label (default: 8 train, 4 val, 4 test); ``root`` defaults to a new
    folder of the test; every image of one call differs from every other.
    """

    def write(root: Path | None = None, **options: Any) -> Path:
        return write_images(tmp_path / "images" if root is None else root, **options)

    return write


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of the tiny experiment (``tests.tiny``); no test changes them."""
    return write_images(tmp_path_factory.mktemp("tiny") / "images")


@pytest.fixture(scope="session")
def tiny_run(tiny_images: Path) -> Run:
    """The finished tiny experiment, a bundle that many tests share; no test changes it."""
    from tests.tiny import train_tiny

    return train_tiny(tiny_images, tiny_images.parent / "shared_runs")


@pytest.fixture
def tiny(tiny_images: Path, tmp_path: Path) -> TrainTiny:
    """Trains the tiny experiment with overrides, into the test's own folder; the store is shared."""
    from tests.tiny import train_tiny

    def train(*overrides: str, images: Path = tiny_images, **options: Any) -> Run:
        return train_tiny(images, tmp_path / "runs", *overrides, **options)

    return train
