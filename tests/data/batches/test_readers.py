"""Readers of texts: which of several is drawn, what is right for a case, and all texts where nothing is drawn.

Readers of images: further looks at the centre of the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from consilium.data.batches.readers import NO_DRAW, CaptionReader, DrawnTexts, ImageReader, TextReader, numbered
from consilium.data.batches.rows import Items
from consilium.data.config import ImageConfig
from tests.data.batches.test_loader import Padded
from tests.data.samples import case_table

CASES = st.lists(st.lists(st.sampled_from("abcdef"), max_size=4), min_size=1, max_size=8)


class Letters:
    """Each letter is a token."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[ord(letter) for letter in text] or [0] for text in texts]

    def pad(self, ids: Sequence[Sequence[int]]) -> Padded:
        longest = max(map(len, ids))
        tokens_BT = torch.tensor([[*own, *[0] * (longest - len(own))] for own in ids])
        return Padded(tokens_BT, (tokens_BT > 0).long())


@given(CASES, st.lists(st.integers(0, 2**40), min_size=1, max_size=5))
def test_a_batch_says_of_each_case_which_texts_are_right(cases: list[list[str]], draws: list[int]) -> None:
    table = case_table([{"texts": texts} for texts in cases])
    reader = TextReader(DrawnTexts(table, seed=1), Letters())
    for draw in draws:
        found = reader.collate([reader.read(row, draw + row) for row in range(len(cases))], shared=False)
        texts = [DrawnTexts(table, seed=1).of(row, draw + row)[0] for row in range(len(cases))]
        own_BK = found.same_B[:, None] if found.own_BK is None else found.own_BK
        for row, own in enumerate(cases):
            assert (texts[row] in own) == bool(own) == bool(found.there_B[row])
            for other, text in enumerate(texts):
                if text:
                    assert bool((own_BK[row] == found.same_B[other]).any()) == (text in own)
        assert own_BK.shape == (len(cases), max(1, *(len(set(own)) for own in cases)))


@given(st.integers(0, 2**50), st.integers(0, 1000), st.lists(st.text(min_size=1), min_size=1, max_size=9, unique=True))
def test_a_draw_gives_one_text_for_ever(draw: int, seed: int, texts: list[str]) -> None:
    table = case_table([{"texts": texts}])
    text, numbers = DrawnTexts(table, seed=seed).of(0, draw)
    assert texts[numbers[0]] == text
    assert sorted(numbers) == list(range(len(texts)))
    assert DrawnTexts(table, seed=seed).of(0, draw) == (text, numbers)
    assert DrawnTexts(table, seed=seed).of(0, NO_DRAW)[0] == texts[0]


def test_all_texts_are_drawn_equally_often_and_seeds_and_epochs_differ() -> None:
    table = case_table([{"texts": ["a", "b", "c"]}, {}])

    def drawn(seed: int, first: int = 0) -> list[str]:
        return [DrawnTexts(table, seed=seed).of(0, draw)[0] for draw in range(first, first + 1500)]

    assert all(400 < count < 600 for own in (drawn(0), drawn(1)) for count in Counter(own).values())
    assert drawn(0) != drawn(1)
    assert drawn(0) != drawn(0, 1 << 32)
    assert DrawnTexts(table, seed=0).of(1, 7) == ("", [])


def test_one_text_is_drawn_in_training_and_all_are_read_where_a_task_is_asked() -> None:
    table = case_table([{"texts": ["ab", "c", "ab"]}, {}, {"texts": ["c", "def"]}])
    numbers = numbered(map(table.captions, range(3)))
    assert (numbers, table.most_captions) == ({"ab": 0, "c": 1, "def": 2}, 2)
    reader = TextReader(DrawnTexts(table), Letters())
    first = reader.collate([reader.read(row, NO_DRAW) for row in range(3)], shared=False)
    assert (first.same_B.tolist(), first.there_B.tolist()) == ([0, -1, 1], [True, False, True])
    everything = CaptionReader(table, Letters(), numbers=numbers)
    for rows in ([0, 1, 2], [1]):
        found = everything.collate([everything.read(row, NO_DRAW) for row in rows], shared=False)
        assert found.same_BK.tolist() == [[[0, 1], [-1, -1], [1, 2]][row] for row in rows]
        assert torch.equal(found.there_BK, found.same_BK >= 0)
        assert found.tokens_BKT is not None
        assert found.tokens_BKT.shape[:2] == (len(rows), 2)
    whole = everything.collate([everything.read(row, NO_DRAW) for row in range(3)], shared=False)
    each = whole.each_text()
    assert each.tokens_BT is not None
    assert each.tokens_BT.tolist() == [[97, 98, 0], [99, 0, 0], [99, 0, 0], [100, 101, 102]]


# -- Zooms --------------------------------------------------------------------------------------------------------


def png(pixels_HWC: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels_HWC).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("fit", "share", "top", "left", "rows", "columns"),
    [
        ("stretch", 0.25, 40, 60, 80, 120),  # half of both sides, in the shape of the image
        ("stretch", 0.01, 72, 108, 16, 24),
        ("crop", 0.25, 40, 80, 80, 80),  # half of the sides of the largest centred square
        ("pad", 0.25, 40, 80, 80, 80),
    ],
)
def test_a_zoom_is_the_crop_of_the_file_at_its_own_resolution(
    fit: str, share: float, top: int, left: int, rows: int, columns: int
) -> None:
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (160, 240, 3), dtype=np.uint8)
    image = ImageConfig(size=(32, 32), fit=fit)  # type: ignore[arg-type]
    cut = png(pixels_HWC[top : top + rows, left : left + columns])
    whole, zoomed = ImageReader(Items([png(pixels_HWC)]), image=image, zooms=[share]).read(0, NO_DRAW)
    stretched = ImageConfig(size=(32, 32), fit="stretch")
    (expected,) = ImageReader(Items([cut]), image=stretched).read(0, NO_DRAW)
    np.testing.assert_array_equal(zoomed, expected)
    np.testing.assert_array_equal(whole, ImageReader(Items([png(pixels_HWC)]), image=image).read(0, NO_DRAW)[0])


def test_zooms_of_cases_with_different_numbers_of_views_lie_look_by_look() -> None:
    random = np.random.default_rng(0)
    files = [png(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(3)]
    reader = ImageReader(Items([files[:1], files[1:], []]), image=ImageConfig(size=(8, 8)), zooms=[0.5], required=False)
    assert reader.nbytes == 2 * 8 * 8 * 3
    raws = [reader.read(0, NO_DRAW), reader.read(1, NO_DRAW), []]
    found = reader.collate(raws, shared=False)
    assert np.asarray(found.there_BV).tolist() == [[True, False, True, False], [True] * 4, [False] * 4]
    pixels_BVHWC = np.asarray(found.pixels).transpose(0, 1, 3, 4, 2)
    for case, (views, places) in enumerate([(2, [0, 2]), (4, [0, 1, 2, 3])]):
        for view in range(views):
            np.testing.assert_array_equal(pixels_BVHWC[case, places[view]], raws[case][view])
