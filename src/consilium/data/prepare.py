"""From configured sources to a store on disk: resumable, and nothing to do when nothing changed."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from consilium.core.errors import BadRowsError, DataError, ImageError, StoreError
from consilium.core.files import atomic_file, fingerprint, write_json
from consilium.data.case import SPLITS, BadRow, Case, View
from consilium.data.config import DataConfig, FolderSource, Source, StoreConfig
from consilium.data.images import probe, read_bytes, resize_once
from consilium.data.sources import Inputs, list_inputs, read_source
from consilium.data.splits import SplitRule, assign_split, split_rule
from consilium.data.store import FORMAT_VERSION, Manifest, Store, schema, write_dataset_files

PART_ROWS = 2048
PART_BYTES = 64 * 2**20
QUARANTINE = "quarantine.csv"
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` did; ``created`` is False when the store was there already.

    ``summary`` has a row per source: cases per split, rows that were bad, files that were skipped.
    """

    store: Store
    created: bool
    bad_rows: list[BadRow]
    summary: list[dict[str, str | int]]


def prepare(config: DataConfig, *, progress: Progress | None = None) -> Prepared:
    """The store for a data config, made if it does not exist or its inputs changed.

    ``progress`` is called with (cases done, all cases). A run that was killed goes on where it stopped when it is
    started again. Bad rows stop it with a BadRowsError that summarises all, or are set aside, as the config says.
    """
    inputs = [list_inputs(source) for source in config.sources]
    key = _fingerprint(config, inputs)
    names = "+".join(source.name for source in config.sources)[:60]
    target = Path(config.store.root).expanduser() / f"{names}-{key}"
    with _lock(target):
        store = _unchanged_store(target, config)
        created = store is None
        if store is None:
            store = _build(target, config, inputs, key, progress)
    bad_rows = _read_bad_rows(store.path / QUARANTINE) if store.manifest.bad_rows else []
    if bad_rows and config.on_bad_row == "stop":
        raise _stop(bad_rows, store.path / QUARANTINE)
    return Prepared(store, created, bad_rows, _summary(config.sources, store.manifest, bad_rows))


def _fingerprint(config: DataConfig, inputs: Sequence[Inputs]) -> str:
    """What a store depends on: its format, the sources (not their weights), splits, images, and the input files."""
    files = hashlib.sha256()
    for source_inputs in inputs:
        for file in source_inputs.files:
            files.update(f"{file.name}\0{file.size}\0{file.modified_ns}\n".encode(errors="surrogateescape"))
        files.update(b"\0")
    return fingerprint([FORMAT_VERSION, _relevant(config), files.hexdigest()])


def _relevant(config: DataConfig) -> dict[str, Any]:
    sources = []
    for source in config.sources:
        tree = source.model_dump(mode="json", exclude={"weight"})
        paths = {key: os.path.abspath(os.path.expanduser(tree[key])) for key in ("path", "image_root") if tree.get(key)}
        sources.append({**tree, **paths})
    return {
        "sources": sources,
        "split": config.split.model_dump(mode="json"),
        "store": config.store.model_dump(mode="json", exclude={"root"}),
    }


