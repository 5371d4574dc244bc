from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.core.config import parse_yaml
from consilium.core.errors import ConfigError, DataError
from consilium.core.labels import LabelTree, paths_of, with_ancestors
from consilium.experiment import Experiment

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


# -- Trees --------------------------------------------------------------------------------------------------------

PATHS = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join), min_size=1, max_size=12)


@st.composite
def trees(draw: st.DrawFn) -> LabelTree:
    """Nested trees whose ids come in any order."""
    return LabelTree(draw(st.permutations(sorted(with_ancestors(draw(PATHS))))), nested=True)


def above(name: str) -> list[str]:
    """The names on the path of a node, from the top, by cutting its text at each dot."""
    return [name[:place] for place, letter in enumerate(name) if letter == "."] + [name]


@given(trees())
def test_a_path_is_the_name_cut_at_its_dots(tree: LabelTree) -> None:
    assert tree.levels == max(name.count(".") for name in tree.names) + 1
    for node, name in enumerate(tree.names):
        expected = [tree.index(step) for step in above(name)]
        assert list(tree.path(node)) == expected
        assert tree.paths_ML[node].tolist() == expected + [-1] * (tree.levels - len(expected))
        assert tree.parent(node) == (expected[-2] if len(expected) > 1 else None)
        assert set(np.flatnonzero(tree.ancestry_MM[node])) == set(expected)


@given(trees())
def test_siblings_partition_the_nodes_and_come_after_their_parent(tree: LabelTree) -> None:
    assert sorted(node for group in tree.siblings for node in group.ids) == list(range(len(tree)))
    seen: set[int | None] = {None}
    for group in tree.siblings:
        assert group.parent in seen
        seen |= set(group.ids)
        assert list(group.ids) == sorted(group.ids)
        assert {tree.names[node].rpartition(".")[0] for node in group.ids} == {
            "" if group.parent is None else tree.names[group.parent]
        }
    assert len({group.parent for group in tree.siblings}) == len(tree.siblings)


@given(trees())
def test_leaves_are_the_nodes_that_no_other_is_below(tree: LabelTree) -> None:
    expected = [name for name in tree.names if not any(other.startswith(f"{name}.") for other in tree.names)]
    assert list(tree.leaves) == expected
    assert [tree.names[node] for node in tree.leaf_ids] == expected


@given(trees())
def test_steps_lead_from_the_root_to_the_node(tree: LabelTree) -> None:
    for node in range(len(tree)):
        taken = [
            group.ids[step]
            for group, step in zip(tree.siblings, tree.steps_MG[node].tolist(), strict=True)
            if step >= 0
        ]
        assert taken == list(tree.path(node))


@given(trees(), PATHS)
def test_nodes_at_the_end_change_nothing_about_those_before(tree: LabelTree, more: list[str]) -> None:
    new = sorted(with_ancestors(more) - set(tree.names))
    grown = LabelTree([*tree.names, *new], nested=True)
    old = range(len(tree))
    assert [grown.index(name) for name in tree.names] == list(old)
    assert [grown.path(node) for node in old] == [tree.path(node) for node in old]
    groups = {group.parent: group.ids for group in grown.siblings}
    for group in tree.siblings:
        assert groups[group.parent][: len(group.ids)] == group.ids
    held = {group.parent: number for number, group in enumerate(grown.siblings)}
    for number, group in enumerate(tree.siblings):
        np.testing.assert_array_equal(grown.steps_MG[: len(tree), held[group.parent]], tree.steps_MG[:, number])


@given(leaves)
def test_flat_every_label_is_a_sibling_whatever_its_dots(names: list[str]) -> None:
    tree = LabelTree(names)
    assert [group.parent for group in tree.siblings] == [None]
    assert tree.siblings[0].ids == tree.leaf_ids == tuple(range(len(names)))
    assert tree.levels == 1
    assert np.array_equal(tree.ancestry_MM, np.eye(len(names), dtype=bool))


@given(PATHS)
def test_labels_bring_the_nodes_above_them(paths: list[str]) -> None:
    tree = LabelTree.from_labels([[path] for path in paths], nested=True)
    assert list(tree.names) == sorted({step for path in paths for step in above(path)})


