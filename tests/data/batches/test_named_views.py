"""Views by their names: which is read where, what is missing, and what a mirror exchanges."""

from __future__ import annotations

from io import BytesIO
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from consilium.core.contracts import Batch, Views
from consilium.core.errors import ImageError
from consilium.data.batches.config import AugmentationConfig
from consilium.data.batches.features import CachedLooks
from consilium.data.batches.laterality import NamedViews, places_of, sides_of
from consilium.data.batches.readers import NO_DRAW, ImageReader
from consilium.data.batches.rows import Items, Query, views_of
from consilium.data.batches.transforms import DeviceTransform
from consilium.data.config import ImageConfig
from consilium.data.store.store import CaseTable
from tests.data.samples import case_table

NAMES = ("left", "right")
CASES = st.lists(st.lists(st.sampled_from(["left", "right", "other"]), unique=True, max_size=3), min_size=1, max_size=6)
IMAGE = ImageConfig(size=(8, 8))


def table_of(cases: list[list[str]]) -> CaseTable:
    return case_table([{"files": [f"{row}_{name}" for name in own], "names": own} for row, own in enumerate(cases)])


def png(value: int) -> bytes:
    Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(file := BytesIO(), format="PNG")
    return file.getvalue()


@given(CASES)
def test_each_view_is_in_the_place_of_its_name(cases: list[list[str]]) -> None:
    table = table_of(cases)
    places_NV, counts_NV = places_of(table, NAMES)
    for row, own in enumerate(cases):
        named = NamedViews(table, NAMES).images(row)
        assert named == [f"{row}_{name}.png" if name in own else None for name in NAMES]
        assert places_NV[row].tolist() == [own.index(name) if name in own else -1 for name in NAMES]
        assert counts_NV[row].tolist() == [int(name in own) for name in NAMES]
        assert Items([Query({name: f"{row}_{name}.png" for name in own if name in NAMES} or None, "a")], NAMES).images(
            0
        ) == (named if any(named) else [None, None])


def test_views_of_a_case_have_names_where_each_has_one_of_its_own() -> None:
    table = case_table([{"files": ["a", "b"], "names": own} for own in (["left", "right"], ["", ""], ["x", "x"])])
    assert views_of(table, 0) == {"left": "a.png", "right": "b.png"}
    assert views_of(table, 0, ("right", "left", "top")) == {"left": "a.png", "right": "b.png"}
    assert views_of(table, 0, ("right",)) == {"right": "b.png"}
    assert views_of(table, 1) == ["a.png", "b.png"]
    assert views_of(table, 2) == ["a.png", "b.png"]


def test_a_missing_view_leaves_its_place_empty() -> None:
    reader = ImageReader(
        Items([{"right": png(7)}, (png(1), png(2)), Query(text="a")], NAMES), image=IMAGE, required=False
    )
    views = reader.collate([reader.read(row, NO_DRAW) for row in range(3)], shared=False)
    assert np.asarray(views.there_BV).tolist() == [[False, True], [True, True], [False, False]]
    assert np.asarray(views.pixels_BVCHW)[:, :, 0, 0, 0].tolist() == [[0, 7], [1, 2], [0, 0]]
    needed = ImageReader(Items([Query(text="a")], NAMES), image=IMAGE)
    with pytest.raises(ImageError, match="this task needs one per case"):
        needed.read(0, NO_DRAW)


def test_zooms_keep_the_places() -> None:
    reader = ImageReader(Items([{"right": png(7)}], NAMES), image=IMAGE, zooms=[0.5])
    views = reader.collate([reader.read(0, NO_DRAW)], shared=False)
    assert np.asarray(views.there_BV).tolist() == [[False, True, False, True]]


class Features:
    """Features of a case as they are cached: in the order of its own views."""

    unread: ClassVar[dict[bytes, str]] = {}

    def of(self, rows_B: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        there_BV = torch.tensor([[True, True], [True, False]])[rows_B]
        return there_BV, torch.tensor([[[10.0], [11.0]], [[20.0], [0.0]]])[rows_B]


def test_cached_features_go_to_the_places_of_their_names() -> None:
    places_NV = np.array([[1, 0], [-1, 0]])  # the first case has (right, left), the second only a right one
    looks = CachedLooks(Features(), places_NV=places_NV)  # type: ignore[arg-type]
    found = looks.of(np.array([1, 0]), np.zeros(2, dtype=np.int64))
    assert found.there_BV.tolist() == [[False, True], [True, True]]
    assert found.features_BVF is not None
    assert found.features_BVF[..., 0].tolist() == [[0.0, 20.0], [11.0, 10.0]]


def test_a_mirror_moves_the_only_eye_to_the_other_place() -> None:
    table = table_of([["left", "right"], ["right"], ["left"]])
    sides_N2 = sides_of(table, NAMES)
    assert sides_N2.tolist() == [[0, 1]] * 3
    assert sides_of(table).tolist() == [[0, 1], [-1, -1], [-1, -1]]
    assert sides_of(table, ("right", "other", "left")).tolist() == [[2, 0]] * 3
    augmentation = AugmentationConfig(horizontal_flip_prob=1.0, views="mirrored")
    transform = DeviceTransform(IMAGE, augmentation=augmentation, seed=0, sides_N2=sides_N2)
    there_BV = torch.tensor([[True, True], [False, True], [True, False]])
    pixels = torch.arange(6, dtype=torch.uint8).reshape(3, 2, 1, 1, 1).expand(3, 2, 3, 8, 8).contiguous()
    rows_B = torch.arange(3)
    found = transform(Batch(rows_B, rows_B, images=Views(there_BV, pixels)), train=True).views
    assert found.there_BV.tolist() == [[True, True], [True, False], [False, True]]


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (png(1), r"1 image without a name, of a case whose views are left, right: say which is which, as {'left': "),
        ([png(1)] * 3, "3 images without a name"),
        ({"lft": png(1)}, "there is no view called lft; the views are left, right"),
        ({}, "the case has no view"),
        ({"left": None}, "the case has no view"),
        (Query(), "neither an image nor a text"),
    ],
)
def test_views_that_nobody_can_tell_apart(item: object, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        Items([item], NAMES).images(0)  # type: ignore[list-item]
