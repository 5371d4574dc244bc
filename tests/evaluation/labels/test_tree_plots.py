"""The picture of a label tree."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from consilium.core.labels import LabelTree, paths_of
from consilium.evaluation.labels.tree import TreeEvaluator
from consilium.evaluation.labels.tree_plots import decision_plots, tree_picture
from consilium.evaluation.report import svg
from tests.evaluation.labels.test_tree import evaluator
from tests.evaluation.trees import outputs

WIDE = {
    "exp": {"gel": ["nor", "rpc", "wes"], "pla": None},
    "gra": ["3dr", "flow", "his", "lin", "oth", "sca", "sig"],
    "mic": {"ele": ["sca", "tra"], "flu": None, "lig": None},
    "a label that is as long as <labels> get & longer": ["der", "org"],
    "oth": None,
}
TREES = {"wide": WIDE, "chain": {"a": {"b": {"c": {"d": None}}}}, "flat": ["a", "b", "c"]}


def tables(tree: Any) -> dict[str, list[dict[str, Any]]]:
    labels = LabelTree(paths_of(tree), nested=True)
    judge: TreeEvaluator = evaluator(labels)
    return judge.evaluate(outputs(labels, list(labels.leaf_ids)[1:] * 3 + [labels.leaf_ids[-1]]), split="test").tables


def picture(tree: Any) -> tuple[ElementTree.Element, dict[str, list[dict[str, Any]]]]:
    found = tables(tree)
    return ElementTree.fromstring(tree_picture(found["nodes"], found.get("decisions", []), cases=10)), found


def boxes(drawn: ElementTree.Element) -> list[tuple[float, ...]]:
    """Left, top, right and bottom of every node."""
    found = [rect for rect in drawn.iter("rect") if (rect.get("class") or "").startswith("node")]
    places = [[float(rect.get(key, "")) for key in ("x", "y", "width", "height")] for rect in found]
    return [(x, y, x + width, y + height) for x, y, width, height in places]


@pytest.mark.parametrize("name", TREES)
def test_every_node_once_and_none_over_another(name: str) -> None:
    drawn, found = picture(TREES[name])
    told = [group.find("text").text for group in drawn.findall("g")]  # type: ignore[union-attr]
    expected = ["all cases", *(svg.short(row["node"].rpartition(".")[2]) for row in found["nodes"])]
    assert sorted(map(str, told)) == sorted(expected)
    places = boxes(drawn)
    width, height = float(drawn.get("width", "")), float(drawn.get("height", ""))
    for number, (left, top, right, bottom) in enumerate(places):
        assert left >= 0
        assert top >= 0
        assert right <= width
        assert bottom <= height
        for x0, y0, x1, y1 in places[:number]:
            assert right <= x0 or x1 <= left or bottom <= y0 or y1 <= top


@pytest.mark.parametrize("name", TREES)
def test_words_fit_into_their_boxes(name: str) -> None:
    drawn, _ = picture(TREES[name])
    for group, (left, _, right, _) in zip(drawn.findall("g"), boxes(drawn), strict=True):
        words = "".join(str(text.text) for text in group.findall("text"))
        assert svg.WIDTH * len(words) <= right - left - 2 * 9


def test_a_fork_tells_how_many_took_the_right_branch() -> None:
    drawn, found = picture(WIDE)
    forks = [text for text in drawn.findall("text") if text.get("class") == "fork"]
    assert len(forks) == sum(row["cases"] > 0 for row in found["decisions"])
    assert not [text for text in picture(TREES["chain"])[0].findall("text") if text.get("class") == "fork"]


def test_a_node_without_a_case_says_so() -> None:
    drawn, found = picture(TREES["flat"])
    assert found["nodes"][0]["cases"] == 0
    (empty,) = [group for group in drawn.findall("g") if "no cases" in [text.text for text in group.findall("text")]]
    assert [rect.get("class") for rect in empty.findall("rect")] == ["node none"]


def test_inner_nodes_are_drawn_where_there_is_something_to_see() -> None:
    found = tables(WIDE)
    drawn = decision_plots(found)
    judged = [row for row in found["decisions"] if row["cases"]]
    assert len(drawn["reliabilities"]) == len(judged)
    wrong = [row["node"] for row in judged if row["accuracy"] < 1.0]
    assert {one["node"] for one in drawn["confusions"]} == set(wrong)
    for plot in [*drawn["reliabilities"], *(one["plot"] for one in drawn["confusions"])]:
        ElementTree.fromstring(plot)
