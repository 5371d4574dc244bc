"""The files that a source is read from."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

from consilium.core.errors import DataError
from consilium.core.places import FileFacts, absolute, facts, find, is_remote
from consilium.data.case import printable
from consilium.data.sources.config import FolderSource, RetClipTsvSource, Source

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp"})


@dataclass(frozen=True)
class InputFile:
    """A file a source is read from, relative to the source's path ('.': the path itself; 'texts': its texts)."""

    name: str
    size: int
    version: int


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
    root = absolute(source.path)
    inputs = Inputs([])
    if is_remote(root):
        for name, found in find(root).items():
            _add(name, found, inputs)
    elif os.path.isdir(root):
        _walk(root, "", inputs, ())
    else:
        raise DataError(f"source '{source.name}': the folder {source.path} does not exist; correct its path.")
    if not inputs.files:
        skipped = f" ({_counted(inputs.skipped)} skipped)" if inputs.skipped else ""
        raise DataError(
            f"source '{source.name}': the folder {source.path} holds no image{skipped}; "
            f"expected files ending in {', '.join(sorted(IMAGE_EXTENSIONS))}."
        )
    return inputs


def _list_file(source: Source) -> Inputs:
    inputs = Inputs([_input_file(source, ".", source.path)])
    if isinstance(source, RetClipTsvSource) and source.texts is not None:
        inputs.files.append(_input_file(source, "texts", source.texts))
    return inputs


def _input_file(source: Source, name: str, path: str) -> InputFile:
    found = facts(absolute(path))
    if found is None or not found.is_file:
        raise DataError(f"source '{source.name}': the file {path} does not exist; correct its path.")
    if not found.size:
        raise DataError(f"source '{source.name}': the file {path} is empty.")
    return InputFile(name, found.size, found.version)


def _add(name: str, found: FileFacts, inputs: Inputs) -> None:
    extension = os.path.splitext(name)[1].lower()
    if any(part.startswith(".") for part in name.split("/")):
        inputs.skipped["hidden"] += 1
    elif extension in IMAGE_EXTENSIONS:
        inputs.files.append(InputFile(name, found.size, found.version))
    else:
        inputs.skipped[f"{printable(extension) or 'no extension'} file"] += 1


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
        if entry.is_dir() and not entry.name.startswith("."):
            _walk(entry.path, name, inputs, (*parents, identity))
        else:
            # A dangling link stays in the list: its row is reported when the image cannot be read.
            found = entry.stat() if entry.is_file() else entry.stat(follow_symlinks=False)
            _add(name, FileFacts(found.st_size, found.st_mtime_ns, is_file=True), inputs)
