"""From a configured source to cases: what files it has, and its rows one by one."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from consilium.core.errors import ConfigError, DataError
from consilium.data.case import (
    BadRow,
    Case,
    RowError,
    View,
    check_encodable,
    is_split_name,
    label_paths,
    printable,
    split_name,
)
from consilium.data.config import FolderSource, JsonlSource, Source, TableSource
from consilium.data.tables import read_csv, read_jsonl, read_parquet

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp"})


@dataclass(frozen=True)
class InputFile:
    """A file a source is read from, relative to the source's path ('.' for the path itself)."""

    name: str
    size: int
    modified_ns: int


@dataclass
class Inputs:
    """All files of a source in a fixed order, and how many files were left aside, by reason."""

    files: list[InputFile]
    skipped: Counter[str] = field(default_factory=Counter)


def list_inputs(source: Source) -> Inputs:
    """The files of a source; one that is missing or has no image is a DataError."""
    try:
        inputs = _list_folder(source) if isinstance(source, FolderSource) else _list_file(source)
    except OSError as error:
        raise DataError(f"source '{source.name}': {source.path} cannot be read: {error}.") from error
    return inputs


def _list_folder(source: FolderSource) -> Inputs:
    root = Path(source.path).expanduser()
    if not root.is_dir():
        raise DataError(f"source '{source.name}': the folder {root} does not exist; correct its path.")
    inputs = Inputs([])
    _walk(str(root), "", inputs, ())
    if not inputs.files:
        skipped = f" ({_counted(inputs.skipped)} skipped)" if inputs.skipped else ""
        raise DataError(
            f"source '{source.name}': the folder {root} holds no image{skipped}; "
            f"expected files ending in {', '.join(sorted(IMAGE_EXTENSIONS))}."
        )
    return inputs


def _list_file(source: TableSource | JsonlSource) -> Inputs:
    path = Path(source.path).expanduser()
    if not path.is_file():
        raise DataError(f"source '{source.name}': the file {path} does not exist; correct its path.")
    found = path.stat()
    if not found.st_size:
        raise DataError(f"source '{source.name}': the file {path} is empty.")
    return Inputs([InputFile(".", found.st_size, found.st_mtime_ns)])


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in counts.most_common(5))


def _walk(folder: str, relative: str, inputs: Inputs, parents: tuple[tuple[int, int], ...]) -> None:
    """Add the images under a folder, sorted; links to folders are followed, except back to a parent."""
    stat = os.stat(folder)
    identity = (stat.st_dev, stat.st_ino)
    if identity in parents:
        inputs.skipped["link to a parent folder"] += 1
        return
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        name = f"{relative}/{entry.name}" if relative else entry.name
        if entry.name.startswith("."):
            inputs.skipped["hidden"] += 1
        elif entry.is_dir():
            _walk(entry.path, name, inputs, (*parents, identity))
        elif (extension := os.path.splitext(entry.name)[1].lower()) in IMAGE_EXTENSIONS:
            # A dangling link stays in the list: its row is reported when the image cannot be read.
            found = entry.stat() if entry.is_file() else entry.stat(follow_symlinks=False)
            inputs.files.append(InputFile(name, found.st_size, found.st_mtime_ns))
        else:
            inputs.skipped[f"{printable(extension) or 'no extension'} file"] += 1


def read_source(source: Source, *, inputs: Inputs | None = None) -> Iterator[Case | BadRow]:
    """The rows of a source, in a fixed order, each either usable or with the reason why not.

    Only the rows are judged here; whether their images can be read is found out when they are prepared.
    A missing or empty file or folder is a DataError, a column that does not exist and a group_pattern that cannot
    be used are ConfigErrors.
    """
    inputs = inputs or list_inputs(source)
    first_line: dict[str, int | None] = {}
    count = 0
    try:
        for item in _rows(source, inputs):
            count += 1
            if isinstance(item, Case):
                item = _checked(item, first_line)
            if isinstance(item, BadRow):
                item = item._replace(file=printable(item.file), reason=printable(item.reason))
            yield item
    except OSError as error:
        raise DataError(f"source '{source.name}': {source.path} cannot be read: {error}.") from error
    if not count:
        raise DataError(f"source '{source.name}': {source.path} holds no rows.")


