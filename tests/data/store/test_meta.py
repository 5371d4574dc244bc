"""Metadata as numbers or categories."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.data.store.meta import column_kinds, typed
from consilium.data.store.prepare import prepare
from tests.data.samples import data_config, write_jsonl


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["54", "61.5", "-3", "+4", ".5", "7.", "1e-3", "0", "0.25"], "number"),
        (["54", "NA", "", "nan"], "number"),
        (["NA", "nan"], "category"),
        (["54", "unknown"], "category"),
        (["007", "12"], "category"),
        (["-01"], "category"),
        (["9007199254740992"], "category"),
        (["-9007199254740991"], "number"),
        (["1e999"], "category"),
        (["1_000"], "category"),
        (["1,5"], "category"),
        (["inf"], "category"),
        (["\u0663"], "category"),
        (["true"], "category"),
    ],
)
def test_kinds(texts: list[str], kind: str) -> None:
    assert column_kinds({"a": text} for text in texts) == {"a": kind}
    assert column_kinds({"a": text} for text in reversed(texts)) == {"a": kind}


@given(
    st.lists(st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(1 - 2**53, 2**53 - 1), st.none()))
)
def test_numbers_come_back(numbers: list[float | int | None]) -> None:
    texts = ["" if number is None else str(number) for number in numbers]
    there = [number is not None for number in numbers]
    kinds = column_kinds({"a": text} for text in texts if text)
    assert kinds == ({"a": "number"} if any(there) else {})
    column = typed(texts, "number")
    assert column.there_N.tolist() == there
    assert column.values_N.dtype == np.float64
    assert column.values_N[column.there_N].tolist() == [number for number in numbers if number is not None]
    assert np.isnan(column.values_N[~column.there_N]).all()


@given(st.lists(st.text(max_size=5), max_size=9))
def test_categories_stay_texts(texts: list[str]) -> None:
    column = typed(texts, "category")
    assert column.values_N.tolist() == texts
    assert column.there_N.tolist() == [text != "" for text in texts]
    kinds = column_kinds({"a": text} for text in texts)
    assert typed(texts, kinds["a"]).there_N.any() if kinds.get("a") == "number" else True


def test_columns_of_a_store_keep_their_kind_in_every_selection(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "age": 54, "code": "007", "source": "north", "dose": "3"},
        {"text": "b", "age": None, "code": "12", "dose": "high"},
        {"text": "c", "age": 61.5},
    ]
    source = {"kind": "jsonl", "name": "s", "path": str(write_jsonl(tmp_path / "a.jsonl", rows))}
    store = prepare(data_config(tmp_path, source)).store
    kinds = {"age": "number", "code": "category", "dose": "category", "source": "category"}
    assert store.manifest.meta == kinds
    assert json.loads((store.path / "store.json").read_text())["meta"] == kinds
    table = store.table.select(np.array([2, 0]))
    columns = table.meta_columns()
    assert {name: column.kind for name, column in columns.items()} == {
        "age": "number", "code": "category", "dose": "category", "meta.source": "category",
    }  # fmt: skip
    assert columns["age"].values_N.tolist() == [61.5, 54.0]
    assert columns["dose"].values_N.tolist() == ["", "3"]
    assert columns["dose"].there_N.tolist() == [False, True]
    assert columns["meta.source"].values_N.tolist() == table.columns()["meta.source"]
