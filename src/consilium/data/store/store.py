"""The prepared store: a Hugging Face ``datasets`` folder of Arrow files, read memory-mapped, and its case table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from consilium.core.errors import MissingExtraError, StoreError
from consilium.core.files import fingerprint
from consilium.core.places import FileFacts, is_remote, reading_threads
from consilium.core.reporter import counted, some
from consilium.data.case import Mask, Text, column_name
from consilium.data.store.files import FORMAT_VERSION, MANIFEST, Manifest, schema
from consilium.data.store.meta import Kind, MetaColumn, column_kinds, typed

if TYPE_CHECKING:
    import pyarrow as pa

Item = TypeVar("Item")


class Store:
    """A prepared store on disk."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest

    def __repr__(self) -> str:
        return f"<Store {self.path}: {counted(self.manifest.cases, 'case')} of {some(list(self.manifest.splits), 5)}>"

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """The store in a folder; one that is missing, incomplete, damaged or newer is a StoreError."""
        path = Path(path).expanduser().absolute()
        again = "run `consilium data prepare` to make it."
        if not path.is_dir():
            raise StoreError(f"there is no store at {path}; {again}")
        try:
            tree = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StoreError(f"{path} is not a complete store ({MANIFEST} is missing); {again}") from None
        except (OSError, ValueError) as error:
            raise StoreError(f"{path / MANIFEST} cannot be read ({error}); remove the folder and {again}") from None
        version = tree.get("format_version") if isinstance(tree, dict) else None
        if not isinstance(version, int):
            raise StoreError(f"{path / MANIFEST} has no format_version; remove the folder and {again}")
        if version > FORMAT_VERSION:
            raise StoreError(
                f"the store {path} has format {version}, made by Consilium {tree.get('consilium_version')}; this "
                f"version reads up to {FORMAT_VERSION}. Update Consilium, or prepare the data again."
            )
        tree = {"notes": {}, "meta": None, **tree}  # which format 1 did not always have
        missing = sorted({item.name for item in fields(Manifest)} - set(tree))
        if missing:
            raise StoreError(f"{path / MANIFEST} lacks {', '.join(missing)}; remove the folder and {again}")
        return cls(path, Manifest(**{item.name: tree[item.name] for item in fields(Manifest)}))

    @property
    def fingerprints(self) -> tuple[str, str]:
        """What a run remembers its data by: the content of the cases; and, as runs once did, the files read."""
        return self.table.content, self.manifest.fingerprint

    @cached_property
    def table(self) -> CaseTable:
        """All cases of the store."""
        table = CaseTable(self.path, kinds=self.manifest.meta)
        if len(table) != self.manifest.cases:
            raise StoreError(
                f"the store {self.path} holds {len(table)} cases, its manifest says {self.manifest.cases}; "
                "remove the folder and prepare the data again."
            )
        return table

    def reading_threads(self) -> int:
        """How many threads read its images best."""
        referenced = self.manifest.images == "reference"
        return reading_threads(remote=referenced and any(map(is_remote, self.table.view_column("image")[1])))


