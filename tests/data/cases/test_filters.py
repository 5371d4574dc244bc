"""Filters: each keeps what it says, in the order of the keys, and thinning is stratified, seeded and nested."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilium.core.config import build
from consilium.core.errors import ConfigError
from consilium.data.cases.filters import Filtered, child_towards, filtered, usable
from consilium.data.cases.folds import resplit
from consilium.data.config import FilterConfig, SplitConfig
from consilium.data.store.prepare import prepare
from consilium.data.store.store import CaseTable
from tests.data.samples import case_table, data_config, write_images, write_jsonl
from tests.labelled import label_needs


def write_store(root: Path) -> CaseTable:
    """120 cases of two sources: labels a.x (60), a.y (36), b (24) in train, val and test, metadata and text."""
    write_images(root, ["one.png"])
    rows: list[dict[str, Any]] = []
    for number in range(120):
        label = ("a.x", "a.y", "a.x", "b", "a.x", "a.y", "a.x", "a.y", "a.x", "b")[number % 10]
        rows.append(
            {
                "id": f"case{number}",
                "image": "one.png",
                "label": label,
                "split": ("train", "train", "train", "train", "val", "test")[number // 10 % 6],
                "text": "seen" if number % 3 else None,
                "group_id": f"g{number}",
                "clinic": f"c{number % 4}",
            }
        )
    write_jsonl(root / "first.jsonl", rows[:60])
    write_jsonl(root / "second.jsonl", rows[60:])
    sources = [{"kind": "jsonl", "name": name, "path": str(root / f"{name}.jsonl")} for name in ("first", "second")]
    return prepare(data_config(root, *sources)).store.table


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> CaseTable:
    return write_store(tmp_path_factory.mktemp("filters"))


def keep(table: CaseTable, seed: int = 0, **filters: Any) -> Filtered:
    return filtered(Filtered(table), config=build(FilterConfig, filters, origin="test"), seed=seed)


def training(table: CaseTable) -> Counter[str]:
    return Counter(label for row in table.rows("train").tolist() for label in table.labels[row])


def others(table: CaseTable) -> set[str]:
    return {id for id, split in zip(table.ids, table.splits, strict=True) if split != "train"}


def test_no_filter_keeps_everything(table: CaseTable) -> None:
    found = keep(table)
    assert found.table is table
    assert found.notes == []


def test_a_branch_keeps_all_labels_under_it(table: CaseTable) -> None:
    found = keep(table, labels=["a"])
    assert set(found.table.labels) == {("a.x",), ("a.y",)}
    assert "'b' (24)" in found.notes[0]
    assert set(keep(table, labels=["a.y", "b"]).table.labels) == {("a.y",), ("b",)}


def test_sources_sub_sources_and_text(table: CaseTable) -> None:
    assert set(keep(table, sources=["second"]).table.sources) == {"second"}
    found = keep(table, sub_sources={"clinic": ["c1", "c2"]})
    assert {meta["clinic"] for meta in found.table.metas} == {"c1", "c2"}
    assert found.notes == ["60 cases left out by data.filters.sub_sources.clinic."]
    assert all(keep(table, has_text=True).table.texts)
    assert not any(keep(table, has_text=False).table.texts)
    assert len(keep(table, has_text=False).table) + len(keep(table, has_text=True).table) == len(table)


def test_thinning_leaves_validation_and_test_alone(table: CaseTable) -> None:
    for filters in ({"fraction": 0.25}, {"max_samples_per_label": 3}):
        assert others(keep(table, **filters).table) == others(table)


def test_a_fraction_is_stratified_and_nested(table: CaseTable) -> None:
    small, large = keep(table, fraction=0.25).table, keep(table, fraction=0.5).table
    assert training(table) == {"a.x": 40, "a.y": 24, "b": 16}
    assert training(small) == {"a.x": 10, "a.y": 6, "b": 4}
    assert set(small.ids) < set(large.ids)
    assert set(small.ids) != set(keep(table, seed=1, fraction=0.25).table.ids)
    assert set(small.ids) == set(keep(table, fraction=0.25).table.ids)


def test_most_and_least_count_what_the_others_leave(table: CaseTable) -> None:
    assert training(keep(table, max_samples_per_label=20).table) == {"a.x": 20, "a.y": 20, "b": 16}
    found = keep(table, min_samples_per_label=20)
    assert set(found.table.labels) == {("a.x",), ("a.y",)}
    assert training(keep(table, fraction=0.25, min_samples_per_label=6).table) == {"a.x": 10, "a.y": 6}
    # Half of the cases of b have no text, so that it is rare only after has_text.
    assert ("b",) in keep(table, min_samples_per_label=16).table.labels
    assert ("b",) not in keep(table, has_text=True, min_samples_per_label=16).table.labels


def test_a_case_of_several_labels_loses_those_that_go(tmp_path: Path) -> None:
    write_images(tmp_path, ["one.png"])
    rows = [
        {"image": "one.png", "id": "1", "label": ["a", "rare"], "split": "train"},
        {"image": "one.png", "id": "2", "label": ["a"], "split": "train"},
        {"image": "one.png", "id": "3", "label": [], "split": "train"},
        {"image": "one.png", "id": "4", "label": ["rare"], "split": "test"},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    table = prepare(data_config(tmp_path, {"kind": "jsonl", "name": "s", "path": str(path)})).store.table
    found = keep(table, min_samples_per_label=2).table
    assert dict(zip(found.ids, found.labels, strict=True)) == {"1": ("a",), "2": ("a",), "3": ()}
    assert found.select(found.rows("train")[:1]).labels == [("a",)]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fraction=st.floats(0.01, 1.0),
    most=st.integers(1, 50) | st.none(),
    least=st.integers(1, 50) | st.none(),
    labels=st.sets(st.sampled_from(["a", "a.x", "b"]), min_size=1) | st.none(),
    seed=st.integers(0, 3),
)
def test_any_combination_keeps_its_promises(
    table: CaseTable, fraction: float, most: int | None, least: int | None, labels: set[str] | None, seed: int
) -> None:
    if most is not None and least is not None and most < least:
        least = most
    wanted = None if labels is None else sorted(labels)
    found = keep(
        table, seed, fraction=fraction, max_samples_per_label=most, min_samples_per_label=least, labels=wanted
    ).table
    counts = training(found)
    assert set(found.ids) <= set(table.ids)
    assert all(count <= (most or 100) for count in counts.values())
    assert all(count >= (least or 1) for count in counts.values())
    for label, count in training(keep(table, labels=wanted).table).items():
        expected = min(max(1, round(count * fraction)), most or 100)
        assert counts[label] == (expected if expected >= (least or 1) else 0)


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        ({"labels": ["a.z"]}, "data.filters.labels names the label 'a.z', which no case has; did you mean `a."),
        ({"sources": ["third"]}, "there are: first, second."),
        ({"sub_sources": {"clinik": ["c1"]}}, "metadata column 'clinik', which no case has; did you mean `clinic`?"),
        ({"sub_sources": {"clinic": ["c9"]}}, "data.filters.sub_sources.clinic names the clinic 'c9'"),
        ({"max_samples_per_label": 2, "min_samples_per_label": 3}, "no label would stay"),
        ({"fraction": 0}, "`fraction` is 0"),
        ({"node": "zz"}, "is 'zz', and no case has a label below it; nodes with labels below them are: root, a."),
        ({"node": "a.x"}, "data.filters.node is 'a.x', and no case has a label below it; "),
        ({"node": "roof"}, "did you mean `root`?"),
    ],
)
def test_what_does_not_occur_is_named(table: CaseTable, filters: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        keep(table, **filters)
    assert told in str(error.value)


TREE = [
    {"id": "nor", "label": "exp.gel.nor", "split": "train"},
    {"id": "wes", "label": "exp.gel.wes", "split": "val", "group": "g"},
    {"id": "gel", "label": "exp.gel", "split": "test", "is_gt": False},
    {"id": "pla", "label": "exp.pla", "split": "train"},
    {"id": "exp", "label": "exp", "split": "train"},
    {"id": "export", "label": "export.gel", "split": "train"},
    {"id": "gra", "label": "gra", "split": "test"},
    {"id": "two", "label": ["exp.gel.nor", "exp.gel.wes", "exp.pla", "gra"], "split": "train"},
    {"id": "none", "label": [], "split": "train"},
]


@pytest.mark.parametrize(
    ("node", "labels", "elsewhere", "stop"),
    [
        (
            "root",
            {
                **dict.fromkeys(("nor", "wes", "gel", "pla", "exp"), ("exp",)),
                "export": ("export",),
                "gra": ("gra",),
                "two": ("exp", "gra"),
                "none": (),
            },
            0,
            0,
        ),
        (
            "exp",
            {
                **dict.fromkeys(("nor", "wes", "gel"), ("exp.gel",)),
                "pla": ("exp.pla",),
                "two": ("exp.gel", "exp.pla"),
            },
            3,
            1,
        ),
        (
            "exp.gel",
            {"nor": ("exp.gel.nor",), "wes": ("exp.gel.wes",), "two": ("exp.gel.nor", "exp.gel.wes")},
            5,
            1,
        ),
    ],
)
def test_a_node_keeps_what_lies_below_it_under_the_names_of_its_children(
    node: str, labels: dict[str, tuple[str, ...]], elsewhere: int, stop: int
) -> None:
    before = case_table(TREE)
    found = keep(before, node=node)
    assert dict(zip(found.table.ids, found.table.labels, strict=True)) == labels
    told = {f"no label below '{node}'": elsewhere, f"the label stops at '{node}'": stop}
    assert found.notes == [
        f"{n} case{'s' if n > 1 else ''} left out by data.filters.node: {why}." for why, n in told.items() if n
    ]
    row_of = {name: row for row, name in enumerate(before.ids)}
    rows = [row_of[name] for name in found.table.ids]
    for column in ("splits", "groups", "is_gt", "sources"):
        assert list(getattr(found.table, column)) == [getattr(before, column)[row] for row in rows]


def test_a_node_comes_after_the_labels_filter_and_before_what_counts(table: CaseTable) -> None:
    assert set(keep(table, labels=["a.x", "b"], node="a").table.labels) == {("a.x",)}
    found = keep(table, node="root", max_samples_per_label=50)
    assert training(found.table) == {"a": 50, "b": 16}
    with pytest.raises(ConfigError, match=r"data\.filters\.node is 'a', and no case has a label below it"):
        keep(table, labels=["b"], node="a")


@given(label=st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=4).map(".".join))
def test_the_way_to_a_label_goes_from_child_to_child(label: str) -> None:
    """From the root on every child is a prefix with one part more, until the label is reached and no further."""
    node, depth = "root", 0
    while (child := child_towards(label, node)) is not None:
        depth += 1
        assert child == ".".join(label.split(".")[:depth])
        node = child
    assert node == label


def test_a_column_called_source_has_a_name_of_its_own(tmp_path: Path) -> None:
    write_images(tmp_path, ["one.png"])
    rows = [{"image": "one.png", "id": str(n), "label": "a", "source": f"hospital {n}"} for n in range(2)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    table = prepare(data_config(tmp_path, {"kind": "jsonl", "name": "s", "path": str(path)})).store.table
    with pytest.raises(ConfigError, match=r"there are: s\. Your column 'source' is called `meta\.source`\.$"):
        keep(table, sub_sources={"source": ["hospital 1"]})
    assert keep(table, sub_sources={"meta.source": ["hospital 1"]}).table.ids == ["1"]
    split = SplitConfig(leave_out=[{"source": ["hospital 1"]}], val=0)
    with pytest.raises(ConfigError, match=r"there are: s\. Your column 'source' is called `meta\.source`\.$"):
        resplit(table, config=split)


def test_pseudo_labels_are_out_before_anything_is_counted(tmp_path: Path) -> None:
    write_images(tmp_path, ["one.png"])
    rows = [
        {"image": "one.png", "id": str(n), "label": "a", "split": "train" if n < 8 else "test", "is_gt": n % 2 == 0}
        for n in range(10)
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    table = prepare(data_config(tmp_path, {"kind": "jsonl", "name": "s", "path": str(path)})).store.table
    config = FilterConfig(max_samples_per_label=3)
    for pseudo_labels, left in ((False, 4), (True, 8)):
        found = usable(table, needs=label_needs(), pseudo_labels=pseudo_labels)
        assert len(found.table.rows("train")) == left
        assert found.table.ids[-1] == "8"
        assert len(filtered(found, config=config, seed=0).table.rows("train")) == 3
