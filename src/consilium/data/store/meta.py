"""Metadata by column: which columns are numbers, and each of them as an array.

A value of metadata stays the text that it was; what is decided here is how it is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from consilium.data.case import looks_missing

Kind = Literal["number", "category"]

# A zero in front, as in 007, is that of an identifier.
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_EXACT = 2**53  # from here on a float does not tell all whole numbers apart


@dataclass(frozen=True)
class MetaColumn:
    """A metadata column over N cases.

    ``values_N`` is float64 with NaN where there is none (``number``), or an object array of texts with '' where there
    is none (``category``); ``there_N`` says where there is one.
    """

    kind: Kind
    values_N: np.ndarray
    there_N: np.ndarray


def column_kinds(metas: Iterable[Mapping[str, str]]) -> dict[str, Kind]:
    """The kind of each column of these cases, in the order of their names.

    A column is of numbers when all its values are, apart from words for a missing value (``NA``), and there is one at
    least. Numbers with zeros in front and whole ones that a float cannot hold are identifiers.
    """
    numbers: dict[str, bool | None] = {}  # None: nothing but words for a missing value so far
    for meta in metas:
        for name, text in meta.items():
            known = numbers.setdefault(name, None)
            if known is not False and not (text == "" or looks_missing(text)):
                numbers[name] = number_of(text) is not None
    return {name: "number" if numbers[name] else "category" for name in sorted(numbers)}


def typed(texts: Sequence[str], kind: Kind) -> MetaColumn:
    """A column as an array of its kind."""
    if kind == "category":
        values_N = np.array(texts, dtype=object)
        return MetaColumn(kind, values_N, values_N != "")
    found = [number_of(text) for text in texts]
    numbers_N = np.array([np.nan if number is None else number for number in found], dtype=np.float64)
    return MetaColumn(kind, numbers_N, ~np.isnan(numbers_N))


def number_of(text: str) -> float | None:
    """The number that a text is; None for any other text."""
    if _NUMBER.fullmatch(text) is None:
        return None
    number = float(text)
    is_exact = abs(number) < _EXACT if text.lstrip("+-").isdigit() else np.isfinite(number)
    return number if is_exact else None