class CaseTable:
    """Cases by column, memory-mapped; cheap to send to a worker process, which maps the same files.

    A column becomes Python values when it is first asked for. In format 1 a case has one text and the path of one mask.
    """

    def __init__(
        self, folder: Path, *, rows: np.ndarray | None = None, kinds: Mapping[str, Kind] | None = None
    ) -> None:
        """``kinds``: of all metadata columns of the files; None: what their values say."""
        self._folder, self._rows, self._kinds = folder, rows, kinds

    def __repr__(self) -> str:
        return f"<CaseTable of {counted(len(self), 'case')} in {self._folder}>"

    def __getstate__(self) -> dict[str, Any]:
        texts = {name: given for name, given in self._given().items() if name == "named_texts"}  # and no labels
        return {"_folder": self._folder, "_rows": self._rows, "_kinds": None, "_replaced": tuple(texts), **texts}

    def __len__(self) -> int:
        return self._arrow.num_rows if self._rows is None else len(self._rows)

    @cached_property
    def _arrow(self) -> pa.Table:
        return _open_arrow(self._folder)

    @property
    def _is_format_1(self) -> bool:
        return "text" in self._arrow.column_names

    @cached_property
    def _offsets(self) -> np.ndarray:
        """Where each chunk of the Arrow table begins."""
        return np.cumsum([0, *(len(chunk) for chunk in self._arrow.column("views").chunks)])

    def _column(self, name: str) -> list[Any]:
        column = self._arrow.column(name)
        values: list[Any] = (column if self._rows is None else column.take(self._rows)).to_pylist()
        return values

    def _repeated(self, name: str) -> list[str]:
        """A column of few different values, each of which exists once in memory."""
        known: dict[str, str] = {}
        return [known.setdefault(value, value) for value in self._column(name)]

    @cached_property
    def ids(self) -> list[str]:
        """The id of each case."""
        return self._column("id")

    @cached_property
    def sources(self) -> list[str]:
        """The source of each case."""
        return self._repeated("source")

    @cached_property
    def groups(self) -> list[str]:
        """The group (patient) of each case."""
        return self._column("group")

    @cached_property
    def splits(self) -> list[str]:
        """The split of each case."""
        return self._repeated("split")

    @cached_property
    def labels(self) -> list[tuple[str, ...]]:
        """The labels of each case, () where it has none."""
        known: dict[tuple[str, ...], tuple[str, ...]] = {}
        return [known.setdefault(labels, labels) for labels in map(tuple, self._column("labels"))]

    @cached_property
    def texts(self) -> list[str | None]:
        """The only or first text of each case, None where it has none."""
        return [texts[0].text if texts else None for texts in self.named_texts]

    def captions(self, row: int) -> list[str]:
        """The different texts of a case, in their order."""
        return list(dict.fromkeys(text.text for text in self.named_texts[row] if text.text))

    def drawn(self, row: int) -> list[str]:
        """The different texts of which a training draws one: those of a case, or the parts that stand for them."""
        parts = (part for text in self.named_texts[row] for part in text.parts or (text.text,))
        return list(dict.fromkeys(filter(None, parts)))

    @cached_property
    def most_captions(self) -> int:
        """The most texts that a case has."""
        return max((len(self.captions(row)) for row in range(len(self))), default=0)

    @cached_property
    def named_texts(self) -> list[tuple[Text, ...]]:
        """All texts of each case, with their names."""
        if self._is_format_1:
            return [() if text is None else (Text(text),) for text in self._column("text")]
        (rows, texts), (_, names) = self._items("texts", "text"), self._items("texts", "name")
        return _by_case(len(self), rows, map(Text, texts, names))

    @cached_property
    def masks(self) -> list[tuple[Mask, ...]]:
        """The masks of each case, with their classes and annotators."""
        if self._is_format_1:
            return [() if path is None else (Mask(path),) for path in self._column("mask")]
        rows, names = self._items("masks", "name")
        files = (
            (path, None if size is None or modified_ns is None else FileFacts(size, modified_ns, is_file=True))
            for path, size, modified_ns in self.mask_files()
        )
        found = zip(files, names, self._items("masks", "annotator")[1], strict=True)
        return _by_case(len(self), rows, (Mask(path, name, who, file) for (path, file), name, who in found))

    def mask_files(self) -> list[tuple[str, int | None, int | None]]:
        """The path of every mask, with size and time of its file (None: format 1 did not look)."""
        if self._is_format_1:
            return [(path, None, None) for path in self._column("mask") if path is not None]
        columns = [self._items("masks", name)[1] for name in ("image", "file_size", "modified_ns")]
        return list(zip(*columns, strict=True))

    @cached_property
    def is_gt(self) -> np.ndarray:
        """Whether each case's label is a true one, bool [N]."""
        return np.array(self._column("is_gt"), dtype=bool)

    @cached_property
    def metas(self) -> list[dict[str, str]]:
        """The metadata of each case."""
        return [json.loads(meta) if meta != "{}" else {} for meta in self._column("meta")]

    def metadata(self, row: int) -> dict[str, str]:
        """The metadata of a case, by the names that ``columns`` gives them."""
        return {column_name(key): text for key, text in self.metas[row].items()}

    @cached_property
    def content(self) -> str:
        """SHA-256 of all cases of the files: their fields and the bytes of their images, wherever those files lie.

        Two stores with the same content hold the same cases in the same order, so a run of one can go on with the
        other. Labels are those of the files: ``with_labels`` does not change it. Cases of at most one text and one
        mask, both without names, have the same content in every format.
        """
        names = ("id", "source", "group", "split", "text", "labels", "mask", "is_gt", "meta")
        plain = [name for name in names if name in self._arrow.column_names]
        digests = {name: hashlib.sha256() for name in (*names, "views", "name", "sha256")}
        for batch in self._arrow.to_batches():
            views = batch.column("views")
            columns = {name: batch.column(name).to_pylist() for name in plain}
            columns |= {name: views.flatten().field(name).to_pylist() for name in ("name", "sha256")}
            columns["views"] = views.value_lengths().to_pylist()
            if not self._is_format_1:
                columns["text"] = _told(batch.column("texts"), "text", "name")
                columns["mask"] = _told(batch.column("masks"), "image", "name", "annotator")
            for name, values in columns.items():  # each value ends with a zero, so where a batch ends is no matter
                digests[name].update("".join(f"{value}\0" for value in values).encode())
        return fingerprint({name: digest.hexdigest() for name, digest in digests.items()})

    def columns(self) -> dict[str, list[str]]:
        """``source`` and every metadata key, '' where a case has none; a key 'source' is called 'meta.source'."""
        keys = sorted({key for meta in self.metas for key in meta})
        return {
            "source": self.sources,
            **{column_name(key): [meta.get(key, "") for meta in self.metas] for key in keys},
        }

    def meta_columns(self) -> dict[str, MetaColumn]:
        """Every metadata column of the files as numbers or categories, by the names that ``columns`` gives them.

        All cases of the files decide which it is, so that every selection of them has the same columns.
        """
        return {
            column_name(key): typed([meta.get(key, "") for meta in self.metas], kind)
            for key, kind in self._meta_kinds.items()
        }

    @cached_property
    def _meta_kinds(self) -> Mapping[str, Kind]:
        if self._kinds is not None:
            return self._kinds
        batches = self._arrow.select(["meta"]).to_batches()
        return column_kinds(json.loads(meta) for batch in batches for meta in batch.column("meta").unique().to_pylist())

    def images(self, row: int) -> list[str | bytes]:
        """The views of a case: the bytes where they are embedded, else the path."""
        embedded = self._view_field(row, "bytes")
        return [
            path if data is None else data for path, data in zip(self._view_field(row, "image"), embedded, strict=True)
        ]

    def image_names(self, row: int) -> list[str]:
        """The paths of the views of a case, also where the bytes are embedded ('' where there never was a file)."""
        return self._view_field(row, "image")

    def view_names(self, row: int) -> list[str]:
        """The names of the views of a case."""
        return self._view_field(row, "name")

    def _view_field(self, row: int, name: str) -> list[Any]:
        position = row if self._rows is None else int(self._rows[row])
        chunk = int(np.searchsorted(self._offsets, position, side="right")) - 1
        views = self._arrow.column("views").chunk(chunk)[position - int(self._offsets[chunk])]
        values: list[Any] = views.values.field(name).to_pylist()
        return values

    def view_column(self, name: str) -> tuple[np.ndarray, list[Any]]:
        """A field of all views (image, name, width, height, sha256 ...) and the row of each; touches no image bytes."""
        return self._items("views", name)

    def _items(self, column: str, name: str) -> tuple[np.ndarray, list[Any]]:
        """A field of all items of a column of lists, and the row of each."""
        import pyarrow as pa
        import pyarrow.compute as pc

        items = self._arrow.column(column)
        lengths = pc.list_value_length(items).to_numpy().astype(np.int64)
        positions = np.arange(len(lengths)) if self._rows is None else self._rows
        counts = lengths[positions]
        rows = np.repeat(np.arange(len(positions)), counts)
        first_of_row = np.cumsum(counts) - counts
        starts = (np.cumsum(lengths) - lengths)[positions]
        indices = np.arange(len(rows)) + np.repeat(starts - first_of_row, counts)
        kind = items.type.value_type.field(name).type
        values = pa.chunked_array([chunk.flatten().field(name) for chunk in items.chunks], type=kind)
        return rows, (values if self._rows is None else values.take(indices)).to_pylist()

    def file_hashes(self) -> Iterator[tuple[int, str]]:
        """(row, sha256 of the original file) of every view."""
        rows, digests = self.view_column("sha256")
        return zip(rows.tolist(), digests, strict=True)

    @cached_property
    def sizes(self) -> np.ndarray:
        """[width, height] of each case's first view as stored, int64 [N, 2]; 0 where it has none."""
        sizes_N2 = np.zeros((len(self), 2), dtype=np.int64)
        for axis, name in enumerate(("width", "height")):
            rows, values = self.view_column(name)
            first_rows, first = np.unique(rows, return_index=True)
            sizes_N2[first_rows, axis] = np.array(values, dtype=np.int64)[first]
        return sizes_N2

    @cached_property
    def store_rows(self) -> np.ndarray:
        """Where in the whole store each case is, int64 [N]."""
        return np.arange(len(self)) if self._rows is None else self._rows

    def select(self, rows: np.ndarray) -> CaseTable:
        """The cases at these rows, in this order."""
        rows = np.asarray(rows, dtype=np.int64)
        given = {name: [self.__dict__[name][row] for row in rows.tolist()] for name in self._given()}
        return self._with(rows if self._rows is None else self._rows[rows], given)

    def with_splits(self, splits: Sequence[str]) -> CaseTable:
        """The same cases in other splits, one for each."""
        return self._with(self._rows, {**self._given(), "splits": list(splits)})

    def with_labels(self, labels: Sequence[tuple[str, ...]]) -> CaseTable:
        """The same cases with other labels, a tuple for each."""
        return self._with(self._rows, {**self._given(), "labels": list(labels)})

    def with_texts(self, texts: Sequence[tuple[Text, ...]]) -> CaseTable:
        """The same cases with other texts, some for each."""
        return self._with(self._rows, {**self._given(), "named_texts": list(texts)})

    def _given(self) -> dict[str, list[Any]]:
        """The columns that are not those of the files any more."""
        return {name: self.__dict__[name] for name in self.__dict__.get("_replaced", ())}

    def _with(self, rows: np.ndarray | None, given: dict[str, list[Any]]) -> CaseTable:
        table = CaseTable(self._folder, rows=rows, kinds=self._kinds)
        # A cached property is an attribute once it is known.
        table.__dict__.update({"_arrow": self._arrow, "_replaced": tuple(given), **given})
        return table

    def rows(self, split: str) -> np.ndarray:
        """The rows of a split, in order."""
        return np.flatnonzero(np.array(self.splits, dtype=object) == split)


