"""RET-CLIP data as LMDB: what ``data export`` writes, and what RET-CLIP's and Chinese-CLIP's own programs wrote."""

from __future__ import annotations

from collections.abc import Iterator

from consilium.data.case import BadRow, Case, RowError
from consilium.data.sources.config import RetClipLmdbSource
from consilium.data.sources.lmdb_files import IMAGES, LmdbFolder, open_lmdb, pair_row
from consilium.data.sources.ret_clip import PAIR_KEYS, pair_reader, pair_text
from consilium.data.sources.rows import RowReader


def read_ret_clip_lmdb(source: RetClipLmdbSource) -> Iterator[Case | BadRow]:
    """The pairs of an LMDB, then its images that no pair names.

    Purpose: cases are those that ``ret_clip_tsv`` makes of the same data; their line is the number of the pair, from 1.
    A pair of other programs is a pickle of (image_id, text_id, text), an image base64 or a pickle of it: they are read
    instruction by instruction, and never unpickled. Memory: the ids, and one case. Errors: each bad pair or image is a
    BadRow; a database that is cut short or damaged is an OSError.
    """
    reader = pair_reader(source, source.path)
    with open_lmdb(reader.file) as opened:
        seen: set[bytes] = set()
        for line in range(1, opened.count + 1):
            try:
                yield _pair(reader, opened, line, seen)
            except RowError as error:
                yield reader.bad(line, str(error))
        alone = (key for key in opened.image_ids() if key not in seen)
        for line, key in enumerate(alone, start=opened.count + 1):
            try:
                image_id = _decoded(key)
                views = opened.views(image_id) or []
                yield reader.case({"id": image_id, "group_id": image_id}, line, views=views, texts=[])
            except RowError as error:
                yield reader.bad(line, f"the image {key[:40]!r}: {error}")


def _pair(reader: RowReader, opened: LmdbFolder, line: int, seen: set[bytes]) -> Case | BadRow:
    raw = opened.pair(line - 1)
    if raw is None:
        raise RowError(f"the pair {line - 1} of {opened.count:,} is missing; write the LMDB again from TSV and JSONL")
    text = pair_text(reader, line, pair_row(raw), needed=("text_id",) if opened.is_ours else PAIR_KEYS)
    if len(text.image_ids) > 1:
        raise RowError(f"the pair names {len(text.image_ids)} images; expected one")
    image_id = next(iter(text.image_ids), "")
    seen.add(image_id.encode())
    views = opened.views(image_id) if image_id else []
    if views is None:
        raise RowError(f"image_ids names the image '{image_id}', which {reader.file}/{IMAGES} does not have")
    return text.case(image_id, views, file=reader.file, line=line)


def _decoded(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise RowError("the id is not UTF-8 text") from None
