"""Sources in archives: ``images.zip``, or a file or folder in one, as in ``data.zip/cases.csv``."""

from __future__ import annotations

import os
from pathlib import Path

from consilium.core.archives import is_archive, stem, unpack_once
from consilium.core.errors import DataError
from consilium.core.places import absolute, exists
from consilium.core.transfer import fetch
from consilium.data.sources.config import Source


def unpacked(source: Source, stores: Path) -> Source:
    """The source with the archives in its paths unpacked once, safely, into ``{stores}/unpacked``."""
    found = {}
    for key in ("path", "image_root", "texts"):
        given = getattr(source, key, None)
        split = None if given is None else _split(absolute(given))
        if split is None:
            continue
        try:
            folder = unpack_once(fetch(split[0]), stores / "unpacked")
        except (DataError, OSError) as error:
            raise DataError(f"source '{source.name}': {error}") from error
        found[key] = str(_inside(folder, stem(split[0]), split[1]))
    return source.model_copy(update=found)


def _split(path: str) -> tuple[str, str] | None:
    """The archive in a path and what is named in it; None where there is none. A folder may be called a.zip too."""
    parts = path.split("/")
    for end in range(1, len(parts) + 1):
        archive = "/".join(parts[:end])
        if is_archive(archive) and exists(archive):
            return archive, "/".join(parts[end:])
    return None


def _inside(folder: Path, name: str, inner: str) -> Path:
    """The place in an unpacked archive, past a lone top folder of the archive's own name (``zip -r a.zip a``).

    Where that folder holds no other, it is itself a label, and stays.
    """
    top = folder / name
    alone = [entry for entry in os.listdir(folder) if not entry.startswith((".", "__MACOSX"))] == [name]
    if inner:
        return top / inner if alone and not (folder / inner).exists() else folder / inner
    return top if alone and any(entry.is_dir() for entry in top.iterdir()) else folder
