"""From configured sources to a store on disk: resumable, and nothing to do when nothing changed."""

from __future__ import annotations

import contextlib
import csv
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path

from consilium.core.config import nearest
from consilium.core.errors import ConfigError, DataError, StoreError
from consilium.core.files import atomic_file, locked, replace_folder
from consilium.core.places import FileFacts, facts_of, is_remote, reading_threads
from consilium.core.reporter import Reporter, Silent, counted
from consilium.core.surroundings import require_utf8
from consilium.data.case import SPLITS, BadRow, Case, column_name, meta_key
from consilium.data.cases.captions import captioned
from consilium.data.cases.groups import one_group
from consilium.data.cases.renames import renamed
from consilium.data.config import DataConfig
from consilium.data.guards.digests import all_decoded, keep_digests
from consilium.data.images.check import check_ahead
from consilium.data.sources.config import FolderSource, HubSource, RetClipCsvSource, Source
from consilium.data.sources.files import Inputs, counted_reasons, list_inputs
from consilium.data.sources.packed import unpacked
from consilium.data.sources.reading import read_source
from consilium.data.store.bad_rows import bad_rows_error
from consilium.data.store.files import FORMAT_VERSION, Manifest, write_dataset_files
from consilium.data.store.names import QUARANTINE, earlier_keys, files_digest, reads_as_before, relevant, store_key
from consilium.data.store.parts import DIGESTS, PartWriter, bad_images, count, image_notes, parts, remove_leavings
from consilium.data.store.splits import GroupSurvey, SplitRule, assign_split, fill_splits, split_rule
from consilium.data.store.store import Store

