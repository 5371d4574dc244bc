"""What one decoding of every image gives: a perceptual hash and a few plain statistics of each.

``prepare`` decodes each image anyway and keeps its digest; of a store that was prepared without, the digests are made
in a pass of their own.

Axes in names: V views (images) of the store, F statistics, H height, W width, C channel.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np

from consilium.core.errors import ImageError
from consilium.core.files import atomic_file
from consilium.data.config import ImageConfig
from consilium.data.images.reading import load_view, read_bytes
from consilium.data.store.store import CaseTable, Store

FILE = "digests.npz"
VERSION = 1
SIDE = 64  # each image is looked at as SIDE x SIDE pixels
HASH_SIDE = 16  # frequencies in each direction that make the hash
BATCH = 256  # images that one pass looks at together
COLLECTED = 64  # images whose digests are made together while others are decoded
SIDES = ("top", "bottom", "left", "right")
STATISTICS = (
    "width", "height",
    *(f"{side} {what}" for what in ("border level", "border deviation", "margin") for side in SIDES),
    "black border",
    *(f"{channel} {what}" for what in ("mean", "deviation") for channel in ("red", "green", "blue")),
    "saturation mean", "saturation deviation",
    *(f"grey level {32 * part} to {32 * part + 31}" for part in range(8)),
)  # fmt: skip
BLACK = 12  # levels of 255; JPEG leaves a black border so bright
MARGIN_RANGE = 10  # levels of 255 within which a line counts as empty margin
_NO_HASHES, _NO_STATISTICS = np.zeros((0, 4), np.uint64), np.zeros((0, len(STATISTICS) - 2), np.float32)
Progress = Callable[[int, int | None], None]
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # of a file that is not there, or in part


@dataclass(frozen=True)
class Digests:
    """What one look at every image of a table found.

    ``rows`` int64 [V]: the row of each image's case; ``hashes`` uint64 [V, 4]; ``statistics`` float32 [V, F], named by
    ``names``; ``readable`` bool [V]: False where an image could not be decoded (its hash is 0, its statistics are
    NaN), which ``problems`` tells in words. ``max_pixels`` is the store's limit.
    """

    rows: np.ndarray
    hashes: np.ndarray
    statistics: np.ndarray
    readable: np.ndarray
    names: tuple[str, ...]
    problems: list[str]
    max_pixels: int

    def of(self, table: CaseTable) -> Digests:
        """Of the digests of a whole store, those of a table selected from it, in the order of its ``view_column``."""
        first = np.searchsorted(self.rows, table.store_rows, side="left")
        counts = np.searchsorted(self.rows, table.store_rows, side="right") - first
        rows = np.repeat(np.arange(len(counts)), counts)
        taken = np.arange(len(rows)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        return Digests(
            rows, self.hashes[taken], self.statistics[taken], self.readable[taken], self.names, self.problems,
            self.max_pixels,
        )  # fmt: skip


def small(data: bytes, *, name: str, max_pixels: int) -> np.ndarray:
    """The whole image, decoded and reduced to uint8 [SIDE, SIDE, 3]; damaged data is an ImageError."""
    return load_view(data, name=name, image=ImageConfig(size=(SIDE, SIDE), max_pixels=max_pixels), box=None)


class DigestCollector:
    """Makes digests of images that are decoded one after another, and keeps them until they are written."""

    def __init__(self) -> None:
        self._waiting: list[np.ndarray] = []
        self._hashes, self._statistics = [_NO_HASHES], [_NO_STATISTICS]

    def add(self, pixels_HWC: np.ndarray) -> None:
        """Add the next image, as ``small`` gives it."""
        self._waiting.append(pixels_HWC)
        if len(self._waiting) == COLLECTED:
            self._digest()

    def write(self, path: Path) -> None:
        """Write the digests of the images added since the last time."""
        self._digest()
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, hashes=np.concatenate(self._hashes), statistics=np.concatenate(self._statistics))
        self._hashes, self._statistics = [_NO_HASHES], [_NO_STATISTICS]

    def _digest(self) -> None:
        if self._waiting:
            pixels_BHWC = np.stack(self._waiting)
            self._hashes.append(_hashes(pixels_BHWC))
            self._statistics.append(_statistics(pixels_BHWC))
            self._waiting = []


def keep_digests(store: Store, paths: Sequence[Path]) -> None:
    """Write the digests of a new store, all of whose images were decoded: what was collected in ``paths``, in order."""
    rows, widths = store.table.view_column("width")
    heights = store.table.view_column("height")[1]
    hashes, statistics = [_NO_HASHES], [_NO_STATISTICS]
    for path in paths:
        with np.load(path, allow_pickle=False) as saved:
            hashes.append(saved["hashes"])
            statistics.append(saved["statistics"])
    sizes_V2 = np.array([widths, heights], dtype=np.float32).T
    statistics_VF = np.concatenate([sizes_V2, np.concatenate(statistics)], axis=1)
    everywhere = np.ones(len(rows), dtype=bool)
    max_pixels = store.manifest.max_pixels
    found = Digests(rows, np.concatenate(hashes), statistics_VF, everywhere, STATISTICS, [], max_pixels)
    _write(store.path / FILE, _key(store), found)


def all_decoded(store: Store, *, progress: Progress | None = None) -> bool:
    """Whether every image of a store could be decoded when its digests were made; makes them where there are none."""
    try:
        with (store.path / FILE).open("rb") as file, np.load(file, allow_pickle=False) as saved:
            if saved["key"].item() == _key(store):
                return bool(saved["readable"].all())
    except _DAMAGED:
        pass
    return bool(image_digests(store, progress=progress).readable.all())


def image_digests(store: Store, *, progress: Progress | None = None) -> Digests:
    """The digests of all images of a store, kept in its folder as ``digests.npz`` and read back from there.

    The hash is the DCT hash (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010): of
    the grey image at 64 x 64 pixels the 16 x 16 lowest frequencies of the discrete cosine transform without the mean,
    each a bit, set above their median. Recompressing, resizing or brightening an image changes few of the 255 bits;
    unlike images differ in about 127. The usual 64 bits do not tell one fundus photograph from another. A mirrored or
    turned image has another hash.

    The statistics, ``STATISTICS``, in order: width and height in pixels, of the file; of the image at 64 x 64 pixels,
    as shares of 1: the level and deviation of each outermost line, the empty margin on each side, the share of the
    outermost lines that is black, mean and deviation of every channel and of the saturation, and a histogram of grey.

    ``progress`` is called with (images done, all). An image whose data is damaged is noted in ``problems``. A store
    in a folder that cannot be written is looked through each time.
    """
    found = _read(store.path / FILE, _key(store), store.manifest.max_pixels)
    if found is None:
        found = _look(store, progress)
        _write(store.path / FILE, _key(store), found)
    return found


def _key(store: Store) -> str:
    return f"{VERSION} {store.manifest.fingerprint} {store.manifest.created}"


def _read(path: Path, key: str, max_pixels: int) -> Digests | None:
    """The saved digests; None where there are none, or others, or a damaged file."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            if saved["key"].item() != key:
                return None
            problems = saved["problems"].tolist()
            arrays = [saved[name] for name in ("rows", "hashes", "statistics", "readable")]
    except _DAMAGED:
        return None
    rows, hashes_V4, statistics_VF, readable = arrays
    return Digests(rows, hashes_V4, statistics_VF, readable, STATISTICS, problems, max_pixels)


