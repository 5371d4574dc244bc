"""A TSV and JSONL of RET-CLIP as LMDB, row by row as they stand, without a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from consilium.core.errors import BadRowsError, DataError
from consilium.core.places import absolute, exists
from consilium.core.reporter import counted
from consilium.data.case import BadRow, RowError, scalar_text
from consilium.data.sources.config import RetClipTsvSource
from consilium.data.sources.lmdb_files import IMAGE_COUNT, LONGEST_KEY
from consilium.data.sources.ret_clip import PairText, eye_views
from consilium.data.sources.ret_clip_tsv import TsvRow, TsvTexts, tsv_rows
from consilium.data.store.export import THERE_ALREADY, Exported
from consilium.data.store.export_job import Progress, json_line
from consilium.data.store.export_lmdb import PairRow, write_lmdb

_SHOWN = 5  # bad rows that an error names


def export_tsv(tsv: str, out: Path, *, overwrite: bool = False, progress: Progress | None = None) -> Exported:
    """Write a TSV and the JSONL beside it as LMDB; read back, it gives the cases that ``ret_clip_tsv`` gives.

    The JSONL has the name of the TSV, or, as in RET-CLIP, ``train_texts.jsonl`` beside ``train_imgs.tsv``. Images are
    taken out of their base64 and not looked at; splits are those that the texts say. Memory: the texts. Errors: a bad
    row of either file is a BadRowsError before anything is written, base64 that is none a DataError that names it.
    """
    stem = tsv[: -len(".tsv")]
    names = dict.fromkeys(f"{name}.jsonl" for name in (stem, f"{stem.removesuffix('_imgs')}_texts"))
    texts = next((name for name in names if exists(absolute(name))), None)
    if not exists(absolute(tsv)):
        raise DataError(f"{tsv} does not exist; correct the path.")
    pairs = TsvPairs(RetClipTsvSource(kind="ret_clip_tsv", name="tsv", path=tsv, texts=texts))
    out = Path(absolute(str(out)))
    notes = [] if texts else [f"no texts were found: there is no {' and no '.join(names)}."]
    try:
        if not write_lmdb(pairs, out, overwrite=overwrite, progress=progress):
            notes.append(THERE_ALREADY)
    except RowError as error:
        raise DataError(f"{error}. Mend it, and run again: what was written so far is kept.") from None
    return Exported([out], len(pairs), notes)


class TsvPairs:
    """The pairs of a TSV and a JSONL in the order of the TSV; an image without a text is a pair without one."""

    def __init__(self, source: RetClipTsvSource) -> None:
        self._source, self._texts = source, TsvTexts(source)
        self.image_ids: list[bytes] = []
        self._count = 0
        bad = list(self._texts.bad)
        for row in tsv_rows(source, self._texts):
            if isinstance(row, BadRow):
                bad.append(row)
                continue
            key = row.image_id.encode()
            if len(key) > LONGEST_KEY or key == IMAGE_COUNT:
                what = f"the id '{row.image_id[:40]}' cannot stand in an LMDB; give a shorter or another one"
                bad.append(BadRow("tsv", source.path, row.line, what))
            elif not row.texts and not any(cell.strip() for cell in row.cells):
                bad.append(BadRow("tsv", source.path, row.line, "the row has neither an image nor a text"))
            self.image_ids.append(key)
            self._count += max(1, len(row.texts))
        if bad:
            shown = "".join(f"\n  - {row}" for row in bad[:_SHOWN])
            more = f"\n  ... and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
            raise BadRowsError(
                f"{counted(len(bad), 'row')} cannot be read:{shown}{more}\nMend them; or prepare the files by a config "
                "with data.on_bad_row: quarantine, and export that."
            )
        if not self._count:
            raise DataError(f"{source.path} holds no rows.")

    def __len__(self) -> int:
        return self._count

    def rows(self) -> Iterator[PairRow]:
        """The pairs, from the first."""
        for row in tsv_rows(self._source, self._texts):
            assert isinstance(row, TsvRow)  # there was none that is bad
            key, images = row.image_id.encode(), partial(self._images, row)
            if not row.texts:
                alone = {"id": row.image_id, "text_id": row.image_id, "image_ids": [row.image_id]}
                yield PairRow(json_line(alone)[:-1].encode(), key, images)
            for text in row.texts:
                yield PairRow(json_line(_pair(text, row.image_id))[:-1].encode(), key, images)

    def _images(self, row: TsvRow) -> Mapping[str, bytes]:
        try:
            return {view.name: view.data or b"" for view in eye_views(row.cells)}
        except RowError as error:
            raise RowError(f"{self._source.path}:{row.line}: {error}") from None


def _pair(text: PairText, image_id: str) -> dict[str, Any]:
    """The line of a text for one of its images; the mask's path holds wherever the LMDB is put."""
    row = {**text.row, "text": text.text, "text_id": scalar_text(text.row["text_id"], "text_id")}
    if text.row.get("id") is not None and not text.is_whole_id:
        row["id"] = f"{text.name}-{image_id}"
    if isinstance(mask := row.get("mask"), str) and mask.strip():
        row["mask"] = text.reader.path(mask.strip())
    return {**row, "image_ids": [image_id]}
