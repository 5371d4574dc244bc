"""Prompts joined to the images of a hub dataset by their numbers: repeated, in any order, wrong."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilium.core.errors import ConfigError, DataError
from consilium.data.case import BadRow, Case
from consilium.data.sources import hub_fetch
from consilium.data.store.prepare import prepare
from tests.data.samples import data_config, image_bytes
from tests.data.sources.hubs import read_all, write_parquet


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 images of train, 5 of test, whose numbers begin at 0 again."""
    return write_parquet(tmp_path_factory.mktemp("hub") / "copy", {"train": 150, "test": 5}, group=40)


@pytest.fixture(autouse=True)
def _several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fetched lies in more than one file, and each file in more than one batch."""
    monkeypatch.setattr(hub_fetch, "PART_ROWS", 70)


def source(
    copy: Path, rows: Sequence[Sequence[Any]], *, head: str = "dataset_index,label,prompt", **images: Any
) -> Any:
    table = copy.parent / "prompts.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head.split(","), *rows])
    return {"kind": "ret_clip_csv", "path": str(table), "images": {"path": str(copy), **images}}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(indices=st.lists(st.integers(0, 149), min_size=1, max_size=30))
def test_every_row_has_the_image_of_its_number(copy: Path, indices: list[int]) -> None:
    rows = [(index, index % 5, f"prompt {line}") for line, index in enumerate(indices)]
    cases = read_all(copy.parent, source(copy, rows))
    assert [case.views[0].data for case in cases] == [image_bytes(index) for index in indices]
    assert [case.text for case in cases] == [f"prompt {line}" for line in range(len(indices))]
    assert [case.labels for case in cases] == [(str(index % 5),) for index in indices]
    assert [case.group for case in cases] == [f"s:{index}" for index in indices]
    assert len({case.id for case in cases}) == len(cases)


def test_numbers_count_in_the_split_that_is_named(copy: Path) -> None:
    (case,) = read_all(copy.parent, source(copy, [(0, "a", "p")], split="test"))
    assert case.views[0].data == image_bytes(150)
    with pytest.raises(ConfigError, match="no split 'val'; its splits are: train, test"):
        read_all(copy.parent, source(copy, [(0, "a", "p")], split="val"))


def test_wrong_numbers_are_bad_rows_with_their_line(copy: Path) -> None:
    rows = [(149, "a", "good"), (150, "a", "p"), (-1, "a", "p"), ("x", "a", "p"), ("", "a", "p"), ("1.5", "a", "p"),
            ("2.0", "a", "good"), ("٣", "a", "p")]  # fmt: skip
    items = read_all(copy.parent, source(copy, rows))
    assert [item.text for item in items if isinstance(item, Case)] == ["good", "good"]
    bad = [item for item in items if isinstance(item, BadRow)]
    assert [item.line for item in bad] == [3, 4, 5, 6, 7, 9]
    assert "has 150 rows, numbered from 0" in bad[0].reason
    assert all("expected a whole number from 0" in item.reason for item in bad[1:])


def test_a_patient_column_makes_the_groups(copy: Path) -> None:
    head = "dataset_index,label,prompt,group_id,eye"
    cases = read_all(copy.parent, source(copy, [(0, "a", "p", "p1", "left"), (1, "a", "p", "", "right")], head=head))
    assert [case.group for case in cases] == ["p1", "s:1"]
    assert [case.meta for case in cases] == [{"eye": "left"}, {"eye": "right"}]


def test_prompts_of_one_image_stay_on_one_side(copy: Path, tmp_path: Path) -> None:
    rows = [(index, "a", f"prompt {n}") for n in range(3) for index in range(40)]
    config = data_config(tmp_path, {"name": "s", **source(copy, rows)}, store={"images": "embed"})
    table = prepare(config).store.table
    assert len(table) == 120
    assert len(set(zip(table.groups, table.splits, strict=True))) == 40
    assert len(set(table.splits)) == 3
    assert not prepare(config).created
    more = data_config(tmp_path, {"name": "s", **source(copy, rows[:-1])}, store={"images": "embed"})
    assert len(prepare(more).store.table) == 119, "a changed table is another store"
    assert len(list(tmp_path.glob("stores/hub-*"))) == 1, "of the same images"


def test_missing_columns_are_named(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'dataset_index', which .* does not have; did you mean `data_index`"):
        read_all(copy.parent, source(copy, [(0, "a", "p")], head="data_index,label,prompt"))
    config = data_config(tmp_path, {"name": "s", **source(copy, [(0, "a", "p")], image="img")})
    with pytest.raises(ConfigError, match=r"images\.image is 'img', which .* does not have; did you mean `image`"):
        prepare(config)
    gone = {**source(copy, []), "path": str(tmp_path / "gone.csv")}
    with pytest.raises(DataError, match=r"gone\.csv does not exist"):
        read_all(copy.parent, gone)
