"""Folders of images: ``{split}/{label}/...``, ``{label}/...`` or ``{label}/{split}/...``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from consilium.core.errors import ConfigError, DataError
from consilium.core.places import absolute, join
from consilium.core.reporter import counted
from consilium.data.case import BadRow, Case, RowError, View, label_paths
from consilium.data.sources.companions import companions
from consilium.data.sources.config import FolderSource
from consilium.data.sources.files import Inputs
from consilium.data.sources.headers import dicom_header
from consilium.data.sources.layout import Layout, layout_of


def read_folder(source: FolderSource, inputs: Inputs) -> Iterator[Case | BadRow]:
    """The images of a folder.

    Purpose: ``{path}/{split}/{label}/...`` where every folder in ``path`` names a split, else
    ``{path}/{label}/...`` (or as ``split_folders`` says). The first ``label_levels`` folders (below the split) make
    the label, as a dot path in which a dot of a folder name becomes ``_``; deeper folders only hold images. A mask or
    thumbnail of an image is in the group of that image. Errors: a layout that would be learned wrongly, and two
    folders that become one label, are DataErrors; an image above the label folders is a bad row.
    """
    root = absolute(source.path)
    names = [file.name for file in inputs.files]
    layout = layout_of(source, names)
    labels = _FolderLabels(source, layout, all_above=not any("/" in name for name in names))
    group = _grouping(source, layout)
    if inputs.companions is None:
        inputs.companions = companions(names, root=root)
    image_of = {found.name: found.image for found in inputs.companions}
    for name in names:
        path = join(root, name)
        identity = f"{source.name}:{name}"
        try:
            placed = layout.place(name)
            label = labels.of(placed.label)
            image = name
            while image in image_of:  # a thumbnail of a mask is of the mask's image
                image = image_of[image]
            own_group = group(image)
        except RowError as error:
            yield BadRow(source.name, path, None, str(error))
            continue
        yield Case(
            id=identity,
            source=source.name,
            group=own_group,
            split=placed.split or source.split,
            views=(View(path),),
            texts=(),
            labels=label,
            masks=(),
            is_gt=True,
            file=path,
            line=None,
        )


def _grouping(source: FolderSource, layout: Layout) -> Callable[[str], str]:
    """What gives the group of an image by its relative path."""

    def by_file(name: str) -> str:
        return f"{source.name}:{name}"

    def by_folder(name: str) -> str:
        below = layout.place(name).below
        return below[0] if below else by_file(name)

    def by_header(name: str) -> str:
        found = dicom_header(join(absolute(source.path), name), source.group_by)
        if not found:
            raise RowError(f"group_by: {source.group_by} needs a DICOM header with it, and the file has none")
        return found

    if source.group_pattern is not None:
        pattern = _group_pattern(source, source.group_pattern)
        return lambda name: _matched_group(pattern, name)
    return {"file": by_file, "folder": by_folder}.get(source.group_by, by_header)


def _group_pattern(source: FolderSource, text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ConfigError(f"source '{source.name}': group_pattern is no regular expression: {error}.") from None
    if not pattern.groups:
        raise ConfigError(
            f"source '{source.name}': group_pattern '{text}' has no bracket; "
            "put the part that names the patient in brackets, as in '^(p[0-9]+)_'."
        )
    return pattern


def _matched_group(pattern: re.Pattern[str], name: str) -> str:
    """The first bracket of the pattern in the file's name, else in the whole relative path."""
    for text in (name.rpartition("/")[2], name):
        found = pattern.search(text)
        if found is not None and found[1]:
            return found[1]
    raise RowError(f"group_pattern '{pattern.pattern}' finds no group in the file name or its path, {name}")


class _FolderLabels:
    """The label of each folder; two folders never share one."""

    def __init__(self, source: FolderSource, layout: Layout, *, all_above: bool) -> None:
        self.source = source
        self.layout = layout
        self.all_above = all_above  # no image lies in any folder
        self._labels: dict[tuple[str, ...], tuple[str, ...]] = {(): ()}
        self._folders: dict[tuple[str, ...], tuple[str, ...]] = {}

    def of(self, key: tuple[str, ...]) -> tuple[str, ...]:
        """The labels of the images below these folders."""
        levels = self.source.label_levels
        if len(key) < levels:
            advice = "put it into the folder of its label"
            if self.layout.splits == "above" and not key:
                advice += " (or, if the folder above the splits is the label, give the one above it as the path and "
                advice += "set split_folders: below)"
            elif not key:
                advice = (
                    "give the folder above as the path" if self.all_above else f"{advice}, or leave it out (exclude)"
                )
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
