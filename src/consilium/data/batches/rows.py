"""Rows of images and texts that are not a case table, in a module that a decoding process imports quickly."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from consilium.core.errors import ImageError
from consilium.core.reporter import counted, some
from consilium.data.case import looks_missing, meta_text
from consilium.data.images.in_memory import View, as_file, is_tensor, name_of

if TYPE_CHECKING:
    from consilium.data.store.store import CaseTable


@dataclass(frozen=True)
class Query:
    """What a task is asked about: an image (or a list of views, or views by name), a text, metadata by column.

    Each may be left out, but not all of them; so may single columns.
    """

    image: View | Sequence[View] | Mapping[str, View] | None = None
    text: str | None = None
    metadata: Mapping[str, Any] | None = None


Item: TypeAlias = "View | Sequence[View] | Mapping[str, View] | Query"


def is_one_item(given: object) -> bool:
    """Whether something stands for one case; else it is a collection of them: a list, an array of images, a generator.

    What is no image is one case too, whose record says so.
    """
    if isinstance(given, np.ndarray):
        return given.ndim != 4 and (given.ndim == 0 or given.dtype.kind not in "OU")
    one = isinstance(given, str | bytes | bytearray | memoryview | os.PathLike | Mapping | io.IOBase | Query)
    return one or not isinstance(given, Iterable) or is_tensor(given)


@dataclass(frozen=True)
class Items:
    """Paths, bytes, Pillow images, arrays and queries as rows of images and texts.

    ``names`` are those of the views that the task tells apart, in their order; (): it takes them as they come.
    ``columns`` are those of the metadata that it reads.
    """

    items: Sequence[Item]
    names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def images(self, row: int) -> list[str | bytes | None]:
        """The views of an item, with ``names`` in the order of these; one that is no image is an ImageError."""
        item = self._item(row)
        if isinstance(item, Query) and not self.metadata(row) and item.image is None and not item.text:
            raise ImageError(f"the query has neither an image nor a text{', nor metadata' if self.columns else ''}.")
        views = _by_name(item, self.names) if self.names else _views(item)
        return [None if view is None and self.names else as_file(view) for view in views]

    @property
    def most_captions(self) -> int:
        """A query has one text."""
        return 1

    def captions(self, row: int) -> list[str]:
        """The text of a query, or none."""
        item = self.items[row]
        return [item.text] if isinstance(item, Query) and item.text else []

    def metadata(self, row: int) -> dict[str, str]:
        """The metadata of a query, without what is missing; a column that the task does not read is an ImageError."""
        item = self.items[row]
        given = (item.metadata if isinstance(item, Query) else None) or {}
        if not isinstance(given, Mapping):
            raise ImageError(
                f"the metadata of the query are a {type(given).__name__}; expected values by column, as in "
                '{"age": 70, "sex": "female"}.'
            )
        if unknown := [name for name in given if name not in self.columns]:
            known = f"the columns are {', '.join(self.columns)}" if self.columns else "this model reads none"
            raise ImageError(f"there is no metadata column called {some([str(name) for name in unknown], 3)}; {known}.")
        return {name: text for name, value in given.items() if (text := meta_text(value)) and not looks_missing(text)}

    def key(self, row: int) -> dict[str, Any]:
        """What an answer calls an item: its image, its text, its metadata."""
        item = self._item(row)
        names = [name_of(view) for view in _views(item)]
        image: dict[str, Any] = {"image": names[0] if len(names) == 1 else names}
        if not isinstance(item, Query):
            return image
        named = {} if item.image is None else image
        if item.text:
            named["text"] = item.text
        if isinstance(item.metadata, Mapping) and item.metadata:
            named["metadata"] = {str(name): meta_text(value) for name, value in item.metadata.items()}
        return named

    def _item(self, row: int) -> Item:
        """An item; views by their names are a query about an image."""
        item = self.items[row]
        return Query(item) if self.names and isinstance(item, Mapping) else item

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
    if isinstance(item, Query):
        if isinstance(item.image, Mapping):
            return list(item.image.values())
        return [] if item.image is None else _views(item.image)
    if isinstance(item, list | tuple) and not any(isinstance(view, list | tuple | int | float) for view in item):
        return list(item)
    return [item]


def _by_name(item: object, names: tuple[str, ...]) -> list[object]:
    """The views of a case in the order of their names, None where one is missing; nameless ones are all there."""
    given = item.image if isinstance(item, Query) else item
    if given is None:
        return [None] * len(names)
    if isinstance(given, Mapping):
        if unknown := sorted(set(given) - set(names)):
            raise ImageError(f"there is no view called {some(unknown, 3)}; the views are {', '.join(names)}.")
        if all(view is None for view in given.values()):
            raise ImageError(f"the case has no view; the views are {', '.join(names)}.")
        return [given.get(name) for name in names]
    views = _views(given)
    if len(views) != len(names):
        example = ", ".join(f"'{name}': ..." for name in names)
        raise ImageError(
            f"{counted(len(views), 'image')} without a name, of a case whose views are {', '.join(names)}: say which "
            f"is which, as {{{example}}}, and leave out what is missing."
        )
    return views


class FoundItems(Sequence[Item]):
    """Paths, and cases of stores as queries, which are read when they are asked for: together they may be large.

    ``skipped`` counts what was found and left aside, by reason. ``names`` are the views of a store that are read; ():
    all. ``columns`` are those of the metadata that are read.
    """

    names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._found: list[str | Query | tuple[CaseTable, int]] = []
        self.skipped: Counter[str] = Counter()

    def add(self, found: Iterable[str | Query | tuple[CaseTable, int]]) -> None:
        """Append paths, queries, or rows of a store."""
        self._found.extend(found)

    def notes(self, *, texts: bool) -> list[str]:
        """What to say of the cases of tables and stores; ``texts``: whether the task reads texts."""
        cases = [found for found in self._found if not isinstance(found, str)]
        stored = [found for found in cases if isinstance(found, tuple)]
        several = sum(len(table.captions(row)) > 1 for table, row in stored) if texts else 0
        notes = [f"{counted(several, 'case')} with several texts: the answer is about the first."] if several else []
        if self.columns and cases:
            given = {name for found in cases if isinstance(found, Query) for name in found.metadata or ()}
            given.update(*(table.metadata(row) for table, row in stored))
            if absent := [name for name in self.columns if name not in given]:
                notes.append(f"no case has metadata of {some(absent, 5)}; it is missing everywhere.")
        return notes

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, number: Any) -> Any:
        found = self._found[number]
        if isinstance(found, tuple):
            table, row = found
            metadata = table.metadata(row) if self.columns else None
            found = Query(views_of(table, row, self.names), table.texts[row], metadata)
        if isinstance(found, Query) and found.metadata:
            own = {name: found.metadata[name] for name in self.columns if name in found.metadata}
            found = replace(found, metadata=own)
        return found


def views_of(table: CaseTable, row: int, names: tuple[str, ...] = ()) -> list[str | bytes] | dict[str, str | bytes]:
    """The views of a case of a store, by their names where each has one of its own; with ``names`` those alone."""
    own, images = table.view_names(row), table.images(row)
    if not all(own) or len(set(own)) < len(own):
        return images
    return {name: image for name, image in zip(own, images, strict=True) if not names or name in names}


@dataclass(frozen=True)
class SingleTexts:
    """Single texts as rows of texts."""

    texts: Sequence[str]

    def __len__(self) -> int:
        return len(self.texts)

    def drawn(self, row: int) -> list[str]:
        """The one text of a row."""
        return [self.texts[row]]


@dataclass(frozen=True)
class SingleViews:
    """Single views of cases as rows of images; ``numbers`` says which view of its case each is."""

    table: CaseTable
    cases: np.ndarray
    numbers: np.ndarray

    def images(self, row: int) -> list[str | bytes]:
        """The one view of a row."""
        return [self.table.images(int(self.cases[row]))[int(self.numbers[row])]]
