"""Predictions for files, folders, globs and stores, written as they come."""

from __future__ import annotations

import codecs
import csv
import glob
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from consilium.bundle import Predictor
from consilium.core.errors import ConfigError, DataError
from consilium.core.files import atomic_file
from consilium.core.places import facts, is_remote, join, local_path, matches
from consilium.core.reporter import Reporter
from consilium.data.case import printable
from consilium.data.rows import FoundItems
from consilium.data.sources.files import IMAGE_EXTENSIONS, counted_reasons, images_under


@dataclass(frozen=True)
class PredictionSummary:
    """How many cases were predicted, how many of them could not be read, and what was left aside, by reason."""

    cases: int
    errors: int
    skipped: Mapping[str, int] = field(default_factory=dict)


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
    return PredictionSummary(len(items), errors, items.skipped)


def find_images(paths: Sequence[str]) -> tuple[list[str], FoundItems]:
    """Names and items of all images under files, folders (whole trees), globs and stores, in a stable order."""
    names: list[str] = []
    items = FoundItems()
    for given in paths:
        path = os.path.expanduser(local_path(given))
        if not is_remote(path) and (Path(path) / "store.json").is_file():
            from consilium.data.store import Store

            table = Store.open(Path(path)).table
            names += table.ids
            items.add((table, row) for row in range(len(table)))
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


@contextmanager
def _open_writer(out: Path | None, *, labels: Sequence[str]) -> Iterator[_Writer]:
    if out is None:
        yield _JsonLines(sys.stdout)
        return
    with (
        atomic_file(out) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield _JsonLines(file) if out.suffix == ".jsonl" else _Csv(file, labels=labels)


class _JsonLines:
    def __init__(self, file: Any) -> None:
        self._file = file
        self._ascii = codecs.lookup(file.encoding or "utf-8").name != "utf-8"  # of a terminal; \\u00e4 is the same JSON

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(printable(json.dumps(record, ensure_ascii=self._ascii)) + "\n")


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
