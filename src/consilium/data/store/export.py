"""The prepared cases as one file that other programs read, and that the kind of source named after its form reads."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from consilium.core.errors import DataError
from consilium.core.files import atomic_file, atomic_folder
from consilium.core.places import is_remote
from consilium.data.case import SPLITS
from consilium.data.sources.files import extension_of
from consilium.data.store.export_job import KEYS, ExportJob, Progress, json_line
from consilium.data.store.export_lmdb import StorePairs, write_lmdb
from consilium.data.store.export_names import hints
from consilium.data.store.export_ret_clip import note_what_is_lost, write_tsv
from consilium.data.store.store import CaseTable, Store

if TYPE_CHECKING:
    import pyarrow as pa

Form = Literal["jsonl", "parquet", "ret_clip_tsv", "ret_clip_lmdb"]
ENDINGS: Mapping[str, Form] = {
    ".jsonl": "jsonl", ".parquet": "parquet", ".tsv": "ret_clip_tsv", ".lmdb": "ret_clip_lmdb",
}  # fmt: skip
THERE_ALREADY = "the LMDB was there already and holds the same."
BATCH_ROWS, BATCH_BYTES = 1024, 64 * 2**20
_ENDINGS_BY_CONTENT = (
    (b"\xff\xd8\xff", ".jpg"), (b"\x89PNG", ".png"), (b"RIFF", ".webp"), (b"II*\0", ".tif"), (b"MM\0*", ".tif"),
    (b"BM", ".bmp"),
)  # fmt: skip
_OUR_IMAGE = re.compile(r"[0-9a-f]{32}(\.\w+)*")


@dataclass
class Exported:
    """The files (and the folder of images) that were written, and what the reader of them should know."""

    paths: list[Path]
    cases: int
    notes: list[str] = field(default_factory=list)


def form_of(out: str, form: str | None) -> Form:
    """The form that is asked for, or else that the ending of ``out`` means; another one is a DataError."""
    known = get_args(Form)
    if form is not None and form not in known:
        raise DataError(f"the format '{form}' is unknown; expected {', '.join(known)}.")
    found = form or ENDINGS.get(os.path.splitext(out)[1].lower())
    if found is None:
        raise DataError(f"the ending of {out} tells no format; expected {', '.join(ENDINGS)}, or give --format.")
    if is_remote(out):
        raise DataError(f"{out} is an address; export to a path of this machine and copy the file.")
    if found == "ret_clip_tsv" and os.path.splitext(out)[1].lower() == ".jsonl":
        raise DataError(f"{out} is where the texts of a RET-CLIP export go; give the TSV another ending.")
    return next(item for item in known if item == found)


def export(
    store: Store,
    out: Path,
    *,
    form: Form,
    cases: CaseTable | None = None,
    splits: Sequence[str] = SPLITS,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write the cases of a store that are in ``splits`` to ``out``; nothing new is there when it fails.

    ``cases`` are those of the store to choose from; None: all.

    - ``jsonl``: MultiMediset form. Embedded images become files in a folder beside ``out``, referenced ones are named
      by their path: relative to ``out`` where they lie below its folder, else absolute.
    - ``parquet``: also read by Hugging Face ``datasets``, with a column of images for each name of a view. Images are
      bytes where the store has them, else absolute paths.
    - ``ret_clip_tsv``: images as base64, and beside them the texts as ``.jsonl``. It holds one image, or a left and a
      right eye; other views are a DataError. DICOM and NIfTI become a PNG or TIFF without their header.
    - ``ret_clip_lmdb``: the same as a folder of two LMDB databases, without pickles, with what belongs to cases without
      a text. Interrupted, it goes on where it stopped; where the folder holds the same already, nothing is written.

    Errors: no case, or a file that exists (without ``overwrite``), is a DataError; an image that cannot be read is
    an ImageError.
    """
    job = ExportJob(
        store,
        _of_splits(store.table if cases is None else cases, splits),
        Path(os.path.abspath(out.expanduser())),
        progress,
    )
    if form == "ret_clip_lmdb":
        note_what_is_lost(job)
        if not write_lmdb(StorePairs(job), job.out, overwrite=overwrite, progress=progress):
            job.notes.append(THERE_ALREADY)
        return Exported([job.out], len(job.table), job.notes)
    paths = [job.out]
    if form == "ret_clip_tsv":
        paths.append(job.out.with_suffix(".jsonl"))
    elif form == "jsonl" and job.embedded:
        paths.append(job.image_folder)
    _check_free(paths, overwrite=overwrite)
    {"jsonl": _write_jsonl, "parquet": _write_parquet, "ret_clip_tsv": write_tsv}[form](job)
    return Exported(paths, len(job.table), job.notes)


def _of_splits(table: CaseTable, splits: Sequence[str]) -> CaseTable:
    for split in splits:
        if split not in SPLITS:
            raise DataError(f"the split '{split}' is unknown; expected {', '.join(SPLITS)}.")
    chosen = table.select(np.flatnonzero(np.isin(np.array(table.splits, dtype=object), list(splits))))
    if not len(chosen):
        there = ", ".join(f"{split} {count}" for split, count in sorted(Counter(table.splits).items()))
        raise DataError(f"there is nothing to export in {', '.join(splits)}; the cases are: {there or 'none'}.")
    return chosen


