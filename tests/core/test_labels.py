from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.core.errors import DataError
from consilium.core.labels import LabelTree

leaves = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=8, unique=True)


@given(leaves)
def test_ids_are_the_given_order_and_invert(names: list[str]) -> None:
    tree = LabelTree(names)
    assert [tree.index(name) for name in names] == list(range(len(tree)))
    assert [tree.leaves[number] for number in tree.indices([[name] for name in names])] == names


@given(leaves, st.data())
def test_multi_hot_marks_exactly_the_labels_of_a_row(names: list[str], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.lists(st.sampled_from(names), max_size=5), max_size=5))
    targets_NK = LabelTree(names).multi_hot(rows)
    assert targets_NK.shape == (len(rows), len(names))
    assert targets_NK.dtype == np.float32
    assert [{names[k] for k in np.flatnonzero(row_K)} for row_K in targets_NK] == [set(row) for row in rows]
    assert set(np.unique(targets_NK)) <= {0.0, 1.0}


def test_from_labels_sorts_and_deduplicates() -> None:
    assert LabelTree.from_labels([["b", "a.x"], [], ["b"], ["a"]]).leaves == ("a", "a.x", "b")


def test_row_without_label_is_minus_one() -> None:
    assert LabelTree(["a", "b"]).indices([["b"], [], ["a"]]).tolist() == [1, -1, 0]


def test_unknown_label_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(DataError, match=r"label 'c' is unknown; the labels are: a, b"):
        LabelTree(["a", "b"]).indices([["c"]])


def test_label_given_twice_is_refused() -> None:
    with pytest.raises(DataError, match=r"given twice: \['b'\]"):
        LabelTree(["a", "b", "b"])
