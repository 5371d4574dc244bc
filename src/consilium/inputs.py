"""Files, folders, globs, tables and stores as items that a bundle is asked about."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from consilium.core.errors import DataError
from consilium.core.places import facts, is_remote, join, local_path, matches
from consilium.data.batches.rows import FoundItems, Query
from consilium.data.case import column_name
from consilium.data.sources.files import IMAGE_EXTENSIONS, counted_reasons, images_under

_GLOB = "*?["
_TABLES: Mapping[str, Literal["csv", "jsonl", "parquet"]] = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet"}


def find_images(paths: Sequence[str]) -> tuple[list[str], FoundItems]:
    """Names and items of all images under files, folders (whole trees), globs and stores, in a stable order.

    The rows of a table (.csv, .jsonl, .parquet) are asked about with the texts and the metadata that they have.
    """
    names: list[str] = []
    items = FoundItems()
    for given in paths:
        path = os.path.expanduser(local_path(given))
        if not is_remote(path) and (Path(path) / "store.json").is_file():
            from consilium.data.store.store import Store

            table = Store.open(Path(path)).table
            names += table.ids
            items.add((table, row) for row in range(len(table)))
            continue
        if (kind := _TABLES.get(Path(path).suffix.lower())) is not None:
            asked = list(_rows_of(path, kind))
            names += [name for name, _ in asked]
            items.add(query for _, query in asked)
            continue
        before = items.skipped.copy()
        try:
            found = _in_bucket(path, items.skipped) if is_remote(path) else _here(path, items.skipped)
        except OSError as error:
            raise DataError(f"{error}.") from error
        if not found:
            raise DataError(_nothing(given, path, items.skipped - before))
        names += found
        items.add(found)
    return names, items


def _rows_of(path: str, kind: Literal["csv", "jsonl", "parquet"]) -> Iterator[tuple[str, Query]]:
    """The id and the images, text and metadata of every row of a table; a row that cannot be used is a DataError."""
    from consilium.data.case import BadRow
    from consilium.data.sources.config import JsonlSource, TableSource
    from consilium.data.sources.reading import read_source

    source = JsonlSource(name="row", path=path) if kind == "jsonl" else TableSource(kind=kind, name="row", path=path)
    for row in read_source(source):
        if isinstance(row, BadRow):
            raise DataError(f"{row.file}, line {row.line}: {row.reason}")
        metadata = {column_name(key): text for key, text in row.meta.items()}
        yield row.id, Query([view.image for view in row.views] or None, row.text, metadata)


def _nothing(given: str, path: str, skipped: Counter[str]) -> str:
    """What to say where a folder or a glob gives no image."""
    if skipped:
        held = f"there is only {counted_reasons(skipped)}"
    else:
        held = "the folder is empty" if os.path.isdir(path) else f"nothing matches (looked from {os.getcwd()})"
    endings = ", ".join(sorted(IMAGE_EXTENSIONS))
    return f"no image under {given}: {held}. Expected image files ({endings}), a folder that holds some, or a glob."


def _here(path: str, skipped: Counter[str]) -> list[str]:
    if os.path.isdir(path):
        return _under(path, skipped)
    if any(sign in path for sign in _GLOB) and not os.path.lexists(path):
        matched = sorted(glob.glob(_pattern(path), recursive=True))
        skipped.update("folder" for match in matched if os.path.isdir(match))
        return [match for match in matched if not os.path.isdir(match)]
    return [path]  # a missing file gets its error entry, the rest goes on


def _under(folder: str, skipped: Counter[str]) -> list[str]:
    inputs = images_under(folder)
    skipped.update(inputs.skipped)
    return sorted(join(folder, file.name) for file in inputs.files)


def _pattern(path: str) -> str:
    """A glob in which the folders that exist by these very names stand for themselves: ``scans [1]/*.png``."""
    parts = path.split("/")
    whole = len(parts)
    while whole and not os.path.lexists("/".join(parts[:whole]) or "/"):
        whole -= 1
    return "/".join([*map(glob.escape, parts[:whole]), *parts[whole:]])


def _in_bucket(path: str, skipped: Counter[str]) -> list[str]:
    known = facts(path)
    if known is not None and not known.is_file:
        return _under(path, skipped)
    return matches(path) if known is None and any(sign in path for sign in _GLOB) else [path]
