"""csv, parquet and jsonl files, row by row; a bad row is reported and the rest goes on."""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from consilium.core.errors import ConfigError, DataError
from consilium.data.case import (
    BadRow,
    Case,
    RowError,
    View,
    flag,
    label_paths,
    meta_text,
    printable,
    scalar_text,
    split_name,
)
from consilium.data.config import Columns, JsonlSource, TableSource

_OPTIONAL = ("text", "label", "split", "group", "id", "mask", "is_gt")
_MULTIMEDISET_KEYS = frozenset({"conversations", "modalities"})


class _RowReader:
    """Turns the rows of one file, as mappings, into cases by the configured columns."""

    def __init__(self, source: TableSource | JsonlSource, *, also_used: frozenset[str] = frozenset()) -> None:
        self.source = source
        self.columns = source.columns
        self.file = os.path.abspath(os.path.expanduser(source.path))
        root = source.image_root
        self.root = os.path.dirname(self.file) if root is None else os.path.abspath(os.path.expanduser(root))
        image = self.columns.image
        self.image_columns = [image] if isinstance(image, str) else list(image)
        named = [getattr(self.columns, name) for name in _OPTIONAL]
        self.used = also_used.union(self.image_columns, (name for name in named if name is not None))

    def check_columns(self, present: Sequence[str]) -> None:
        """Refuse a column that the config names and the file lacks, and a file of neither images nor texts.

        A name that is the default counts as not named: a resolved config spells out every default.
        """
        default = Columns()
        named = [(key, name) for key in _OPTIONAL if (name := getattr(self.columns, key)) != getattr(default, key)]
        if self.columns.image != default.image:
            named += [("image", name) for name in self.image_columns]
        named += [("meta", name) for name in self.columns.meta or []]
        for key, name in named:
            if name is not None and name not in present:
                raise ConfigError(
                    f"source '{self.source.name}': columns.{key} is '{name}', {self._absent(name, present)}"
                )
        if self.columns.text not in present and not set(self.image_columns) & set(present):
            raise ConfigError(
                f"source '{self.source.name}': neither an image nor a text column was found; name one in columns.image "
                f"or columns.text. The image column is '{self.image_columns[0]}', "
                f"{self._absent(self.image_columns[0], present)}"
            )

    def _absent(self, name: str, present: Sequence[str]) -> str:
        close = difflib.get_close_matches(name, present, n=1, cutoff=0.6)
        hint = f"did you mean '{close[0]}'?" if close else f"its columns are: {', '.join(present)}."
        return printable(f"which {self.file} does not have; {hint}")

    def bad(self, line: int, reason: str) -> BadRow:
        """A bad row of this file."""
        return BadRow(self.source.name, self.file, line, reason)

    def path(self, value: str) -> str:
        """The absolute path of an image or mask as a row gives it."""
        if "://" in value:
            raise RowError(f"'{value}' is an address; download the file and give its path")
        if "\0" in value:
            raise RowError("a path holds a zero byte")
        return os.path.normpath(os.path.join(self.root, value))

    def views(self, row: Mapping[str, Any]) -> list[View]:
        """The images in the image columns; each of several columns names its view."""
        several = len(self.image_columns) > 1
        return [
            view
            for column in self.image_columns
            for view in self._cell_views(row.get(column), name=column if several else "")
        ]

    def _cell_views(self, cell: Any, *, name: str) -> list[View]:
        if isinstance(cell, (list, tuple)):
            return [view for item in cell for view in self._cell_views(item, name=name)]
        if isinstance(cell, (bytes, bytearray)):
            return [View("", name, bytes(cell))]
        if isinstance(cell, dict):
            if cell.get("bytes") is not None:
                return [View(cell.get("path") or "", name, cell["bytes"])]
            cell = cell.get("path")
        text = scalar_text(cell, "image")
        return [View(self.path(text), name)] if text else []

    def case(self, row: Mapping[str, Any], line: int, *, views: list[View], text: str | None) -> Case:
        """The case of a row whose images and text are known already."""
        columns, source = self.columns, self.source
        if not views and not text:
            raise RowError("the row has neither an image nor a text")
        found = {key: row.get(column) if (column := getattr(columns, key)) is not None else None for key in _OPTIONAL}
        identity = scalar_text(found["id"], "id")
        wanted = columns.meta if columns.meta is not None else (key for key in row if key not in self.used)
        return Case(
            id=identity or f"{source.name}:{line}",
            source=source.name,
            group=scalar_text(found["group"], "group") or self._own_group(views, text, identity),
            split=split_name(found["split"]),
            views=tuple(views),
            text=text,
            labels=label_paths(found["label"], separator=columns.label_separator, prefix=source.label_prefix),
            mask=self._mask(found["mask"]),
            is_gt=flag(found["is_gt"], "is_gt"),
            file=self.file,
            line=line,
            meta={key: value for key in wanted if (value := meta_text(row.get(key)))},
        )

    def _own_group(self, views: list[View], text: str | None, identity: str) -> str:
        """The group where none is given: rows of one image belong together. It never hangs on the row's line,
        so that rows put in between move nothing."""
        if views and views[0].image:
            return f"{self.source.name}:{views[0].image.removeprefix(self.root + os.sep)}"
        if identity:
            return f"{self.source.name}:{identity}"
        content = views[0].data if views else (text or "").encode(errors="surrogatepass")
        return f"{self.source.name}:{hashlib.blake2b(content or b'', digest_size=8).hexdigest()}"

    def _mask(self, cell: Any) -> str | None:
        value = scalar_text(cell, "mask")
        if not value:
            return None
        path = self.path(value)
        if not os.path.isfile(path):
            raise RowError(f"the mask {path} does not exist")
        return path

    def table_case(self, row: Mapping[str, Any], line: int) -> Case | BadRow:
        """The case of a csv or parquet row."""
        try:
            text = scalar_text(row.get(self.columns.text), "text") if self.columns.text is not None else ""
            return self.case(row, line, views=self.views(row), text=text or None)
        except RowError as error:
            return self.bad(line, str(error))


