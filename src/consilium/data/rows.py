"""Rows of images that are not a case table, in a module that a decoding process imports quickly."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from consilium.data.in_memory import View, as_file, is_tensor, name_of

if TYPE_CHECKING:
    from consilium.data.store import CaseTable

Item: TypeAlias = "View | Sequence[View]"


def is_one_item(given: object) -> bool:
    """Whether something stands for one case; else it is a collection of them: a list, an array of images, a generator.

    What is no image is one case too, whose record says so.
    """
    if isinstance(given, np.ndarray):
        return given.ndim != 4 and (given.ndim == 0 or given.dtype.kind not in "OU")
    one = isinstance(given, str | bytes | bytearray | memoryview | os.PathLike | Mapping | io.IOBase)
    return one or not isinstance(given, Iterable) or is_tensor(given)


@dataclass(frozen=True)
class Items:
    """Paths, bytes, Pillow images and arrays as rows of images."""

    items: Sequence[Item]

    def images(self, row: int) -> list[str | bytes]:
        """The views of an item; one that is no image is an ImageError."""
        return [as_file(view) for view in _views(self.items[row])]

    def name(self, row: int) -> Any:
        """What an answer calls an item."""
        names = [name_of(view) for view in _views(self.items[row])]
        return names[0] if len(names) == 1 else names

    def in_memory(self) -> bool:
        """Whether a list holds more than paths and bytes: pixels, which are decoded already, or a file that is open.

        Another sequence is not looked through, since it may read its items when they are asked for.
        """
        plain = (str, bytes, os.PathLike, int, float, type(None))
        return isinstance(self.items, list | tuple) and not all(
            isinstance(view, plain) for item in self.items for view in _views(item)
        )


def _views(item: object) -> list[object]:
    """The views of a case: those of a list or tuple (of numbers or lists it is none), else the item itself."""
    if isinstance(item, list | tuple) and not any(isinstance(view, list | tuple | int | float) for view in item):
        return list(item)
    return [item]


class FoundItems(Sequence[Item]):
    """Images by number; those that a store holds are read when they are asked for, since together they may be large.

    ``skipped`` counts what was found and left aside, by reason.
    """

    def __init__(self) -> None:
        self._found: list[str | tuple[CaseTable, int]] = []
        self.skipped: Counter[str] = Counter()

    def add(self, found: Iterable[str | tuple[CaseTable, int]]) -> None:
        """Append paths, or rows of a store."""
        self._found.extend(found)

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, number: Any) -> Any:
        found = self._found[number]
        return found if isinstance(found, str) else found[0].images(found[1])


@dataclass(frozen=True)
class SingleViews:
    """Single views of cases as rows of images; ``numbers`` says which view of its case each is."""

    table: CaseTable
    cases: np.ndarray
    numbers: np.ndarray

    def images(self, row: int) -> list[str | bytes]:
        """The one view of a row."""
        return [self.table.images(int(self.cases[row]))[int(self.numbers[row])]]
