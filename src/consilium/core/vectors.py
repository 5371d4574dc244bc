"""Vectors of texts that were computed elsewhere, by the id of their case: .npz, .pt, .parquet and .csv files.

Axes in names: N case, F feature.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from consilium.core.config import Config
from consilium.core.errors import DataError, MissingExtraError
from consilium.core.places import join
from consilium.core.reporter import counted, some
from consilium.core.transfer import fetch

IDS, VECTORS, SAID = ("id", "image"), ("vector", "embedding", "text_embedding"), ("encoder", "pooling")
FORMS = (".npz", ".pt", ".parquet", ".csv")
_SHOWN = 3
Columns = Mapping[str, Any]


class VectorFacts(Config):
    """What a file says of its vectors, and a bundle remembers."""

    width: int = Field(description="Numbers of each vector.")
    encoder: str | None = Field(default=None, description="What computed them; null: the file does not say.")
    pooling: str | None = Field(default=None, description="How; null: the file does not say.")

    def refuse_other(self, other: VectorFacts, *, place: str, wanted_by: str) -> None:
        """Vectors that differ in what both say are a DataError."""
        for name in ("encoder", "pooling", "width"):
            wanted, found = getattr(self, name), getattr(other, name)
            if wanted is not None and found is not None and wanted != found:
                raise DataError(
                    f"the vectors in {place} have {name} {found}, but {wanted_by} {wanted}; give a file of the same "
                    "encoder."
                )


@dataclass(frozen=True)
class Vectors:
    """The vectors of a file, float32 [N, F], and the row of each id."""

    place: str
    facts: VectorFacts
    vectors_NF: np.ndarray
    rows: Mapping[str, int]

    def refuse_strangers(self, ids: Sequence[str]) -> None:
        """Cases of which none has a vector are a DataError."""
        if ids and not any(name in self.rows for name in ids):
            raise DataError(
                f"the file {self.place} has vectors of {counted(len(self.rows), 'case')} (the first: "
                f"{some(list(self.rows), _SHOWN)}), and of none of the {len(ids):,} at hand (the first: "
                f"{some(ids, _SHOWN)}). Name the column of their ids (columns.id of a source), or give another file."
            )


def vectors_place(name: str, *, folder: str | None) -> str:
    """Where the vectors lie that a config names: a bare file name in ``folder``, if there is one; others stay."""
    bare = "/" not in name and not Path(name).exists()
    return join(folder, name) if folder is not None and bare else name


def read_vectors(place: str) -> Vectors:
    """The vectors of a file, here or in a bucket.

    It has the columns (arrays, keys) ``id`` and ``vector``; the names that ``consilium predict`` writes will do, and in
    a .csv a column for each number. What it says as ``encoder`` and ``pooling`` (of a .parquet also as metadata) is
    checked wherever it is used. A file that cannot be read, an id twice, vectors of two lengths, and numbers that are
    NaN or infinite are a DataError. A case without a vector (null, nothing) is not in it.
    """
    try:
        path = fetch(place)
        known = path.stat()
    except OSError as error:
        raise DataError(f"the vectors in {place} cannot be read: {error}.") from error
    return _read(place, path, known.st_mtime_ns, known.st_size)


@lru_cache(maxsize=2)
def _read(place: str, path: Path, modified: int, size: int) -> Vectors:
    readers: Mapping[str, Callable[[Path], Columns]] = dict(zip(FORMS, (_npz, _pt, _parquet, _csv), strict=True))
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"the vectors in {place} cannot be read: expected a name that ends in {', '.join(FORMS)}.")
    try:
        return _made(place, reader(path))
    except (DataError, MissingExtraError):
        raise
    except Exception as error:  # the libraries raise errors of many kinds
        why = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise DataError(f"the vectors in {place} cannot be read: {why}.") from error


def _made(place: str, columns: Columns) -> Vectors:
    """The vectors in the columns of a file, checked."""
    ids, vectors = _column(columns, IDS, place), _column(columns, VECTORS, place)
    if len(ids) != len(vectors):
        raise DataError(f"{place} has {len(ids):,} ids, but {len(vectors):,} vectors; give each vector its id.")
    strange = next((vector for vector in vectors if vector is not None and np.ndim(vector) != 1), None)
    if strange is not None:
        raise DataError(f"{place} has '{str(strange)[:40]}' where a vector should be; expected a list of numbers.")
    there = [number for number, vector in enumerate(vectors) if vector is not None and len(vector)]
    names = [_name(ids[number]) for number in there]
    rows = {name: row for row, name in enumerate(names)}
    if not names:
        raise DataError(f"{place} holds no vector.")
    if len(rows) < len(names):
        twice = next(name for row, name in enumerate(names) if rows[name] != row)
        raise DataError(f"{place} has the id '{twice}' twice; give each case one vector.")
    lengths = {len(vectors[number]): name for number, name in zip(reversed(there), reversed(names), strict=True)}
    if len(lengths) > 1:
        own = [f"{length} numbers for '{name}'" for length, name in sorted(lengths.items())]
        raise DataError(f"{place} has vectors of several lengths: {some(own, _SHOWN)}. Give those of one encoder.")
    vectors_NF = np.array([vectors[number] for number in there], dtype=np.float32)
    wrong_N = ~np.isfinite(vectors_NF).all(1)
    if wrong_N.any():
        raise DataError(
            f"{place} has numbers that are NaN or infinite in {counted(int(wrong_N.sum()), 'vector')} (the first: of "
            f"'{names[int(wrong_N.argmax())]}'). Compute these again, or leave a case without a vector out."
        )
    said = {name: _said(columns[name]) for name in SAID if name in columns}
    return Vectors(place, VectorFacts(width=vectors_NF.shape[1], **said), vectors_NF, rows)


def _column(columns: Columns, names: Sequence[str], place: str) -> Any:
    found = next((columns[name] for name in names if name in columns), None)
    if found is None:
        there = f"it has {some(sorted(columns), 8)}" if columns else "it has nothing"
        raise DataError(f"{place} has no column {' or '.join(names)}; {there}.")
    return found


def _name(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _said(value: Any) -> str | None:
    """The one text of a column, an array or a key."""
    texts = [value] if isinstance(value, str | bytes) else np.asarray(value).reshape(-1).tolist()
    return next((_name(text) for text in texts if text is not None and _name(text)), None)


def _npz(path: Path) -> Columns:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _pt(path: Path) -> Columns:
    """A dictionary of columns, or of a tensor for each id."""
    import torch

    found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, dict):
        raise DataError(f"{path} holds a {type(found).__name__}; expected a dictionary of ids and vectors.")
    columns = {name: value.float().numpy() if torch.is_tensor(value) else value for name, value in found.items()}
    if columns and not set(IDS) & columns.keys() and all(torch.is_tensor(value) for value in found.values()):
        return {"id": list(columns), "vector": list(columns.values())}
    return columns


def _parquet(path: Path) -> Columns:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("Vectors in a parquet file", "train") from None
    table = pyarrow.parquet.read_table(path)
    said = {name: (table.schema.metadata or {}).get(name.encode()) for name in SAID}
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return {**{name: value for name, value in said.items() if value is not None}, **columns}


def _csv(path: Path) -> Columns:
    """One column with a list in JSON, or every column but the id as a number."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise DataError(f"line {line} of {path} has not as many values as the first line has columns.")
    names = list(rows[0]) if rows else []
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in names}
    own = next((name for name in VECTORS if name in columns), None)
    if own is not None:
        return {**columns, own: [json.loads(value) if value else None for value in columns[own]]}
    known = not columns.keys().isdisjoint(IDS)
    numbers = [name for name in names if known and name not in (*IDS, *SAID, "error")]
    vectors = [[float(row[name]) for name in numbers] if row[numbers[0]] else None for row in rows] if numbers else []
    return {**columns, "vector": vectors} if numbers else columns
