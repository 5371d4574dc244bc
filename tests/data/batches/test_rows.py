"""What a call may hold: one case or several, of one view or several."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from consilium.core.errors import ImageError
from consilium.data.batches.rows import FoundItems, Items, is_one_item

COLOURS = np.zeros((20, 30, 3), np.uint8)
GREY = np.zeros((20, 30), np.uint16)


def test_what_is_one_item_and_what_is_several() -> None:
    one = (
        "a", Path("a"), np.str_("a"), b"", bytearray(), COLOURS, GREY, COLOURS[0, 0], np.zeros((1,) * 5), None, 3, {},
        torch.zeros(2, 3, 4, 4), Image.new("L", (1, 1)), io.BytesIO(),
    )  # fmt: skip
    several = ([], (), ["a"], {"a"}, iter("ab"), (x for x in "ab"), COLOURS[None], np.array(["a"]), np.array([None]))
    assert [is_one_item(given) for given in (*one, *several)] == [True] * len(one) + [False] * len(several)


def test_views() -> None:
    items = Items([["a", b"b"], (Path("a"),), [], [1, 2], [[1, 2], [3, 4]], "a"])
    assert [items.images(row) for row in (0, 1, 2, 5)] == [["a", b"b"], ["a"], [], ["a"]]
    assert [items.key(row)["image"] for row in range(6)] == [["a", "bytes[1]"], "a", [], "list[2]", "list[2]", "a"]
    for row in (3, 4):
        with pytest.raises(ImageError, match="of numbers in lists give"):
            items.images(row)


def test_pixels_are_known_from_files() -> None:
    for item in (COLOURS, Image.new("L", (1, 1)), ["a", COLOURS], io.BytesIO()):
        assert Items(["a", item]).in_memory()  # type: ignore[list-item]
    assert not Items(["a", b"b", Path("c"), None, 3.5, ["a", b"b"]]).in_memory()  # type: ignore[list-item]
    found = FoundItems()
    found.add(["a"])
    assert not Items(found).in_memory()