@contextlib.contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Hold off other processes that prepare the same store."""
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target.parent / f".{target.name}.lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Turn a failure to write into a StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"the store {target} could not be written: {error}. Free space or correct data.store.root, and run again: "
            "what was prepared so far is kept."
        ) from error


def _unchanged_store(target: Path, config: DataConfig) -> Store | None:
    """The finished store, unless an image that a table points to changed since."""
    try:
        store = Store.open(target)
        # The listing of a folder source is part of the fingerprint.
        if all(isinstance(source, FolderSource) for source in config.sources):
            return store
        columns = [store.table.view_column(name)[1] for name in ("image", "file_size", "modified_ns")]
    except StoreError:
        return None
    known = [*zip(*columns, strict=True), *map(tuple, store.manifest.unreadable)]
    return store if all(_stat(path) == (size, modified) for path, size, modified in known if path) else None


def _stat(path: str) -> tuple[int | None, int | None]:
    try:
        found = os.stat(path)
    except OSError:
        return None, None
    return found.st_size, found.st_mtime_ns


@dataclass
class _Survey:
    """What a first reading of the rows, without their images, finds."""

    cases: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)
    rules: dict[str, SplitRule] = field(default_factory=dict)


def _survey(config: DataConfig, inputs: Sequence[Inputs]) -> _Survey:
    survey = _Survey()

    def given(source: Source, files: Inputs) -> Iterator[tuple[str, str | None]]:
        for item in read_source(source, inputs=files):
            if isinstance(item, BadRow):
                survey.bad_rows.append(item)
                continue
            if config.store.images == "reference" and any(view.data is not None for view in item.views):
                raise DataError(
                    f"source '{source.name}': {source.path} holds the images themselves, so there is no file to refer "
                    "to; set data.store.images: embed."
                )
            survey.cases += 1
            yield item.group, item.split

    for source, files in zip(config.sources, inputs, strict=True):
        survey.rules[source.name] = split_rule(given(source, files))
    return survey


def _build(target: Path, config: DataConfig, inputs: Sequence[Inputs], key: str, progress: Progress | None) -> Store:
    survey = _survey(config, inputs)
    work = target.with_name(f"{target.name}.partial")
    with _writing(target):
        work.mkdir(exist_ok=True)
    done = _finished(work)
    cases = (
        item
        for source, files in zip(config.sources, inputs, strict=True)
        for item in read_source(source, inputs=files)
        if isinstance(item, Case)
    )
    writer = _PartWriter(work, start=done)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        remaining = islice(cases, done, None)
        while batch := list(islice(remaining, 64)):
            for case, views in zip(batch, pool.map(lambda case: _check_images(case, config.store), batch), strict=True):
                split = assign_split(case.group, case.split, rule=survey.rules[case.source], config=config.split)
                with _writing(target):
                    writer.add(case, views, split=split)
            done += len(batch)
            if progress is not None:
                progress(done, survey.cases)
    with _writing(target):
        writer.flush()
        return _finish(work, target, config, inputs, key, survey)


@dataclass(frozen=True)
class _BadImage:
    """An image that cannot be used: its file as found, and why."""

    path: str
    size: int | None
    modified_ns: int | None
    reason: str


def _check_images(case: Case, config: StoreConfig) -> list[dict[str, Any]] | _BadImage:
    """The stored form of a case's views."""
    views = []
    for view in case.views:
        size, modified = _stat(view.image) if view.data is None else (len(view.data), None)
        try:
            views.append(_check_image(view, config, size, modified))
        except ImageError as error:
            return _BadImage(view.image, size, modified, str(error))
    return views


def _check_image(view: View, config: StoreConfig, size: int | None, modified: int | None) -> dict[str, Any]:
    data = read_bytes(view.image if view.data is None else view.data)
    name = view.image or "embedded image"
    info = probe(data, name=name, max_pixels=config.max_pixels)
    digest = hashlib.sha256(data).hexdigest()
    if config.resize is not None and min(info.width, info.height) > config.resize:
        data = resize_once(data, name=name, shorter=config.resize, max_pixels=config.max_pixels)
        info = probe(data, name=name, max_pixels=config.max_pixels)
    return {
        "image": view.image,
        "bytes": data if config.images == "embed" else None,
        "name": view.name,
        "width": info.width,
        "height": info.height,
        "sha256": digest,
        "file_size": size,
        "modified_ns": modified,
    }


