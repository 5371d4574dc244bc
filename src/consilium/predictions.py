"""Predictions for files, folders, globs and stores, written as they come."""

from __future__ import annotations

import codecs
import contextlib
import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from consilium.core.errors import ConfigError, MissingExtraError
from consilium.core.evaluation import Outputs
from consilium.core.explain import nearest
from consilium.core.files import atomic_file
from consilium.core.reporter import Reporter, counted, some
from consilium.core.task import Task
from consilium.council import load
from consilium.data.batches.rows import FoundItems, Item, Query
from consilium.data.case import printable
from consilium.inputs import find_images


@dataclass(frozen=True)
class PredictionSummary:
    """How many cases were predicted, how many of them could not be read, and what was left aside, by reason."""

    cases: int
    errors: int
    skipped: Mapping[str, int] = field(default_factory=dict)


_EMBEDDINGS = (".npz", ".parquet", ".pt")
_ENDINGS = (".jsonl", ".csv", *_EMBEDDINGS)
_ROWS = 4096  # answers that a parquet file takes at once


class Answerer(Protocol):
    """A bundle that is asked about files: one of a trained task, or a council."""

    @property
    def views(self) -> tuple[str, ...]:
        """The names of the views of a case that it tells apart; (): it takes them as they come."""
        ...

    @property
    def meta_columns(self) -> tuple[str, ...]:
        """The metadata columns that it reads."""
        ...

    @property
    def reads_text(self) -> bool:
        """Whether it reads texts."""
        ...

    def check_metadata(self, metadata: Mapping[str, str]) -> None:
        """A value that it cannot read is a DataError."""
        ...

    def take_vectors(self, place: str, ids: Sequence[str]) -> Container[str]:
        """Let the vectors of a file take the place of texts; the ids that it has. What reads none is a ConfigError."""
        ...

    def stream(self, items: Iterable[Item] | Item) -> Iterator[dict[str, Any]]:
        """A record for every item, in order."""
        ...

    def columns(self) -> list[str]:
        """The columns of a table of answers, beside those of the case and of an error; [] where none fits a table."""
        ...

    def row(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A record as a row of that table."""
        ...

    def vectors(self) -> dict[str, int]:
        """The vectors that a record may hold, and their lengths; {} where it holds none."""
        ...


class _Writer(Protocol):
    def write(self, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Asked:
    """One case that is asked about with its text, metadata or both in the call itself."""

    text: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def find(self, paths: Sequence[str]) -> tuple[list[str], FoundItems]:
        """The case with its image, if there is one; more than that is a ConfigError."""
        keys, images = find_images(paths)
        image = images[0] if len(images) == 1 else None
        if len(images) > 1 or isinstance(image, Query):
            raise ConfigError(
                f"--text and --meta ask about one case, which has one image or none, but {', '.join(paths)} holds "
                f"{counted(len(images), 'case')}. Ask about several by a table with columns for image, text and "
                "metadata (.csv, .jsonl, .parquet)."
            )
        found = FoundItems()
        found.add([Query(image, self.text, self.metadata)])
        return keys or ["case"], found

    def check(self, model: Answerer) -> None:
        """What the bundle does not read is a ConfigError, a value that it cannot read a DataError."""
        if self.text and not model.reads_text:
            raise ConfigError("--text is given, but this bundle reads no text; leave it out.")
        names = model.meta_columns
        if unknown := [name for name in self.metadata if name not in names]:
            known = nearest(unknown[0], names, there="it reads") if names else "; it reads none. Leave --meta out."
            raise ConfigError(f"--meta names '{unknown[0]}', which this bundle does not read{known}")
        model.check_metadata(self.metadata)


def predict_files(
    bundle: str | Path,
    paths: Sequence[str],
    *,
    asked: Asked | None = None,
    out: Path | None,
    batch_size: int,
    device: str,
    resident: int | None = None,
    reporter: Reporter,
    vectors: str | None = None,
) -> PredictionSummary:
    """Predict everything under ``paths``, or the one case that is ``asked`` about, into ``out``; None: JSON lines.

    Every task writes .jsonl; answers that fit a table .csv; embeddings .npz, .parquet and .pt. ``resident``: of a
    council, how many experts stay in memory at most. ``vectors`` is a file of vectors in the place of the texts, by the
    ids of rows or the paths of images.
    """
    if out is not None and out.suffix not in _ENDINGS:
        raise ConfigError(f"--out is {out}; expected a name that ends in {', '.join(_ENDINGS[:-1])} or {_ENDINGS[-1]}.")
    keys, items = find_images(paths) if asked is None else asked.find(paths)
    model: Answerer = load(bundle, device=device, batch_size=batch_size, resident=resident)
    if asked is not None:
        asked.check(model)
        if asked.text and vectors is not None:
            raise ConfigError("--text and --vectors are both given; a text is a vector there, so leave --text out.")
    items.names, items.columns = model.views, model.meta_columns
    for note in items.notes(texts=model.reads_text):
        reporter.line(f"note: {note}")
    found = items if vectors is None else _WithVectors(items, keys, model.take_vectors(vectors, keys))
    errors, unseen = 0, Counter[tuple[str, str]]()
    with _open_writer(out, model=model) as writer:
        for done, (key, record) in enumerate(zip(keys, model.stream(found), strict=True), start=1):
            errors += "error" in record
            unseen.update(_unseen(record))
            asked_with = ("image", "text", "metadata")  # a case of a table or a store is told by its id
            answer = {name: value for name, value in record.items() if name not in asked_with}
            writer.write({"image": key, **answer})
            if out is not None:
                reporter.progress("predict", done, len(items))
    if unseen:
        shown = some([f"{name} '{text}' ({counted(cases, 'case')})" for (name, text), cases in unseen.most_common()], 5)
        reporter.line(f"note: metadata that no training case had counts as 'another value': {shown}.")
    return PredictionSummary(len(items), errors, items.skipped)


def _unseen(record: Mapping[str, Any]) -> set[tuple[str, str]]:
    """The values of metadata that a bundle had not met, each once; of a council those of all that were asked."""
    asked = [one["answer"] for one in record.get("asked", [])]
    said = [own for own in (record, record.get("route"), record.get("answer"), *asked) if own is not None]
    return {pair for own in said for pair in own.get("unseen", {}).items()}


class _WithVectors(Sequence[Item]):
    """What is asked about, with the key of each case in the place of its text, where that has a vector."""

    def __init__(self, items: Sequence[Item], keys: Sequence[str], known: Container[str]) -> None:
        self._items, self._keys, self._known = items, keys, known

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: Any) -> Any:
        item, key = self._items[number], self._keys[number]
        query = item if isinstance(item, Query) else Query(item)
        return replace(query, text=key if key in self._known else None)


@contextlib.contextmanager
def _open_writer(out: Path | None, *, model: Answerer) -> Iterator[_Writer]:
    if out is None:
        yield _JsonLines(sys.stdout)
        return
    fitting = [".jsonl", *([".csv"] if model.columns() else []), *(_EMBEDDINGS if model.vectors() else [])]
    if out.suffix not in fitting:
        raise ConfigError(
            f"--out is {out}, which does not fit the answers of this bundle; it writes {', '.join(fitting)}."
        )
    with atomic_file(out) as temporary, contextlib.ExitStack() as opened:
        writer: _Writer
        if out.suffix in (".jsonl", ".csv"):
            file = opened.enter_context(temporary.open("w", encoding="utf-8", errors="backslashreplace", newline=""))
            writer = _JsonLines(file) if out.suffix == ".jsonl" else _Csv(file, model=model)
        else:
            writer = _vectors_writer(temporary, ending=out.suffix, lengths=model.vectors())
        yield writer
        writer.close()


def check_embeddings(out: Path, *, task: Task) -> None:
    """A file that the embeddings of cases cannot go to is a ConfigError."""
    if not task.vectors():
        raise ConfigError(f"the embeddings are to go to {out}, but this bundle answers with none: it has no space.")
    if out.suffix not in _EMBEDDINGS:
        raise ConfigError(f"the embeddings are to go to {out}; expected a name that ends in {', '.join(_EMBEDDINGS)}.")


def write_embeddings(out: Path, outputs: Outputs, *, task: Task) -> None:
    """The embeddings of judged cases, as ``predict`` writes them: a row for each, of several texts the first."""
    given = {name: outputs.arrays.get(f"{name}s") for name in task.vectors()}
    arrays = {name: np.asarray(array) for name, array in given.items() if array is not None}
    first = {name: array if array.ndim == 2 else array[:, 0] for name, array in arrays.items()}
    with atomic_file(out) as temporary:
        writer = _vectors_writer(temporary, ending=out.suffix, lengths=task.vectors())
        for n, case in enumerate(outputs.ids):
            own = {name: array[n] for name, array in first.items() if array[n].any()}  # what is missing is zeros
            writer.write({"image": case, **own})
        writer.close()


def _vectors_writer(path: Path, *, ending: str, lengths: Mapping[str, int]) -> _Writer:
    if ending == ".parquet":
        return _Parquet(path, lengths=lengths)
    return _Arrays(path, lengths=lengths, save=_save_npz if ending == ".npz" else _save_pt)


class _JsonLines:
    def __init__(self, file: Any) -> None:
        self._file = file
        self._ascii = codecs.lookup(file.encoding or "utf-8").name != "utf-8"  # of a terminal; \\u00e4 is the same JSON

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(printable(json.dumps(record, ensure_ascii=self._ascii)) + "\n")

    def close(self) -> None:
        """The file is closed by who opened it."""


class _Csv:
    """Columns image and error, and those of the model."""

    def __init__(self, file: Any, *, model: Answerer) -> None:
        self._model = model
        columns = model.columns()
        answer, rest = columns[:2], columns[2:]
        self._writer = csv.DictWriter(file, ["image", *answer, "error", *rest], restval="", lineterminator="\n")
        self._writer.writeheader()

    def write(self, record: dict[str, Any]) -> None:
        place = {"image": record["image"], "error": record.get("error", "")}
        self._writer.writerow({**place, **self._model.row(record)})

    def close(self) -> None:
        """The file is closed by who opened it."""


class _Arrays:
    """Arrays: ``image`` and ``error`` str [N], and every vector of the task float32 [N, F], NaN where there is none."""

    def __init__(
        self, path: Path, *, lengths: Mapping[str, int], save: Callable[[Path, dict[str, np.ndarray]], None]
    ) -> None:
        self._path = path
        self._save = save
        self._names: list[str] = []
        self._errors: list[str] = []
        self._blank = {name: np.full(length, np.nan, dtype=np.float32) for name, length in lengths.items()}
        self._vectors: dict[str, list[np.ndarray]] = {name: [] for name in self._blank}

    def write(self, record: dict[str, Any]) -> None:
        self._names.append(printable(record["image"]))
        self._errors.append(record.get("error", ""))
        for name, blank in self._blank.items():
            own = record.get(name)
            self._vectors[name].append(blank if own is None else np.array(own, dtype=np.float32))

    def close(self) -> None:
        arrays = {name: np.array(own, dtype=np.float32) for name, own in self._vectors.items()}
        self._save(self._path, arrays | {"image": np.array(self._names), "error": np.array(self._errors)})


def _save_npz(path: Path, arrays: dict[str, Any]) -> None:
    with path.open("wb") as file:  # numpy gives a path another ending
        np.savez(file, allow_pickle=False, **arrays)


def _save_pt(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A dictionary of tensors and lists of str, which ``torch.load(path, weights_only=True)`` reads."""
    import torch

    texts = {name: array.tolist() for name, array in arrays.items() if array.dtype.kind == "U"}
    torch.save(texts | {name: torch.from_numpy(array) for name, array in arrays.items() if name not in texts}, path)


class _Parquet:
    """Columns ``image``, ``error`` (null for none), and every vector of the task as a list of float32."""

    def __init__(self, path: Path, *, lengths: Mapping[str, int]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise MissingExtraError("a parquet file", "train") from error
        vectors = [(name, pyarrow.list_(pyarrow.float32(), length)) for name, length in lengths.items()]
        schema = pyarrow.schema([("image", pyarrow.string()), ("error", pyarrow.string()), *vectors])
        self._writer = pyarrow.parquet.ParquetWriter(path, schema)
        self._batch = pyarrow.RecordBatch.from_pylist
        self._schema = schema
        self._rows: list[dict[str, Any]] = []

    def write(self, record: dict[str, Any]) -> None:
        self._rows.append({**record, "image": printable(record["image"])})
        if len(self._rows) == _ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write_batch(self._batch(self._rows, schema=self._schema))
        self._rows = []
