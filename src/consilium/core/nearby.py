"""Paths that lead nowhere: where they were looked for, and what is there instead."""

from __future__ import annotations

import contextlib
import difflib
import os

from consilium.core.places import absolute, is_remote

LOOKED_AT = 200  # folders


def folders_in(folder: str) -> list[str]:
    """The first folders in a folder of this machine, sorted; none where it cannot be read."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return sorted(entry.path for entry in entries if entry.is_dir())[:LOOKED_AT]
    return []


def looked_for(path: str) -> str:
    """Sentences that follow "... does not exist.": where a relative path was looked for, and a name near it that does
    exist; '' where there is nothing to say, as of an address."""
    if is_remote(path) or "\0" in path:
        return ""
    whole, start = absolute(path), os.getcwd()
    where = ""
    if not os.path.isabs(os.path.expanduser(path)):
        where = f" It was looked for at {whole}, since a relative path starts from the folder you work in."
        if (there := _one_level_off(path, start)) is not None:
            return f"{where} {there} exists."
    folder, name = os.path.split(whole)
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder, name = os.path.split(folder)
    with contextlib.suppress(OSError):
        if close := difflib.get_close_matches(name, set(os.listdir(folder)) - {name}, n=1):
            return f"{where} {folder} has no '{name}'; did you mean '{close[0]}'?"
    return where if folder == os.path.dirname(whole) else f"{where} {folder} has no '{name}'."


def _one_level_off(path: str, start: str) -> str | None:
    """Where a relative path leads from the folder above, or from one of those below."""
    places = (os.path.join(folder, path) for folder in (os.path.dirname(start), *folders_in(start)))
    return next((place for place in places if os.path.exists(place)), None)
