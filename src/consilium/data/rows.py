"""Rows of images that are not a case table, in a module that a decoding process imports quickly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from consilium.data.store import CaseTable

Item = str | Path | bytes | Sequence[str | Path | bytes]


@dataclass(frozen=True)
class Items:
    """Paths and bytes as rows of images."""

    items: Sequence[Item]

    def images(self, row: int) -> list[str | bytes]:
        """The views of an item."""
        item = self.items[row]
        views = [item] if isinstance(item, str | Path | bytes) else list(item)
        return [str(view) if isinstance(view, Path) else view for view in views]

    def name(self, row: int) -> Any:
        """What an answer calls an item."""
        names = [view if isinstance(view, str) else f"bytes[{len(view)}]" for view in self.images(row)]
        return names[0] if len(names) == 1 else names


class FoundItems(Sequence[Item]):
    """Images by number; those that a store holds are read when they are asked for, since together they may be large."""

    def __init__(self) -> None:
        self._found: list[str | tuple[CaseTable, int]] = []

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
