"""Images that are almost the same: found by their hashes, confirmed on the images themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from consilium.data.guards.digests import Digests
from consilium.data.store import CaseTable

MAX_DISTANCE = 10
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Pair:
    """Two cases (rows ``a`` < ``b`` of the table) with almost the same image, and the paths of these images.

    ``distance`` is the number of bits, of 64, in which their hashes differ; ``similarity`` is at most 1.
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
    of different splits (train, val and test); else for all, in any split. ``progress`` is called with (candidates
    compared, all).
    """
    raise NotImplementedError
