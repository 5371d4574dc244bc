"""Metadata columns as numbers: what training cases teach of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilium.core.errors import DataError, ImageError
from consilium.data.cases.cases import Cases
from consilium.data.cases.filters import Filtered
from consilium.data.cases.metadata import FARTHEST, MetadataCode, NumberColumn, odd_metadata, study_metadata
from tests.data.guards.pictures import store_of

AGES = ["20", "40", "60", "", "NA", "30"]


def cases_of(folder: Path, splits: str = "ttttvs", **columns: list[str]) -> Cases:
    """Cases with these columns; ``splits``: t train, v val, s test."""
    names = {"t": "train", "v": "val", "s": "test"}
    rows = [
        {"id": f"c{n}", "text": f"case {n}", "label": "ab"[n % 2], "split": names[split]}
        | {name: values[n] for name, values in columns.items()}
        for n, split in enumerate(splits)
    ]
    return Cases.of(Filtered(store_of(folder, {}, rows).table))


def study(cases: Cases, *names: str, **kinds: Any) -> MetadataCode:
    return study_metadata(cases, names, kinds=kinds)


def test_training_cases_say_what_a_column_holds(tmp_path: Path) -> None:
    sites = ["hand", "foot", "hand", "", "elbow", "foot"]
    cases = cases_of(tmp_path, age=AGES, site=sites)
    code = study(cases, "site", "age")
    assert code.names == ("site", "age")
    assert code.categories == [2, 0]
    age = code.columns[1]
    assert isinstance(age, NumberColumn)
    assert (age.mean, age.std) == (40, pytest.approx(np.std([20, 40, 60])))
    seen = [code.encode(cases.table.metadata(row)) for row in range(6)]
    assert seen[0] == ([1.0, (20 - 40) / age.std], [True, True])
    assert seen[3] == ([0.0, 0.0], [False, False])
    assert seen[4] == ([2.0, 0.0], [True, False])  # another site, and an age in words for nothing
    assert code.unseen(cases.table.metadata(4)) == {"site": "elbow"}
    assert odd_metadata(cases, code) == [
        "the metadata column 'site' has values that no training case has: 'elbow' (1). They all count as one, "
        "'another value'."
    ]
    assert MetadataCode.model_validate(json.loads(code.model_dump_json())) == code


def test_a_kind_that_is_given_holds(tmp_path: Path) -> None:
    """Grades are numbers, and yet none; a mixture is text where the config says so."""
    cases = cases_of(tmp_path, grade=["1", "2", "2", "3", "1", "4"], mixed=["1", "old", "2", "1", "2", "1"])
    code = study(cases, "grade", "mixed", grade="category", mixed="category")
    assert code.categories == [3, 3]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            ["20", "old", "60", "", "NA", "30"],
            r"is a number in 3 cases \(c0: '20', c2: '60', c5: '30'\) and text in 1 case \(c1: 'old'\).*"
            r"task.metadata.kinds: \{x: category\}",
        ),
        (["20", "40", "60", "", "80", "old"], "text in 1 case .c5: 'old'"),  # in test alone
        (["", "", "NA", "", "20", "30"], "no value in any training case"),
        (["a", "b", "a", "", "b", "b"], "is the label: it says the same in all 3 training cases"),
        (["1e308", "-1e308", "1e308", "", "1", "1"], "too large to compute with"),
    ],
)
def test_a_column_that_cannot_be_read_is_refused(tmp_path: Path, column: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        study(cases_of(tmp_path, x=column), "x")


def test_a_column_that_there_is_not_is_named(tmp_path: Path) -> None:
    cases = cases_of(tmp_path, age=AGES)
    with pytest.raises(DataError, match=r"names 'agee', which no case has; did you mean `age`\?"):
        study(cases, "agee")
    for name in ("label", "text", "source"):
        with pytest.raises(DataError, match=rf"names '{name}', which no case has.* What a source reads as label"):
            study(cases, name)


def test_a_number_that_is_given_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds numbers, but text in 1 case \(c1: 'old'\)"):
        study(cases_of(tmp_path, age=["20", "old", "60", "", "NA", "30"]), "age", age="number")


def test_other_data_are_read_by_what_the_training_taught(tmp_path: Path) -> None:
    code = study(cases_of(tmp_path / "a", age=AGES), "age")
    assert odd_metadata(cases_of(tmp_path / "b", site=AGES), code) == [
        "no case has the metadata column 'age', so that it is missing everywhere."
    ]
    with pytest.raises(DataError, match=r"'age' holds numbers, but text in 1 case \(c0: 'old'\)"):
        odd_metadata(cases_of(tmp_path / "c", age=["old", *AGES[1:]]), code)
    with pytest.raises(ImageError, match="'age' is 'old'; expected a number"):
        code.encode({"age": "old"})


@settings(max_examples=50)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_stays_near(mean: float, std: float, number: float) -> None:
    """What is asked about later may be a slip of the hand."""
    value = NumberColumn(name="x", mean=mean, std=std).value(repr(number))
    assert abs(value) <= FARTHEST


def test_a_column_of_one_number_is_0_everywhere(tmp_path: Path) -> None:
    code = study(cases_of(tmp_path, x=["3"] * 6), "x")
    assert code.encode({"x": "3"}) == ([0.0], [True])
