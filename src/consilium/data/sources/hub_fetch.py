"""Fetching a dataset of the Hugging Face hub: streamed into Arrow files, gently, and resumed where it stopped."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from consilium.core.errors import ConfigError, ConsiliumError, DataError, MissingExtraError, StoreError
from consilium.core.files import atomic_file, locked, remove_leavings, write_json
from consilium.core.places import absolute
from consilium.core.reporter import Reporter, some
from consilium.data.sources.config import HubDataset
from consilium.data.sources.hub_patience import Patience, quiet_libraries
from consilium.data.store.parts import PART_BYTES, PART_ROWS, part_range, parts

MANIFEST = "hub.json"
BATCH = 64  # rows that are read into memory at once
_POSITION = b"consilium_position"
# Of a row group no more than this is read beyond what is needed.
_BLOCK = 2 * 2**20
Check = Callable[[Mapping[str, Any]], None]


def local_folder(path: str) -> str | None:
    """The folder of a local copy; None for an id of the hub, and an error for what is neither."""
    folder = absolute(path)
    if os.path.isdir(folder):
        return folder
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path):
        return None
    raise DataError(f"{path} is neither a folder of this machine nor a dataset id (owner/name); correct the path.")


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold off other processes that fetch into the same folder."""
    with contextlib.ExitStack() as stack:
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / ".lock"))
        yield


def find_commit(dataset: HubDataset, *, reporter: Reporter) -> str:
    """The commit that a revision stands for now, as the hub says."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise MissingExtraError("Reading a Hugging Face dataset", "train") from None
    patience = Patience(dataset, reporter, reached=False)
    while True:
        try:
            return str(HfApi().dataset_info(dataset.path, revision=dataset.revision).sha)
        except Exception as error:
            patience.wait(error)


def fetch(dataset: HubDataset, *, folder: Path, splits: Sequence[str] | None, check: Check, reporter: Reporter) -> None:
    """Bring the rows of the splits into ``folder``, as ``{split}/part-*.arrow``; nothing where all are there.

    ``check`` sees the splits, each with its features (None: unknown), before a row is fetched. Each part is saved with
    the place in the stream behind its last row, so that no row comes twice or is lost, however the process ends.
    ``alone_in`` must be held.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    # Parts may have been deleted, to save space.
    manifest["rows"] = {name: rows for name, rows in manifest["rows"].items() if rows == rows_in(folder / name)}
    if "splits" in manifest and set(manifest["rows"]) == set(manifest["splits"]):
        return
    for leavings in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        remove_leavings(leavings)
    _Fetcher(dataset, folder, manifest, reporter).run(splits, check)


def rows_in(folder: Path) -> int:
    """How many rows of a split are there, from its first."""
    found = parts(folder)
    return part_range(found[-1])[1] if found else 0


