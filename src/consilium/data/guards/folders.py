"""What the folders and names of images, and DICOM headers, say of patients, masks and thumbnails."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from consilium.core.errors import DataError
from consilium.core.files import write_json
from consilium.core.places import absolute, is_remote
from consilium.core.reporter import Reporter, Silent, counted
from consilium.data.case import RowError
from consilium.data.config import DataConfig
from consilium.data.sources.companions import Companion, Kind, companions, pattern_of
from consilium.data.sources.config import FolderSource, RowSource, Source
from consilium.data.sources.files import extension_of
from consilium.data.sources.headers import dicom_header
from consilium.data.sources.layout import layout_notes, layout_of
from consilium.data.store.store import CaseTable, Store

FILE = "patients.json"
BLOCKS, OF_FILES = 16, 128  # of more DICOM files than these only so many headers are read, neighbours together
_PATIENT = re.compile(
    r"(?<![a-z])(?:patient|person|subject|subj|sub|pat|pid|pt|case|donor|animal|mouse)[-_ ]?0*\d+", re.IGNORECASE
)
_DICOM_ENDINGS = ("", ".dcm", ".dicom", ".dic", ".ima")
_NO_ONE = re.compile(r"\W*|anon\w*|unknown|none|null|0+|removed|deidentified|de-identified|patient", re.IGNORECASE)


@dataclass(frozen=True)
class _Files:
    """The image files of one source in a table: of each its row and its path, also from the folder of the source."""

    source: Source
    number: int
    rows: list[int]
    paths: list[str]
    names: list[str]
    root: str

    @property
    def key(self) -> str:
        """Where the source stands in the config."""
        return f"data.sources.{self.number}"


def folder_warnings(
    store: Store, table: CaseTable, config: DataConfig, *, headers: bool = True, reporter: Reporter | None = None
) -> dict[str, list[str]]:
    """What is odd about where images lie, by what it is about.

    ``patient``: files of one folder below the label, of one patient by their names, or of one PatientID in their
    DICOM headers (looked at with ``headers``, and kept in the store) are in several splits, while nothing names the
    group. ``mask`` and ``thumbnail``: files that belong to other images and would be learned as images. ``layout``:
    a path that may be a level too high or too low. Each message names the key that mends it.
    """
    found: dict[str, list[str]] = {"patient": [], "mask": [], "thumbnail": [], "layout": []}
    for files in _files_of(table, config):
        found["patient"] += _split_patients(store, table, files, headers=headers, reporter=reporter or Silent())
        for kind, message in _companion_messages(files):
            found[kind].append(message)
        if isinstance(files.source, FolderSource):
            others = [source.path for source in config.sources if source is not files.source]
            found["layout"] += _layout_messages(files.source, files, beside=_beside(files.root, others))
    return found


def _files_of(table: CaseTable, config: DataConfig) -> list[_Files]:
    rows, paths = table.view_column("image")
    by_source: dict[str, tuple[list[int], list[str]]] = defaultdict(lambda: ([], []))
    sources = table.sources
    for row, path in zip(rows.tolist(), paths, strict=True):
        if path:
            own = by_source[sources[row]]
            own[0].append(row)
            own[1].append(path)
    found = []
    for number, source in enumerate(config.sources):
        if source.name not in by_source or not isinstance(source, FolderSource | RowSource):
            continue
        rows_of, paths_of = by_source[source.name]
        root = absolute(source.path) if isinstance(source, FolderSource) else _common_folder(paths_of)
        start = f"{root.rstrip('/')}/"
        if all(path.startswith(start) for path in paths_of):
            found.append(_Files(source, number, rows_of, paths_of, [path[len(start) :] for path in paths_of], root))
    return found


def _layout_messages(source: FolderSource, files: _Files, *, beside: Sequence[str]) -> list[str]:
    try:
        notes = layout_notes(source, layout_of(source, files.names), files.names, beside=beside)
    except DataError as error:  # the store of an earlier version, which read it so
        return [str(error)]
    return [f"source '{source.name}': {note}" for note in notes]


def _common_folder(paths: Sequence[str]) -> str:
    """The deepest folder that all are in; of addresses, too."""
    folders = sorted({tuple(path.split("/")[:-1]) for path in paths})
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(folders[0], folders[-1], strict=False))
    return "/".join(part for part, _ in shared)


def _beside(root: str, others: Iterable[str]) -> list[str]:
    """The folders beside that of a source, without those that are sources themselves."""
    if is_remote(root):
        return []
    known = {absolute(path) for path in others}
    try:
        with os.scandir(os.path.dirname(root)) as entries:
            return [entry.name for entry in entries if entry.is_dir() and entry.path not in known]
    except OSError:
        return []


def _split_patients(store: Store, table: CaseTable, files: _Files, *, headers: bool, reporter: Reporter) -> list[str]:
    """Of the files of one patient, by what is known of them, those that are in several splits."""
    messages = []
    if headers and (found := _by_header(store, table, files, reporter)):
        mend = (
            f"set {files.key}.group_by: PatientID"
            if isinstance(files.source, FolderSource)
            else f"write it into a column and name that in {files.key}.columns.group"
        )
        messages.append(_message(found, what="PatientID", shown=False, mend=f"{mend}, so that each is on one side."))
    ungrouped = [n for n, row in enumerate(files.rows) if table.groups[row].startswith(f"{files.source.name}:")]
    if isinstance(files.source, FolderSource) and (found := _by_folder(table, files, files.source, ungrouped)):
        mend = f"if a folder is one patient or examination, set {files.key}.group_by: folder."
        messages.append(_message(found, what="folder", shown=True, mend=mend))
    elif not messages and (found := _by_name(table, files, ungrouped)):
        (example, _) = next(iter(found.items()))
        word = re.sub(r"\d+$", "", example)
        mend = (
            f"if that is a patient, set {files.key}.group_pattern: '({word}[0-9]+)'."
            if isinstance(files.source, FolderSource)
            else f"if that is a patient, write it into a column and name that in {files.key}.columns.group."
        )
        messages.append(_message(found, what="name", shown=True, mend=mend))
    return [f"source '{files.source.name}': {message}" for message in messages]


def _message(found: Mapping[str, list[str]], *, what: str, shown: bool, mend: str) -> str:
    (key, splits) = next(iter(found.items()))
    first = f"the {what} '{key}'" if shown else f"one {what}"
    others = f" (and those of {counted(len(found) - 1, f'other {what}')})" if len(found) > 1 else ""
    sides = f"{', '.join(splits[:-1])} and {splits[-1]}"
    return f"files of {first} are in {sides}{others}; {mend}"


def _in_several_splits(table: CaseTable, keyed: Iterable[tuple[str, int]]) -> dict[str, list[str]]:
    """The keys, of (key, row), whose rows are in several of train, val and test, with these."""
    splits: dict[str, set[str]] = defaultdict(set)
    groups: dict[str, set[str]] = defaultdict(set)
    for key, row in keyed:
        if table.splits[row] != "unlabelled":
            splits[key].add(table.splits[row])
            groups[key].add(table.groups[row])
    order = ("train", "val", "test")
    return {
        key: [split for split in order if split in found]
        for key, found in splits.items()
        if len(found) > 1 and len(groups[key]) > 1
    }


def _by_folder(table: CaseTable, files: _Files, source: FolderSource, ungrouped: Sequence[int]) -> dict[str, list[str]]:
    """Folders below a label whose files are in several splits; a folder that holds all of its label is none."""
    try:
        layout = layout_of(source, files.names)
    except DataError:  # said as a layout
        return {}
    folders: dict[tuple[str, ...], set[str]] = defaultdict(set)
    keyed = []
    for number in ungrouped:
        try:
            placed = layout.place(files.names[number])
        except RowError:
            continue
        if placed.below:
            folders[placed.label].add(placed.below[0])
            keyed.append((placed.label, placed.below[0], files.rows[number]))
    return _in_several_splits(
        table, (("/".join((*label, below)), row) for label, below, row in keyed if len(folders[label]) > 1)
    )


def _by_name(table: CaseTable, files: _Files, ungrouped: Sequence[int]) -> dict[str, list[str]]:
    """Names such as patient_07 in paths whose files are in several splits."""
    found = ((_PATIENT.findall(files.names[number]), files.rows[number]) for number in ungrouped)
    return _in_several_splits(table, ((names[0], row) for names, row in found if names))


def _by_header(store: Store, table: CaseTable, files: _Files, reporter: Reporter) -> dict[str, list[str]]:
    """Patients, by the PatientID of their DICOM headers, whose files are in several splits.

    An id that says nobody (ANON, 0), and one that all files share, tells no patients apart. In a bucket, where each
    file would be fetched again, none is looked at.
    """
    dicom = [n for n, path in enumerate(files.paths) if extension_of(path) in _DICOM_ENDINGS or _is_uid(path)]
    if not dicom or is_remote(files.root) or len({table.splits[row] for row in files.rows}) < 2:
        return {}
    if len(dicom) > BLOCKS * OF_FILES:
        starts = (block * (len(dicom) - OF_FILES) // (BLOCKS - 1) for block in range(BLOCKS))
        dicom = sorted({number for start in starts for number in dicom[start : start + OF_FILES]})
    known = _patients(store, [files.paths[number] for number in dicom], files.source.name, reporter)
    if len(set(known) - {""}) < 2:
        return {}
    return _in_several_splits(
        table, ((patient, files.rows[number]) for number, patient in zip(dicom, known, strict=True) if patient)
    )


def _is_uid(path: str) -> bool:
    return extension_of(path)[1:].isdigit()


def _patients(store: Store, paths: Sequence[str], source: str, reporter: Reporter) -> list[str]:
    """A digest of the PatientID in each file's header, '' where it names nobody; kept in the store."""
    key = hashlib.sha256(f"{store.manifest.fingerprint} {store.manifest.created}".encode()).hexdigest()[:16]
    place = store.path / f"{source}-{FILE}"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        tree = json.loads(place.read_text(encoding="utf-8"))
        if tree["key"] == key and all(path in tree["patients"] for path in paths):
            return [tree["patients"][path] for path in paths]
    patients = {}
    for done, path in enumerate(paths, start=1):
        found = dicom_header(path, "PatientID")
        patients[path] = "" if _NO_ONE.fullmatch(found) else hashlib.sha256(found.encode()).hexdigest()[:16]
        reporter.progress("read DICOM headers", done, len(paths))
    with contextlib.suppress(OSError):  # a store that is only read, or a full disk
        write_json(place, {"key": key, "patients": patients})
    return [patients[path] for path in paths]


def _companion_messages(files: _Files) -> Iterator[tuple[Kind, str]]:
    """The masks and thumbnails among the files, with what leaves them out."""
    found: dict[tuple[Kind, str], list[Companion]] = defaultdict(list)
    for companion in companions(files.names, root=files.root):
        found[companion.kind, companion.sign.lower()].append(companion)
    for (kind, _), alike in found.items():
        mend = (
            f"to leave them out set {files.key}.exclude: ['{pattern_of(alike, files.names)}']."
            if isinstance(files.source, FolderSource)
            else "take their rows out of the table."
        )
        yield (
            kind,
            f"source '{files.source.name}': {len(alike)} of {len(files.names)} images look like {kind}s of others "
            f"(such as {alike[0].name} of {alike[0].image}), and count as images of their label; {mend}",
        )
