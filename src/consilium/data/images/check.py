"""Each image of a case is read, checked and decoded once, before anything is trained on it."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from consilium.core.errors import ImageError
from consilium.core.places import FileFacts, facts
from consilium.data.case import Case, View
from consilium.data.config import StoreConfig
from consilium.data.guards.digests import small
from consilium.data.images.pixels import BYTES_PER_PIXEL
from consilium.data.images.reading import alone, probe, read_bytes, resize_once

AHEAD = 64  # cases that are checked before they are taken


@dataclass(frozen=True)
class CheckedImages:
    """The images of a case: ``views`` as they are stored, and ``pixels`` as they were decoded, [] if only headers were
    read. ``notes`` say what is odd in them and how they are read all the same."""

    views: list[dict[str, Any]]
    pixels: list[np.ndarray]
    notes: list[str]


@dataclass(frozen=True)
class BadImage:
    """An image or mask that cannot be used: its file as found (null: there is none), and why."""

    path: str
    size: int | None
    modified_ns: int | None
    reason: str


def check_ahead(
    cases: Iterable[Case], *, config: StoreConfig, threads: int
) -> Iterator[tuple[Case, CheckedImages | BadImage]]:
    """Each case in its order with its images checked; the threads are at work on the next ones while it is taken."""
    cases = iter(cases)
    together = max(1, AHEAD // (2 * threads))  # cases that a thread takes at once
    waiting: deque[tuple[list[Case], Future[list[CheckedImages | BadImage]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        while taken := list(islice(cases, together)):
            waiting.append((taken, pool.submit(_check_all, taken, config)))
            if len(waiting) * together > AHEAD:
                yield from _first_done(waiting)
        while waiting:
            yield from _first_done(waiting)


def _first_done(
    waiting: deque[tuple[list[Case], Future[list[CheckedImages | BadImage]]]],
) -> Iterator[tuple[Case, CheckedImages | BadImage]]:
    cases, checked = waiting.popleft()
    return zip(cases, checked.result(), strict=True)


def _check_all(cases: Sequence[Case], config: StoreConfig) -> list[CheckedImages | BadImage]:
    return [_check_images(case, config) for case in cases]


def _check_images(case: Case, config: StoreConfig) -> CheckedImages | BadImage:
    """The stored form of a case's views; with ``check_images: decode`` each is decoded, whatever else is done to it.

    Of its masks it is only seen whether there is a file.
    """
    for mask in case.masks:
        if mask.file is None or not mask.file.is_file:
            size, time = (None, None) if mask.file is None else (mask.file.size, mask.file.version)
            return BadImage(mask.image, size, time, f"the mask {mask.image} does not exist")
    views, pixels = [], []
    notes: list[str] = []
    for view in case.views:
        found = None
        name = view.image or "the embedded image"
        try:
            found = facts(view.image) if view.data is None else None
            stored, data = _check_image(view, found, config, name=name, notes=notes)
            if config.check_images == "decode":
                pixels.append(small(data, name=name, max_pixels=config.max_pixels))
            views.append(stored)
        except (ImageError, OSError) as error:
            size, time = (None, None) if found is None else (found.size, found.version)
            return BadImage(view.image if view.data is None else "", size, time, str(error))
    return CheckedImages(views, pixels, notes)


def _check_image(
    view: View, found: FileFacts | None, config: StoreConfig, *, name: str, notes: list[str]
) -> tuple[dict[str, Any], bytes]:
    """The stored form of a view, and the bytes that training will decode."""
    if found is not None:
        if not found.is_file:
            raise ImageError(f"{name} is a folder or device; an image file was expected.")
        if found.size > BYTES_PER_PIXEL * config.max_pixels + 2**20:
            raise ImageError(
                f"{name} has {found.size:,} bytes, more than an image of max_pixels: {config.max_pixels:,} can need."
            )
    data = read_bytes(view.image if view.data is None else view.data)
    info = probe(data, name=name, max_pixels=config.max_pixels)
    notes += info.notes
    digest = hashlib.sha256(data).hexdigest()
    if config.images == "embed":
        data = alone(data, name=name, max_pixels=config.max_pixels)
    if config.resize is not None and min(info.width, info.height) > config.resize:
        data = resize_once(data, name=name, shorter=config.resize, max_pixels=config.max_pixels)
        info = probe(data, name=name, max_pixels=config.max_pixels)
    stored = {
        "image": view.image,
        "bytes": data if config.images == "embed" else None,
        "name": view.name,
        "width": info.width,
        "height": info.height,
        "sha256": digest,
        "file_size": None if found is None else found.size,
        "modified_ns": None if found is None else found.version,
    }
    return stored, data
