"""Metadata that a task reads: what training cases teach about each column, and the numbers that stand for a case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from consilium.core.config import Config, nearest
from consilium.core.errors import DataError, ImageError
from consilium.core.reporter import counted, some
from consilium.data.case import looks_missing
from consilium.data.cases.cases import Cases
from consilium.data.cases.filters import your_column
from consilium.data.store.meta import Kind, number_of

FARTHEST = 10.0  # standard deviations from the mean; a number that lies farther counts as this


class NumberColumn(Config):
    """Numbers, less the mean of the training cases and divided by their standard deviation."""

    kind: Literal["number"] = "number"
    name: str
    mean: float = Field(description="Of the training cases.")
    std: float = Field(gt=0.0, description="Of the training cases; 1 where all are equal.")

    def value(self, text: str) -> float:
        """The standardised number, at most ``FARTHEST`` from 0; any other text is an ImageError."""
        number = number_of(text)
        if number is None:
            raise ImageError(
                f"the metadata column '{self.name}' is '{text}'; expected a number, as in all training cases, or "
                "nothing where it is missing."
            )
        return max(-FARTHEST, min(FARTHEST, (number - self.mean) / self.std))


class CategoryColumn(Config):
    """Words, by their place among those of the training cases; all others are one more."""

    kind: Literal["category"] = "category"
    name: str
    categories: list[str] = Field(min_length=1, description="Of the training cases.")

    @cached_property
    def _places(self) -> dict[str, int]:
        return {category: place for place, category in enumerate(self.categories)}

    def value(self, text: str) -> float:
        """Its place; of what no training case had the place after the last."""
        return float(self._places.get(text, len(self.categories)))


class MetadataCode(Config):
    """The columns of a task in their order, with what a bundle must know to read them."""

    columns: list[Annotated[NumberColumn | CategoryColumn, Field(discriminator="kind")]]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(column.name for column in self.columns)

    @property
    def categories(self) -> list[int]:
        """How many categories each column has; 0: it holds numbers."""
        return [0 if isinstance(column, NumberColumn) else len(column.categories) for column in self.columns]

    def encode(self, case: Mapping[str, str]) -> tuple[list[float], list[bool]]:
        """The value of each column, and whether the case has one; 0 where it has none."""
        texts = [present(case.get(column.name, "")) for column in self.columns]
        values = [column.value(text) if text else 0.0 for column, text in zip(self.columns, texts, strict=True)]
        return values, [bool(text) for text in texts]

    def unseen(self, case: Mapping[str, str]) -> dict[str, str]:
        """The categories of a case that no training case had, by column."""
        return {
            column.name: text
            for column in self.columns
            if isinstance(column, CategoryColumn)
            and (text := present(case.get(column.name, "")))
            and column.value(text) == len(column.categories)
        }


def present(text: str) -> str:
    """The text of a value; '' where it is only a word for a missing one (NA, NaN, None)."""
    return "" if looks_missing(text) else text


def study_metadata(cases: Cases, names: Sequence[str], *, kinds: Mapping[str, Kind]) -> MetadataCode:
    """What the training cases teach about each column; ``kinds`` says of some what they hold.

    A column holds numbers where all its values are. One that no training case has, that is the label, or that holds
    numbers in some cases and text in others is a DataError.
    """
    found = _columns(cases)
    return MetadataCode(columns=[_studied(cases, name, _values(cases, name, found), kinds.get(name)) for name in names])


def odd_metadata(cases: Cases, code: MetadataCode) -> list[str]:
    """What to say of cases that are read by a code: columns that none has, and values that no training case had.

    A text in a column of numbers is a DataError.
    """
    notes, found = [], _columns(cases)
    for column in code.columns:
        values = _filled(found.get(column.name, []))
        if not values:
            notes.append(f"no case has the metadata column '{column.name}', so that it is missing everywhere.")
        elif isinstance(column, NumberColumn):
            _refuse_text(cases, column.name, values)
        elif unseen := Counter(text for text in values.values() if text not in column.categories):
            shown = some([f"'{text}' ({count})" for text, count in unseen.most_common()], 5)
            notes.append(
                f"the metadata column '{column.name}' has values that no training case has: {shown}. They all count "
                "as one, 'another value'."
            )
    return notes


def _columns(cases: Cases) -> dict[str, list[str]]:
    """The metadata of the cases by column; which source a case is from is none of it."""
    return {name: texts for name, texts in cases.table.columns().items() if name != "source"}


def _filled(texts: Sequence[str]) -> dict[int, str]:
    """The value of each row that has one."""
    return {row: text for row, text in enumerate(texts) if present(text)}


def _values(cases: Cases, name: str, found: Mapping[str, list[str]]) -> dict[int, str]:
    """The value of each row that has one; a column that there is not, or not in train, is a DataError."""
    if name not in found:
        raise DataError(
            f"task.metadata.columns names '{name}', which no case has{nearest(name, sorted(found), there='there are')} "
            "What a source reads as label, text, image, id or group of a case is none of its metadata."
            f"{your_column(name, found)}"
        )
    values = _filled(found[name])
    if not any(row in values for row in cases.rows["train"].tolist()):
        raise DataError(
            f"the metadata column '{name}' has no value in any training case; take it out of task.metadata.columns, "
            "or look at the table that it comes from."
        )
    return values


def _studied(cases: Cases, name: str, values: Mapping[int, str], kind: Kind | None) -> NumberColumn | CategoryColumn:
    trained = [values[row] for row in cases.rows["train"].tolist() if row in values]
    _refuse_label(cases, name, values)
    if kind is None:
        _refuse_mixed(cases, name, values)
        kind = "category" if number_of(trained[0]) is None else "number"
    if kind == "category":
        return CategoryColumn(name=name, categories=sorted(set(trained)))
    _refuse_text(cases, name, values)
    numbers_N = np.array([number_of(text) for text in trained], dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = float(numbers_N.mean()), float(numbers_N.std())
    if not np.isfinite([mean, std]).all():
        raise DataError(
            f"the numbers of the metadata column '{name}' are too large to compute with (up to "
            f"{np.abs(numbers_N).max():g}); give them in another unit."
        )
    return NumberColumn(name=name, mean=mean, std=std or 1.0)


def _refuse_label(cases: Cases, name: str, values: Mapping[int, str]) -> None:
    """A column that says the label of every training case that has a value is a DataError."""
    rows = [row for row in cases.rows["train"].tolist() if row in values]
    if all(any(values[row] in (label, label.rpartition(".")[2]) for label in cases.table.labels[row]) for row in rows):
        raise DataError(
            f"the metadata column '{name}' is the label: it says the same in all {counted(len(rows), 'training case')} "
            "that have it. Take it out of task.metadata.columns."
        )


def _refuse_mixed(cases: Cases, name: str, values: Mapping[int, str]) -> None:
    numbers = {row: text for row, text in values.items() if number_of(text) is not None}
    texts = {row: text for row, text in values.items() if row not in numbers}
    if numbers and texts:
        raise DataError(
            f"the metadata column '{name}' is a number in {_where(cases, numbers)} and text in {_where(cases, texts)}. "
            f"Correct the values (a missing one is an empty cell), or say that all are categories: "
            f"task.metadata.kinds: {{{name}: category}}."
        )


def _refuse_text(cases: Cases, name: str, values: Mapping[int, str]) -> None:
    texts = {row: text for row, text in values.items() if number_of(text) is None}
    if texts:
        raise DataError(
            f"the metadata column '{name}' holds numbers, but text in {_where(cases, texts)}. Correct the values (a "
            f"missing one is an empty cell), or train with task.metadata.kinds: {{{name}: category}}."
        )


def _where(cases: Cases, values: Mapping[int, str]) -> str:
    shown = some([f"{cases.table.ids[row]}: '{text}'" for row, text in values.items()], 3)
    return f"{counted(len(values), 'case')} ({shown})"