def test_a_path_may_have_any_number_of_levels() -> None:
    tree = LabelTree.from_labels([[".".join("a" * 2000)]], nested=True)
    assert tree.levels == 2000


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a.b"], "'a.b' has no parent 'a'.*add it"), (["root", "a"], "'root' is what.*give your label another name")],
)
def test_nodes_that_make_no_tree_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        LabelTree(names, nested=True)
    assert LabelTree(names).names == tuple(names)  # flat they are as good as any


# -- Trees in YAML ------------------------------------------------------------------------------------------------


def of_yaml(nodes: str) -> list[str]:
    return paths_of(parse_yaml(nodes, origin="test"))


@pytest.mark.parametrize(
    ("nodes", "paths"),
    [
        ("[b, a]", ["b", "a"]),
        ("[x.b, y, x.a]", ["x", "x.b", "y", "x.a"]),  # what is left out comes before its first child
        ("[x, x.b]", ["x", "x.b"]),
        ("[x.b, x]", ["x", "x.b"]),
        ("{y: , x: [b, a]}", ["y", "x", "x.b", "x.a"]),
        ("{x: {b: {c: }, a: [d.e]}}", ["x", "x.b", "x.b.c", "x.a", "x.a.d", "x.a.d.e"]),
        ("{x: [], y: {}}", ["x", "y"]),
        ("{x.a: [1st], x.b: }", ["x", "x.a", "x.a.1st", "x.b"]),
        ("{1: , 02: , yes: {no: }}", ["1", "02", "yes", "yes.no"]),  # keys are text as written
        ('{x: ["1", "02"]}', ["x", "x.1", "x.02"]),
    ],
)
def test_a_tree_in_yaml_keeps_its_order(nodes: str, paths: list[str]) -> None:
    assert of_yaml(nodes) == paths
    assert LabelTree(paths, nested=True).names == tuple(paths)


@given(st.recursive(st.none(), lambda below: st.dictionaries(st.sampled_from("abcd"), below, max_size=3), max_leaves=9))
def test_mappings_and_lists_of_their_paths_are_one_tree(below: dict[str, Any] | None) -> None:
    nodes = {"x": below, "y": None}
    paths = paths_of(nodes)
    assert paths_of(paths) == paths
    assert len(set(paths)) == len(paths)
    leaves = LabelTree(paths, nested=True).leaves
    assert set(paths_of(leaves)) == set(paths)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ("[a..b, c]", "'a..b' has an empty part; a dot separates levels, as in a.b"),
        ("{a: ['.b'], c: }", "'a..b' has an empty part"),
        ("['', c]", "'' has an empty part"),
        (f"[{'.'.join('a' * 101)}, c]", f"'{'a.' * 20}...' is below 100 others; a tree has at most so many levels"),
        ("{a: " * 101 + "}" * 101, f"'{'a.' * 20}...' is below 100 others; a tree has at most so many levels"),
        ("{a: b, c: }", "below 'a' stands 'b'; expected a list, a mapping or null"),
        ("{a: {b: 3}, c: }", "below 'a.b' stands 3; expected a list, a mapping or null"),
        ("{a: [1, 2]}", "in the list below 'a' stands 1; expected names (numbers in quotes)"),
        (
            "{a: [b, {c: [d]}]}",
            "in the list below 'a' stands {'c': ['d']}; expected names (numbers in quotes). For levels below",
        ),
        ("[a, b, a]", "given twice: a; name each node once"),
        ("{a: [b, b], c: }", "given twice: a.b"),
        ("{a: [b], a.b: , c: }", "given twice: a.b"),
        ("{root: [a], b: }", "'root' is what the node above all labels is called; give your label another name"),
        ("[a.b.c]", "1 label(s) without others below came; a classifier needs at least two"),
        ("{}", "0 label(s) without others below came; a classifier needs at least two"),
    ],
)
@pytest.mark.parametrize("head", ["joint", "flat"])
def test_what_is_no_tree_is_refused_with_the_path_of_the_key(
    nodes: str, message: str, head: str, tmp_path: Path
) -> None:
    config = tmp_path / "x.yaml"
    source = "{kind: folder, name: s, path: nowhere}"
    tree = f"{{head: {head}, nodes: {nodes}}}"
    config.write_text(f"name: x\ntask: {{kind: classify, tree: {tree}}}\ndata: {{sources: [{source}]}}\n")
    with pytest.raises(ConfigError) as error:
        Experiment.load(config)
    assert f"`task.tree.nodes`: {message}" in str(error.value)
