"""The labelled cases of a task: what is left out is said, and so is what cannot be labelled."""

from __future__ import annotations

from pathlib import Path

import pytest

from consilium.core.errors import DataError
from consilium.core.labels import LabelTree
from consilium.data.dataset import labelled_cases
from consilium.data.filters import Filtered, usable
from consilium.data.prepare import prepare
from consilium.data.store import CaseTable
from tests.data.samples import data_config, write_images


@pytest.fixture
def table(tmp_path: Path) -> CaseTable:
    names = [f"images/{split}/{label}/{n}.png" for split in ("train", "val") for label in ("ct", "mri") for n in "123"]
    write_images(tmp_path, names)
    return prepare(data_config(tmp_path, {"kind": "folder", "name": "s", "path": str(tmp_path / "images")})).store.table


def test_limits_say_what_they_leave_out(table: CaseTable) -> None:
    cases = labelled_cases(Filtered(table), multi_label=False, limits={"train": 4, "val": 6, "test": 1})
    assert {split: len(rows) for split, rows in cases.rows.items()} == {"train": 4, "val": 6, "test": 0}
    assert cases.notes == ["2 cases of train are left out by data.filters.max_train_samples or --limit: 4."]


def test_an_empty_train_split_says_why(table: CaseTable) -> None:
    bare = usable(table.with_labels([()] * len(table)), multi_label=False, pseudo_labels=False)
    with pytest.raises(DataError, match=r"train split is empty: .* 12 cases .*no label"):
        labelled_cases(bare, multi_label=False)


def test_labels_that_a_model_does_not_know_are_named_beside_those_it_knows(table: CaseTable) -> None:
    with pytest.raises(DataError, match=r"'mri' \(6 case\(s\).*The known ones are: ct, pet\."):
        labelled_cases(Filtered(table), multi_label=False, labels=LabelTree.from_labels([("ct",), ("pet",)]))
