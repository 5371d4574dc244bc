"""Splits: stable, by group, and what is odd about them said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from consilium.core.errors import DataError
from consilium.data.config import SplitConfig
from consilium.data.store.prepare import prepare
from consilium.data.store.splits import assign_split, check_splits, position, split_rule
from consilium.data.store.store import CaseTable
from tests.data.samples import data_config, write_jsonl

SPLIT = st.sampled_from(["train", "val", "test", "unlabelled"])
GROUPS = st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=30)


def splits(rows: list[tuple[str, str | None]], config: SplitConfig) -> list[str]:
    rule = split_rule(rows)
    return [assign_split(group, given, rule=rule, config=config) for group, given in rows]


@given(old=GROUPS, new=GROUPS, val=st.floats(0, 0.4), test=st.floats(0, 0.4), seed=st.integers(0, 9))
def test_new_data_moves_nothing(old: list[str], new: list[str], val: float, test: float, seed: int) -> None:
    config = SplitConfig(val=val, test=test, seed=seed)
    before = splits([(group, None) for group in old], config)
    after = splits([(group, None) for group in new + old], config)
    assert after[len(new) :] == before


@given(rows=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.none() | SPLIT), min_size=1), seed=st.integers(0, 99))
def test_explicit_wins_and_the_rest_follows_its_group(rows: list[tuple[str, str | None]], seed: int) -> None:
    found = splits(rows, SplitConfig(val=0.3, test=0.3, seed=seed))
    has_val = "val" in {split for _, split in rows}
    explicit: dict[str, set[str | None]] = {}
    for group, split in rows:
        explicit.setdefault(group, set()).add(split)
    for (group, split), assigned in zip(rows, found, strict=True):
        if split is not None:
            assert assigned == split or (split == "train" and assigned == "val" and not has_val)
        elif explicit[group] - {None} == {"train"}:
            assert assigned in ("train", "val")
        elif len(explicit[group] - {None}) == 1:
            assert assigned in explicit[group]
    # Where the data itself puts no group on two sides, neither do we.
    if all(len(given - {None}) <= 1 for given in explicit.values()):
        assert len(set(zip((group for group, _ in rows), found, strict=True))) == len(explicit)


@pytest.mark.parametrize("explicit", [None, "train"])
@pytest.mark.parametrize("seed", range(5))
def test_fractions_are_within_binomial_bounds(explicit: str | None, seed: int) -> None:
    count, config = 5000, SplitConfig(val=0.1, test=0.25, seed=seed)
    found = splits([(f"patient-{number}", explicit) for number in range(count)], config)
    expected = {"val": 0.1, "test": 0.25 if explicit is None else 0.0}
    for split, fraction in expected.items():
        low, high = binom.interval(1 - 1e-6, count, fraction)
        assert low <= found.count(split) <= high, split


def test_val_comes_from_train_and_never_from_test() -> None:
    rows = [(str(number), "train" if number % 2 else "test") for number in range(400)]
    found = splits(rows, SplitConfig(val=0.2))
    assert {after for (_, given), after in zip(rows, found, strict=True) if given == "test"} == {"test"}
    assert {after for (_, given), after in zip(rows, found, strict=True) if given == "train"} == {"train", "val"}


def test_seed_changes_the_split_and_positions_never_change() -> None:
    rows: list[tuple[str, str | None]] = [(str(number), None) for number in range(100)]
    assert splits(rows, SplitConfig(seed=0)) != splits(rows, SplitConfig(seed=1))
    # Written down: a release that moves these moves everybody's splits.
    assert position("bccd:00001", seed=0) == pytest.approx(0.665669405080137, abs=1e-12)


def table_of(tmp_path: Path, rows: list[dict[str, Any]], **sections: Any) -> CaseTable:
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    return prepare(data_config(tmp_path, {"kind": "jsonl", "name": "s", "path": str(path)}, **sections)).store.table


def test_clean_splits_have_no_warnings(tmp_path: Path) -> None:
    rows = [
        {"text": f"{split}{label}{number}", "label": label, "split": split}
        for split in ("train", "val", "test") for label in "ab" for number in range(2)
    ]  # fmt: skip
    table = table_of(tmp_path, rows)
    assert check_splits(table) == []


def test_warnings(tmp_path: Path) -> None:
    rows = [{"text": f"a{n}", "label": "a", "split": "train"} for n in range(20)]
    rows += [{"text": "b", "label": "b", "split": "train"}, {"text": "c", "label": "c", "split": "val"}]
    warnings = "\n".join(check_splits(table_of(tmp_path, rows)))
    assert "no case is in the split 'test'" in warnings
    assert "labels in val that train never shows: 'c'" in warnings
    assert "labels of train that val has no case of: 'a', 'b'" in warnings
    assert "labels with a single training case: 'b'" in warnings
    assert "20 times" in warnings


def test_the_single_case_of_a_parent_is_one_warning_where_it_is_a_class_and_none_in_a_tree(tmp_path: Path) -> None:
    rows = [
        {"text": f"{split}{label}{number}", "label": label, "split": split}
        for split in ("train", "val", "test") for label in ("eye.fundus", "eye.oct") for number in range(2)
    ]  # fmt: skip
    table = table_of(tmp_path, [*rows, {"text": "own", "label": "eye", "split": "train"}])
    (warning,) = check_splits(table)
    assert "labels above others that have a single training case of their own: 'eye'." in warning
    assert check_splits(table, nested=True) == []


def test_labels_that_look_like_a_missing_value(tmp_path: Path) -> None:
    labels = ["nan", "NaN", "N/A", "null", "None", "x.NA", "Nancy", "none.seen"]
    rows = [
        {"text": f"{split}{label}{n}", "label": label, "split": split}
        for split in ("train", "val", "test") for label in labels for n in range(2)
    ]  # fmt: skip
    (warning,) = check_splits(table_of(tmp_path, rows))
    assert "missing value: 'N/A', 'NaN', 'None', 'nan', 'null', 'x.NA'. " in warning
    assert "leave those cells empty" in warning


def test_empty_train_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no case is in the split 'train' \(splits found: test\)"):
        check_splits(table_of(tmp_path, [{"text": "a", "split": "test"}]))
