"""What is searched: the cases of stores, tables, folders and globs, before an image of them is read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from consilium.core.config import build
from consilium.core.errors import DataError
from consilium.core.files import fingerprint
from consilium.core.places import absolute, facts_of, is_remote, local_path
from consilium.core.reporter import Reporter
from consilium.data.batches.rows import views_of
from consilium.data.config import DataConfig
from consilium.data.sources.single import kind_of, single_source
from consilium.inputs import find_images

if TYPE_CHECKING:
    from consilium.data.store.store import CaseTable


@dataclass(frozen=True)
class Entry:
    """A case as an index knows it.

    ``images`` are the paths of its views, '' where there never was a file. ``digest`` changes when one of its images
    does; it is '' where the case has none. ``store`` is the folder of the prepared store that it is of, '' for a file.
    """

    id: str
    source: str = ""
    labels: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    digest: str = ""
    store: str = ""


class Views:
    """Reads the views of entries; a store is opened when a case of it is first asked for. Cheap to send to a worker."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        """``names`` are the views that are read; (): all."""
        self._names = names
        self._open: dict[str, tuple[CaseTable, dict[str, int]]] = {}

    def of(self, entry: Entry) -> list[str | bytes] | dict[str, str | bytes]:
        """Paths or encoded bytes, by their names if they have some; what is gone is a StoreError, or a DataError."""
        if not entry.store:
            return list(entry.images)
        if entry.store not in self._open:
            from consilium.data.store.store import Store

            table = Store.open(entry.store).table
            self._open[entry.store] = table, {name: row for row, name in enumerate(table.ids)}
        table, rows = self._open[entry.store]
        if entry.id not in rows:
            raise DataError(f"the store {entry.store} has no case {entry.id} any more; run `consilium index` again.")
        return views_of(table, rows[entry.id], self._names)

    def __getstate__(self) -> dict[str, object]:
        return {"_open": {}, "_names": self._names}


@dataclass
class Collection:
    """The cases of some places in a stable order; ``skipped`` counts files that were left aside, ``bad_rows`` rows."""

    entries: list[Entry] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    bad_rows: list[str] = field(default_factory=list)


def collect(places: Sequence[str], *, reporter: Reporter) -> Collection:
    """The cases of image files, folders (whole trees), globs, prepared stores and tables.

    A table (.csv, .parquet, .jsonl) is prepared first; rows of it that cannot be used are left out and named. Where
    there is no case it is a DataError.
    """
    found = Collection()
    for given in places:
        place = os.path.expanduser(local_path(given))
        if not is_remote(place) and (Path(place) / "store.json").is_file():
            found.entries += _of_store(Path(place).absolute())
        elif kind_of(place) in ("csv", "parquet", "jsonl"):
            found.entries += _of_store(_prepared(place, found, reporter=reporter))
        else:
            names, items = find_images([given])
            found.entries += _of_files(names)
            found.skipped.update(items.skipped)
    found.entries = list(dict.fromkeys(found.entries))
    if not found.entries:
        raise DataError(f"there is no case in {', '.join(places)}, so there is nothing to search.")
    return found


def _prepared(table: str, found: Collection, *, reporter: Reporter) -> Path:
    from consilium.data.store.prepare import prepare

    tree = {"sources": [single_source(table, kind_of(table) or "")], "on_bad_row": "quarantine"}
    done = prepare(build(DataConfig, tree, origin=table), reporter=reporter)
    found.bad_rows += map(str, done.bad_rows)
    return done.store.path


def _of_store(folder: Path) -> list[Entry]:
    from consilium.data.store.store import Store

    table = Store.open(folder).table
    digests: list[list[str]] = [[] for _ in range(len(table))]
    paths: list[list[str]] = [[] for _ in range(len(table))]
    for column, found in (("sha256", digests), ("image", paths)):
        for row, value in zip(*table.view_column(column), strict=True):
            found[row].append(value)
    return [
        Entry(
            id=name,
            source=table.sources[row],
            labels=table.labels[row],
            images=tuple(paths[row]),
            texts=tuple(table.captions(row)),
            digest=fingerprint(digests[row]) if digests[row] else "",
            store=str(folder),
        )
        for row, name in enumerate(table.ids)
    ]


def _of_files(names: Sequence[str]) -> list[Entry]:
    paths = [absolute(name) for name in names]
    return [
        Entry(name, images=(path,), digest=fingerprint([path, facts and (facts.size, facts.version)]))
        for name, path, facts in zip(names, paths, facts_of(paths), strict=True)
    ]
