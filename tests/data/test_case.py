"""Reading the values of a row."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.data.case import SPLITS, RowError, flag, label_paths, meta_text, scalar_text, split_name


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("TRAIN", "train"), ("training", "train"), ("validation", "val"), ("Valid", "val"), ("dev", "val"),
        (" TEST ", "test"), ("UNL", "unlabelled"), ("unlabeled", "unlabelled"), ("", None), (None, None),
        (float("nan"), None),
    ],
)  # fmt: skip
def test_usual_spellings_of_splits(written: Any, meant: str | None) -> None:
    assert split_name(written) == meant


@pytest.mark.parametrize("written", ["holdout", "train2", 1, ["train"]])
def test_unknown_split(written: Any) -> None:
    with pytest.raises(RowError, match="split"):
        split_name(written)


@pytest.mark.parametrize("split", SPLITS)
def test_canonical_names_stay(split: str) -> None:
    assert split_name(split) == split


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (3.0, "3"), (3.5, "3.5"), (True, "true"), (None, ""), (float("nan"), ""), (" a ", "a"), (-0.0, "0")],
)
def test_scalars_become_text(value: Any, text: str) -> None:
    assert scalar_text(value, "x") == text


@pytest.mark.parametrize("value", [["a"], {"a": 1}, b"a"])
def test_no_scalar(value: Any) -> None:
    with pytest.raises(RowError, match="id is a"):
        scalar_text(value, "id")


@pytest.mark.parametrize(
    ("value", "separator", "prefix", "labels"),
    [
        ("ct", None, "", ("ct",)),
        (3, None, "", ("3",)),
        (3.0, None, "", ("3",)),
        ("3.0", None, "", ("3",)),
        ("3.0|4", "|", "", ("3", "4")),
        ("v3.0", None, "", ("v3.0",)),
        (False, None, "", ("false",)),
        ("", None, "p", ()),
        (None, "|", "p", ()),
        ("a|b| a |", "|", "", ("a", "b")),
        ("a|b", None, "", ("a|b",)),
        (["x.y", 2, "x.y"], None, "p", ("p.x.y", "p.2")),
        ("a.b", None, "rad", ("rad.a.b",)),
    ],
)
def test_labels(value: Any, separator: str | None, prefix: str, labels: tuple[str, ...]) -> None:
    assert label_paths(value, separator=separator, prefix=prefix) == labels


@pytest.mark.parametrize("value", ["a..b", ".a", "a.", "No.", "a. .b", ".", [["a"]], 1.5, {"a": 1}])
def test_bad_labels(value: Any) -> None:
    with pytest.raises(RowError, match="label"):
        label_paths(value)


def test_flags() -> None:
    assert [flag(value, "is_gt") for value in (True, 1, "yes", "", None, False, 0, "0", "No")] == [True] * 5 + [
        False
    ] * 4
    with pytest.raises(RowError, match="is_gt is 'maybe'; expected true or false"):
        flag("maybe", "is_gt")


def test_metadata_of_any_shape() -> None:
    assert meta_text({"a": [1, "é"]}) == '{"a": [1, "é"]}'
    assert meta_text({"image": b"123"}) == '{"image": "(3 bytes)"}'
    assert meta_text(b"123") == "(3 bytes)"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_any_json_value_is_read_or_refused_by_name(value: Any) -> None:
    for read in (split_name, label_paths, lambda cell: flag(cell, "is_gt")):
        with contextlib.suppress(RowError):
            read(value)
    assert isinstance(meta_text(value), str)
