"""Splits that are made: a class with enough groups has a case in each, and new data moves as little as can be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.core.errors import ConfigError, DataError
from consilium.data.config import SplitConfig
from consilium.data.store.prepare import prepare
from consilium.data.store.splits import GroupSurvey, assign_split, fill_splits, split_rule
from tests.data.samples import data_config, write_images

Row = tuple[str, str | None, tuple[str, ...]]
LABELS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=2, unique=True).map(tuple)
ONE_LABEL = st.sampled_from("abcd").map(lambda label: (label,))


def rows_of(labels: st.SearchStrategy[tuple[str, ...]]) -> st.SearchStrategy[list[Row]]:
    """Groups with their labels; no split is given."""
    groups = st.dictionaries(st.integers(0, 10_000), labels, min_size=1, max_size=30)
    return groups.map(lambda found: [(f"p{group}", None, own) for group, own in found.items()])


def divided(rows: Sequence[Row], config: SplitConfig, *, fill: bool = True) -> dict[str, str]:
    """The split of each group."""
    survey = GroupSurvey()
    for group, split, labels in rows:
        survey.add(group, source="s", split=split, labels=labels)
    rule = split_rule((group, split) for group, split, _ in rows)
    if fill:
        moved = fill_splits(survey, rules={"s": rule}, config=config)
        rule = type(rule)(rule.val_from_train, rule.given_by_group, moved)
    return {group: assign_split(group, split, rule=rule, config=config) for group, split, _ in rows}


def splits_of(rows: Sequence[Row], found: dict[str, str]) -> dict[str, dict[str, int]]:
    """Groups of each label in each split."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for group, _, labels in rows:
        for label in labels:
            counts[label][found[group]] += 1
    return counts


@given(rows=rows_of(ONE_LABEL), seed=st.integers(0, 9), val=st.floats(0.01, 0.4), test=st.floats(0.01, 0.4))
def test_a_class_of_three_groups_is_in_every_split(rows: list[Row], seed: int, val: float, test: float) -> None:
    counts = splits_of(rows, divided(rows, SplitConfig(val=val, test=test, seed=seed)))
    for label, own in counts.items():
        if sum(own.values()) >= 3:
            assert set(own) == {"train", "val", "test"}, label


@given(rows=rows_of(LABELS), seed=st.integers(0, 9))
def test_no_class_loses_a_split_that_the_hash_gave_it(rows: list[Row], seed: int) -> None:
    config = SplitConfig(seed=seed)
    before = splits_of(rows, divided(rows, config, fill=False))
    after = splits_of(rows, divided(rows, config))
    for label, own in before.items():
        assert {split for split, count in own.items() if count} <= {
            split for split, count in after[label].items() if count
        }


@given(old=rows_of(LABELS), new=rows_of(LABELS), seed=st.integers(0, 9))
def test_new_data_moves_only_groups_that_stand_in(old: list[Row], new: list[Row], seed: int) -> None:
    config = SplitConfig(seed=seed)
    known = {group for group, _, _ in old}
    everything = [*old, *(row for row in new if row[0] not in known)]
    before, after = divided(old, config), divided(everything, config)
    by_hash = divided(everything, config, fill=False)
    assert all(
        by_hash[group] != before[group] or by_hash[group] != after[group]
        for group in known
        if before[group] != after[group]
    )


@given(old=rows_of(ONE_LABEL), new=rows_of(ONE_LABEL), seed=st.integers(0, 9))
def test_what_moves_comes_from_or_goes_to_its_own_place(old: list[Row], new: list[Row], seed: int) -> None:
    """So no group that stood in for test stands in for val later; in each class and split at most one goes."""
    config = SplitConfig(seed=seed)
    label_of = {group: labels[0] for group, _, labels in old}
    everything = [*old, *(row for row in new if row[0] not in label_of)]
    before, after = divided(old, config), divided(everything, config)
    by_hash = divided(everything, config, fill=False)
    went = [group for group in label_of if before[group] != after[group]]
    assert all(by_hash[group] in (before[group], after[group]) for group in went)
    left = [(label_of[group], before[group]) for group in went if before[group] != by_hash[group]]
    assert len(set(left)) == len(left)


@given(old=rows_of(ONE_LABEL), new=rows_of(ONE_LABEL), seed=st.integers(0, 9))
def test_classes_without_a_gap_never_move(old: list[Row], new: list[Row], seed: int) -> None:
    config = SplitConfig(seed=seed)
    known = {group: labels for group, _, labels in old}
    before = divided(old, config)
    whole = {label for label, own in splits_of(old, divided(old, config, fill=False)).items() if len(own) == 3}
    after = divided([*old, *(row for row in new if row[0] not in known)], config)
    assert [before[group] for group, labels in known.items() if labels[0] in whole] == [
        after[group] for group, labels in known.items() if labels[0] in whole
    ]