def _by_case(cases: int, rows: np.ndarray, items: Iterable[Item]) -> list[tuple[Item, ...]]:
    """The items of each case, by the row of each item."""
    found: list[list[Item]] = [[] for _ in range(cases)]
    for row, item in zip(rows.tolist(), items, strict=True):
        found[row].append(item)
    return [tuple(items) for items in found]


def _told(column: pa.ListArray, value: str, *names: str) -> list[Any]:
    """What ``content`` hashes of lists of items: None for no item, the value of a lone one without names, else all."""
    items, lengths = column.flatten(), column.value_lengths().to_pylist()
    values, *others = (items.field(field).to_pylist() for field in (value, *names))
    if not any(map(any, others)) and max(lengths, default=0) <= 1:
        lone = iter(values)
        return [next(lone) if length else None for length in lengths]
    rows = zip(values, *others, strict=True)
    found = [list(islice(rows, length)) for length in lengths]
    return [own[0][0] if len(own) == 1 and not any(own[0][1:]) else own or None for own in found]


def _open_arrow(folder: Path) -> pa.Table:
    try:
        import pyarrow as pa
    except ImportError:
        raise MissingExtraError("Reading a store", "train") from None
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tables = []
        for item in state["_data_files"]:
            tables.append(pa.ipc.open_stream(pa.memory_map(str(folder / item["filename"]))).read_all())
        return pa.concat_tables(tables) if tables else schema().empty_table()
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowInvalid) as error:
        raise StoreError(
            f"the store {folder} is damaged ({error}); remove the folder and prepare the data again."
        ) from None
