"""Leaks between splits are found, and none is left when they are dropped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.data.guards.leaks import clusters, drop_leaks, find_leaks, one_split
from tests.data.samples import case_table

SPLITS = ("train", "val", "test", "unlabelled")


def test_groups_and_files() -> None:
    table = case_table(
        [
            {"id": "1", "files": ["a" * 20], "split": "train", "group": "p1"},
            {"id": "2", "files": ["a" * 20], "split": "test", "group": "p2"},
            {"id": "3", "files": ["b"], "split": "val", "group": "p1"},
            {"id": "4", "files": ["c"], "split": "train", "group": "p3"},
            {"id": "5", "files": ["c"], "split": "train", "group": "p3"},
            {"id": "6", "files": ["b"], "split": "unlabelled", "group": "p3"},
        ]
    )
    group, file = find_leaks(table)
    assert (group.kind, group.key, group.splits, group.ids) == ("group", "p1", ("train", "val"), ("1", "3"))
    assert group.message == "group 'p1' is in train and val (cases 1, 3); put it on one side."
    assert (file.kind, file.key, file.splits, file.rows) == ("file", "a" * 12, ("train", "test"), (0, 1))
    assert "the same file is in train and test (cases 1, 2)" in file.message


def test_a_group_may_be_two_patients_of_one_name() -> None:
    rows = [{"source": "a", "split": "train", "group": "{1}"}, {"source": "b", "split": "test", "group": "{1}"}]
    (leak,) = find_leaks(case_table(rows))
    assert leak.kind == "group_across_sources"
    assert "group '{1}' is in train and test through the sources a, b" in leak.message
    dropped = drop_leaks(case_table(rows), [leak])
    assert dropped.keep.all()
    assert dropped.notes == []


def test_a_source_that_leaks_by_itself_is_told_apart_from_its_namesakes() -> None:
    rows = [
        {"source": "a", "split": "train", "group": "p"},
        {"source": "a", "split": "test", "group": "p"},
        {"source": "b", "split": "train", "group": "p"},
    ]
    table = case_table(rows)
    leaks = find_leaks(table)
    assert [(leak.kind, leak.rows) for leak in leaks] == [("group", (0, 1)), ("group_across_sources", (0, 1, 2))]
    assert drop_leaks(table, leaks).keep.tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("val", "test", "said"),
    [
        ("ab", "ab", "they are one: each of the 2 test cases is in val, too. Validation chooses the weights"),
        ("abc", "b", "they are one: the one test case is in val, too"),
        ("ab", "abc", None),
        ("ab", "cd", None),
        ("ab", "", None),
        ("", "ab", None),
    ],
)
def test_validation_and_test_that_are_one(val: str, test: str, said: str | None) -> None:
    rows = [{"files": ["t"], "split": "train", "group": "t"}]
    rows += [
        {"source": split, "files": [file], "split": split, "group": f"{split} {file}"}
        for split, files in (("val", val), ("test", test))
        for file in files
    ]
    table = case_table(rows)
    found = one_split(table, find_leaks(table))
    assert len(found) == (said is not None)
    assert said is None or found[0].startswith(said)


def test_near_duplicates_are_joined_over_others() -> None:
    table = case_table([{"split": split} for split in ("train", "val", "train", "test", "unlabelled", "train")])
    (leak,) = find_leaks(table, near_duplicates=[(0, 1), (1, 2), (2, 3), (3, 4), (2, 5)])
    assert (leak.kind, leak.rows, leak.splits) == ("near_duplicate", (0, 1, 2, 3), ("train", "val", "test"))
    assert "(cases 0, 1, 2 and 1 more)" in leak.message


def test_near_duplicates_of_one_patient_are_told_once() -> None:
    rows = [{"split": split, "group": "p", "source": source} for split, source in (("train", "a"), ("test", "a"))]
    assert [leak.kind for leak in find_leaks(case_table(rows), near_duplicates=[(0, 1)])] == ["group"]
    rows[1]["source"] = "b"  # of another source it may be another patient, but not with the same image
    leaks = find_leaks(case_table(rows), near_duplicates=[(0, 1)])
    assert [leak.kind for leak in leaks] == ["group_across_sources", "near_duplicate"]
    assert drop_leaks(case_table(rows), leaks).keep.tolist() == [False, True]


@pytest.mark.parametrize(
    ("splits", "kept"),
    [(("train", "val", "test"), "test"), (("train", "val"), "val"), (("test", "val", "test"), "test")],
)
def test_dropping_keeps_the_side_that_judges(splits: tuple[str, ...], kept: str) -> None:
    table = case_table([{"split": split, "group": "p", "label": "ct"} for split in splits] + [{"label": "ct"}])
    dropped = drop_leaks(table, find_leaks(table))
    assert dropped.keep.tolist() == [*(split == kept for split in splits), True]
    told = ", ".join(f"{split} ct (1)" for split in sorted(splits) if split != kept)
    (note,) = dropped.notes
    what = {1: "1 case that leaks", 2: "2 cases that leak"}[len(set(splits) - {kept})]
    assert note == f"data.on_leak: drop takes out {what}: {told}."


def test_clusters() -> None:
    assert clusters([(5, 1), (2, 3), (3, 9, 4), (1, 7)]) == [[1, 5, 7], [2, 3, 4, 9]]
    assert clusters([]) == []


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "split": st.sampled_from(SPLITS),
            "source": st.sampled_from("ab"),
            "group": st.sampled_from("pqrstuv"),
            "files": st.lists(st.sampled_from("123456789"), max_size=2),
        }
    ),
    min_size=1,
    max_size=25,
)


@given(ROWS, st.data())
def test_after_dropping_no_leak_is_left(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    number = st.integers(0, len(rows) - 1)
    pairs = data.draw(st.lists(st.tuples(number, number), max_size=8))
    table = case_table(rows)
    leaks = find_leaks(table, near_duplicates=pairs)
    keep = drop_leaks(table, leaks).keep
    new = {row: position for position, row in enumerate(np.flatnonzero(keep).tolist())}
    left = find_leaks(
        table.select(np.flatnonzero(keep)),
        near_duplicates=[(new[a], new[b]) for a, b in pairs if a in new and b in new],
    )
    assert {leak.kind for leak in left} <= {"group_across_sources"}
    # Nothing goes that does not leak, and test keeps all.
    leaking = {row for leak in leaks if leak.kind != "group_across_sources" for row in leak.rows}
    gone = set(range(len(rows))) - set(new)
    assert gone <= leaking
    assert not any(rows[row]["split"] in ("test", "unlabelled") for row in gone)