def _check_free(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse to replace what is there, and in any case what no export has made."""
    file, *others = paths
    if file.is_dir():
        raise DataError(f"{file} is a folder; give the path of a file.")
    for path in paths:
        if path.exists() and not overwrite:
            raise DataError(f"{path} exists; give another --out, or --overwrite to replace it.")
    for path in others:
        if path.is_dir():
            strange = [entry.name for entry in path.iterdir() if not _OUR_IMAGE.fullmatch(entry.name)]
            if strange:
                raise DataError(f"{path} holds '{strange[0]}', which no export wrote; give another --out.")


def _write_jsonl(job: ExportJob) -> None:
    job.notes += hints(job.text_columns, job.mask_columns)
    with contextlib.ExitStack() as stack:
        # What is entered last is finished first: the images are there when the file is.
        stream = stack.enter_context(atomic_file(job.out)).open("w", encoding="utf-8")
        stack.callback(stream.close)
        folder = stack.enter_context(atomic_folder(job.image_folder)) if job.embedded else job.image_folder
        for number, row in job.rows():
            modalities = []
            for name, path, image in job.views(number):
                if isinstance(image, bytes):
                    value = f"{job.image_folder.name}/{_written(image, path, folder)}"
                else:
                    value = job.relative(image)
                modalities.append({"type": "image", "value": value} | ({"name": name} if name else {}))
            stream.write(json_line({**row, **job.relative_masks(row), "modalities": modalities}))


def _written(image: bytes, path: str, folder: Path) -> str:
    """The name of the file in ``folder`` that holds an embedded image; equal images share one."""
    ending = next((ending for start, ending in _ENDINGS_BY_CONTENT if image.startswith(start)), "")
    name = f"{hashlib.sha256(image).hexdigest()[:32]}{ending or extension_of(path)}"
    if not (folder / name).exists():
        (folder / name).write_bytes(image)
    return name


def _write_parquet(job: ExportJob) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = _ViewColumns(job)
    job.notes += hints(job.text_columns, job.mask_columns)
    schema = columns.schema()
    waiting: list[dict[str, Any]] = []
    size = 0
    with atomic_file(job.out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for number, row in job.rows():
            views = job.views(number)
            waiting.append({**row, **columns.cells(views)})
            size += sum(len(image) for _, _, image in views if isinstance(image, bytes))
            if len(waiting) >= BATCH_ROWS or size >= BATCH_BYTES:
                writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
                waiting, size = [], 0
        if waiting:
            writer.write_table(pa.Table.from_pylist(waiting, schema=schema))


class _ViewColumns:
    """The columns of images of a parquet file: one for each name of a view, a list where a case has several of it."""

    def __init__(self, job: ExportJob) -> None:
        self.job = job
        rows, names = job.table.view_column("name")
        pairs = list(zip(rows.tolist(), names, strict=True))
        self.is_list = len(set(pairs)) < len(pairs)
        self.columns: dict[str, str] = {}
        taken = {*job.reserved, *job.meta_names.values()} - {"image"}
        for name in dict.fromkeys(names) or [""]:
            column = name or "image"
            while column in taken:
                column = f"view.{column}"
            taken.add(column)
            self.columns[name] = column
        if list(self.columns) != [""]:
            job.notes.append(f"read it with columns: {{image: [{', '.join(self.columns.values())}]}}.")

    def schema(self) -> pa.Schema:
        """The Arrow schema, with the features that ``datasets`` reads."""
        import pyarrow as pa

        text, image = {"dtype": "string", "_type": "Value"}, {"_type": "Image"}
        image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        several = self.job.several_labels
        named: dict[str, tuple[pa.DataType, Any]] = {
            column: (pa.list_(image_type), _list(image)) if self.is_list else (image_type, image)
            for column in self.columns.values()
        }
        texts, masks = self.job.text_columns.values(), self.job.mask_columns.values()
        named |= {key: (pa.string(), text) for key in ("id", *texts, *KEYS, *masks)}
        if self.job.several_texts:
            named |= {key: (pa.list_(pa.string()), _list(text)) for key in texts}
        named["is_gt"] = pa.bool_(), {"dtype": "bool", "_type": "Value"}
        named["label"] = (pa.list_(pa.string()), _list(text)) if several else (pa.string(), text)
        others = ["source"] if "source" in self.job.reserved else []
        named |= {name: (pa.string(), text) for name in [*others, *self.job.meta_names.values()]}
        features = {name: feature for name, (_, feature) in named.items()}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        return pa.schema([(name, kind) for name, (kind, _) in named.items()], metadata=metadata)

    def cells(self, views: Sequence[tuple[str, str, str | bytes]]) -> dict[str, Any]:
        """The images of a case by column."""
        cells: dict[str, list[dict[str, Any]]] = {}
        for name, path, image in views:
            # ``datasets`` opens a path from the working folder, so that only a whole one leads anywhere.
            is_path = isinstance(image, str)
            value = {"bytes": None, "path": image} if is_path else {"bytes": image, "path": os.path.basename(path)}
            cells.setdefault(self.columns[name], []).append(value)
        return dict(cells) if self.is_list else {column: found[0] for column, found in cells.items()}


def _list(feature: dict[str, Any]) -> dict[str, Any]:
    return {"feature": feature, "_type": "List"}
