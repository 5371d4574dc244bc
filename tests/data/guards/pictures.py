"""Pictures that a perceptual hash can tell apart, and stores of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from consilium.data.store.prepare import prepare
from consilium.data.store.store import Store
from tests.data.samples import data_config


def picture(seed: int, *, side: int = 128) -> Image.Image:
    """A seeded picture with large and small shapes, as photographs have."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf
    planes = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((3, side, side))) / frequency**1.3)
    pixels = 120 + 40 * planes / planes.std((1, 2), keepdims=True)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def encoded(image: Image.Image, *, quality: int = 90, format: str = "JPEG") -> bytes:
    """The image as a file."""
    stream = io.BytesIO()
    image.save(stream, format=format, quality=quality)
    return stream.getvalue()


def store_of(
    folder: Path, files: Mapping[str, bytes], rows: Sequence[Mapping[str, str]], *, check_images: str = "decode"
) -> Store:
    """A store of these files and the rows of a table that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    source = {"kind": "csv", "name": "s", "path": str(folder / "table.csv")}
    config = data_config(folder, source)
    return prepare(
        config.model_copy(update={"store": config.store.model_copy(update={"check_images": check_images})})
    ).store
