"""The prepared cases as one file that other programs read, and that the kind of source named after its form reads."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from consilium.core.errors import DataError
from consilium.core.files import atomic_file, atomic_folder
from consilium.core.places import is_remote
from consilium.data.case import SPLITS, Text
from consilium.data.images.reading import alone, read_bytes
from consilium.data.sources.files import extension_of
from consilium.data.store.export_names import hints, mask_columns, text_columns
from consilium.data.store.store import CaseTable, Store

if TYPE_CHECKING:
    import pyarrow as pa

Form = Literal["jsonl", "parquet", "ret_clip_tsv"]
ENDINGS: Mapping[str, Form] = {".jsonl": "jsonl", ".parquet": "parquet", ".tsv": "ret_clip_tsv"}
BATCH_ROWS, BATCH_BYTES = 1024, 64 * 2**20
_KEYS = ("label", "split", "group_id", "is_gt")
_RESERVED = frozenset({"id", *_KEYS, "text", "mask", "image", "modalities", "conversations", "text_id", "image_ids"})
_ENDINGS_BY_CONTENT = (
    (b"\xff\xd8\xff", ".jpg"), (b"\x89PNG", ".png"), (b"RIFF", ".webp"), (b"II*\0", ".tif"), (b"MM\0*", ".tif"),
    (b"BM", ".bmp"),
)  # fmt: skip
_OUR_IMAGE = re.compile(r"[0-9a-f]{32}(\.\w+)*")
Progress = Callable[[int, int | None], None]


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
    """Write the cases of a store that are in ``splits`` to ``out``; nothing new is left there when it fails.

    ``cases`` are those of the store to choose from; None: all.

    - ``jsonl``: MultiMediset form. Embedded images become files in a folder beside ``out``, referenced ones are named
      by their path: relative to ``out`` where they lie below its folder, else absolute.
    - ``parquet``: also read by Hugging Face ``datasets``, with a column of images for each name of a view. Images are
      bytes where the store has them, else absolute paths.
    - ``ret_clip_tsv``: images as base64, and beside them the texts as ``.jsonl``. It holds one image, or a left and a
      right eye; other views are a DataError. DICOM and NIfTI become a PNG or TIFF without their header.

    Errors: no case, or a file that exists (without ``overwrite``), is a DataError; an image that cannot be read is
    an ImageError.
    """
    job = _Job(
        store,
        _of_splits(store.table if cases is None else cases, splits),
        Path(os.path.abspath(out.expanduser())),
        progress,
    )
    paths = [job.out]
    if form == "ret_clip_tsv":
        paths.append(job.out.with_suffix(".jsonl"))
    elif form == "jsonl" and job.embedded:
        paths.append(job.image_folder)
    _check_free(paths, overwrite=overwrite)
    {"jsonl": _write_jsonl, "parquet": _write_parquet, "ret_clip_tsv": _write_ret_clip}[form](job)
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


class _Job:
    """What all forms share: the values of a row beside its images, by the names that are read back."""

    def __init__(self, store: Store, table: CaseTable, out: Path, progress: Progress | None) -> None:
        self.embedded, self.max_pixels = store.manifest.images == "embed", store.manifest.max_pixels
        self.table, self.out, self._progress = table, out, progress
        self.image_folder = out.with_name(f"{out.stem}_images")
        self.notes: list[str] = []
        self.several_labels = any(len(labels) > 1 for labels in table.labels)
        self.several_texts = any(len({text.name for text in own}) < len(own) for own in table.named_texts)
        several_sources = len(set(table.sources)) > 1
        # Ids are unique within a source only.
        self.prefix_ids = several_sources and len(set(table.ids)) < len(table)
        reserved = _RESERVED | ({"source"} if several_sources else set())
        self.text_columns = text_columns(table, taken=reserved)
        self.mask_columns = mask_columns(table, taken=reserved.union(self.text_columns.values()))
        self.reserved = reserved.union(self.text_columns.values(), self.mask_columns.values())
        self.meta_names = self._meta_names()
        if several_sources:
            self.notes.append("the cases come from several sources; each names its own in `source`.")
        if self.prefix_ids:
            self.notes.append("some sources use the same ids; each id has its source in front.")

    def _meta_names(self) -> dict[str, str]:
        """Metadata keys as they are written: one that has the name of another value becomes ``meta.{key}``."""
        keys = sorted({key for meta in self.table.metas for key in meta})
        names: dict[str, str] = {}
        for key in keys:
            name = key
            while name in self.reserved or (name != key and name in keys):
                name = f"meta.{name}"
            names[key] = name
            if name != key:
                self.notes.append(f"the metadata '{key}' is called '{name}'.")
        return names

    def row(self, row: int) -> dict[str, Any]:
        """The values of a case, None where it has none; masks by their whole path."""
        table = self.table
        source, labels = table.sources[row], table.labels[row]
        values: dict[str, Any] = {
            "id": f"{source}:{table.ids[row]}" if self.prefix_ids else table.ids[row],
            **dict.fromkeys(self.text_columns.values()),
            **self._texts(table.named_texts[row]),
            "label": list(labels) if self.several_labels else next(iter(labels), None),
            "split": table.splits[row],
            "group_id": table.groups[row],
            "is_gt": bool(table.is_gt[row]),
            **dict.fromkeys(self.mask_columns.values()),
            **{self.mask_columns[mask.name, mask.annotator]: mask.image for mask in table.masks[row]},
        }
        if "source" in self.reserved:
            values["source"] = source
        return values | {self.meta_names[key]: value for key, value in table.metas[row].items()}

    def _texts(self, texts: Sequence[Text]) -> dict[str, Any]:
        """The texts of a case by column; lists where a case has several of one name."""
        found: dict[str, list[str]] = {}
        for text in texts:
            found.setdefault(self.text_columns[text.name], []).append(text.text)
        return dict(found) if self.several_texts else {column: own[0] for column, own in found.items()}

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Every case with its number."""
        for row in range(len(self.table)):
            yield row, self.row(row)
            if self._progress is not None:
                self._progress(row + 1, len(self.table))

    def views(self, row: int) -> list[tuple[str, str, str | bytes]]:
        """(name, path, path or embedded bytes) of the images of a case."""
        table = self.table
        return list(zip(table.view_names(row), table.image_names(row), table.images(row), strict=True))

    def relative_masks(self, row: Mapping[str, Any]) -> dict[str, str]:
        """The masks of a row as the file names them."""
        return {column: self.relative(row[column]) for column in self.mask_columns.values() if row[column]}

    def relative(self, path: str) -> str:
        """A path as the file names it: from its own folder where it lies below that, else as it is."""
        folder = f"{self.out.parent}/".replace("//", "/")
        shorter = path.removeprefix(folder)
        return shorter if shorter == shorter.strip() else path


