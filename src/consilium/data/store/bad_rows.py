"""What a person is told of bad rows: rows with one kind of reason as one sentence, and the cause behind many."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from consilium.core.errors import BadRowsError
from consilium.core.reporter import in_common
from consilium.data.case import BadRow
from consilium.data.sources.config import Source
from consilium.data.store.causes import causes

LINES = 20
ALONE = 3  # up to this number, each row of one kind has a line of its own
# What differs between reasons of one kind: quoted values, paths (to their ending, since they may hold spaces), numbers.
_PATH = r"(?:\w+:/)?/(?:[^'\n]*?\.\w{1,6}(?:#\d+)?(?=[ :;,)]|$)|\S+)"
_VARYING = re.compile(rf"'[^']*'|{_PATH}|\d+(?:[.,]\d+)*")
_FIRST_PATH = re.compile(_PATH)


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
    hints = "".join(f"\n{hint}" for hint in causes(bad_rows, sources, splits))
    return BadRowsError(
        f"{number} bad:\n{shown}{more}{hints}\nAll are listed in {listing}. Mend them, or set data.on_bad_row: "
        "quarantine (evaluate: --on-bad-row quarantine) to go on with the others."
    )


def _of_one_kind(rows: Sequence[BadRow]) -> str:
    """What the reasons say together, and the first places with what is their own."""
    found = [_VARYING.findall(row.reason) for row in rows]
    same = [len(set(values)) == 1 for values in zip(*found, strict=True)]
    reason = in_common(_of_a_file([row.reason for row in rows]), varying=_VARYING)
    places = []
    for row, values in zip(rows[:ALONE], found, strict=False):
        own = [value for value, alike in zip(values, same, strict=True) if not alike and value != row.file]
        place = row.file if row.line is None else f"{row.file}:{row.line}"
        places.append(f"{place} ({', '.join(own)})" if own else place)
    return f"{len(rows):,} rows: {reason.rstrip('.')} - first: {', '.join(places)}"


def _of_a_file(reasons: list[str]) -> list[str]:
    """The reasons with ``a file in {folder}`` as their subject, where each begins with another path."""
    paths = [found[0] if (found := _FIRST_PATH.match(reason)) else "" for reason in reasons]
    if not all(paths) or len(set(paths)) == 1:
        return reasons
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*(path.split("/")[:-1] for path in paths), strict=False))
    folder = "/".join(parts[0] for parts in shared)
    return [f"a file in {folder or '/'}{reason[len(path) :]}" for path, reason in zip(paths, reasons, strict=True)]
