"""Copies of images, changed at random once: what decides them, and which of them a draw shows.

Axes in names: B case in a batch.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from consilium.data.batches.config import CopiesConfig
from consilium.data.batches.transforms import uniforms

_STREAM = 1 << 41  # of the numbers of a draw; no view has so high a one


def copy_digest(digest: bytes, number: int) -> bytes:
    """What copy ``number`` (from 1) of the content with this SHA-256 is known by: again a SHA-256."""
    return hashlib.sha256(digest + number.to_bytes(8, "big")).digest()


def copy_draw(digest: bytes) -> int:
    """The draw whose random numbers a copy has: the first 63 bits of what it is known by."""
    return int.from_bytes(digest[:8], "big") >> 1


class DrawnLooks:
    """Which look at its case a draw shows, a pure function of seed and draw: 0 the image itself, else a copy.

    All views of a case are then of the same copy.
    """

    def __init__(self, config: CopiesConfig, *, seed: int) -> None:
        self._seed, self._ends = seed, np.cumsum(config.shares)

    def of(self, draws_B: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The look that each draw shows [B], int64."""
        numbers_B = uniforms(draws_B, seed=self._seed, stream=_STREAM, count=1)[:, 0]
        return np.searchsorted(self._ends[:-1], numbers_B, side="right")
