"""Datasets of the Hugging Face hub: fetched once into Arrow files beside the stores, then read from there."""

from __future__ import annotations

import bisect
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from consilium.core.config import nearest
from consilium.core.errors import ConfigError, DataError, StoreError
from consilium.core.files import fingerprint, write_json
from consilium.core.places import absolute
from consilium.core.reporter import Reporter, Silent
from consilium.data.case import BadRow, Case, RowError, split_name
from consilium.data.sources.config import HubDataset, HubSource, RetClipCsvSource
from consilium.data.sources.hub_fetch import BATCH, MANIFEST, Check, alone_in, fetch, find_commit, local_folder
from consilium.data.sources.rows import RowReader
from consilium.data.store.parts import part_range, parts


@dataclass(frozen=True)
class HubCache:
    """The rows of a dataset on this disk, in ``{folder}/{split}/part-*.arrow``, all of one ``commit``.

    ``version`` changes with the commit, or with the files of a local copy.
    """

    dataset: HubDataset
    folder: Path
    wanted: tuple[str, ...] | None
    commit: str | None
    version: int

    def fetch(self, *, check: Check = lambda splits: None, reporter: Reporter | None = None) -> None:
        """Fetch what is not here yet; ``check`` sees splits and features before the first row comes."""
        with alone_in(self.folder):
            fetch(self.dataset, folder=self.folder, splits=self.wanted, check=check, reporter=reporter or Silent())

    @cached_property
    def splits(self) -> list[str]:
        """The splits that were fetched."""
        names: list[str] = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))["splits"]
        return names

    def split(self, name: str) -> HubRows:
        """The rows of a fetched split."""
        return HubRows(self.folder / name)


class HubRows:
    """The rows of one split, memory-mapped: in their order, or any of them by its number."""

    def __init__(self, folder: Path) -> None:
        self._parts = parts(folder)
        self._starts = [part_range(part)[0] for part in self._parts]

    def __len__(self) -> int:
        return part_range(self._parts[-1])[1] if self._parts else 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for part in range(len(self._parts)):
            for number in range(self._opened(part).num_record_batches):
                yield from self._batch(part, number).to_pylist()

    def __getitem__(self, number: int) -> dict[str, Any]:
        """A row by its number from 0."""
        part = bisect.bisect_right(self._starts, number) - 1
        batch, row = divmod(number - self._starts[part], BATCH)
        found: dict[str, Any] = self._batch(part, batch).slice(row, 1).to_pylist()[0]
        return found

    @property
    def columns(self) -> list[str]:
        """The names of all columns."""
        return list(dict.fromkeys(name for part in range(len(self._parts)) for name in self._opened(part).schema.names))

    def _batch(self, part: int, number: int) -> Any:
        return self._opened(part).get_batch(number)

    def _opened(self, part: int) -> Any:
        import pyarrow as pa

        try:
            return pa.ipc.open_file(pa.memory_map(str(self._parts[part])))
        except (OSError, pa.ArrowInvalid) as error:
            raise StoreError(
                f"{self._parts[part]} is damaged ({error}); remove its folder and prepare the data again."
            ) from None


def open_cache(
    dataset: HubDataset, *, splits: list[str] | None, root: Path, reporter: Reporter | None = None
) -> HubCache:
    """The place of a dataset's rows under ``root``; nothing is fetched yet, but the commit is settled for good."""
    local = local_folder(dataset.path)
    files = None if local is None else _files(local)
    asked = {**dataset.model_dump(include={"config_name", "data_dir", "revision"}), "splits": splits}
    key = fingerprint([local or dataset.path, asked, files])
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", os.path.basename((local or dataset.path).rstrip("/")))
    folder = root.expanduser().absolute() / f"hub-{name}-{key}"
    with alone_in(folder):
        manifest = folder / MANIFEST
        if not manifest.exists():
            commit = None if local is not None else find_commit(dataset, reporter=reporter or Silent())
            write_json(manifest, {"dataset": local or dataset.path, "asked": asked, "commit": commit, "rows": {}})
        commit = json.loads(manifest.read_text(encoding="utf-8"))["commit"]
    wanted = None if splits is None else tuple(splits)
    return HubCache(dataset, folder, wanted, commit, int(fingerprint([key, commit]), 16) >> 1)


