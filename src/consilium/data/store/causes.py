"""Why many rows of a source are bad at once, and the key that mends it."""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from consilium.core.nearby import folders_in
from consilium.core.places import absolute, exists, is_remote, parent
from consilium.data.case import BadRow
from consilium.data.sources.config import RowSource, Source

LOOKED_AT = 50  # missing images in which their cause is looked for
_MISSING = re.compile(r"(?:the mask )?(?P<path>.+?) does not exist")
_REPEATED_ID = re.compile(r"the id '.*' was given before")
_UNKNOWN_SPLIT = re.compile(r"split '(?P<value>.*)' is unknown")
_FOLD = re.compile(r"(?:fold|k)?[\s_-]*\d+(?:\.0)?", re.IGNORECASE)


def causes(bad_rows: Sequence[BadRow], sources: Sequence[Source], splits: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A sentence for each cause that many bad rows of a source share; ``splits`` counts its good cases."""
    found: list[str] = []
    for source in sources:
        rows = [row for row in bad_rows if row.source == source.name]
        if rows and isinstance(source, RowSource):
            found += _of_missing_files(source, rows, none_found=not splits.get(source.name))
            found += _of_values(source, rows)
    return found


def _of_values(source: RowSource, rows: Sequence[BadRow]) -> Iterator[str]:
    """Columns that hold something else than what is read from them."""
    columns = source.columns
    if sum(bool(_REPEATED_ID.match(row.reason)) for row in rows) > 1:
        yield (
            f"Source '{source.name}': the column '{columns.id}' repeats, so it may name the patient and not the row. "
            f"Set columns.id: null, and columns.group: {columns.id} if it is the patient."
        )
    unknown = [match["value"] for row in rows if (match := _UNKNOWN_SPLIT.match(row.reason))]
    if unknown and all(_FOLD.fullmatch(value) for value in unknown):
        yield (
            f"Source '{source.name}': the column '{columns.split}' holds numbers, which may be folds. Set "
            "columns.split: null, and data.split divides the cases (data.split.folds makes folds of its own), or write "
            "train, val and test into it."
        )
    elif len(unknown) > 1:
        yield (
            f"Source '{source.name}': where the column '{columns.split}' is no split, set columns.split: null, and "
            "data.split divides the cases."
        )


def _of_missing_files(source: RowSource, rows: Sequence[BadRow], *, none_found: bool) -> Iterator[str]:
    """Where paths were looked for, and where the files are instead."""
    missing = [match["path"] for row in rows if (match := _MISSING.match(row.reason))]
    if not missing:
        return
    if any("\\" in path for path in missing):
        yield f"Source '{source.name}' has paths with a backslash: write them with '/'."
        return
    root = parent(absolute(source.path)) if source.image_root is None else absolute(source.image_root)
    whose = "the folder of the table" if source.image_root is None else "its image_root"
    below = [path for path in missing if path.startswith(f"{root}/")]
    if below:
        start = f"No image of source '{source.name}' was found" if none_found else f"Source '{source.name}'"
        yield (
            f"{start}: relative paths are looked for in {root}, which is {whose}; if they start from another folder, "
            "give it as image_root."
        )
    if not is_remote(root):
        yield from _elsewhere(source.name, root, below)
        yield from _spelt_otherwise(source.name, missing)


def _elsewhere(name: str, root: str, missing: Sequence[str]) -> Iterator[str]:
    """The folder from which missing relative paths lead to files: the working directory, or one level up or down."""
    relative = [path[len(root) + 1 :] for path in missing[:LOOKED_AT]]
    roots = [os.getcwd(), os.path.dirname(root), *folders_in(root), *folders_in(os.path.dirname(root))]
    for other in dict.fromkeys(roots):
        there = next((path for path in relative if other != root and exists(os.path.join(other, path))), None)
        if there is not None:
            yield f"Source '{name}': {os.path.join(other, there)} exists; set image_root: {other}."
            return
    for path in relative:
        first, _, rest = path.partition("/")
        if rest and exists(os.path.join(root, rest)):
            yield (
                f"Source '{name}': {os.path.join(root, rest)} exists, without the '{first}' that its path begins with; "
                f"take '{first}' out of the paths, or out of image_root."
            )
            return


def _spelt_otherwise(name: str, missing: Sequence[str]) -> Iterator[str]:
    """A file whose name differs from a missing one only in its ending, in case or in the form of its letters."""
    listings: dict[str, dict[str, str]] = {}
    for path in missing[:LOOKED_AT]:
        folder, wanted = os.path.split(path)
        if folder not in listings:
            names: list[str] = []
            with contextlib.suppress(OSError, ValueError):
                names = os.listdir(folder)
            listings[folder] = {_plain(key): entry for entry in names for key in (os.path.splitext(entry)[0], entry)}
        there = listings[folder]
        found = there.get(_plain(wanted)) or there.get(_plain(os.path.splitext(wanted)[0]))
        if found is None:
            continue
        stem, ending = os.path.splitext(found)
        if stem == wanted:
            yield (
                f"Source '{name}': {os.path.join(folder, found)} exists; where cells name images without their ending, "
                f'set image_template: "{{}}{ending}".'
            )
        elif _plain(found) == _plain(wanted) and unicodedata.normalize("NFC", found) == unicodedata.normalize(
            "NFC", wanted
        ):
            yield (
                f"Source '{name}': {folder} has '{found}' with its accents in another Unicode form (composed or "
                "decomposed) than the table; rename the files, or write the table, in one form (NFC)."
            )
        else:
            yield f"Source '{name}': the row names '{wanted}', but {folder} has '{found}'; write them alike."
        return


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
