"""How long work tells a person where it stands, without knowing whether a terminal is there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

SHOWN_VALUES, LONG_VALUE = 3, 40  # of values that differ: how many are named, and from which length on only one
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


class Reporter(Protocol):
    """Receives lines of text and the state of progress bars."""

    def line(self, text: str) -> None:
        """Show a line."""
        ...

    def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
        """Move the bar ``name``; it ends when done equals total."""
        ...


class Silent:
    """A reporter that shows nothing."""

    def line(self, text: str) -> None:
        """Drop the line."""

    def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
        """Drop the state."""


def format_table(rows: Sequence[Mapping[str, Any]], *, title: str = "") -> str:
    """Rows as aligned text: numbers to the right, columns in the order of the first row."""
    if not rows:
        return f"{title}: nothing" if title else ""
    columns = list(rows[0])
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(columns)]
    right = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in columns]

    def line(values: Sequence[str]) -> str:
        parts = (v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True))
        return "  " + "  ".join(parts).rstrip()

    head = [title] if title else []
    return "\n".join([*head, line(columns), line(["-" * width for width in widths]), *(line(row) for row in cells)])


def counted(number: int, what: str) -> str:
    """A number of things as a text: 1 case, 2 cases."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def some(names: Sequence[str], at_most: int) -> str:
    """The first names as a text, and how many more there are."""
    return ", ".join(names[:at_most]) + (f" and {len(names) - at_most} more" if len(names) > at_most else "")


def figures(metrics: Mapping[str, float | None], at_most: int = 3) -> str:
    """The first figures as a text: accuracy 0.950, macro_f1 0.941."""
    known = [f"{name} {value:.3f}" for name, value in metrics.items() if value is not None]
    return ", ".join(known[:at_most])


def in_common(texts: Sequence[str], *, varying: re.Pattern[str]) -> str:
    """Texts that are alike but for what ``varying`` matches as one sentence, which names the values where they differ.

    Numbers become a range, other values a choice: ``only 5 to 8 cases``, ``split '0', '1' or '2' is unknown``.
    """
    found = [varying.findall(text) for text in texts]
    parts = iter([_either(list(dict.fromkeys(values))) for values in zip(*found, strict=True)])
    return varying.sub(lambda _: next(parts), texts[0])


def _either(values: list[str]) -> str:
    """Different values as one part of a sentence; of many or long ones the first."""
    if len(values) == 1:
        return values[0]
    if all(_NUMBER.fullmatch(value) for value in values):
        ordered = sorted(values, key=lambda value: float(value.replace(",", "")))
        return f"{ordered[0]} to {ordered[-1]}"
    shown = values[:SHOWN_VALUES] if max(map(len, values)) <= LONG_VALUE else values[:1]
    *others, last = [*shown, "others"] if len(shown) < len(values) else shown
    return f"{('; ' if any(',' in value for value in shown) else ', ').join(others)} or {last}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
