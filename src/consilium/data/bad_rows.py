"""What a person is told of bad rows: rows with one kind of reason as one line, and what may lie behind many."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from consilium.core.errors import BadRowsError
from consilium.core.places import absolute, parent
from consilium.core.reporter import in_common
from consilium.data.case import BadRow
from consilium.data.sources.config import RowSource, Source

LINES = 20
ALONE = 3  # so many rows of one kind have a line each
# What differs between reasons of one kind: quoted values, paths (to their ending, since they may hold spaces), numbers.
_VARYING = re.compile(r"'[^']*'|(?:\w+:/)?/(?:[^'\n]*?\.\w{1,6}(?:#\d+)?(?=[ :;,)]|$)|\S+)|\d[\d,.]*")
_MISSING = " does not exist; correct the path"


def bad_rows_error(
    bad_rows: Sequence[BadRow], *, listing: Path, sources: Sequence[Source], splits: Mapping[str, Mapping[str, int]]
) -> BadRowsError:
    """The error of rows that are bad, listed whole in ``listing``; ``splits`` counts the good cases of each source."""
    kinds: dict[str, list[BadRow]] = {}
    for row in bad_rows:
        kinds.setdefault(_VARYING.sub("\0", row.reason), []).append(row)
    lines: list[tuple[str, int]] = []
    for rows in kinds.values():
        lines += [(str(row), 1) for row in rows] if len(rows) <= ALONE else [(_of_one_kind(rows), len(rows))]
    shown = "\n".join(f"  - {text}" for text, _ in lines[:LINES])
    left = sum(rows for _, rows in lines[LINES:])
    more = f"\n  ... and {left:,} more" if left else ""
    number = "1 row is" if len(bad_rows) == 1 else f"{len(bad_rows)} rows are"
    hints = "".join(f"\n{hint}" for hint in _hints(bad_rows, sources, splits))
    return BadRowsError(
        f"{number} bad:\n{shown}{more}{hints}\nAll are listed in {listing}. Mend them, or set data.on_bad_row: "
        "quarantine (evaluate: --on-bad-row quarantine) to go on with the others."
    )


def _of_one_kind(rows: Sequence[BadRow]) -> str:
    """What the reasons have in common, and the first places with what is their own."""
    found = [_VARYING.findall(row.reason) for row in rows]
    same = [len(set(values)) == 1 for values in zip(*found, strict=True)]
    reason = in_common([row.reason for row in rows], varying=_VARYING).removeprefix("... ")
    places = []
    for row, values in zip(rows[:ALONE], found, strict=False):
        own = [value for value, alike in zip(values, same, strict=True) if not alike and value != row.file]
        place = row.file if row.line is None else f"{row.file}:{row.line}"
        places.append(f"{place} ({', '.join(own)})" if own else place)
    return f"{len(rows):,} rows: {reason.rstrip('.')} - first: {', '.join(places)}"


def _hints(bad_rows: Sequence[BadRow], sources: Sequence[Source], splits: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What to do where many images are missing for one cause."""
    hints = []
    for source in sources:
        missing = [row for row in bad_rows if row.source == source.name and _MISSING in row.reason]
        if any("\\" in row.reason for row in missing):
            hints.append(f"Source '{source.name}' has paths with a backslash: write them with '/'.")
        elif len(missing) > 1 and not splits.get(source.name) and isinstance(source, RowSource):
            root = parent(absolute(source.path)) if source.image_root is None else absolute(source.image_root)
            hints.append(
                f"No image of source '{source.name}' was found: relative paths are looked for in {root}; if they start "
                "from another folder, give it as image_root."
            )
    return hints
