"""Bad rows as a person reads them: one line for many rows of one kind."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from consilium.data.case import BadRow
from consilium.data.store.bad_rows import ALONE, LINES, bad_rows_error

REASONS = st.sampled_from(
    [
        "/d/a b.png does not exist; correct the path",
        "/d/c.png does not exist; correct the path",
        "split 'x' is unknown",
        "split 'y' is unknown",
        "the row has 3 cells, the header 4",
        "the row has 12 cells, the header 4",
        *(f"is {word}" for word in ("bad", "odd", "cut", "old", "off", "dim", "low", "raw", "mad")),
    ]
)


def message(reasons: list[str]) -> str:
    rows = [BadRow("s", "/d/t.csv", line, reason) for line, reason in enumerate(reasons, 2)]
    return str(bad_rows_error(rows, listing=Path("list.csv"), sources=[], splits={}))


@given(st.lists(REASONS, min_size=1, max_size=80))
def test_every_row_is_counted_once(reasons: list[str]) -> None:
    head, *lines, _ = message(reasons).splitlines()
    assert head.startswith(f"{len(reasons)} row")
    shown = [line for line in lines if line.startswith("  - ")]
    grouped = [re.match(r"  - (\d+) rows: .* - first: /d/t\.csv:\d+", line) for line in shown]
    counts = [int(found[1]) if found else 1 for found in grouped]
    left = [int(found[1]) for line in lines if (found := re.fullmatch(r"  \.\.\. and (\d+) more", line))]
    assert sum(counts) + sum(left) == len(reasons)
    assert len(shown) <= LINES
    assert all(int(found[1]) > ALONE for found in grouped if found)


def test_rows_of_one_kind_are_one_sentence_with_the_values_that_differ() -> None:
    said = message([f"split '{name}' is unknown; expected train" for name in ("a", "b", "a", "c")])
    assert "4 rows: split 'a', 'b' or 'c' is unknown; expected train - first: /d/t.csv:2 ('a'), " in said
    said = message([f"the id 'p{n // 2}' was given before, in line {n}" for n in range(2, 14)])
    assert "12 rows: the id 'p1', 'p2', 'p3' or others was given before, in line 2 to 13 - first: /d/t.csv:2 " in said


def test_files_of_one_kind_are_named_by_their_folder() -> None:
    said = message([f"/d/images/{name}.png does not exist; correct the path" for name in "abcdef"])
    assert (
        "6 rows: a file in /d/images does not exist; correct the path - first: /d/t.csv:2 (/d/images/a.png), " in said
    )


@given(st.lists(REASONS, min_size=1, max_size=80))
def test_no_message_has_a_gap(reasons: list[str]) -> None:
    sentences = message(reasons).splitlines()[1:-1]
    assert not [line for line in sentences if re.search(r"\S  |\w \.\.\.|\.\.\. \w(?!nd)", line.removeprefix("  "))]


def test_more_lines_than_a_screen_holds_are_counted() -> None:
    said = message([f"is {'x' * length}" for length in range(1, 10) for _ in range(ALONE)])
    assert said.count("\n  - ") == LINES
    assert f"... and {9 * ALONE - LINES} more" in said