def read_csv(source: TableSource) -> Iterator[Case | BadRow]:
    """The rows of a csv file (UTF-8, with or without byte order mark); ``line`` is where a row begins."""
    reader = _RowReader(source)
    # Bytes that are not UTF-8 are kept as surrogates, so that only their row is bad.
    with Path(reader.file).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        rows = csv.reader(stream, delimiter=source.separator, strict=True)
        header = _csv_header(rows, reader)
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise DataError(f"source '{source.name}': {reader.file} has the column '{twice[0]}' twice; rename one.")
        reader.check_columns(header)
        while True:
            line = rows.line_num + 1
            try:
                cells = next(rows)
                reason = _bad_cells(cells, header)
            except StopIteration:
                return
            except csv.Error as error:
                cells, reason = [], f"not a valid csv row: {error}"
            if reason:
                more = f"; it runs to line {rows.line_num}, look for an open quote" if rows.line_num > line else ""
                yield reader.bad(line, reason + more)
            elif cells:
                yield reader.table_case(dict(zip(header, cells, strict=True)), line)


def _bad_cells(cells: Sequence[str], header: Sequence[str]) -> str:
    """What is wrong with the cells of a row; '' for nothing, and for a blank line."""
    if cells and len(cells) != len(header):
        return f"the row has {len(cells)} cells, the header {len(header)}"
    return "" if _is_clean(cells) else "the row is not UTF-8 text; save the file as UTF-8"


def _csv_header(rows: Iterator[list[str]], reader: _RowReader) -> list[str]:
    try:
        header = next(rows, [])
    except csv.Error as error:
        raise DataError(
            f"source '{reader.source.name}': the first line of {reader.file} is no header: {error}"
        ) from None
    if not _is_clean(header):
        raise DataError(f"source '{reader.source.name}': the header of {reader.file} is not UTF-8; save it as UTF-8.")
    return header