class _PartWriter:
    """Collects rows and writes them as parts; the name of a part says which cases are done with it.

    The bad rows of a part are written before it, so that a part that exists is complete.
    """

    def __init__(self, work: Path, *, start: int) -> None:
        self.work, self.start, self.stop = work, start, start
        self.rows: list[dict[str, Any]] = []
        self.bad: list[list[Any]] = []
        self.bytes = 0

    def add(self, case: Case, views: list[dict[str, Any]] | _BadImage, *, split: str) -> None:
        """Add a case; full parts are written."""
        self.stop += 1
        if isinstance(views, _BadImage):
            row = BadRow(case.source, case.file, case.line, views.reason)
            self.bad.append([list(row), [views.path, views.size, views.modified_ns]])
        else:
            self.bytes += sum(len(view["bytes"]) for view in views if view["bytes"] is not None)
            self.rows.append({
                "id": case.id, "source": case.source, "group": case.group, "split": split, "views": views,
                "text": case.text, "labels": case.labels, "mask": case.mask, "is_gt": case.is_gt,
                "meta": json.dumps(case.meta, ensure_ascii=False),
            })  # fmt: skip
        if self.stop - self.start >= PART_ROWS or self.bytes >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is collected."""
        if self.stop == self.start:
            return
        import pyarrow as pa

        stem = f"part-{self.start:09d}-{self.stop:09d}"
        if self.bad:
            write_json(self.work / f"{stem}.bad.json", self.bad)
        table = pa.Table.from_pylist(self.rows, schema=schema())
        with atomic_file(self.work / f"{stem}.arrow") as path, pa.OSFile(str(path), "wb") as file:
            with pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
        self.rows, self.bad, self.bytes, self.start = [], [], 0, self.stop


def _parts(work: Path) -> list[Path]:
    """The parts of a store in order, as far as they follow one another."""
    parts, stop = [], 0
    for path in sorted(work.glob("part-*.arrow")):
        first, last = path.stem.split("-")[1:]
        if int(first) != stop:
            break
        parts.append(path)
        stop = int(last)
    return parts


def _finished(work: Path) -> int:
    parts = _parts(work)
    return int(parts[-1].stem.split("-")[2]) if parts else 0


def _finish(work: Path, target: Path, config: DataConfig, inputs: Sequence[Inputs], key: str, survey: _Survey) -> Store:
    """Make the parts a store, or say what is bad about the rows."""
    parts = _parts(work)
    sidecars = [path.with_suffix(".bad.json") for path in parts if path.with_suffix(".bad.json").exists()]
    found = [pair for path in sidecars for pair in json.loads(path.read_text(encoding="utf-8"))]
    bad_rows = _in_order(config.sources, survey.bad_rows + [BadRow(*row) for row, _ in found])
    splits, counts = _count(parts)
    cases = sum(sum(of_source.values()) for of_source in splits.values())
    if bad_rows and (config.on_bad_row == "stop" or not cases):
        listing = target.with_name(f"{target.name}.bad_rows.csv")
        _write_bad_rows(listing, bad_rows)
        shutil.rmtree(work)
        raise _stop(bad_rows, listing)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        consilium_version=version("consilium"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        fingerprint=key,
        config=_relevant(config),
        images=config.store.images,
        max_pixels=config.store.max_pixels,
        cases=cases,
        bad_rows=len(bad_rows),
        splits=splits,
        counts=counts,
        skipped={source.name: dict(files.skipped) for source, files in zip(config.sources, inputs, strict=True)},
        unreadable=[file for _, file in found],
    )
    if bad_rows:
        _write_bad_rows(work / QUARANTINE, bad_rows)
    write_dataset_files(work, data_files=[path.name for path in parts], manifest=manifest)
    for path in [*sidecars, *work.glob(".*.tmp")]:
        path.unlink()
    _replace(work, target)
    return Store.open(target)


def _count(parts: Sequence[Path]) -> tuple[dict[str, dict[str, int]], list[dict[str, Any]]]:
    """Cases per source and split, and rows {source, split, label, cases}."""
    import pyarrow as pa

    cases: Counter[tuple[str, str]] = Counter()
    labelled: Counter[tuple[str, str, str]] = Counter()
    for path in parts:
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all().select(["source", "split", "labels"])
        for source, split, labels in zip(*(column.to_pylist() for column in table.columns), strict=True):
            cases[source, split] += 1
            labelled.update((source, split, label) for label in labels or [""])
    splits: dict[str, dict[str, int]] = {}
    for (source, split), count in cases.items():
        splits.setdefault(source, {})[split] = count
    keys = ("source", "split", "label", "cases")
    return splits, [dict(zip(keys, (*key, labelled[key]), strict=True)) for key in sorted(labelled)]


def _replace(work: Path, target: Path) -> None:
    """Put the finished store in its place; an outdated one goes only then."""
    old = target.with_name(f"{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    work.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _in_order(sources: Sequence[Source], bad_rows: list[BadRow]) -> list[BadRow]:
    order = {source.name: number for number, source in enumerate(sources)}
    return sorted(bad_rows, key=lambda row: (order[row.source], row.line or 0, row.file))


def _write_bad_rows(path: Path, bad_rows: Sequence[BadRow]) -> None:
    with (
        atomic_file(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(BadRow._fields)
        writer.writerows(bad_rows)


def _read_bad_rows(path: Path) -> list[BadRow]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    return [BadRow(source, name, int(line) if line else None, reason) for source, name, line, reason in rows]


def _stop(bad_rows: Sequence[BadRow], listing: Path) -> BadRowsError:
    shown = "\n".join(f"  - {row}" for row in bad_rows[:20])
    more = f"\n  ... and {len(bad_rows) - 20} more" if len(bad_rows) > 20 else ""
    return BadRowsError(
        f"{len(bad_rows)} bad rows:\n{shown}{more}\nAll are listed in {listing}. Mend them, or set "
        "data.on_bad_row: quarantine to go on without them."
    )


def _summary(sources: Sequence[Source], manifest: Manifest, bad_rows: Sequence[BadRow]) -> list[dict[str, str | int]]:
    """A row per source for a table on the screen."""
    bad = Counter(row.source for row in bad_rows)
    rows: list[dict[str, str | int]] = []
    for source in sources:
        splits = manifest.splits.get(source.name, {})
        rows.append({
            "source": source.name, **{split: splits.get(split, 0) for split in SPLITS}, "bad rows": bad[source.name],
            "skipped files": sum(manifest.skipped[source.name].values()),
        })  # fmt: skip
    return rows