def _write(path: Path, key: str, digests: Digests) -> None:
    try:
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file, key=np.array(key), rows=digests.rows, hashes=digests.hashes, statistics=digests.statistics,
                readable=digests.readable, problems=np.array(digests.problems, dtype=np.str_),
            )  # fmt: skip
    except OSError:
        return  # a store that is only read, or a full disk: the digests are at hand, only not for the next time


def _look(store: Store, progress: Progress | None) -> Digests:
    table, max_pixels = store.table, store.manifest.max_pixels
    rows, names = table.view_column("name")
    hashes_V4 = np.zeros((len(rows), 4), dtype=np.uint64)
    statistics_VF = np.full((len(rows), len(STATISTICS)), np.nan, dtype=np.float32)
    readable = np.zeros(len(rows), dtype=bool)
    problems: list[str] = []

    def look(item: tuple[str | bytes, str]) -> np.ndarray | str:
        try:
            return small(read_bytes(item[0]), name=item[1], max_pixels=max_pixels)
        except ImageError as error:
            return str(error)

    views = _views(table)
    start = 0
    with ThreadPoolExecutor(store.reading_threads()) as pool:
        while batch := list(islice(views, BATCH)):
            found = list(pool.map(look, batch))
            seen = [number for number, pixels in enumerate(found, start) if not isinstance(pixels, str)]
            problems += [pixels for pixels in found if isinstance(pixels, str)]
            if seen:
                pixels_BHWC = np.stack([pixels for pixels in found if not isinstance(pixels, str)])
                hashes_V4[seen] = _hashes(pixels_BHWC)
                statistics_VF[seen, 2:] = _statistics(pixels_BHWC)
                readable[seen] = True
            start += len(batch)
            if progress is not None:
                progress(start, len(names))
    statistics_VF[:, 0], statistics_VF[:, 1] = table.view_column("width")[1], table.view_column("height")[1]
    return Digests(rows, hashes_V4, statistics_VF, readable, STATISTICS, problems, max_pixels)