MOST_NOTES = 20  # of one source that are kept
BATCH = 64  # cases between two steps of the bar


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` did; ``created`` is False when the store was there already.

    ``summary`` has a row per source: cases per split, different labels, rows that were bad, files that were skipped.
    ``remarks`` say which texts were made of rows, and that all cases are of one group, where they are.
    """

    store: Store
    created: bool
    bad_rows: list[BadRow]
    summary: list[dict[str, str | int]]
    remarks: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        state = "prepared" if self.created else "unchanged"
        return f"<Prepared: {state}, {counted(len(self.bad_rows), 'bad row')}, {self.store!r}>"

    def notes(self) -> list[str]:
        """What a person should know: which files were skipped, what is odd about rows, and which rows are left out."""
        manifest = self.store.manifest
        lines = [f"{name}: skipped {counted_reasons(reasons)}" for name, reasons in manifest.skipped.items() if reasons]
        notes = [(name, note, rows) for name, found in manifest.notes.items() for note, rows in found.items()]
        lines += [f"{name}: {counted(rows, 'row')}: {note}" for name, note, rows in notes] + self.remarks
        if self.bad_rows:
            listing = self.store.path / QUARANTINE
            lines.append(f"{counted(len(self.bad_rows), 'bad row')} left out; {listing} lists them.")
        return lines


def prepare(config: DataConfig, *, reporter: Reporter | None = None) -> Prepared:
    """The store for a data config, made if it does not exist or its inputs changed.

    ``reporter`` hears of downloads, and in the bar ``prepare`` of cases done. A run that was killed goes on where it
    stopped when it is started again. Bad rows stop it with a BadRowsError that summarises all, or are set aside, as
    the config says. The table of the store has the labels renamed, as the config says; the store's files do not.
    """
    require_utf8()
    reporter = reporter or Silent()
    stores = Path(config.store.root).expanduser().absolute()
    config = config.model_copy(update={"sources": [unpacked(source, stores) for source in config.sources]})
    inputs = [list_inputs(source, root=config.store.root, reporter=reporter) for source in config.sources]
    files = files_digest(inputs)
    key = store_key(config, files)
    names = "+".join(source.name for source in config.sources)[:60]
    target = stores / f"{names}-{key}"
    with _lock(target):
        store = _unchanged_store(target, config)
        for earlier in earlier_keys(config, files) if store is None else []:
            store = store or _earlier_store(stores / f"{names}-{earlier}", config)
        if store is not None and config.store.check_images == "decode":
            # One that was prepared by headers alone; where all is sound its cases are the same.
            store = store if all_decoded(store, progress=partial(reporter.progress, "look at images")) else None
        created = store is None
        if store is None:
            _fetch(config, inputs, reporter)
            store = _build(target, config, inputs, key, reporter)
    # What a listing leaves aside is no part of the fingerprint.
    skipped = {source.name: dict(files.skipped) for source, files in zip(config.sources, inputs, strict=True)}
    store.manifest = replace(store.manifest, skipped=skipped)
    if config.rename_labels:
        store.table = renamed(store.table, config.rename_labels)
    bad_rows = _read_bad_rows(store.path / QUARANTINE) if store.manifest.bad_rows else []
    if bad_rows and config.on_bad_row == "stop":
        listing = store.path / QUARANTINE
        raise bad_rows_error(bad_rows, listing=listing, sources=config.sources, splits=store.manifest.splits)
    grouped = one_group(store.table.groups, config.sources)
    made = captioned(store.table, config.sources)
    store.table = made.table
    summary = _summary(config.sources, store.manifest, bad_rows)
    return Prepared(store, created, bad_rows, summary, made.notes + ([] if grouped is None else [grouped]))


def _fetch(config: DataConfig, inputs: Sequence[Inputs], reporter: Reporter) -> None:
    """Bring the rows of hub datasets to this machine."""
    for source, files in zip(config.sources, inputs, strict=True):
        if files.hub is not None and isinstance(source, HubSource | RetClipCsvSource):
            from consilium.data.sources.hub import fetch_source

            fetch_source(source, files.hub, embed=config.store.images == "embed", reporter=reporter)


@contextlib.contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Hold off other processes that prepare the same store."""
    with contextlib.ExitStack() as stack:
        with _writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(target.parent / f".{target.name}.lock"))
        yield


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
    """The finished store, unless an image or a mask that a table points to changed since."""
    try:
        store = Store.open(target)
        # The listing of a folder source is part of the fingerprint.
        if all(isinstance(source, FolderSource) for source in config.sources):
            return store
        columns = [store.table.view_column(name)[1] for name in ("image", "file_size", "modified_ns")]
        masks = store.table.mask_files()
    except StoreError:
        return None
    images = [item for item in zip(*columns, strict=True) if item[1] is not None]
    images += [tuple(file) for file in store.manifest.unreadable if file[0]]
    masks = [item for item in masks if item[1] is not None]
    embedded = config.store.images == "embed"
    unchanged = _are_unchanged(images, embedded=embedded) and _are_unchanged(masks, embedded=False)
    return store if unchanged else None


def _are_unchanged(files: Sequence[tuple[str, int | None, int | None]], *, embedded: bool) -> bool:
    """Whether files have the size and time that they had."""
    now = facts_of([path for path, _, _ in files])
    return all(_is_unchanged(found, *file[1:], embedded=embedded) for found, file in zip(now, files, strict=True))


def _earlier_store(target: Path, config: DataConfig) -> Store | None:
    """The finished store of an earlier version, unless this one would read its sources in another way."""
    store = _unchanged_store(target, config)
    return store if store is not None and reads_as_before(store, config) else None


def _is_unchanged(found: FileFacts | None, size: int | None, modified_ns: int | None, *, embedded: bool) -> bool:
    if found is None:
        return size is None or embedded  # an embedded image outlives its file
    return (found.size, found.version) == (size, modified_ns)


@dataclass
class _Survey:
    """What a first reading of the rows, without their images, finds."""

    cases: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)
    rules: dict[str, SplitRule] = field(default_factory=dict)
    notes: dict[str, Counter[str]] = field(default_factory=dict)


def _survey(config: DataConfig, inputs: Sequence[Inputs]) -> _Survey:
    survey, groups = _Survey(), GroupSurvey()
    origins: set[str] = set()
    columns = {"source"}
    keeps_sources = config.split.keep_sources_in is not None

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
            if item.labels and item.is_gt:
                origin = ""
                if keeps_sources:
                    origin = _origin(item, config.mixture.source_column)
                    origins.add(origin)
                    columns.update(map(column_name, item.meta))
                groups.add(item.group, source=item.source, split=item.split, labels=item.labels, origin=origin)
            if item.notes:  # few rows have any
                survey.notes.setdefault(source.name, Counter()).update(item.notes)
            yield item.group, item.split

    for source, files in zip(config.sources, inputs, strict=True):
        survey.rules[source.name] = split_rule(given(source, files))
    if any(source.split == "val" for source in config.sources):  # validation is a source of its own
        for source in config.sources:
            if source.split is not None:
                survey.rules[source.name] = replace(survey.rules[source.name], val_from_train=False)
    if keeps_sources:
        _refuse_one_origin(config.mixture.source_column, origins, columns)
    if config.split.every_class or keeps_sources:
        moved = fill_splits(groups, rules=survey.rules, config=config.split)
        survey.rules = {name: replace(rule, moved=moved) for name, rule in survey.rules.items()}
    return survey


def _origin(case: Case, column: str) -> str:
    """Which source a case is of by a column; '' where it says nothing."""
    return case.source if column == "source" else case.meta.get(meta_key(column), "")


def _refuse_one_origin(column: str, origins: Set[str], columns: Set[str]) -> None:
    """Sources that are to stay in train must be told apart by a column that says several."""
    if len(origins) > 1:
        return
    if column not in columns:
        raise ConfigError(f"data.mixture.source_column is '{column}'{nearest(column, sorted(columns))}")
    only = f"a single source ('{next(iter(origins))}')" if origins else "no labelled case"
    raise DataError(
        f"data.split.keep_sources_in is train, but by data.mixture.source_column ('{column}') there is {only}. Name "
        "the column that says where each case comes from, or leave keep_sources_in out."
    )


def _build(target: Path, config: DataConfig, inputs: Sequence[Inputs], key: str, reporter: Reporter) -> Store:
    survey = _survey(config, inputs)
    decodes = config.store.check_images == "decode"
    work = target.with_name(f"{target.name}.partial")
    with _writing(target):
        if decodes and any(not path.with_suffix(DIGESTS).is_file() for path in parts(work)):
            shutil.rmtree(work)  # begun by headers alone
        work.mkdir(exist_ok=True)
        writer = PartWriter(work, digests=decodes)
    cases = (
        item
        for source, files in zip(config.sources, inputs, strict=True)
        for item in read_source(source, inputs=files)
        if isinstance(item, Case)
    )
    remaining = islice(cases, writer.start, None)
    for case, images in check_ahead(remaining, config=config.store, threads=_workers(config)):
        split = assign_split(case.group, case.split, rule=survey.rules[case.source], config=config.split)
        writer.add(case, images, split=split)
        if writer.full:
            with _writing(target):
                writer.flush()
        if writer.stop % BATCH == 0 or writer.stop == survey.cases:
            reporter.progress("prepare", writer.stop, survey.cases)
    with _writing(target):
        writer.flush()
        return _finish(work, target, config, inputs, key, survey)


def _workers(config: DataConfig) -> int:
    if config.store.workers != "auto":
        return config.store.workers
    return reading_threads(remote=any(is_remote(source.path) for source in config.sources))


def _finish(work: Path, target: Path, config: DataConfig, inputs: Sequence[Inputs], key: str, survey: _Survey) -> Store:
    """Make the parts a store, or say what is bad about the rows.

    Where bad rows stop what asked for the store, it is made all the same, since every image has been looked at by
    then; but it does not take the place of one that was made before an image went bad.
    """
    unreadable = list(bad_images(work))
    for name, found in image_notes(work).items():
        survey.notes.setdefault(name, Counter()).update(found)
    bad_rows = _in_order(config.sources, survey.bad_rows + [row for row, _ in unreadable])
    data_files = parts(work)
    counts = count(data_files)
    if bad_rows and (not counts.cases or (config.on_bad_row == "stop" and target.exists())):
        listing = target.with_name(f"{target.name}.bad_rows.csv")
        _write_bad_rows(listing, bad_rows)
        shutil.rmtree(work)
        raise bad_rows_error(bad_rows, listing=listing, sources=config.sources, splits=counts.splits)
    if bad_rows:
        _write_bad_rows(work / QUARANTINE, bad_rows)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        consilium_version=version("consilium"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        fingerprint=key,
        config=relevant(config),
        images=config.store.images,
        max_pixels=config.store.max_pixels,
        cases=counts.cases,
        bad_rows=len(bad_rows),
        splits=counts.splits,
        counts=counts.labels,
        skipped={source.name: dict(files.skipped) for source, files in zip(config.sources, inputs, strict=True)},
        unreadable=[file for _, file in unreadable],
        notes={name: dict(found.most_common(MOST_NOTES)) for name, found in survey.notes.items() if found},
        meta=counts.meta,
    )
    write_dataset_files(work, data_files=[path.name for path in data_files], manifest=manifest)
    if config.store.check_images == "decode":
        keep_digests(Store.open(work), [path.with_suffix(DIGESTS) for path in data_files])
    replace_folder(work, target, old=target.with_name(f"{target.name}.old"))  # an outdated one
    remove_leavings(target)
    return Store.open(target)


def _in_order(sources: Sequence[Source], bad_rows: list[BadRow]) -> list[BadRow]:
    order = {source.name: number for number, source in enumerate(sources)}
    return sorted(bad_rows, key=lambda row: (order[row.source], row.line or 0, row.file))


def _write_bad_rows(path: Path, bad_rows: Sequence[BadRow]) -> None:
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(BadRow._fields)
        writer.writerows(bad_rows)


def _read_bad_rows(path: Path) -> list[BadRow]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    return [BadRow(source, name, int(line) if line else None, reason) for source, name, line, reason in rows]


def _summary(sources: Sequence[Source], manifest: Manifest, bad_rows: Sequence[BadRow]) -> list[dict[str, str | int]]:
    """A row per source for a table on the screen."""
    bad = Counter(row.source for row in bad_rows)
    labels = {(row["source"], row["label"]) for row in manifest.counts if row["label"]}
    return [
        {
            "source": source.name,
            **{split: manifest.splits.get(source.name, {}).get(split, 0) for split in SPLITS},
            "labels": sum(name == source.name for name, _ in labels),
            "bad rows": bad[source.name],
            "skipped files": sum(manifest.skipped[source.name].values()),
        }
        for source in sources
    ]
