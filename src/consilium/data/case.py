"""The canonical row of every kind of data, and the reading of its values, once, at the border."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from consilium.core.places import FileFacts

SPLITS = ("train", "val", "test", "unlabelled")

_SPELLINGS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("unlabelled", "unlabeled", "unl"), "unlabelled"),
}
# What tables write into a cell that has no value.
_NO_VALUE = frozenset({"nan", "-nan", "na", "n/a", "#n/a", "#na", "<na>", "nat", "null", "none", "nil"})
_NO_VALUE_AS_TEXT = frozenset({"nan", "None", "<NA>", "NaT"})  # what turning a column into text makes of its gaps
MOST_TEXTS = 100  # of a case; more are the words of one
SOURCE_COLUMNS = ("source", "meta.source", "dataset")  # in which people write where a case comes from
MISSING_LABEL = "looks like a missing value, and is a class"  # in the note of a row with such a label
_WHOLE_NUMBER = re.compile(r"-?\d+\.0")
_FLAGS = {
    **dict.fromkeys(("true", "1", "1.0", "yes", "y", "t"), True),
    **dict.fromkeys(("false", "0", "0.0", "no", "n", "f"), False),
}


class View(NamedTuple):
    """One image of a case: its path, its name (``left``, ``lateral``; '' for the only one), its bytes if embedded."""

    image: str
    name: str = ""
    data: bytes | None = None


class Text(NamedTuple):
    """One text of a case, and its name (``findings``, ``impression``; '' for the only one).

    ``parts`` are what a training draws in its place, such as its sentences; without any it is the whole.
    """

    text: str
    name: str = ""
    parts: tuple[str, ...] = ()


class Mask(NamedTuple):
    """One mask of a case: its path, its class and who drew it ('' for the only one), and its file when it was read."""

    image: str
    name: str = ""
    annotator: str = ""
    file: FileFacts | None = None  # None: there is none, or an earlier version did not look


@dataclass(slots=True)
class Case:
    """One canonical row; ``split`` is None where the source gives none, ``line`` where it is a file of its own.

    ``notes`` say what was read otherwise than it stands in the file; rows with the same note are counted.
    """

    id: str
    source: str
    group: str
    split: str | None
    views: tuple[View, ...]
    texts: tuple[Text, ...]
    labels: tuple[str, ...]
    masks: tuple[Mask, ...]
    is_gt: bool
    file: str
    line: int | None
    meta: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str | None:
        """The only text, or the first of several; None for none."""
        return self.texts[0].text if self.texts else None


class BadRow(NamedTuple):
    """A row that cannot be used, and why."""

    source: str
    file: str
    line: int | None
    reason: str

    def __str__(self) -> str:
        if self.line is None:  # a file of its own, which the reason may name already
            return self.reason if self.reason.startswith(f"{self.file} ") else f"{self.file}: {self.reason}"
        return f"{self.file}:{self.line}: {self.reason}"


class RowError(ValueError):
    """What is wrong with a row; a source turns it into a BadRow."""


def scalar_text(value: Any, what: str) -> str:
    """A single value as text: None and NaN are '', 3 and 3.0 are '3'; a list or mapping is a RowError."""
    if isinstance(value, str):
        return value.strip()
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (list, tuple, dict, bytes)):
        raise RowError(f"{what} is a {type(value).__name__}; expected text or a number")
    return str(value)


def text_items(value: Any, what: str) -> tuple[list[str], int]:
    """The texts of a cell, a text or a list of texts, and how many items of a list are empty.

    A number or a truth value, a list inside the list, a mapping and more than ``MOST_TEXTS`` texts are a RowError.
    """
    if not isinstance(value, (list, tuple)):
        return ([text] if (text := _only_text(value, what)) else []), 0
    if len(value) > MOST_TEXTS:
        raise RowError(
            f"{what} is a list of {len(value)} texts; expected at most {MOST_TEXTS} of a case. If these are its words "
            "or tokens, join them to one text"
        )
    texts = [_only_text(item, f"item {number} of {what}") for number, item in enumerate(value, start=1)]
    return [text for text in texts if text], texts.count("")


def _only_text(value: Any, what: str) -> str:
    """A text; what is missing is ''."""
    if isinstance(value, str):
        return value.strip()
    if value is None or value != value:
        return ""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    shown = f"the number {value}" if is_number else f"a {type(value).__name__}"
    raise RowError(f"{what} is {shown}; expected text, or a list of texts (columns.text: null if it holds none)")


def looks_missing(text: str) -> bool:
    """Whether a text is what programs write for a value that is missing, such as nan, NA or None."""
    return text.strip().lower() in _NO_VALUE


def is_missing(text: str, *, has_null: bool) -> bool:
    """Whether a text is no value. A file that ``has_null`` for that says so in other words by mistake alone."""
    return text.strip() in _NO_VALUE_AS_TEXT if has_null else looks_missing(text)


def split_name(value: Any) -> str | None:
    """The split a cell names, in any usual spelling; None for an empty cell."""
    text = scalar_text(value, "split").lower()
    if not text:
        return None
    try:
        return _SPELLINGS[text]
    except KeyError:
        raise RowError(f"split '{text}' is unknown; expected train, val, test or unlabelled") from None


def is_split_name(name: str) -> bool:
    """Whether a folder of this name holds a split."""
    return name.lower() in _SPELLINGS


def flag(value: Any, what: str) -> bool:
    """A truth value in any usual spelling; an empty cell is True."""
    text = scalar_text(value, what).lower()
    if not text:
        return True
    try:
        return _FLAGS[text]
    except KeyError:
        raise RowError(f"{what} is '{text}'; expected true or false") from None


def label_paths(value: Any, *, separator: str | None = None, prefix: str = "") -> tuple[str, ...]:
    """The dot paths of a label cell (a list, or text that ``separator`` divides), each once, in their order."""
    if isinstance(value, (list, tuple)):
        return _unique_paths([_label_text(item) for item in value], prefix)
    return _text_paths(_label_text(value), separator, prefix)


@lru_cache(maxsize=4096)  # a table repeats a few cells in all its rows
def _text_paths(text: str, separator: str | None, prefix: str) -> tuple[str, ...]:
    items = [_label_text(item) for item in text.split(separator)] if separator and text else [text]
    return _unique_paths(items, prefix)


def _unique_paths(items: Sequence[str], prefix: str) -> tuple[str, ...]:
    labels = dict.fromkeys(f"{prefix}.{item}" if prefix else item for item in items if item)
    for label in labels:
        if not all(part.strip() for part in label.split(".")):
            raise RowError(f"label '{label}' has an empty part; a dot separates the levels of a label, as in a.b")
    return tuple(labels)


def _label_text(value: Any) -> str:
    if isinstance(value, float) and value == value and not value.is_integer():
        raise RowError(f"label {value} is a fraction; a dot separates the levels of a label, so name the class")
    text = scalar_text(value, "label")
    # A column of whole numbers with a gap in it is written as 3.0 by pandas; 3 is what parquet gives.
    return text[:-2] if _WHOLE_NUMBER.fullmatch(text) else text


def meta_text(value: Any) -> str:
    """A metadata value as text; lists and mappings as JSON."""
    if isinstance(value, (list, tuple, dict)):
        try:
            return json.dumps(value, ensure_ascii=False, default=_other_text)
        except RecursionError:
            raise RowError("a metadata value is nested too deeply") from None
    return _other_text(value) if isinstance(value, bytes) else scalar_text(value, "metadata")


def _other_text(value: Any) -> str:
    return f"({len(value)} bytes)" if isinstance(value, bytes) else str(value)


def check_encodable(case: Case) -> None:
    """Refuse text that is no UTF-8: a lone surrogate, from a broken file name or a JSON escape."""
    texts = [case.id, case.group, *case.labels]
    texts += [part for view in case.views for part in (view.image, view.name)]
    for named in case.texts:
        texts += named[:2]
    for mask in case.masks:
        texts += mask[:3]
    texts += [part for item in case.meta.items() for part in item]
    for text in texts:
        if text.isascii():
            continue
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RowError(f"{printable(text)[:80]} is not valid text; save or rename it as UTF-8") from None


def printable(text: str) -> str:
    """The text with what cannot be written as UTF-8 escaped."""
    return text.encode(errors="backslashreplace").decode()


def column_name(key: str) -> str:
    """What the column of a metadata key is called."""
    return "meta.source" if key == "source" else key


def meta_key(column: str) -> str:
    """The metadata key of a column."""
    return "source" if column == "meta.source" else column