def _views(table: CaseTable) -> Iterator[tuple[str | bytes, str]]:
    """Every image of a table and what to call it, in order."""
    for row in range(len(table)):
        named = [name or f"the embedded image of case {table.ids[row]}" for name in table.image_names(row)]
        yield from zip(table.images(row), named, strict=True)


def _hashes(pixels_BHWC: np.ndarray) -> np.ndarray:
    """The DCT hashes, uint64 [B, 4], of images of SIDE x SIDE pixels."""
    grey_BHW = pixels_BHWC.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    basis_KH = _cosines()
    frequencies_BKK = basis_KH @ grey_BHW @ basis_KH.T
    coefficients_BK = frequencies_BKK.reshape(len(pixels_BHWC), HASH_SIDE**2)
    # The mean says nothing of the content, so its bit is always 0 and it has no part in the median.
    bits_BK = coefficients_BK > np.median(coefficients_BK[:, 1:], axis=1, keepdims=True)
    bits_BK[:, 0] = False
    hashes_B4: np.ndarray = np.packbits(bits_BK, axis=1).view(np.uint64)
    return hashes_B4


@cache
def _cosines() -> np.ndarray:
    """The lowest vectors of the discrete cosine transform (type 2, orthonormal), float32 [HASH_SIDE, SIDE]."""
    order, place = np.arange(HASH_SIDE)[:, None], np.arange(SIDE)
    basis_KH: np.ndarray = np.cos(np.pi * order * (place + 0.5) / SIDE) * np.sqrt(2 / SIDE)
    basis_KH[0] /= np.sqrt(2)
    return basis_KH.astype(np.float32)


def _statistics(pixels_BHWC: np.ndarray) -> np.ndarray:
    """All of ``STATISTICS`` but width and height, float32 [B, F - 2]."""
    images = len(pixels_BHWC)
    planes_CBHW = np.ascontiguousarray(pixels_BHWC.transpose(3, 0, 1, 2))
    values_CBL = planes_CBHW.reshape(3, images, -1).astype(np.float32) / 255
    grey_BHW = (planes_CBHW.sum(0, dtype=np.uint16) // 3).astype(np.uint8)
    brightest_BHW, darkest_BHW = planes_CBHW.max(0), planes_CBHW.min(0)
    range_BHW = (brightest_BHW - darkest_BHW).astype(np.float32)
    saturation_BL = (range_BHW / np.maximum(brightest_BHW, 1)).reshape(images, -1)
    edges_4BL = np.stack([grey_BHW[:, 0], grey_BHW[:, -1], grey_BHW[:, :, 0], grey_BHW[:, :, -1]])
    empty = [grey_BHW.max(axis) - grey_BHW.min(axis) <= MARGIN_RANGE for axis in (2, 1)]  # rows, columns
    lines_4BL = np.stack([empty[0], empty[0][:, ::-1], empty[1], empty[1][:, ::-1]])
    bins_BL = (grey_BHW // 32).reshape(images, -1) + 8 * np.arange(images)[:, None]
    histogram_B8 = np.bincount(bins_BL.ravel(), minlength=8 * images).reshape(images, 8) / SIDE**2
    columns = [
        *edges_4BL.mean(2) / 255,
        *edges_4BL.std(2) / 255,
        *lines_4BL.cumprod(2).mean(2),
        (edges_4BL <= BLACK).mean((0, 2)),
        *values_CBL.mean(2),
        *values_CBL.std(2),
        saturation_BL.mean(1),
        saturation_BL.std(1),
        *histogram_B8.T,
    ]
    statistics_BF: np.ndarray = np.stack(columns, axis=1).astype(np.float32)
    return statistics_BF
