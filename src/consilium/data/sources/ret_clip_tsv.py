"""RET-CLIP files: images as base64 in a TSV, their texts in a JSONL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from consilium.data.case import BadRow, Case, RowError, View
from consilium.data.sources.config import RetClipTsvSource
from consilium.data.sources.jsonl import json_object
from consilium.data.sources.lines import numbered_lines, open_unpacked, short
from consilium.data.sources.ret_clip import PairText, eye_views, pair_reader, pair_text
from consilium.data.sources.rows import RowReader


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
    images = pair_reader(source, source.path)
    texts = _Texts()
    if source.texts is not None:
        yield from texts.read(pair_reader(source, source.texts))
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
                yield text.case(image_id, views, file=images.file, line=line)
    for image_id, wanted in texts.of_image.items():
        if image_id not in first_line:
            reason = f"image_ids names the image '{image_id}', which {source.path} does not have"
            yield from (text.reader.bad(text.line, reason) for text in wanted)


@dataclass
class _Texts:
    """All texts, by image id."""

    of_image: dict[str, list[PairText]] = field(default_factory=dict)

    def read(self, reader: RowReader) -> Iterator[BadRow]:
        """Collect the texts of a JSONL; its bad lines come back."""
        first_line: dict[str, int] = {}
        with open_unpacked(reader.file) as stream:
            for line, raw in numbered_lines(stream):
                try:
                    if raw is None or raw.strip():
                        self._add(pair_text(reader, line, json_object(short(raw))), first_line)
                except RowError as error:
                    yield reader.bad(line, str(error))

    def _add(self, text: PairText, first_line: dict[str, int]) -> None:
        if first_line.setdefault(text.name, text.line) != text.line:
            raise RowError(f"the text id '{text.name}' was given before, in line {first_line[text.name]}")
        for image_id in text.image_ids:
            self.of_image.setdefault(image_id, []).append(text)


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
    return image_id, eye_views(cells)
