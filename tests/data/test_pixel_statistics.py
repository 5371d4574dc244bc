"""The true mean and deviation of pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consilium.core.errors import DataError, ImageError
from consilium.data.pixel_statistics import pixel_statistics, spread
from consilium.data.prepare import prepare
from consilium.data.store import Store
from tests.data.samples import data_config, image_bytes, write_jsonl

SIZES = [(5, 7), (40, 9), (1, 1), (16, 16), (3, 50)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    for number, size in enumerate(SIZES):
        (tmp_path / f"{number}.png").write_bytes(image_bytes(number, size=size))
    rows = [{"modalities": [{"value": f"{n}.png"} for n in (0, 1)], "split": "train"}]
    rows += [{"image": f"{n}.png", "split": "train"} for n in (2, 3)]
    rows += [{"image": "4.png", "split": "test"}, {"text": "no image", "split": "train"}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    return prepare(data_config(tmp_path, {"kind": "jsonl", "name": "s", "path": str(path)})).store


def pixels(*numbers: int) -> np.ndarray:
    images = [np.asarray(Image.open(io.BytesIO(image_bytes(n, size=SIZES[n])))) for n in numbers]
    return np.concatenate([image.reshape(-1, 3) for image in images]).astype(np.float64) / 255


def test_over_all_pixels_of_the_split(store: Store) -> None:
    calls: list[tuple[int, int | None]] = []
    found = pixel_statistics(store, progress=lambda done, total: calls.append((done, total)))
    expected = pixels(0, 1, 2, 3)
    np.testing.assert_allclose(found.mean, expected.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std, expected.std(0), rtol=1e-12)
    assert (found.images, found.pixels) == (4, len(expected))
    assert calls[-1] == (4, 4)


def test_one_image_and_another_split(store: Store) -> None:
    np.testing.assert_allclose(pixel_statistics(store, split="test").mean, pixels(4).mean(0), rtol=1e-12)
    limited = pixel_statistics(store, limit=1)
    np.testing.assert_allclose(limited.std, pixels(0, 1).std(0), rtol=1e-12)
    assert limited.images == 2


def test_split_without_images(store: Store) -> None:
    with pytest.raises(DataError, match="the split 'val' has no image"):
        pixel_statistics(store, split="val")


def test_image_that_went_bad(store: Store, tmp_path: Path) -> None:
    (tmp_path / "3.png").write_text("gone bad")
    with pytest.raises(ImageError, match=r"3\.png"):
        pixel_statistics(store)


def test_spread() -> None:
    assert spread(10, 3) == [0, 3, 6]
    assert spread(2, 5) == [0, 1]
    assert spread(0, 5) == []
