"""The true mean and deviation of the pixels of a split, or of every node of a label tree.

Axes in names: H height, W width, C channel, V value of a pixel (0 to 255).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import yaml

from consilium.core.errors import DataError
from consilium.core.labels import ROOT, with_ancestors
from consilium.core.reporter import format_table
from consilium.data.images.reading import decode, read_bytes
from consilium.data.store.store import CaseTable, Store

BATCH = 64


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and deviation per channel (red, green, blue) of pixels in [0, 1], over all pixels of all images."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    images: int
    pixels: int

    def lines(self) -> list[str]:
        """The statistics of train for a screen."""
        return [
            f"{self.images} images, {self.pixels} pixels of the train split, in [0, 1]",
            f"mean: [{_shown(self.mean)}]",
            f"std: [{_shown(self.std)}]",
        ]


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
    total = _Sum()
    for _, histograms in _histograms(store, table, rows, window=window, progress=progress):
        total.add(histograms)
    return total.statistics(split)


def node_statistics(
    store: Store,
    *,
    cases: CaseTable,
    window: tuple[float, float] | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, PixelStatistics]:
    """The statistics of the train split for every inner node of the tree that the labels make, the root first.

    A case counts for every node that one of its labels lies below: those that ``data.filters.node`` keeps for it. Every
    image is read once. Errors are those of ``pixel_statistics``.
    """
    table = cases.select(cases.rows("train"))
    sums: dict[str, _Sum] = {ROOT: _Sum()}
    for row, histograms in _histograms(store, table, range(len(table)), window=window, progress=progress):
        above = (label.rpartition(".")[0] for label in table.labels[row])
        for node in {ROOT, *with_ancestors(node for node in above if node)}:
            sums.setdefault(node, _Sum()).add(histograms)
    return {node: sums[node].statistics("train") for node in sorted(sums, key=lambda node: (node != ROOT, node))}


def node_lines(found: Mapping[str, PixelStatistics]) -> list[str]:
    """The statistics of nodes for a screen: a table, and the YAML that a config takes."""
    rows = [
        {
            "node": node,
            "images": own.images,
            "pixels": own.pixels,
            "mean (red, green, blue)": _shown(own.mean),
            "std (red, green, blue)": _shown(own.std),
        }
        for node, own in found.items()
    ]
    given = {
        node: {"mean": [round(value, 4) for value in own.mean], "std": [round(value, 4) for value in own.std]}
        for node, own in found.items()
    }
    tree = {"task": {"tree": {"statistics": given}}}
    text = yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, allow_unicode=True)
    title = "cases of train below each node, pixels in [0, 1]"
    return [format_table(rows, title=title), "to be given in a config:", text.rstrip("\n")]


def _shown(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


@dataclass
class _Sum:
    """The histograms of images, summed: whole numbers, so that the order does not matter."""

    images: int = 0
    counts_CV: np.ndarray = field(default_factory=lambda: np.zeros((3, 256), dtype=np.int64))

    def add(self, histograms: Sequence[np.ndarray]) -> None:
        self.images += len(histograms)
        for histogram_CV in histograms:
            self.counts_CV += histogram_CV

    def statistics(self, split: str) -> PixelStatistics:
        if not self.images:
            raise DataError(f"the split '{split}' has no image; pixel statistics need at least one.")
        pixels = int(self.counts_CV[0].sum())
        values_V = np.arange(256) / 255
        mean_C = self.counts_CV @ values_V / pixels
        std_C = np.sqrt((self.counts_CV * (values_V - mean_C[:, None]) ** 2).sum(1) / pixels)
        (r, g, b), (r_std, g_std, b_std) = mean_C.tolist(), std_C.tolist()
        return PixelStatistics(mean=(r, g, b), std=(r_std, g_std, b_std), images=self.images, pixels=pixels)


def _histograms(
    store: Store,
    table: CaseTable,
    rows: Sequence[int],
    *,
    window: tuple[float, float] | None,
    progress: Callable[[int, int | None], None] | None,
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """These rows in their order, each with the histograms [3, 256] of its images; read by several threads."""

    def of_case(row: int) -> list[np.ndarray]:
        names = [name or f"the embedded image of case {table.ids[row]}" for name in table.image_names(row)]
        return [
            _histogram(image, name=name, max_pixels=store.manifest.max_pixels, window=window)
            for image, name in zip(table.images(row), names, strict=True)
        ]

    with ThreadPoolExecutor(store.reading_threads()) as pool:
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            yield from zip(batch, pool.map(of_case, batch), strict=True)
            if progress is not None:
                progress(start + len(batch), len(rows))


def spread(count: int, limit: int) -> list[int]:
    """At most ``limit`` of ``count`` positions, evenly spread."""
    return [position * count // min(limit, count) for position in range(min(limit, count))]


def _histogram(image: str | bytes, *, name: str, max_pixels: int, window: tuple[float, float] | None) -> np.ndarray:
    from PIL import Image

    pixels_HWC = decode(read_bytes(image), name=name, max_pixels=max_pixels, window=window)
    return np.array(Image.fromarray(pixels_HWC).histogram(), dtype=np.int64).reshape(3, 256)
