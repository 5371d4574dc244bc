"""The files that a source is read from."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from consilium.core.errors import DataError
from consilium.core.nearby import looked_for
from consilium.core.places import FileFacts, absolute, facts, find, is_remote, join
from consilium.core.reporter import Reporter, some
from consilium.data.case import printable
from consilium.data.images.dicom import is_dicom
from consilium.data.sources.config import (
    FolderSource,
    HubDataset,
    HubSource,
    RetClipCsvSource,
    RetClipLmdbSource,
    RetClipTsvSource,
    Source,
    TableSource,
)
from consilium.data.sources.layout import has_splits_on_top
from consilium.data.sources.lmdb_files import DATA, IMAGES, PAIRS
from consilium.data.sources.names import Glob, left_by_storage
from consilium.data.sources.parquet import is_parquet, parquet_files

if TYPE_CHECKING:
    from consilium.data.sources.companions import Companion
    from consilium.data.sources.hub import HubCache

# The endings of every kind of image that is read, whoever lists files: a source, or `predict`.
IMAGE_EXTENSIONS = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".apng", ".tif", ".tiff", ".webp", ".bmp", ".dib", ".gif"),
        *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".pbm", ".pgm", ".ppm", ".pnm"),
        *(".dcm", ".dicom", ".dic", ".ima", ".nii", ".nii.gz"),
    }
)

DICOMDIR = "DICOMDIR"  # DICOM itself, but a table of contents


@dataclass(frozen=True)
class InputFile:
    """A file a source is read from, relative to its path ('.': that path; 'texts': its texts; 'hub': its rows)."""

    name: str
    size: int
    version: int


@dataclass
class Inputs:
    """All files of a source in a fixed order, how many were left aside, by reason, and its rows of a hub dataset.

    ``companions`` are the masks and thumbnails among the files of a folder, once they were looked for.
    """

    files: list[InputFile]
    skipped: Counter[str] = field(default_factory=Counter)
    hub: HubCache | None = None
    companions: list[Companion] | None = None


def extension_of(name: str) -> str:
    """What a file's name ends in, in small letters; of ``.nii.gz`` both parts."""
    stem, extension = os.path.splitext(name.lower())
    return ".nii.gz" if extension == ".gz" and stem.endswith(".nii") else extension


def is_image_file(path: str) -> bool:
    """Whether a file of this machine is an image by its ending, or DICOM without one."""
    if os.path.basename(path) == DICOMDIR or not os.path.isfile(path):
        return False
    return extension_of(path) in IMAGE_EXTENSIONS or _is_unnamed_dicom(path)


def _is_unnamed_dicom(path: str) -> bool:
    """Whether a file has no ending (a number is none: UIDs have dots) and says that it is DICOM."""
    extension = extension_of(os.path.basename(path))[1:]
    if extension and not extension.isdigit():
        return False
    try:
        with open(path, "rb") as file:
            return is_dicom(file.read(132))
    except OSError:
        return False


def list_inputs(source: Source, *, root: str = "stores", reporter: Reporter | None = None) -> Inputs:
    """The files of a source; one that is missing or has no image is a DataError.

    ``root`` is the folder of the stores, where the rows of a hub dataset have their place.
    """
    try:
        if isinstance(source, HubSource):
            return _list_hub(source, source.splits, Inputs([]), root, reporter)
        inputs = _list_folder(source) if isinstance(source, FolderSource) else _list_file(source)
        if isinstance(source, RetClipCsvSource):
            return _list_hub(source.images, [source.images.split], inputs, root, reporter)
    except OSError as error:
        raise DataError(f"source '{source.name}': {source.path} cannot be read: {error}.") from error
    return inputs


def images_under(folder: str) -> Inputs:
    """The images under a folder, here or in a bucket, and what was left aside; there may be none."""
    return _listed(FolderSource(kind="folder", name="images", path=folder)).inputs


def _listed(source: FolderSource) -> _Listing:
    root = absolute(source.path)
    listing = _Listing(source)
    if is_remote(root):
        for name, found in find(root).items():
            listing.add(name, found, is_image=extension_of(name) in IMAGE_EXTENSIONS)
    elif os.path.isdir(root):
        listing.walk(root, "", ())
    else:
        raise DataError(
            f"source '{source.name}': the folder {source.path} does not exist; correct its path."
            f"{looked_for(source.path)}"
        )
    return listing


def _list_folder(source: FolderSource) -> Inputs:
    listing = _listed(source)
    inputs = listing.inputs
    if not inputs.files:
        skipped = f" ({counted_reasons(inputs.skipped)} skipped)" if inputs.skipped else ""
        raise DataError(
            f"source '{source.name}': the folder {source.path} holds no image{skipped}; "
            f"expected files ending in {', '.join(sorted(IMAGE_EXTENSIONS))}, or DICOM files without an ending."
        )
    inputs.skipped.update(listing.empty_label_folders())
    return inputs


def _list_file(source: Source) -> Inputs:
    if isinstance(source, TableSource) and is_parquet(source) and os.path.isdir(absolute(source.path)):
        return Inputs([_input_file(source, name, join(absolute(source.path), name)) for name in parquet_files(source)])
    if isinstance(source, RetClipLmdbSource):
        return Inputs([_database(source, name) for name in (PAIRS, IMAGES)])
    inputs = Inputs([_input_file(source, ".", source.path)])
    if isinstance(source, RetClipTsvSource) and source.texts is not None:
        inputs.files.append(_input_file(source, "texts", source.texts))
    return inputs


