"""Folders of images: ``{split}/{label}/...`` or ``{label}/...``."""

from __future__ import annotations

import re
from collections.abc import Iterator

from consilium.core.errors import ConfigError, DataError
from consilium.core.places import absolute, join
from consilium.core.reporter import counted
from consilium.data.case import BadRow, Case, RowError, View, is_split_name, label_paths, split_name
from consilium.data.sources.config import FolderSource
from consilium.data.sources.files import Inputs


def read_folder(source: FolderSource, inputs: Inputs) -> Iterator[Case | BadRow]:
    """The images of a folder.

    Purpose: ``{path}/{split}/{label}/...`` where every folder in ``path`` names a split, else
    ``{path}/{label}/...``. The first ``label_levels`` folders (below the split) make the label, as a dot
    path in which a dot of a folder name becomes ``_``; deeper folders only hold images. Errors: split
    folders beside others, and two folders that become one label, are DataErrors; an image above the
    label folders is a bad row.
    """
    root = absolute(source.path)
    has_splits = _has_split_folders(source, root, inputs)
    labels = _FolderLabels(source, has_splits=has_splits)
    group_pattern = _group_pattern(source)
    for file in inputs.files:
        path = join(root, file.name)
        identity = f"{source.name}:{file.name}"
        *folders, name = file.name.split("/")
        try:
            if has_splits and not folders:
                raise RowError("the image lies beside the split folders; put it into one of them")
            split = split_name(folders.pop(0)) if has_splits else source.split
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

    def __init__(self, source: FolderSource, *, has_splits: bool) -> None:
        self.source = source
        self.has_splits = has_splits
        self._labels: dict[tuple[str, ...], tuple[str, ...]] = {(): ()}
        self._folders: dict[tuple[str, ...], tuple[str, ...]] = {}

    def of(self, folders: list[str]) -> tuple[str, ...]:
        """The labels of the images below these folders."""
        levels = self.source.label_levels
        key = tuple(folders[:levels])
        if len(key) < levels:
            above = not key and not self.has_splits
            advice = "give the folder above as the path" if above else "put it into the folder of its label"
            raise RowError(
                f"the image is below {counted(len(key), 'folder')}, label_levels: {levels} needs {levels}; {advice}"
            )
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
