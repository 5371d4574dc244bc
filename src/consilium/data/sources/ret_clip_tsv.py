"""RET-CLIP files: images as base64 in a TSV, their texts in a JSONL."""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from consilium.data.case import BadRow, Case, RowError, Text, View, printable, scalar_text
from consilium.data.sources.config import JsonlSource, RetClipTsvSource
from consilium.data.sources.jsonl import json_object
from consilium.data.sources.lines import numbered_lines, open_unpacked, short
from consilium.data.sources.rows import RowReader

_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")


def read_ret_clip_tsv(source: RetClipTsvSource) -> Iterator[Case | BadRow]:
    """The pairs of a RET-CLIP TSV and JSONL.

    Purpose: a TSV line is ``id<TAB>left<TAB>right`` (views named left and right; an empty cell is a missing eye) or
    ``id<TAB>image``, in either alphabet of base64, with or without padding. A JSONL line is
    ``{text_id, text, image_ids}``: each pair of a text and an image is a case ``{text_id}-{image_id}``, an image
    without a text is a case without text. The image id is the group. Further keys of a text are read as in ``jsonl``
    (label, split, is_gt, mask; others are metadata), ``group_id`` stands for the image id, and ``id`` for the text id,
    or for the whole id where the text has one image. Memory: the texts, and one line of the TSV at a time. Errors:
    each bad line of either file is a BadRow, as is a text for each of its images that the TSV does not have.
    """
    images = _reader(source, source.path)
    texts = _Texts()
    if source.texts is not None:
        yield from texts.read(_reader(source, source.texts))
    first_line: dict[str, int] = {}
    with open_unpacked(images.file) as stream:
        for line, raw in numbered_lines(stream):
            if raw is not None and not raw.strip():
                continue
            try:
                image_id, views = _image_row(raw)
                if first_line.setdefault(image_id, line) != line:
                    raise RowError(f"the image id '{image_id}' was given before, in line {first_line[image_id]}")
                wanted = texts.of_image.get(image_id, [])
                if not wanted:
                    yield images.case({"id": image_id, "group_id": image_id}, line, views=views, texts=[])
            except RowError as error:
                yield images.bad(line, str(error))
                continue
            for text in wanted:
                yield _pair(text, image_id, views, file=images.file, line=line)
    for image_id, wanted in texts.of_image.items():
        if image_id not in first_line:
            reason = f"image_ids names the image '{image_id}', which {source.path} does not have"
            yield from (text.reader.bad(text.line, reason) for text in wanted)


@dataclass(frozen=True, slots=True)
class _Text:
    """A line of the JSONL; ``name`` is the id of its case, but for the image's part where there are several."""

    reader: RowReader
    line: int
    row: dict[str, Any]
    text: str
    name: str
    is_whole_id: bool


@dataclass
class _Texts:
    """All texts, by image id."""

    of_image: dict[str, list[_Text]] = field(default_factory=dict)

    def read(self, reader: RowReader) -> Iterator[BadRow]:
        """Collect the texts of a JSONL; its bad lines come back."""
        first_line: dict[str, int] = {}
        with open_unpacked(reader.file) as stream:
            for line, raw in numbered_lines(stream):
                try:
                    if raw is None or raw.strip():
                        self._add(reader, line, json_object(short(raw)), first_line)
                except RowError as error:
                    yield reader.bad(line, str(error))

    def _add(self, reader: RowReader, line: int, row: dict[str, Any], first_line: dict[str, int]) -> None:
        text_id, own_id = (scalar_text(row.get(key), key) for key in ("text_id", "id"))
        given = row.get("image_ids")
        image_ids = dict.fromkeys(
            scalar_text(item, "an image id") for item in (given if isinstance(given, list) else [given])
        )
        image_ids.pop("", None)
        text = scalar_text(row.get("text"), "text")
        for key, value in (("text_id", text_id), ("text", text), ("image_ids", image_ids)):
            if not value:
                raise RowError(f"the row has no {key}; expected {{text_id, text, image_ids}}")
        name = own_id or text_id
        if first_line.setdefault(name, line) != line:
            raise RowError(f"the text id '{name}' was given before, in line {first_line[name]}")
        found = _Text(reader, line, row, text, name, is_whole_id=bool(own_id) and len(image_ids) == 1)
        for image_id in image_ids:
            self.of_image.setdefault(image_id, []).append(found)


def _reader(source: RetClipTsvSource, path: str) -> RowReader:
    """Reads the further keys of a row as jsonl does."""
    like_jsonl = JsonlSource(name=source.name, path=path, split=source.split, label_prefix=source.label_prefix)
    return RowReader(like_jsonl, also_used=frozenset({"text_id", "image_ids"}), has_null=True)


def _pair(text: _Text, image_id: str, views: list[View], *, file: str, line: int) -> Case | BadRow:
    """The case of a text and an image; what is wrong with its image later is said of the image's line."""
    name = text.name if text.is_whole_id else f"{text.name}-{image_id}"
    group = scalar_text(text.row.get("group_id"), "group_id") or image_id
    try:
        case = text.reader.case(
            {**text.row, "id": name, "group_id": group}, text.line, views=views, texts=[Text(text.text)]
        )
    except RowError as error:
        return text.reader.bad(text.line, str(error))
    case.file, case.line = file, line
    return case


def _image_row(raw: bytes | None) -> tuple[str, list[View]]:
    """The id and the images of a TSV line."""
    head, *cells = short(raw).rstrip(b"\r\n").split(b"\t")
    try:
        image_id = head.decode().strip()
    except UnicodeDecodeError:
        raise RowError("the id is not UTF-8 text") from None
    if len(cells) not in (1, 2):
        raise RowError(f"the line has {len(cells) + 1} columns; expected id<TAB>left<TAB>right, or id<TAB>image")
    if not image_id:
        raise RowError("the line has no id in its first column")
    names = ("left", "right") if len(cells) == 2 else ("",)
    views = [
        View("", name, _decoded(cell, number))
        for number, (name, cell) in enumerate(zip(names, cells, strict=True), start=2)
        if cell.strip()
    ]
    return image_id, views


def _decoded(cell: bytes, column: int) -> bytes:
    """The bytes that a cell of base64 holds."""
    cell = cell.strip().rstrip(b"=").translate(_STANDARD_ALPHABET)
    try:
        return binascii.a2b_base64(cell + b"=" * (-len(cell) % 4), strict_mode=True)
    except binascii.Error as error:
        shown = printable(cell[:20].decode("ascii", "backslashreplace"))
        raise RowError(f"column {column} is no base64 ({error}): it begins with '{shown}'") from None
