"""Small tables, images and configs for the tests of the data side."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from consilium.core.config import build
from consilium.core.reporter import Silent
from consilium.data.case import BadRow, Case
from consilium.data.config import DataConfig
from consilium.data.sources.reading import read_source
from consilium.data.store.files import schema
from consilium.data.store.store import CaseTable


class Bars(Silent):
    """A reporter that hands the state of its bars to a function."""

    def __init__(self, told: Callable[[int, int | None], None]) -> None:
        self._told = told

    def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
        self._told(done, total)


def image_bytes(seed: int = 0, *, size: tuple[int, int] = (12, 10), format: str = "PNG") -> bytes:
    """An encoded image [height, width] of noise; another seed is another file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=format)
    return stream.getvalue()


def write_images(folder: Path, names: Iterable[str], *, first_seed: int = 0) -> None:
    """Images of these relative names, every one different."""
    for seed, name in enumerate(names, start=first_seed):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(seed, format="JPEG" if path.suffix == ".jpg" else "PNG"))


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any] | str]) -> Path:
    """A jsonl file; a row that is a text is written as it is."""
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def data_config(root: Path, *sources: Mapping[str, Any], **sections: Any) -> DataConfig:
    """A validated data section whose store is in ``root``/stores."""
    store = {"root": str(root / "stores"), **sections.pop("store", {})}
    return build(DataConfig, {"sources": list(sources), "store": store, **sections}, origin="test")


def read(kind: str, path: Path, **keys: Any) -> tuple[list[Case], list[BadRow]]:
    """The cases and the bad rows of a source called 's'."""
    config = data_config(path.parent, {"kind": kind, "name": "s", "path": str(path), **keys})
    items = list(read_source(config.sources[0]))
    return [i for i in items if isinstance(i, Case)], [i for i in items if isinstance(i, BadRow)]


def _texts(row: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """The texts of a row with their names: ``text``, or ``texts``, a list or {name: text}."""
    given = row.get("texts", [text for text in [row.get("text")] if text is not None])
    return [(text, name) for name, text in given.items()] if isinstance(given, Mapping) else [(t, "") for t in given]


def case_table(rows: Sequence[Mapping[str, Any]]) -> CaseTable:
    """Cases in memory, fast to make: each row gives some of id, source, group, split, label, text(s), files, names.

    ``files`` are the digests of its images, ``names`` those of its views; a row that names no id has its number, and no
    group is shared.
    """
    import pyarrow as pa

    full = []
    for number, row in enumerate(rows):
        label = row.get("label", ())
        views = [
            {"image": f"{file}.png", "name": name, "width": 1, "height": 1, "sha256": file}
            for file, name in zip(row.get("files", ()), row.get("names", repeat("")), strict=False)
        ]
        full.append(
            {
                "id": row.get("id", str(number)),
                "source": row.get("source", "s"),
                "group": row.get("group", f"group of {number}"),
                "split": row.get("split", "train"),
                "views": views,
                "texts": [{"text": text, "name": name} for text, name in _texts(row)],
                "labels": [label] if isinstance(label, str) else list(label),
                "masks": [],
                "is_gt": row.get("is_gt", True),
                "meta": "{}",
            }
        )
    table = CaseTable(Path())
    table.__dict__["_arrow"] = pa.Table.from_pylist(full, schema=schema())
    return table
