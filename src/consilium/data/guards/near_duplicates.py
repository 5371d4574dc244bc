"""Images that are almost the same: found by their hashes, confirmed on the images at full resolution.

Axes in names: I different images, B blocks of an image, H height, W width, C channel.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from consilium.core.errors import ImageError
from consilium.core.places import reading_threads
from consilium.data.guards.digests import Digests, Progress
from consilium.data.guards.similarity import (
    COMPARED,
    LEAST_IN_FULL,
    LEAST_SIMILARITY,
    grey_image,
    similarity,
    similarity_in_full,
)
from consilium.data.store.store import CaseTable

MAX_DISTANCE = 40
MAX_COMPARED = 20_000
CLOSEST = 32
CACHED = 1_000
CACHED_IN_FULL = 16
MAX_IN_FULL = 500  # pairs; two images of 4 megapixels take most of a second
FLAT = 0.01  # of 1: an image of which no channel deviates more is of one colour, and its hash is noise
DEVIATIONS = frozenset(f"{channel} deviation" for channel in ("red", "green", "blue"))


@dataclass(frozen=True)
class Pair:
    """Two cases (rows ``a`` < ``b`` of the table) with almost the same image, and the names of these images.

    ``distance`` is the number of bits, of 255, in which their hashes differ; ``similarity`` is at most 1, of the
    images at full resolution.
    """

    a: int
    b: int
    images: tuple[str, str]
    distance: int
    similarity: float


@dataclass(frozen=True)
class NearDuplicates:
    """The pairs found, the most alike first, and what was not compared and why."""

    pairs: list[Pair]
    notes: list[str] = field(default_factory=list)


def find_near_duplicates(
    table: CaseTable,
    digests: Digests,
    *,
    across_splits: bool = True,
    max_distance: int = MAX_DISTANCE,
    progress: Progress | None = None,
) -> NearDuplicates:
    """Pairs of cases with almost equal images that are not the same file.

    ``digests`` are those of the whole store, whatever part of it ``table`` is. ``across_splits`` looks only for pairs
    of different splits (train, val and test); else for all, in any split. A pair is a candidate if its hashes differ
    in at most ``max_distance`` bits, and is told if ``similarity`` confirms it, first at ``COMPARED`` pixels, then,
    where both images are larger, at the full resolution of the smaller one (of more than 4 megapixels at 4).
    ``progress`` is called with (candidates compared, all).

    Found are images written again, resized, made brighter or darker, or cropped by a hundredth on each side. Not found
    are mirrored or turned images and larger crops: of images cropped by 2 % on two sides only about half, because
    their hashes are too far apart. Slices of one scan and frames of one video may count as near-duplicates.
    ``bench/near_duplicates.py`` measures all of this.

    The hashes of all pairs are compared: that is under a minute for 100,000 images, and no index to get wrong. Where
    thousands of images look alike (blank charts, one scanner's photographs) the work stays bounded: of an image the
    ``CLOSEST`` candidates, and of all ``MAX_COMPARED``, everyone's closest first; at full resolution the
    ``MAX_IN_FULL`` pairs that are least alike; a note tells. Images of one colour
    are left out, and so are those that cannot be decoded. Where a file stands in several cases each of them is told
    once, with the first case of the other file.
    """
    own = digests.of(table)
    images, notes = _images(table, own, across_splits=across_splits)
    candidates, left_out = _candidates(images, own.hashes, across_splits=across_splits, max_distance=max_distance)
    if left_out:
        notes.append(
            f"{left_out + len(candidates):,} pairs of images look alike at first sight; only the closest "
            f"{len(candidates):,} were compared, so near-duplicates may be missed."
        )

    alike = _alike(_Comparison(table, own, images), candidates, notes, progress)
    found = [
        pair
        for candidate, value in alike.items()
        for pair in _pairs(table, images[candidate.a], images[candidate.b], candidate.distance, value)
    ]
    return NearDuplicates(sorted(found, key=lambda pair: (-pair.similarity, pair.a, pair.b)), notes)


class _Image(NamedTuple):
    """A file of one split: the (row, number of the view) where it stands, and the position of its first in digests."""

    split: str
    sha256: str
    views: list[tuple[int, int]]
    position: int


class _Candidate(NamedTuple):
    a: int
    b: int
    distance: int


class _Comparison:
    """Compares the images of candidates; 0 where one cannot be read any more, which its next reader will tell."""

    def __init__(self, table: CaseTable, digests: Digests, images: list[_Image]) -> None:
        self._table, self._digests, self._images = table, digests, images
        self._small = lru_cache(CACHED)(partial(self._grey, in_full=False))
        self._full = lru_cache(CACHED_IN_FULL)(partial(self._grey, in_full=True))

    def small(self, candidate: _Candidate) -> float:
        """The similarity at ``COMPARED`` pixels."""
        try:
            return similarity(self._small(candidate.a), self._small(candidate.b))
        except ImageError:
            return 0.0

    def in_full(self, candidate: _Candidate) -> float | None:
        """The similarity at full resolution; None where there is no fine detail to compare."""
        try:
            return similarity_in_full(self._full(candidate.a), self._full(candidate.b))
        except ImageError:
            return 0.0

    def is_larger(self, candidate: _Candidate) -> bool:
        """Whether both images have more pixels than were compared."""
        return max(min(self._size(candidate.a), self._size(candidate.b), key=math.prod)) > COMPARED

    def _size(self, image: int) -> tuple[int, int]:
        width, height = self._digests.statistics[self._images[image].position, :2].astype(int).tolist()
        return height, width

    def _grey(self, image: int, *, in_full: bool) -> np.ndarray:
        row, number = self._images[image].views[0]
        return grey_image(
            self._table.images(row)[number], name=_name(self._table, row, number), size=self._size(image),
            max_pixels=self._digests.max_pixels, in_full=in_full,
        )  # fmt: skip


def _alike(
    comparison: _Comparison, candidates: list[_Candidate], notes: list[str], progress: Progress | None
) -> dict[_Candidate, float]:
    """The similarity of the candidates that are near-duplicates; what was not compared in full is noted."""
    alike: dict[_Candidate, float] = {}
    with ThreadPoolExecutor(reading_threads(remote=False)) as pool:
        compared = zip(candidates, pool.map(comparison.small, candidates), strict=True)
        for done, (candidate, value) in enumerate(compared, 1):
            if value >= LEAST_SIMILARITY:
                alike[candidate] = value
            if progress is not None:
                progress(done, len(candidates))
        large = sorted((candidate for candidate in alike if comparison.is_larger(candidate)), key=alike.__getitem__)
        if len(large) > MAX_IN_FULL:
            notes.append(
                f"{len(large):,} pairs of large images are alike at {COMPARED} pixels; only the {MAX_IN_FULL} least "
                "alike of them were compared at full resolution."
            )
        doubtful = sorted(large[:MAX_IN_FULL])  # those of one image together, so that it is decoded once
        for candidate, in_full in zip(doubtful, pool.map(comparison.in_full, doubtful), strict=True):
            if in_full is not None:
                alike[candidate] = in_full
            if in_full is not None and in_full < LEAST_IN_FULL:
                del alike[candidate]
    return alike


def _images(table: CaseTable, digests: Digests, *, across_splits: bool) -> tuple[list[_Image], list[str]]:
    """Every file once in each split (once in all without ``across_splits``), small splits first, and notes."""
    shas = table.view_column("sha256")[1]
    first_view = np.searchsorted(digests.rows, digests.rows, side="left")
    deviations = [number for number, name in enumerate(digests.names) if name in DEVIATIONS]
    flat = digests.readable & (digests.statistics[:, deviations] <= FLAT).all(1)
    found: dict[tuple[str, str], _Image] = {}
    sizes: dict[str, int] = defaultdict(int)
    for position, (row, sha) in enumerate(zip(digests.rows.tolist(), shas, strict=True)):
        split = table.splits[row] if across_splits else ""
        if split == "unlabelled" or flat[position] or not digests.readable[position]:
            continue
        if (split, sha) not in found:
            found[split, sha] = _Image(split, sha, [], position)
            sizes[split] += 1
        found[split, sha].views.append((row, position - int(first_view[position])))
    notes = [f"{flat.sum():,} image(s) of a single colour were not compared."] if flat.any() else []
    unreadable = np.flatnonzero(~digests.readable).tolist()
    if unreadable:
        first = _name(table, int(digests.rows[unreadable[0]]), unreadable[0] - int(first_view[unreadable[0]]))
        notes.append(f"{len(unreadable):,} image(s) cannot be decoded and were not compared, the first {first}.")
    return sorted(found.values(), key=lambda image: (sizes[image.split], image.split)), notes


def _candidates(
    images: list[_Image], hashes_V4: np.ndarray, *, across_splits: bool, max_distance: int
) -> tuple[list[_Candidate], int]:
    """The pairs to compare, those of one image near each other, and how many more there would be."""
    words_4I = np.ascontiguousarray(hashes_V4[[image.position for image in images]].T)
    same_file = np.unique([image.sha256 for image in images], return_inverse=True)[1]
    begins = _next_splits(images) if across_splits else range(1, len(images) + 1)
    closest: list[np.ndarray] = []  # of each image: its rank among the image's candidates, distance, image, other
    total = 0
    for image, begin in enumerate(begins):
        distances = np.zeros(len(images) - begin, dtype=np.uint8)
        for words in words_4I:
            distances += np.bitwise_count(words[begin:] ^ words[image])
        near = np.flatnonzero(distances <= max_distance)
        if len(near):
            near = near[same_file[begin + near] != same_file[image]]
        if len(near):
            total += len(near)
            near = near[np.argsort(distances[near], kind="stable")[:CLOSEST]]
            closest.append(np.stack([np.arange(len(near)), distances[near], np.full(len(near), image), begin + near]))
    if not closest:
        return [], 0
    all_4K = np.concatenate(closest, axis=1)
    kept = np.lexsort(all_4K[1::-1])[:MAX_COMPARED]  # by rank, then by distance
    kept.sort()  # those of one image together, so that it is decoded once
    candidates = [_Candidate(a, b, distance) for _, distance, a, b in all_4K[:, kept].T.tolist()]
    return candidates, total - len(candidates)


def _next_splits(images: list[_Image]) -> Iterator[int]:
    """For each image, sorted by split, where the next split begins."""
    splits = [image.split for image in images]
    ends = {split: number for number, split in enumerate(splits, 1)}
    return (ends[split] for split in splits)


def _pairs(table: CaseTable, one: _Image, other: _Image, distance: int, alike: float) -> Iterator[Pair]:
    """Every case of a file with the first of the other file."""
    linked = [(view, other.views[0]) for view in one.views] + [(one.views[0], view) for view in other.views[1:]]
    for first, second in (sorted(pair) for pair in linked):
        if first[0] != second[0]:
            names = (_name(table, *first), _name(table, *second))
            yield Pair(first[0], second[0], names, distance, alike)


def _name(table: CaseTable, row: int, number: int) -> str:
    return table.image_names(row)[number] or f"the embedded image of case {table.ids[row]}"