class _Fetcher:
    """Fetches one dataset; ``rows`` counts what came in all its splits."""

    def __init__(self, dataset: HubDataset, folder: Path, manifest: dict[str, Any], reporter: Reporter) -> None:
        self.dataset, self.folder, self.manifest, self.reporter = dataset, folder, manifest, reporter
        self.rows = 0
        self.total: int | None = None

    def run(self, splits: Sequence[str] | None, check: Check) -> None:
        patience = Patience(self.dataset, self.reporter)
        while True:
            before = self.rows
            try:
                with quiet_libraries(self.dataset, self.reporter):
                    opened = self._open(splits)
                    check({name: stream.features for name, stream in opened.items()})
                    self._tell_total(opened)
                    for name, stream in opened.items():
                        self._fetch_split(name, stream)
                break
            except ConsiliumError:
                raise
            except Exception as error:
                if self.rows > before:
                    patience.tries = 0
                patience.wait(error)
        counts = ", ".join(f"{name} {rows:,}" for name, rows in self.manifest["rows"].items())
        self.reporter.progress("fetch", self.rows, self.rows)
        self.reporter.line(f"{self.dataset.path}: all rows are in {self.folder} ({counts})")

    def _open(self, splits: Sequence[str] | None) -> dict[str, Any]:
        """The wanted splits as streams of rows whose images are not decoded."""
        import datasets

        local = local_folder(self.dataset.path)
        if local is not None and any((Path(local) / name).exists() for name in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(local)
            found = dict(saved) if isinstance(saved, dict) else {str(saved.split or "train"): saved}
            streams = {name: one.to_iterable_dataset() for name, one in found.items()}
        else:
            streams = dict(
                datasets.load_dataset(
                    local or self.dataset.path,
                    name=self.dataset.config_name,
                    data_dir=self.dataset.data_dir,
                    revision=self.manifest["commit"],
                    streaming=True,
                    storage_options={"hf": {"block_size": _BLOCK}},
                )
            )
        if missing := [name for name in splits or () if name not in streams]:
            raise ConfigError(
                f"{self.dataset.path} has no split '{missing[0]}'; its splits are: {some(list(streams), 10)}."
            )
        wanted = {name: streams[name].decode(False) for name in (splits or streams)}
        self.manifest["splits"] = list(wanted)
        return wanted

    def _tell_total(self, opened: Mapping[str, Any]) -> None:
        known = [stream.info.splits and stream.info.splits.get(name) for name, stream in opened.items()]
        self.total = sum(one.num_examples for one in known) if all(one and one.num_examples for one in known) else None
        self.rows = sum(self.manifest["rows"].values())

    def _fetch_split(self, name: str, stream: Any) -> None:
        if name in self.manifest["rows"]:
            return
        writer = _RowWriter(self.folder / name)
        self.rows += writer.stop
        number, state = writer.position or (0, None)
        # A parquet file is read by row groups, so that a resumed one begins near its place, not at its start.
        in_files = stream.info.builder_name == "parquet"
        pieces = stream.num_shards if in_files else 1
        columns = stream.features or {}
        try:
            for piece_number in range(number, pieces):
                piece = stream.shard(num_shards=pieces, index=piece_number).reshard() if in_files else stream
                if piece_number == number and state is not None:
                    piece.load_state_dict(state)
                for row in piece:
                    named = {key: _with_names(_with_bytes(cell), columns.get(key)) for key, cell in row.items()}
                    writer.add(named, (piece_number, piece.state_dict()))
                    self._count_row()
        finally:  # also what came before a connection was lost is kept
            writer.flush()
        self.manifest["rows"][name] = writer.stop
        with _writing(self.folder):
            write_json(self.folder / MANIFEST, self.manifest)

    def _count_row(self) -> None:
        self.rows += 1
        if self.rows % BATCH == 0:
            self.reporter.progress("fetch", self.rows, None if self.total is None else max(self.total, self.rows + 1))
        if self.dataset.delay and self.rows % 1000 == 0:
            time.sleep(self.dataset.delay)


class _RowWriter:
    """Collects rows and writes them as parts; ``position`` is the place in the stream behind the last part."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        finished = parts(folder)
        self.start = self.stop = rows_in(folder)
        self.position: tuple[int, dict[str, Any]] | None = None
        if finished:
            import pyarrow as pa

            with pa.memory_map(str(finished[-1])) as file, pa.ipc.open_file(file) as opened:
                number, state = json.loads(opened.schema.metadata[_POSITION])
            self.position = (number, state)
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, row: dict[str, Any], position: tuple[int, dict[str, Any]]) -> None:
        self._rows.append(row)
        self._bytes += _size(row)
        self.stop, self.position = self.stop + 1, position
        if len(self._rows) >= PART_ROWS or self._bytes >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._rows:
            return
        import pyarrow as pa

        names = dict.fromkeys(name for row in self._rows for name in row)
        table = pa.table({name: [row.get(name) for row in self._rows] for name in names})
        schema = table.schema.with_metadata({_POSITION: json.dumps(self.position)})
        with _writing(self.folder):
            self.folder.mkdir(exist_ok=True)
            with (
                atomic_file(self.folder / f"part-{self.start:09d}-{self.stop:09d}.arrow") as path,
                pa.OSFile(str(path), "wb") as file,
                pa.ipc.new_file(file, schema) as stream,
            ):
                stream.write_table(table.replace_schema_metadata(schema.metadata), max_chunksize=BATCH)
        self._rows, self._bytes, self.start = [], 0, self.stop


def _size(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, list):
        return sum(map(_size, value))
    return len(value) if isinstance(value, (bytes, str)) else 8


def _with_names(value: Any, feature: Any) -> Any:
    """A cell whose class numbers are replaced by the names of the classes; -1 is no class."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        if value is None or value < 0:
            return None
        return feature.names[value] if value < len(feature.names) else value
    if isinstance(feature, (datasets.List, datasets.LargeList)) and isinstance(value, list):
        return [_with_names(item, feature.feature) for item in value]
    return value


def _with_bytes(cell: Any) -> Any:
    """A cell whose images that are files of the hub, or members of an archive, are read."""
    if isinstance(cell, list):
        return [_with_bytes(item) for item in cell]
    if not isinstance(cell, dict) or set(cell) != {"bytes", "path"}:
        return cell
    if cell["bytes"] is not None or "://" not in (cell["path"] or ""):
        return cell
    import fsspec

    try:
        with fsspec.open(cell["path"], "rb") as file:
            return {"bytes": file.read(), "path": cell["path"].rpartition("/")[2]}
    except FileNotFoundError:
        return cell  # a bad row, when its image is prepared


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn a failure to write into a StoreError."""
    import pyarrow as pa

    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{folder} could not be written: {error}. Free space or correct data.store.root, and run again: what was "
            "fetched so far is kept."
        ) from error
    except pa.ArrowException as error:
        raise DataError(f"a part of the dataset cannot be kept in {folder}: {error}.") from error
