"""parquet files, row by row: one, or all below a folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote

from consilium.core.errors import DataError
from consilium.core.places import absolute, join, open_binary
from consilium.data.case import BadRow, Case, is_split_name, split_name
from consilium.data.sources.config import TableSource
from consilium.data.sources.rows import RowReader

ENDINGS = (".parquet", ".pq")
_SHARD = re.compile(r"(?P<name>[A-Za-z]+)(?:[-_.]?\d+(?:-of-\d+)?)?")


def is_parquet(source: TableSource) -> bool:
    """Whether a table is parquet: by ``kind`` or, in a mapping, by the end of the name."""
    named_parquet = source.kind != "csv" and source.path.lower().endswith(ENDINGS)
    return source.kind == "parquet" or named_parquet


def parquet_files(source: TableSource) -> list[str]:
    """The parquet files below a folder of this machine, relative to it, sorted; none is a DataError."""
    root = absolute(source.path)
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        for name in names:
            if name.lower().endswith(ENDINGS) and not name.startswith((".", "_")):  # _metadata and half-written files
                found.append(os.path.relpath(os.path.join(folder, name), root))
    if not found:
        raise DataError(f"source '{source.name}': the folder {source.path} holds no file that ends in .parquet or .pq.")
    return sorted(found)


def read_parquet(source: TableSource, names: Sequence[str]) -> Iterator[Case | BadRow]:
    """The rows of parquet files by their ``names`` below the source's path ('.': that file).

    Purpose: ``line`` counts the rows of a file from 1. Images may be paths, bytes or Hugging Face structs, and class
    numbers are replaced by the names that the schema gives them. Of a folder, ``key=value`` folders are columns, and
    files or folders called after splits (``train-00000-of-00002.parquet``) say the split of their rows, unless the row
    or the source does. Errors: files of splits beside others are a DataError.
    """
    folder_of = {name: name.split("/")[:-1] for name in names}
    splits = {name: _split(name) for name in names}
    others = [name for name, split in splits.items() if split is None]
    if others and len(others) < len(names) and source.split is None:
        named = next(name for name in names if name not in others)
        raise DataError(
            f"source '{source.name}': {source.path} holds files of a split ({named}) beside others ({others[0]}); make "
            "each a source of its own, with `split`."
        )
    for name in names:
        reader = RowReader(source)
        if name != ".":
            reader.file, reader.row_name = join(reader.file, name), f"{source.name}:{name}"
            if source.image_root is None:
                reader.root = absolute(source.path)
        given = dict(part.split("=", 1) for part in folder_of[name] if "=" in part)
        ours = None if source.split is not None else splits[name]
        for item in _rows(reader, {key: unquote(value) for key, value in given.items()}):
            if isinstance(item, Case):
                item.split = item.split or ours
            yield item


def _split(name: str) -> str | None:
    """The split that a file below a folder is called after, by its own name or that of a folder above it."""
    if name == ".":
        return None
    *folders, file = name.split("/")
    shard = _SHARD.fullmatch(os.path.splitext(file)[0])
    called = [shard["name"] if shard else "", *reversed(folders)]
    return next((split_name(part) for part in called if is_split_name(part)), None)


def _rows(reader: RowReader, given: dict[str, str]) -> Iterator[Case | BadRow]:
    """The rows of one file, each with the ``given`` columns that it has not itself."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    line = 0
    try:
        with open_binary(reader.file) as stream, pq.ParquetFile(stream) as file:
            types = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True))
            classes = _class_names(file.schema_arrow.metadata)
            reader.check_columns([*types, *(key for key in given if key not in types)])
            only_paths = all(pa.types.is_string(types[name]) for name in reader.image_columns if name in types)
            # Cells that may hold whole images come in small batches.
            for batch in file.iter_batches(batch_size=1024 if only_paths else 64):
                for row in batch.to_pylist():
                    line += 1
                    for column, names in classes.items():
                        row[column] = _named(row.get(column), names)
                    yield reader.table_case({**given, **row} if given else row, line)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        after = f" after row {line}" if line else ""
        raise DataError(
            f"source '{reader.source.name}': {reader.file} is no sound parquet file{after}: {error}"
        ) from error


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """The names of the classes of each column, as Hugging Face ``datasets`` writes them into the schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        found = {column: _names_in(feature) for column, feature in features.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {column: names for column, names in found.items() if names}


def _names_in(feature: Any) -> list[str] | None:
    """The names of a class feature, or of a list of it."""
    while isinstance(feature, list) and feature:
        feature = feature[0]
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel":
        names = feature.get("names")
        return [str(name) for name in names] if isinstance(names, list) else None
    return _names_in(feature.get("feature"))


def _named(value: Any, names: Sequence[str]) -> Any:
    """The name of a class number, or of each in a list; -1 is no class."""
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    return None if value < 0 else names[value] if value < len(names) else value