@given(rows=rows_of(ONE_LABEL), seed=st.integers(0, 9))
def test_the_order_of_rows_is_nothing(rows: list[Row], seed: int) -> None:
    config = SplitConfig(seed=seed)
    assert divided(rows, config) == divided(rows[::-1], config)


def test_validation_out_of_train_reaches_every_class_and_test_is_left_alone() -> None:
    rows: list[Row] = [(f"{label}{n}", "train", (label,)) for label in "abcdef" for n in range(2)]
    rows += [(f"t{label}", "test", (label,)) for label in "abcdef"]
    found = divided(rows, SplitConfig(val=0.1))
    assert all(found[f"t{label}"] == "test" for label in "abcdef")
    assert all({found[f"{label}0"], found[f"{label}1"]} == {"train", "val"} for label in "abcdef")


def test_shares_of_nothing_stay_empty() -> None:
    rows: list[Row] = [(f"p{n}", None, ("a",)) for n in range(20)]
    assert set(divided(rows, SplitConfig(val=0.2, test=0)).values()) == {"train", "val"}


Cell = tuple[str, str, str | None, str]  # group, origin, split, label
CELLS = st.lists(
    st.tuples(
        st.integers(0, 40).map(str),
        st.sampled_from("xyz"),
        st.none() | st.sampled_from(["train", "val", "test"]),
        st.sampled_from("ab"),
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda row: row[0],
)


@given(rows=CELLS, seed=st.integers(0, 9), every_class=st.booleans())
def test_of_every_class_and_source_some_group_trains(rows: list[Cell], seed: int, every_class: bool) -> None:
    config = SplitConfig(val=0.3, test=0.3, seed=seed, keep_sources_in="train", every_class=every_class)
    survey = GroupSurvey()
    for group, origin, split, label in rows:
        survey.add(group, source="s", origin=origin, split=split, labels=(label,))
    rule = split_rule((group, split) for group, _, split, _ in rows)
    moved = fill_splits(survey, rules={"s": rule}, config=config)
    rule = type(rule)(rule.val_from_train, rule.given_by_group, moved)
    found = {group: assign_split(group, split, rule=rule, config=config) for group, _, split, _ in rows}
    trained = {(origin, label) for group, origin, _, label in rows if found[group] == "train"}
    assert trained >= {(origin, label) for group, origin, split, label in rows if split is None}
    assert all(found[group] == split for group, _, split, _ in rows if split in ("val", "test"))


def test_the_sources_of_a_table_stay_in_train(tmp_path: Path) -> None:
    lines = [f"i{n}.png,{'a' if n % 2 else 'b'},{'small' if n < 2 else 'large'}" for n in range(60)]
    write_images(tmp_path, [line.split(",")[0] for line in lines])
    (tmp_path / "t.csv").write_text("\n".join(["path,label,dataset", *lines]), encoding="utf-8")
    source = {"kind": "csv", "name": "s", "path": str(tmp_path / "t.csv"), "columns": {"image": "path"}}

    def trained(**split: Any) -> set[tuple[str, ...]]:
        config = data_config(tmp_path, source, split={"val": 0.45, "test": 0.45, **split}, mixture=mixture)
        table = prepare(config).store.table
        names = table.columns()["dataset"]
        return {(names[row], *table.labels[row]) for row in table.rows("train").tolist()}

    mixture = {"source_column": "dataset"}
    kept = {("small", "a"), ("small", "b"), ("large", "a"), ("large", "b")}
    assert any(trained(seed=seed) < kept for seed in range(5))
    assert all(trained(seed=seed, keep_sources_in="train") == kept for seed in range(5))
    mixture = {"source_column": "datasett"}
    with pytest.raises(ConfigError, match=r"source_column is 'datasett'.*did you mean `dataset`"):
        trained(keep_sources_in="train")
    mixture = {"source_column": "source"}
    with pytest.raises(DataError, match=r"a single source \('s'\). Name the column"):
        trained(keep_sources_in="train")


def test_a_small_class_of_a_folder_is_judged(tmp_path: Path) -> None:
    names = [*(f"often/{n}.png" for n in range(40)), *(f"rare/{n}.png" for n in range(3))]
    write_images(tmp_path / "d", names)
    source = {"kind": "folder", "name": "s", "path": str(tmp_path / "d")}
    table = prepare(data_config(tmp_path, source)).store.table
    rare = [split for split, labels in zip(table.splits, table.labels, strict=True) if labels == ("rare",)]
    assert sorted(rare) == ["test", "train", "val"]


def test_the_hash_alone_divides_another_store(tmp_path: Path) -> None:
    write_images(tmp_path / "d", [f"{label}/{n}.png" for label in "ab" for n in range(4)])
    source = {"kind": "folder", "name": "s", "path": str(tmp_path / "d")}
    before = prepare(data_config(tmp_path, source, split={"every_class": False}))
    again = prepare(data_config(tmp_path, source))
    assert again.created
    assert again.store.path != before.store.path