def _database(source: RetClipLmdbSource, name: str) -> InputFile:
    """A database of an LMDB folder."""
    folder = absolute(source.path)
    file = join(folder, f"{name}/{DATA}")
    if is_remote(folder):
        raise DataError(f"source '{source.name}': an LMDB is read from this machine; copy {source.path} here.")
    if os.path.isdir(folder) and not os.path.exists(file):
        below = [entry for entry in sorted(os.listdir(folder)) if os.path.isdir(join(folder, f"{entry}/{PAIRS}"))]
        splits = f", but {', '.join(below)} in it does; make each a source of its own, with its split" if below else ""
        raise DataError(f"source '{source.name}': {source.path} does not hold {name}/{DATA}{splits}; correct its path.")
    return _input_file(source, f"{name}/{DATA}", file)


def _list_hub(
    dataset: HubDataset, splits: list[str] | None, inputs: Inputs, root: str, reporter: Reporter | None
) -> Inputs:
    from consilium.data.sources.hub import open_cache

    inputs.hub = open_cache(dataset, splits=splits, root=Path(root), reporter=reporter)
    inputs.files.append(InputFile("hub", 0, inputs.hub.version))
    return inputs


def _input_file(source: Source, name: str, path: str) -> InputFile:
    found = facts(absolute(path))
    if found is None:
        raise DataError(f"source '{source.name}': the file {path} does not exist; correct its path.{looked_for(path)}")
    if not found.is_file:
        raise DataError(
            f"source '{source.name}': {path} is a folder, but kind {source.kind} reads a file; give the file's path "
            "(a folder of images is kind: folder, one of parquet files kind: parquet)."
        )
    if not found.size:
        raise DataError(f"source '{source.name}': the file {path} is empty.")
    return InputFile(name, found.size, found.version)


def counted_reasons(counts: Mapping[str, int]) -> str:
    """Why files were skipped, the most frequent reasons first."""
    return some([f"{count:,} x {reason}" for reason, count in Counter(counts).most_common()], 5)


class _Listing:
    """What is found under the folder of a source: its images, and what was left aside, by reason."""

    def __init__(self, source: FolderSource) -> None:
        self.inputs = Inputs([])
        self._source = source
        self._include = None if source.include is None else [Glob(pattern) for pattern in source.include]
        self._exclude = [Glob(pattern) for pattern in source.exclude]
        self._folders: list[str] = []
        self._unwanted: list[str] = []  # images that include or exclude leaves out

    def add(self, name: str, found: FileFacts, *, is_image: bool) -> None:
        """Take a file, or count why it is left aside."""
        reason = self._reason(name, is_image=is_image)
        if reason is None:
            self.inputs.files.append(InputFile(name, found.size, found.version))
        else:
            self.inputs.skipped[reason] += 1

    def _reason(self, name: str, *, is_image: bool) -> str | None:
        if (left := left_by_storage(name)) is not None:
            return f"{left} (left by a storage system)"
        if any(part.startswith(".") for part in name.split("/")):
            return "hidden"
        if name.rpartition("/")[2] == DICOMDIR:
            return DICOMDIR
        if not is_image:
            return f"{printable(extension_of(name)) or 'no extension'} file"
        reason = None
        if self._include is not None and not any(glob.matches(name) for glob in self._include):
            reason = "file that include does not name"
        elif (excluded := next((glob.pattern for glob in self._exclude if glob.matches(name)), None)) is not None:
            reason = f"file that exclude names ('{excluded}')"
        if reason is not None:
            self._unwanted.append(name)
        return reason

    def walk(self, folder: str, relative: str, parents: tuple[tuple[int, int], ...]) -> None:
        """Add the images under a folder, sorted; links to folders are followed, except back to a parent."""
        stat = os.stat(folder)
        identity = (stat.st_dev, stat.st_ino)
        if identity in parents:
            self.inputs.skipped["link to a parent folder"] += 1
            return
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            name = f"{relative}/{entry.name}" if relative else entry.name
            if entry.is_dir() and not entry.name.startswith(".") and left_by_storage(entry.name) is None:
                self._folders.append(name)
                self.walk(entry.path, name, (*parents, identity))
            else:
                # A dangling link stays in the list: its row is reported when the image cannot be read.
                found = entry.stat() if entry.is_file() else entry.stat(follow_symlinks=False)
                is_image = extension_of(name) in IMAGE_EXTENSIONS or is_image_file(entry.path)
                self.add(name, FileFacts(found.st_size, found.st_mtime_ns, is_file=True), is_image=is_image)

    def empty_label_folders(self) -> list[str]:
        """Folders where a label is expected and no image lies, as reasons."""
        names = [file.name for file in self.inputs.files]
        levels = self._source.label_levels
        depth = levels + has_splits_on_top(self._source, names) if levels else 0
        filled = {"/".join(name.split("/")[:depth]) for name in (*names, *self._unwanted)}
        return [
            f"label folder without an image ({printable(folder)})"
            for folder in self._folders
            if folder.count("/") + 1 == depth
            and folder not in filled
            and not any(glob.matches(folder) for glob in self._exclude)
        ]
