"""RET-CLIP files: images as base64 in a TSV, their texts in a JSONL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from consilium.data.case import BadRow, Case, RowError
from consilium.data.sources.config import RetClipTsvSource
from consilium.data.sources.jsonl import json_object
from consilium.data.sources.lines import numbered_lines, open_unpacked, short
from consilium.data.sources.ret_clip import PairText, eye_views, pair_reader, pair_text


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
    images, texts = pair_reader(source, source.path), TsvTexts(source)
    yield from texts.bad
    for row in tsv_rows(source, texts):
        if isinstance(row, BadRow):
            yield row
            continue
        image_id, line = row.image_id, row.line
        try:
            views = eye_views(row.cells)
            if not row.texts:
                yield images.case({"id": image_id, "group_id": image_id}, line, views=views, texts=[])
        except RowError as error:
            yield images.bad(line, str(error))
            continue
        for text in row.texts:
            yield text.case(image_id, views, file=images.file, line=line)


@dataclass(frozen=True, slots=True)
class TsvRow:
    """A line of the TSV: its id, its cells of base64 as they stand there, and the texts that name it."""

    line: int
    image_id: str
    cells: list[bytes]
    texts: list[PairText]


def tsv_rows(source: RetClipTsvSource, texts: TsvTexts) -> Iterator[TsvRow | BadRow]:
    """The lines of the TSV, whose base64 is not looked at, each with its texts; and texts whose image is not there."""
    images = pair_reader(source, source.path)
    first_line: dict[str, int] = {}
    with open_unpacked(images.file) as stream:
        for line, raw in numbered_lines(stream):
            if raw is not None and not raw.strip():
                continue
            try:
                image_id, cells = _image_row(raw)
                if first_line.setdefault(image_id, line) != line:
                    raise RowError(f"the image id '{image_id}' was given before, in line {first_line[image_id]}")
            except RowError as error:
                yield images.bad(line, str(error))
                continue
            yield TsvRow(line, image_id, cells, texts.of_image.get(image_id, []))
    for image_id, wanted in texts.of_image.items():
        if image_id not in first_line:
            reason = f"image_ids names the image '{image_id}', which {source.path} does not have"
            yield from (text.reader.bad(text.line, reason) for text in wanted)


class TsvTexts:
    """All texts of a JSONL, by image id, and its bad lines; none where the source names no JSONL."""

    def __init__(self, source: RetClipTsvSource) -> None:
        self.of_image: dict[str, list[PairText]] = {}
        self.bad: list[BadRow] = []
        if source.texts is None:
            return
        reader, first_line = pair_reader(source, source.texts), dict[str, int]()
        with open_unpacked(reader.file) as stream:
            for line, raw in numbered_lines(stream):
                try:
                    if raw is None or raw.strip():
                        self._add(pair_text(reader, line, json_object(short(raw))), first_line)
                except RowError as error:
                    self.bad.append(reader.bad(line, str(error)))

    def _add(self, text: PairText, first_line: dict[str, int]) -> None:
        if first_line.setdefault(text.name, text.line) != text.line:
            raise RowError(f"the text id '{text.name}' was given before, in line {first_line[text.name]}")
        for image_id in text.image_ids:
            self.of_image.setdefault(image_id, []).append(text)


def _image_row(raw: bytes | None) -> tuple[str, list[bytes]]:
    """The id and the cells of a TSV line."""
    head, *cells = short(raw).rstrip(b"\r\n").split(b"\t")
    try:
        image_id = head.decode().strip()
    except UnicodeDecodeError:
        raise RowError("the id is not UTF-8 text") from None
    if len(cells) not in (1, 2):
        raise RowError(f"the line has {len(cells) + 1} columns; expected id<TAB>left<TAB>right, or id<TAB>image")
    if not image_id:
        raise RowError("the line has no id in its first column")
    return image_id, cells