def _files(folder: str) -> list[tuple[str, int, int]]:
    """Name, size and time of every file of a local copy."""
    found = []
    for parent, _, names in os.walk(folder):
        for path in (os.path.join(parent, name) for name in names):
            stat = os.stat(path, follow_symlinks=os.path.exists(path))
            found.append((os.path.relpath(path, folder), stat.st_size, stat.st_mtime_ns))
    return sorted(found)


def fetch_source(source: HubSource | RetClipCsvSource, cache: HubCache, *, embed: bool, reporter: Reporter) -> None:
    """Fetch the rows of a source; what its config says wrongly about them is told before the first row comes."""

    def check(splits: Mapping[str, Any]) -> None:
        for name, features in splits.items():
            if isinstance(source, HubSource):
                _our_split(source, name)
                reader = _reader(source, cache, name)
                images = reader.image_columns
                if features is not None:
                    reader.check_columns(list(features))
            else:
                images = [source.images.image]
                if features is not None and source.images.image not in features:
                    hint = nearest(source.images.image, list(features), there="its columns are")
                    raise ConfigError(
                        f"source '{source.name}': images.image is '{source.images.image}', which "
                        f"{source.images.path} does not have{hint}"
                    )
            if not embed and cache.commit is not None and any(_is_image((features or {}).get(key)) for key in images):
                raise DataError(
                    f"source '{source.name}': {cache.dataset.path} holds the images themselves, so there is no file "
                    "to refer to; set data.store.images: embed."
                )

    try:
        cache.fetch(check=check, reporter=reporter)
    except DataError as error:
        prefix = f"source '{source.name}': "
        raise error if str(error).startswith(prefix) else DataError(f"{prefix}{error}") from error


def _is_image(feature: Any) -> bool:
    import datasets

    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return _is_image(feature.feature)
    return isinstance(feature, datasets.Image)


def _our_split(source: HubSource, name: str) -> str | None:
    """Our split for one of the dataset's own; None where something else decides."""
    if source.split is not None or not source.use_splits:
        return None
    try:
        return split_name(name)
    except RowError:
        raise DataError(
            f"source '{source.name}': {source.path} has a split '{name}', which is no usual name. Name the splits to "
            "read in `splits:`, say where their rows belong with `split:` (train, val, test), or let data.split divide "
            "them with `use_splits: false`."
        ) from None


def _reader(source: HubSource, cache: HubCache, split: str) -> RowReader:
    reader = RowReader(source, has_null=True)
    reader.file = f"{source.path} ({split})"
    reader.row_name = f"{source.name}:{split}"
    if source.image_root is None:
        reader.root = f"hf://datasets/{source.path}@{cache.commit}" if cache.commit else absolute(source.path)
    return reader


def read_hub(source: HubSource, cache: HubCache) -> Iterator[Case | BadRow]:
    """The rows of a Hugging Face dataset, split by split.

    Purpose: one case a row, by the configured columns. Numbers of a class become its name. The splits of the dataset
    are ours (validation is val), unless the row or the source names one; ``line`` counts the rows of a split from 1.
    Errors: an unknown name of a split is a DataError, a column that does not exist a ConfigError.
    """
    cache.fetch()
    for name in cache.splits:
        rows, ours, reader = cache.split(name), _our_split(source, name), _reader(source, cache, name)
        if len(rows):
            reader.check_columns(rows.columns)
        for line, row in enumerate(rows, start=1):
            item = reader.table_case(row, line)
            if isinstance(item, Case):
                item.split = item.split or ours
            yield item
