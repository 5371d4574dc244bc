"""What the files of RET-CLIP share: a text with its images' ids, their pairs as cases, images as base64."""

from __future__ import annotations

import binascii
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from consilium.data.case import BadRow, Case, RowError, Text, View, printable, scalar_text
from consilium.data.sources.config import JsonlSource, RetClipLmdbSource, RetClipTsvSource
from consilium.data.sources.rows import RowReader

PAIR_KEYS = ("text_id", "text", "image_ids")
_DIGITS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")


def pair_reader(source: RetClipTsvSource | RetClipLmdbSource, path: str) -> RowReader:
    """Reads the further keys of a text as jsonl does."""
    like_jsonl = JsonlSource(name=source.name, path=path, split=source.split, label_prefix=source.label_prefix)
    return RowReader(like_jsonl, also_used=frozenset({"text_id", "image_ids"}), has_null=True)


@dataclass(frozen=True, slots=True)
class PairText:
    """A text and the images that it belongs to; ``name`` is the id of its case, but for the image's part where there
    are several."""

    reader: RowReader
    line: int
    row: dict[str, Any]
    text: str
    name: str
    image_ids: tuple[str, ...]
    is_whole_id: bool

    def case(self, image_id: str, views: list[View], *, file: str, line: int) -> Case | BadRow:
        """The case of the text and an image; what is wrong with its image later is said of ``line`` in ``file``."""
        name = self.name if self.is_whole_id else f"{self.name}-{image_id}"
        group = scalar_text(self.row.get("group_id"), "group_id") or image_id
        texts = [Text(self.text)] if self.text else []
        try:
            case = self.reader.case({**self.row, "id": name, "group_id": group}, self.line, views=views, texts=texts)
        except RowError as error:
            return self.reader.bad(self.line, str(error))
        case.file, case.line = file, line
        return case


def pair_text(reader: RowReader, line: int, row: dict[str, Any], *, needed: Collection[str] = PAIR_KEYS) -> PairText:
    """The text that a row holds; one that lacks a ``needed`` key is a RowError."""
    text_id, own_id = (scalar_text(row.get(key), key) for key in ("text_id", "id"))
    given = row.get("image_ids")
    image_ids = dict.fromkeys(
        scalar_text(item, "an image id") for item in (given if isinstance(given, list) else [given])
    )
    image_ids.pop("", None)
    text = scalar_text(row.get("text"), "text")
    for key, value in zip(PAIR_KEYS, (text_id, text, image_ids), strict=True):
        if not value and key in needed:
            raise RowError(f"the row has no {key}; expected {{{', '.join(PAIR_KEYS)}}}")
    whole = bool(own_id) and len(image_ids) <= 1
    return PairText(reader, line, row, text, own_id or text_id, tuple(image_ids), is_whole_id=whole)


def eye_views(cells: Sequence[bytes], *, called: str = "column", first: int = 2) -> list[View]:
    """The images that cells of base64 hold: one, or a left and a right eye, of which an empty cell is missing.

    An error names a cell by what cells are ``called`` and its number, of which the lowest is ``first``.
    """
    names = ("left", "right") if len(cells) == 2 else ("",)
    return [
        View("", name, _decoded(cell, f"{called} {number}"))
        for number, (name, cell) in enumerate(zip(names, cells, strict=True), start=first)
        if cell.strip()
    ]


def _decoded(cell: bytes, name: str) -> bytes:
    """The bytes that a cell of base64, in either alphabet, holds."""
    cell = cell.strip().rstrip(b"=")
    if b"-" in cell or b"_" in cell:
        cell = cell.translate(_STANDARD_ALPHABET)
    try:
        if other := cell.translate(None, _DIGITS):  # which a lenient reader, twice as fast, would pass over
            raise binascii.Error(f"it has {printable(other[:1].decode('ascii', 'backslashreplace'))}")
        return binascii.a2b_base64(cell + b"=" * (-len(cell) % 4))
    except binascii.Error as error:
        shown = printable(cell[:20].decode("ascii", "backslashreplace"))
        raise RowError(f"{name} is no base64 ({error}): it begins with '{shown}'") from None