def _checked(case: Case, first_line: dict[str, int | None]) -> Case | BadRow:
    """The case, or what is wrong with it; ``first_line`` is where each id was first."""
    try:
        check_encodable(case)
        # Files of a folder have ids of their own.
        if case.line is not None and first_line.setdefault(case.id, case.line) != case.line:
            raise RowError(f"the id '{case.id}' was given before, in line {first_line[case.id]}")
    except RowError as error:
        return BadRow(case.source, case.file, case.line, str(error))
    return case


def _rows(source: Source, inputs: Inputs) -> Iterator[Case | BadRow]:
    if isinstance(source, FolderSource):
        return _read_folder(source, inputs)
    if isinstance(source, JsonlSource):
        return read_jsonl(source)
    assert isinstance(source, TableSource)
    return read_csv(source) if source.kind == "csv" else read_parquet(source)


def _read_folder(source: FolderSource, inputs: Inputs) -> Iterator[Case | BadRow]:
    """The images of a folder.

    Purpose: ``{path}/{split}/{label}/...`` where every folder in ``path`` names a split, else
    ``{path}/{label}/...``. The first ``label_levels`` folders (below the split) make the label, as a dot
    path in which a dot of a folder name becomes ``_``; deeper folders only hold images. Errors: split
    folders beside others, and two folders that become one label, are DataErrors; an image above the
    label folders is a bad row.
    """
    root = os.path.abspath(os.path.expanduser(source.path))
    has_splits = _has_split_folders(source, root, inputs)
    labels = _FolderLabels(source)
    group_pattern = _group_pattern(source)
    for file in inputs.files:
        path = os.path.join(root, file.name)
        identity = f"{source.name}:{file.name}"
        *folders, name = file.name.split("/")
        try:
            if has_splits and not folders:
                raise RowError("the image lies beside the split folders; put it into one of them")
            split = split_name(folders.pop(0)) if has_splits else None
            group = identity if group_pattern is None else _matched_group(group_pattern, name)
            label = labels.of(folders)
        except RowError as error:
            yield BadRow(source.name, path, None, str(error))
            continue
        yield Case(
            id=identity,
            source=source.name,
            group=group,
            split=split,
            views=(View(path),),
            text=None,
            labels=label,
            mask=None,
            is_gt=True,
            file=path,
            line=None,
        )


def _has_split_folders(source: FolderSource, root: str, inputs: Inputs) -> bool:
    top = {file.name.split("/", 1)[0] for file in inputs.files if "/" in file.name}
    splits = {name for name in top if is_split_name(name)}
    others = sorted(top - splits)
    if splits and others:
        raise DataError(
            f"source '{source.name}': {root} holds split folders ({', '.join(sorted(splits))}) beside others "
            f"({', '.join(others[:5])}); put the others inside the splits, or point the source elsewhere."
        )
    return bool(splits)


def _group_pattern(source: FolderSource) -> re.Pattern[str] | None:
    if source.group_pattern is None:
        return None
    try:
        pattern = re.compile(source.group_pattern)
    except re.error as error:
        raise ConfigError(f"source '{source.name}': group_pattern is no regular expression: {error}.") from None
    if not pattern.groups:
        raise ConfigError(
            f"source '{source.name}': group_pattern '{source.group_pattern}' has no bracket; "
            "put the part that names the patient in brackets, as in '^(p[0-9]+)_'."
        )
    return pattern


def _matched_group(pattern: re.Pattern[str], name: str) -> str:
    found = pattern.search(name)
    if found is None or not found[1]:
        raise RowError(f"group_pattern '{pattern.pattern}' finds no group in the file name")
    return found[1]


class _FolderLabels:
    """The label of each folder; two folders never share one."""

    def __init__(self, source: FolderSource) -> None:
        self.source = source
        self._labels: dict[tuple[str, ...], tuple[str, ...]] = {(): ()}
        self._folders: dict[tuple[str, ...], tuple[str, ...]] = {}

    def of(self, folders: list[str]) -> tuple[str, ...]:
        """The labels of the images below these folders."""
        levels = self.source.label_levels
        key = tuple(folders[:levels])
        if len(key) < levels:
            raise RowError(f"the image is below {len(key)} folders; label_levels: {levels} needs as many")
        if key not in self._labels:
            label = label_paths(".".join(name.replace(".", "_") for name in key), prefix=self.source.label_prefix)
            other = self._folders.setdefault(label, key)
            if other != key:
                raise DataError(
                    f"source '{self.source.name}': the folders {'/'.join(other)} and {'/'.join(key)} both become the "
                    f"label '{label[0]}'; rename one."
                )
            self._labels[key] = label
        return self._labels[key]
