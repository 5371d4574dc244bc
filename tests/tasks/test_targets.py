"""The classes and targets of cases: what is left out is said, and so is what cannot be labelled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from consilium.core.errors import DataError
from consilium.core.labels import LabelTree
from consilium.data.cases.cases import Cases
from consilium.data.cases.filters import Filtered, usable
from consilium.data.store.prepare import prepare
from consilium.data.store.store import CaseTable
from consilium.tasks.answers.targets import rare_class_warnings
from tests.data.samples import data_config, write_images
from tests.labelled import label_needs, labelled


@pytest.fixture
def table(tmp_path: Path) -> CaseTable:
    names = [f"images/{split}/{label}/{n}.png" for split in ("train", "val") for label in ("ct", "mri") for n in "123"]
    write_images(tmp_path, names)
    return prepare(data_config(tmp_path, {"kind": "folder", "name": "s", "path": str(tmp_path / "images")})).store.table


def test_limits_say_what_they_leave_out(table: CaseTable) -> None:
    strata_N = labelled(Filtered(table)).strata_N
    cases = Cases.of(Filtered(table)).limited({"train": 4, "val": 6, "test": 1}, strata_N=strata_N)
    assert {split: len(rows) for split, rows in cases.rows.items()} == {"train": 4, "val": 6, "test": 0}
    assert cases.notes == ["2 cases of train are left out by data.filters.max_train_samples or --limit: 4."]


def test_an_empty_train_split_says_why(table: CaseTable) -> None:
    bare = usable(table.with_labels([()] * len(table)), needs=label_needs(), pseudo_labels=False)
    with pytest.raises(DataError, match=r"train split is empty: .* 12 cases .*no label"):
        labelled(bare)


def test_labels_that_a_model_does_not_know_are_named_beside_those_it_knows(table: CaseTable) -> None:
    with pytest.raises(DataError, match=r"'mri' \(6 case\(s\).*The known ones are: ct, pet\."):
        labelled(Filtered(table), given=LabelTree.from_labels([("ct",), ("pet",)]))


TREE = LabelTree(["ct", "ct.head", "ct.chest", "mri"], nested=True)


def in_tree(table: CaseTable, ct: str, *, labels: LabelTree | None) -> list[tuple[str, ...]]:
    """The table's labels, after ``ct`` was renamed, as a task with these ``labels`` takes them."""
    renamed = table.with_labels([(ct,) if own == ("ct",) else own for own in table.labels])
    studied = labelled(Filtered(renamed), given=labels, nested=True)
    assert studied.targets is not None
    return [(studied.knowledge.labels[target],) for target in studied.targets.tolist()]


@pytest.mark.parametrize("label", ["ct", "ct.head"])
def test_a_label_may_stop_at_any_node_of_a_tree(table: CaseTable, label: str) -> None:
    assert sorted(set(in_tree(table, label, labels=TREE))) == [(label,), ("mri",)]


@pytest.mark.parametrize(
    ("label", "labels", "message"),
    [
        ("ct.hed", TREE, "'ct.hed' (6 case(s), first s:train/ct/1.png in train; did you mean 'ct.head'?)"),
        ("ct", LabelTree(TREE.leaves), "in train; it stops above known ones, which only task.tree.head: joint or"),
        ("mri.t1", TREE, "in train; of its branch 'mri' is known). The known ones are"),
        ("pet", TREE, "'pet' (6 case(s), first s:train/ct/1.png in train). The known ones are: ct, ct.head, ct.chest,"),
    ],
)
def test_a_label_outside_of_a_tree_says_what_it_may_be(
    table: CaseTable, label: str, labels: LabelTree, message: str
) -> None:
    with pytest.raises(DataError) as error:
        in_tree(table, label, labels=labels)
    assert "labels occur that the model does not know: " in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("other", ["CT", "ct ", "\N{CYRILLIC SMALL LETTER ES}t"])
def test_another_spelling_of_a_known_label_is_named_as_one(table: CaseTable, other: str) -> None:
    """The nearest name by letters may be another label, or none; the cause is the spelling."""
    renamed = table.with_labels(
        [(other,) if split == "val" else own for split, own in zip(table.splits, table.labels, strict=True)]
    )
    with pytest.raises(DataError, match="it may be another spelling of 'ct'"):
        labelled(Filtered(renamed))


def test_labels_that_make_one_leaf_are_no_task(table: CaseTable) -> None:
    """Nested, the node above it is no second class."""
    alone = table.with_labels([("ct.head",)] * len(table))
    with pytest.raises(DataError, match=r"train has 1 label\(s\) \(ct\.head\); a classifier needs at least two"):
        labelled(Filtered(alone), nested=True)


def test_nodes_count_the_cases_below_them_and_those_without_one_are_named(table: CaseTable) -> None:
    renamed = table.with_labels([("ct.head",) if own == ("ct",) else own for own in table.labels])
    studied = labelled(Filtered(renamed), given=TREE)
    assert studied.targets is not None
    assert studied.knowledge.class_counts == [3, 3, 0, 3]
    assert rare_class_warnings(studied.cases, labels=TREE, targets=studied.targets, at_least=3) == [
        "train has no case of: ct.chest; a training on these data cannot learn them.",
        "val has fewer than 3 cases of: ct.chest (0); their figures mean little.",
    ]


@pytest.mark.parametrize(
    ("split", "told"), [("val", "the best weights are chosen without them"), ("test", "nothing judges how well")]
)
def test_a_class_that_validation_or_test_lacks_is_named(table: CaseTable, split: str, told: str) -> None:
    """Some of it is in train, so the training goes on, and nothing but the warning says what it cannot know."""
    table = table.with_splits([split if own == "val" else own for own in table.splits])
    kept = [row for row, own in enumerate(table.labels) if own != ("ct",) or table.splits[row] == "train"]
    studied = labelled(Filtered(table.select(np.array(kept))))
    assert studied.targets is not None
    found = rare_class_warnings(studied.cases, labels=studied.knowledge.tree, targets=studied.targets, at_least=1)
    (warning,) = found
    assert warning.startswith(f"{split} has no case of: ct; {told}")
