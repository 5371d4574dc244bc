"""Readers of texts: which of several is drawn, which count as equal, and all of them where nothing is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st

from consilium.data.batches.readers import NO_DRAW, CaptionReader, TextReader, alike, drawn_text, numbered
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


@given(CASES)
def test_texts_are_alike_where_the_very_same_cases_have_them(cases: list[list[str]]) -> None:
    table = case_table([{"texts": texts} for texts in cases])
    numbers = alike(table)
    rows_of = {text: {row for row, own in enumerate(cases) if text in own} for text in numbers}
    assert set(numbers) == {text for own in cases for text in own}
    for one in numbers:
        for other in numbers:
            assert (numbers[one] == numbers[other]) == (rows_of[one] == rows_of[other])
    assert sorted(numbered(table).values()) == list(range(len(numbers)))


@given(st.integers(0, 2**50), st.integers(0, 1000), st.lists(st.text(min_size=1), min_size=1, max_size=9, unique=True))
def test_a_draw_gives_one_text_for_ever(draw: int, seed: int, texts: list[str]) -> None:
    text = drawn_text(texts, draw, seed=seed)
    assert text in texts
    assert drawn_text(texts, draw, seed=seed) == text
    assert drawn_text(texts, NO_DRAW, seed=seed) == texts[0]


def test_all_texts_are_drawn_equally_often_and_seeds_and_epochs_differ() -> None:
    texts = ["a", "b", "c"]
    drawn = [[drawn_text(texts, draw, seed=seed) for draw in range(3000)] for seed in (0, 1)]
    assert all(900 < count < 1100 for own in drawn for count in Counter(own).values())
    assert drawn[0] != drawn[1]
    assert drawn[0] != [drawn_text(texts, draw, seed=0) for draw in range(1 << 32, (1 << 32) + 3000)]
    assert drawn_text([], 7, seed=0) == ""


def test_one_text_is_drawn_in_training_and_all_are_read_where_a_task_is_asked() -> None:
    table = case_table([{"texts": ["ab", "c", "ab"]}, {}, {"texts": ["c", "def"]}])
    numbers = numbered(table)
    assert (numbers, table.most_captions) == ({"ab": 0, "c": 1, "def": 2}, 2)
    reader = TextReader(table, Letters(), numbers=numbers, seed=0)
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
