"""Renamed labels: branches move whole, the longest key wins, all at once, and everything else sees the new names."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.core.errors import ConfigError
from consilium.data.cases.load import used_cases
from consilium.data.cases.renames import renamed
from consilium.data.store.prepare import prepare
from tests.data.samples import case_table, data_config, write_images, write_jsonl
from tests.labelled import label_needs

LABELS = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=3).map(".".join)


def test_a_branch_moves_with_all_below_it() -> None:
    table = case_table([{"label": label} for label in ("xray", "xray.chest", "xray_chest", "ct")])
    new = renamed(table, {"xray": "radiology.xray"})
    assert new.labels == [("radiology.xray",), ("radiology.xray.chest",), ("xray_chest",), ("ct",)]
    assert (new.ids, new.splits) == (table.ids, table.splits)
    assert table.labels[0] == ("xray",), "the table given stays"


def test_the_longest_key_wins_and_all_are_renamed_at_once() -> None:
    table = case_table([{"label": ["a.b.c", "a.b", "a", "z"]}, {"label": []}, {"label": ["a.x", "a.b.y"]}])
    new = renamed(table, {"a": "z", "a.b": "q", "a.b.c": "a", "z": "a.b"})
    assert new.labels == [("a", "q", "z", "a.b"), (), ("z.x", "q.y")]


def test_labels_that_become_one_stand_once() -> None:
    assert renamed(case_table([{"label": ["x", "y", "z"]}]), {"x": "m", "z": "m"}).labels == [("m", "y")]


@given(rows=st.lists(st.lists(LABELS, max_size=3, unique=True), min_size=1, max_size=5), data=st.data())
def test_every_label_is_the_replacement_of_its_longest_prefix(rows: list[list[str]], data: st.DataObject) -> None:
    """Against an independent reading: walk up from the label, and stop at the first key."""
    present = {".".join(label.split(".")[:n]) for row in rows for label in row for n in (1, 2, 3)}
    names = data.draw(st.dictionaries(st.sampled_from(sorted(present)), LABELS, max_size=4)) if present else {}

    def expected(label: str) -> str:
        head, tail = label.split("."), list[str]()
        while head and ".".join(head) not in names:
            tail.insert(0, head.pop())
        return ".".join([*([names[".".join(head)]] if head else []), *tail])

    new = renamed(case_table([{"label": row} for row in rows]), names)
    assert [set(own) for own in new.labels] == [set(map(expected, row)) for row in rows]
    assert all(len(set(own)) == len(own) for own in new.labels)


def test_an_unknown_label_is_named() -> None:
    table = case_table([{"label": "xray.chest"}, {"label": "mri"}])
    with pytest.raises(ConfigError, match="'xrai', which no case has; did you mean `xray`"):
        renamed(table, {"xrai": "radiology"})
    with pytest.raises(ConfigError, match=r"there are: mri, xray, xray\.chest\."):
        renamed(table, {"endoscopy": "e"})


@pytest.mark.parametrize("new", ["", " ", "a..b", ".a", "a."])
def test_a_new_name_is_a_label(tmp_path: Path, new: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a label, as in a\.b|has an empty part"):
        data_config(tmp_path, {"kind": "folder", "name": "s", "path": "x"}, rename_labels={"a": new})


def test_filters_name_the_new_labels_and_the_store_stays(tmp_path: Path) -> None:
    write_images(tmp_path, ["1.png", "2.png", "3.png"])
    rows = [{"image": f"{n}.png", "label": label, "split": "train"} for n, label in ((1, "x"), (2, "y"), (3, "ct"))]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    source = {"kind": "jsonl", "name": "s", "path": str(path)}
    plain = prepare(data_config(tmp_path, source))
    names = {"x": "rad.xra.chest", "y": "rad.xra.hand", "ct": "rad.cmp"}
    config = data_config(tmp_path, source, rename_labels=names, filters={"labels": ["rad.xra"], "node": "rad.xra"})
    prepared = prepare(config)
    assert (prepared.created, prepared.store.path) == (False, plain.store.path)
    used = used_cases(prepared.store.table, config=config, needs=label_needs()).table
    assert used.labels == [("rad.xra.chest",), ("rad.xra.hand",)]
    assert prepare(data_config(tmp_path, source)).store.table.labels == [("x",), ("y",), ("ct",)]
    old = config.model_copy(update={"filters": config.filters.model_copy(update={"labels": ["x"]})})
    with pytest.raises(ConfigError, match=r"data\.filters\.labels names the label 'x'"):
        used_cases(prepared.store.table, config=old, needs=label_needs())
