"""Predictions for files, folders, globs and stores, written as they come."""

from __future__ import annotations

import csv
import glob
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from consilium.bundle import Predictor
from consilium.core.errors import ConfigError, DataError
from consilium.core.files import atomic_file
from consilium.core.places import facts, find, is_remote, join, matches
from consilium.core.reporter import Reporter
from consilium.data.rows import FoundItems, Item
from consilium.data.sources.files import IMAGE_EXTENSIONS, extension_of, is_image_file
from consilium.data.sources.names import left_by_storage


@dataclass(frozen=True)
class PredictionSummary:
    """How many cases were predicted, and how many of them could not be read."""

    cases: int
    errors: int


_GLOB = "*?["


class _Writer(Protocol):
    def write(self, record: dict[str, Any]) -> None: ...


def predict_files(
    bundle: str | Path, paths: Sequence[str], *, out: Path | None, batch_size: int, device: str, reporter: Reporter
) -> PredictionSummary:
    """Predict everything under ``paths`` into ``out`` (.jsonl or .csv; None prints JSON lines)."""
    if out is not None and out.suffix not in (".jsonl", ".csv"):
        raise ConfigError(f"--out is {out}; expected a name that ends in .jsonl or .csv.")
    keys, items = find_images(paths)
    predictor = Predictor.load(bundle, device=device, batch_size=batch_size)
    errors = 0
    with _open_writer(out, labels=predictor.labels.names) as writer:
        for done, (key, record) in enumerate(zip(keys, predictor.stream(items), strict=True), start=1):
            errors += "error" in record
            writer.write({**record, "image": key})
            if out is not None:
                reporter.progress("predict", done, len(items))
    return PredictionSummary(len(items), errors)


def find_images(paths: Sequence[str]) -> tuple[list[str], Sequence[Item]]:
    """Names and items of all images under files, folders (whole trees), globs and stores, in a stable order."""
    names: list[str] = []
    items = FoundItems()
    for given in paths:
        if not is_remote(given) and (Path(given) / "store.json").is_file():
            from consilium.data.store import Store

            table = Store.open(Path(given)).table
            names += table.ids
            items.add((table, row) for row in range(len(table)))
            continue
        found = _in_bucket(given) if is_remote(given) else _here(given)
        if not found:
            raise DataError(
                f"no image under {given}; expected image files ({', '.join(sorted(IMAGE_EXTENSIONS))}), a folder or a "
                "glob."
            )
        names += found
        items.add(found)
    return names, items


def _here(given: str) -> list[str]:
    path = Path(given)
    if path.is_dir():
        found = (file for file in path.rglob("*") if left_by_storage(str(file.relative_to(path))) is None)
        return sorted(str(file) for file in found if is_image_file(str(file)))
    if any(sign in given for sign in _GLOB) and not path.exists():
        return sorted(file for file in glob.glob(given, recursive=True) if Path(file).is_file())
    return [given]  # a missing file gets its error entry, the rest goes on


def _in_bucket(given: str) -> list[str]:
    try:
        known = facts(given)
        if known is not None and not known.is_file:
            names = (name for name in find(given) if left_by_storage(name) is None)
            return [join(given, name) for name in names if extension_of(name) in IMAGE_EXTENSIONS]
        return matches(given) if known is None and any(sign in given for sign in _GLOB) else [given]
    except OSError as error:
        raise DataError(f"{error}.") from error


@contextmanager
def _open_writer(out: Path | None, *, labels: Sequence[str]) -> Iterator[_Writer]:
    if out is None:
        yield _JsonLines(sys.stdout)
        return
    with atomic_file(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        yield _JsonLines(file) if out.suffix == ".jsonl" else _Csv(file, labels=labels)


class _JsonLines:
    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")


class _Csv:
    """Columns image, label, probability, error, then the probability of every class."""

    def __init__(self, file: Any, *, labels: Sequence[str]) -> None:
        self._labels = labels
        self._writer = csv.writer(file, lineterminator="\n")
        self._writer.writerow(["image", "label", "probability", "error", *(f"p_{label}" for label in labels)])

    def write(self, record: dict[str, Any]) -> None:
        label = record.get("label", ";".join(record.get("labels", [])))
        values = record.get("probabilities", {})
        head = [record["image"], label, record.get("probability", ""), record.get("error", "")]
        self._writer.writerow([*head, *(values.get(name, "") for name in self._labels)])
