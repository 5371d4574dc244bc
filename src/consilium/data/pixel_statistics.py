"""The true mean and deviation of the pixels of a split."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from consilium.core.errors import DataError
from consilium.data.images import decode, read_bytes
from consilium.data.store import CaseTable, Store

BATCH = 64


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and deviation per channel (red, green, blue) of pixels in [0, 1], over all pixels of all images."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    images: int
    pixels: int


def pixel_statistics(
    store: Store,
    *,
    cases: CaseTable | None = None,
    split: str = "train",
    limit: int | None = None,
    window: tuple[float, float] | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> PixelStatistics:
    """The statistics of every pixel of a split at the size in the store, exact: whole-number histograms are summed.

    ``cases`` are those of the store that count, in splits of their own; None: all, as they were prepared.
    ``limit`` takes so many cases, spread evenly; ``window`` is that of the data config. Large images weigh more than
    small ones, as their pixels are more.
    An image that cannot be decoded is an ImageError, a split without images a DataError.
    """
    cases = store.table if cases is None else cases
    table = cases.select(cases.rows(split))
    rows = range(len(table)) if limit is None else spread(len(table), limit)
    counts_CV = np.zeros((3, 256), dtype=np.int64)
    images = 0

    def histograms(row: int) -> list[np.ndarray]:
        names = [name or f"the embedded image of case {table.ids[row]}" for name in table.image_names(row)]
        return [
            _histogram(image, name=name, max_pixels=store.manifest.max_pixels, window=window)
            for image, name in zip(table.images(row), names, strict=True)
        ]

    with ThreadPoolExecutor(store.reading_threads()) as pool:
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            for of_case in pool.map(histograms, batch):
                images += len(of_case)
                counts_CV += sum(of_case, np.zeros_like(counts_CV))
            if progress is not None:
                progress(start + len(batch), len(rows))
    if not images:
        raise DataError(f"the split '{split}' has no image; pixel statistics need at least one.")
    pixels = int(counts_CV[0].sum())
    values_V = np.arange(256) / 255
    mean_C = counts_CV @ values_V / pixels
    std_C = np.sqrt((counts_CV * (values_V - mean_C[:, None]) ** 2).sum(1) / pixels)
    (r, g, b), (r_std, g_std, b_std) = mean_C.tolist(), std_C.tolist()
    return PixelStatistics(mean=(r, g, b), std=(r_std, g_std, b_std), images=images, pixels=pixels)


def spread(count: int, limit: int) -> list[int]:
    """At most ``limit`` of ``count`` positions, evenly spread."""
    return [position * count // min(limit, count) for position in range(min(limit, count))]


def _histogram(image: str | bytes, *, name: str, max_pixels: int, window: tuple[float, float] | None) -> np.ndarray:
    from PIL import Image

    pixels_HWC = decode(read_bytes(image), name=name, max_pixels=max_pixels, window=window)
    return np.array(Image.fromarray(pixels_HWC).histogram(), dtype=np.int64).reshape(3, 256)