def _is_clean(cells: Sequence[str]) -> bool:
    joined = "".join(cells)
    if joined.isascii():
        return True
    try:
        joined.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_parquet(source: TableSource) -> Iterator[Case | BadRow]:
    """The rows of a parquet file; ``line`` counts rows from 1. Images may be paths, bytes or Hugging Face structs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    reader = _RowReader(source)
    line = 0
    try:
        with pq.ParquetFile(reader.file, memory_map=True) as file:
            types = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True))
            reader.check_columns(list(types))
            only_paths = all(pa.types.is_string(types[name]) for name in reader.image_columns if name in types)
            # Cells that may hold whole images come in small batches.
            for batch in file.iter_batches(batch_size=1024 if only_paths else 64):
                for row in batch.to_pylist():
                    line += 1
                    yield reader.table_case(row, line)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        after = f" after row {line}" if line else ""
        raise DataError(f"source '{source.name}': {reader.file} is no sound parquet file{after}: {error}") from error


def read_jsonl(source: JsonlSource) -> Iterator[Case | BadRow]:
    """The objects of a jsonl file in MultiMediset form.

    Purpose: each line is an object with ``text`` or else ``conversations: [{role or from, content or value}]``
    (the turns are joined by newlines) and ``modalities: [{type: image, value: path}]``; without
    ``modalities`` the image column is read. Several images are several views. Every attachment token
    is removed from the text; where a row has any, their number must be that of its images. Other keys
    become metadata. Errors: each bad line is a BadRow; blank lines are passed over.
    """
    reader = _RowReader(source, also_used=_MULTIMEDISET_KEYS)
    present: dict[str, None] = {}
    with Path(reader.file).open("rb") as stream:
        for line, raw in enumerate(stream, start=1):
            raw = raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
            if not raw.strip():
                continue
            try:
                row = _json_object(raw)
                present.update(dict.fromkeys(row))
                views = _modalities(reader, row["modalities"]) if "modalities" in row else reader.views(row)
                yield reader.case(row, line, views=views, text=_jsonl_text(source, row, images=len(views)))
            except RowError as error:
                yield reader.bad(line, str(error))
    if present:
        # ``modalities`` stands for the image columns, ``conversations`` for the text.
        stands_for = reader.image_columns if "modalities" in present else []
        text = [source.columns.text] if "conversations" in present and source.columns.text else []
        reader.check_columns([*present, *stands_for, *text])


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        row = json.loads(raw)
    except json.JSONDecodeError as error:  # its own line number counts from this row
        raise RowError(f"not valid JSON: {error.msg} (character {error.pos + 1})") from None
    except (ValueError, RecursionError) as error:
        raise RowError(f"not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise RowError(f"the line holds a {type(row).__name__}; expected one JSON object a line")
    return row


def _modalities(reader: _RowReader, modalities: Any) -> list[View]:
    views = []
    for item in modalities if isinstance(modalities, list) else [modalities]:
        if not isinstance(item, dict):
            raise RowError(f"modalities holds a {type(item).__name__}; expected objects {{type: image, value: path}}")
        if item.get("type", "image") != "image":
            raise RowError(f"a modality of type '{item['type']}' is not supported; expected image")
        value = scalar_text(item.get("value"), "modalities value")
        if not value:
            raise RowError("a modality has no value; expected the path of an image")
        views.append(View(reader.path(value), scalar_text(item.get("name"), "modalities name")))
    return views


def _jsonl_text(source: JsonlSource, row: Mapping[str, Any], *, images: int) -> str | None:
    column = source.columns.text
    if column is None:
        return None
    if row.get(column) is None and "conversations" in row:
        turns = row["conversations"]
        if not isinstance(turns, list):
            raise RowError(f"conversations is a {type(turns).__name__}; expected a list of turns")
        text = "\n".join(map(_turn, turns))
    else:
        text = scalar_text(row.get(column), column)
    token = source.attachment_token
    count = text.count(token) if token else 0
    if count and count != images:
        raise RowError(f"the text has {count} attachment tokens, the row {images} images")
    if count:
        lines = (" ".join(line.replace(token, " ").split()) for line in text.split("\n"))
        text = "\n".join(line for line in lines if line)
    return text or None


def _turn(turn: Any) -> str:
    if not isinstance(turn, dict):
        raise RowError(f"conversations holds a {type(turn).__name__}; expected objects {{role, content}}")
    for key in ("content", "value"):
        if key in turn:
            return scalar_text(turn[key], "conversation content")
    raise RowError("a conversation turn has neither content nor value")