def _write_jsonl(job: _Job) -> None:
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
            stream.write(_json_line({**row, **job.relative_masks(row), "modalities": modalities}))


def _json_line(row: Mapping[str, Any]) -> str:
    return json.dumps({key: value for key, value in row.items() if value is not None}, ensure_ascii=False) + "\n"


def _written(image: bytes, path: str, folder: Path) -> str:
    """The name of the file in ``folder`` that holds an embedded image; equal images share one."""
    ending = next((ending for start, ending in _ENDINGS_BY_CONTENT if image.startswith(start)), "")
    name = f"{hashlib.sha256(image).hexdigest()[:32]}{ending or extension_of(path)}"
    if not (folder / name).exists():
        (folder / name).write_bytes(image)
    return name


def _write_parquet(job: _Job) -> None:
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

    def __init__(self, job: _Job) -> None:
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
        named |= {key: (pa.string(), text) for key in ("id", *texts, *_KEYS, *masks)}
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


def _write_ret_clip(job: _Job) -> None:
    keys = _image_keys(job)
    written: set[str] = set()
    without_text = 0
    if hints(job.text_columns, job.mask_columns):
        job.notes.append("the form holds one text of a case, the first, and one mask; all others become metadata.")
    if job.several_texts:
        job.notes.append("of several texts of one name the form holds the first; jsonl and parquet hold all.")
    with (
        atomic_file(job.out.with_suffix(".jsonl")) as texts_path,
        atomic_file(job.out) as images_path,
        texts_path.open("w", encoding="utf-8") as texts,
        images_path.open("wb") as images,
    ):
        for number, row in job.rows():
            image_id = keys[number]
            if image_id not in written:
                written.add(image_id)
                images.write(b"\t".join([image_id.encode(), *_eyes(job, number)]) + b"\n")
            first = next(iter(job.table.named_texts[number]), None)
            if first is None:
                without_text += 1
                continue
            row |= {job.text_columns[first.name]: None, **job.relative_masks(row)}
            texts.write(_json_line({**row, "text_id": number + 1, "image_ids": [int(image_id)], "text": first.text}))
    if without_text == len(job.table):
        job.notes.append("no case has a text: read the TSV without texts. Labels, splits and metadata are left out.")
    elif without_text:
        job.notes.append(
            f"{without_text} cases have no text: the form holds their images alone, without label, split or metadata."
        )


def _image_keys(job: _Job) -> list[str]:
    """A number for the images of each case (programs of this form expect one); the same images get the same."""
    rows, names = job.table.view_column("name")
    _, digests = job.table.view_column("sha256")
    content: list[list[str]] = [[] for _ in range(len(job.table))]
    for row, name, digest in zip(rows.tolist(), names, digests, strict=True):
        content[row].append(f"{name}:{digest}")
    hashes = (hashlib.sha256("\n".join(sorted(views)).encode()).hexdigest() for views in content)
    return [str(int(digest[:15], 16)) for digest in hashes]


def _eyes(job: _Job, row: int) -> list[bytes]:
    """The cells of a case's images: one, or the left and the right eye."""
    views = {name: image for name, _, image in job.views(row)}
    names = job.table.view_names(row)
    if names != [""] and (set(names) - {"left", "right"} or len(views) < len(names)):
        named = ", ".join(f"'{name}'" for name in names)
        raise DataError(
            f"case '{job.table.ids[row]}' has the views {named}; the RET-CLIP form holds one image without a name, or "
            "views named left and right. Name them so (columns.image: [left, right]), or export as jsonl or parquet."
        )
    cells = []
    for name in names if names == [""] else ["left", "right"]:
        image = views.get(name)
        if isinstance(image, str):
            image = alone(read_bytes(image), name=image, max_pixels=job.max_pixels)
        cells.append(base64.b64encode(image or b""))
    return cells
