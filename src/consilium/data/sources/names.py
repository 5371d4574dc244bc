"""What the names of files say: left by a storage system, or chosen by globs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import translate

# Folders and files that storage and operating systems leave beside what people keep, in small letters.
_LEFT = {
    **{name.lower(): name for name in ("@eaDir", "@Recycle", "@Recently-Snapshot", "@tmp", "#recycle", "#snapshot")},
    **{name.lower(): name for name in ("$RECYCLE.BIN", "RECYCLER", "System Volume Information", "lost+found")},
    **{name.lower(): name for name in ("__MACOSX", ".DS_Store", "Thumbs.db", "ehthumbs.db", "desktop.ini")},
}
_LEFT_BEGINS = {"._": "._*", ".trash": ".Trash*"}


def left_by_storage(name: str) -> str | None:
    """What a storage system left at a path such as ``ct/@eaDir/a.jpg``; None where nothing in it is."""
    for part in name.split("/"):
        small = part.lower()
        begins = (known for begin, known in _LEFT_BEGINS.items() if small.startswith(begin))
        if (found := _LEFT.get(small) or next(begins, None)) is not None:
            return found
    return None


class Glob:
    """A pattern of relative paths; capital and small letters are the same.

    Without a slash it stands for a file or folder of that name at any depth (``*_mask.png``, ``masks``), with one for
    a path from the top, where ``*`` stays within a folder and ``**`` stands for any folders (``*/thumbs``). What
    lies below a folder that matches, matches too.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        parts = [part for part in pattern.split("/") if part not in ("", ".")]
        self._anywhere = "/" not in pattern.rstrip("/")
        self._parts = [None if part == "**" else re.compile(translate(part), re.IGNORECASE) for part in parts]

    def matches(self, name: str) -> bool:
        """Whether a relative path is one of these."""
        parts = name.split("/")
        if self._anywhere:
            return any(_match(self._parts, [part]) for part in parts)
        return _match(self._parts, parts)


def _match(patterns: Sequence[re.Pattern[str] | None], parts: Sequence[str]) -> bool:
    if not patterns:
        return True
    if patterns[0] is None:
        return _match(patterns[1:], parts) or (bool(parts) and _match(patterns, parts[1:]))
    return bool(parts) and patterns[0].match(parts[0]) is not None and _match(patterns[1:], parts[1:])
