"""Tables and rows in the forms that spreadsheets, scripts and other projects write."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilium.core.errors import ConfigError, DataError
from consilium.data.case import Case
from consilium.data.sources import lines, tables
from tests.data.samples import read, write_jsonl


def labelled(cases: list[Case]) -> list[tuple[str, tuple[str, ...], int | None]]:
    return [(Path(case.views[0].image).name, case.labels, case.line) for case in cases]


# ---------------------------------------------------------------- above the header of a csv file


@pytest.mark.parametrize("mark", [";", ",", "\t", "|"])
@pytest.mark.parametrize("quoted", [True, False])
def test_the_line_of_excel_says_the_separator(tmp_path: Path, mark: str, quoted: bool) -> None:
    first = f'"sep={mark}"' if quoted else f"sep={mark}"
    text = "\r\n".join([first, f"image{mark}label", f"a.png{mark}ct", f"b.png{mark}mri", ""])
    (tmp_path / "a.csv").write_bytes(text.encode("utf-8-sig"))
    for separator in (",", ";"):
        cases, bad = read("csv", tmp_path / "a.csv", separator=separator)
        assert not bad
        assert labelled(cases) == [("a.png", ("ct",), 3), ("b.png", ("mri",), 4)]


def test_comments_and_blank_lines_above_the_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('# exported, "yesterday\n#\n\nimage,label\na.png,ct\nb.png,"c\nt"\nc.png\n')
    cases, bad = read("csv", tmp_path / "a.csv")
    assert labelled(cases) == [("a.png", ("ct",), 5), ("b.png", ("c\nt",), 6)]
    assert [row.line for row in bad] == [8]


@pytest.mark.parametrize("header", ["#image,label", "# image,label", "# a table\n#image,label"])
def test_a_header_behind_a_comment_mark(tmp_path: Path, header: str) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\na.png,ct\n")
    (case,), bad = read("csv", tmp_path / "a.csv")
    assert not bad
    assert (case.labels, case.line) == (("ct",), 2 + header.count("\n"))


def test_a_column_whose_name_begins_with_a_comment_mark(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("#id,image,label\n7,a.png,ct\n")
    (case,), _ = read("csv", tmp_path / "a.csv", columns={"id": "#id"})
    assert (case.id, case.labels) == ("7", ("ct",))


def test_what_a_wrong_separator_does_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("# a comment\nimage;label\na.png;ct\n")
    with pytest.raises(ConfigError, match='set separator: ";"'):
        read("csv", tmp_path / "a.csv")


# ---------------------------------------------------------------- rows and cells


def test_rows_that_were_emptied_are_blank_and_columns_without_a_name_are_no_metadata(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",image,label,\n0,a.png,ct,\n,,,\n,,\n1,b.png,mri,\n")
    cases, bad = read("csv", tmp_path / "a.csv")
    assert not bad
    assert labelled(cases) == [("a.png", ("ct",), 2), ("b.png", ("mri",), 5)]
    assert [case.meta for case in cases] == [{}, {}]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_long_text_is_read(tmp_path: Path, kind: str) -> None:
    text = "no finding " * 50_000
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        path.write_text(f'image,text\na.png,"{text}"\nb.png,short\n')
    else:
        write_jsonl(path, [{"image": "a.png", "text": text}, {"image": "b.png", "text": "short"}])
    cases, bad = read(kind, path)
    assert not bad
    assert [case.text for case in cases] == [text.strip(), "short"]


def test_what_is_said_of_a_long_cell_is_short(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"image,split\na.png,{'x' * 100_000}\n")
    _, bad = read("csv", tmp_path / "a.csv")
    assert bad[0].reason.endswith("x (100,060 characters in all)")
    assert len(bad[0].reason) < 1100


def test_the_limits_say_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_CELL", 131_072)
    long = "a" * 140_000
    (tmp_path / "a.csv").write_text(f"image,text\na.png,{long}\nb.png,b\n")
    tables.csv.field_size_limit(131_072)
    cases, bad = read("csv", tmp_path / "a.csv")
    assert [case.text for case in cases] == ["b"]
    assert "a cell has more than 131,072 characters; keep so long a text in a jsonl or parquet file" in bad[0].reason
    monkeypatch.setattr(tables, "MAX_LINE", 1000)
    with pytest.raises(DataError, match="a line of more than 1,000 characters"):
        read("csv", tmp_path / "a.csv")
    monkeypatch.setattr(lines, "MAX_LINE", 1000)
    cases, bad = read("jsonl", write_jsonl(tmp_path / "a.jsonl", [{"text": long}, {"text": "b"}]))
    assert [case.text for case in cases] == ["b"]
    assert bad[0].reason == "the line has more than 1,000 bytes; divide it, or keep the row in a parquet file"


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_files_packed_with_gzip(tmp_path: Path, kind: str) -> None:
    content = "image,label\na.png,ct\n" if kind == "csv" else '{"image": "a.png", "label": "ct"}\n'
    path = tmp_path / f"a.{kind}.gz"
    packed = gzip.compress(content.encode())
    path.write_bytes(packed)
    cases, bad = read(kind, path)
    assert not bad
    assert labelled(cases) == [("a.png", ("ct",), 2 if kind == "csv" else 1)]
    path.write_bytes(packed[:-9])
    with pytest.raises(DataError, match="packed with gzip and damaged"):
        read(kind, path)


# ---------------------------------------------------------------- jsonl of vision-language models


@pytest.mark.parametrize(
    "token",
    ["<image>", "<|image|>", "<image_1>", "<|image_1|>", "<ImageHere>", "<|vision_start|><|image_pad|><|vision_end|>",
     "<start_of_image>", "<image_placeholder>", "<|reserved_special_token_0|>"],
)  # fmt: skip
def test_placeholders_of_images_are_removed_and_counted(tmp_path: Path, token: str) -> None:
    row = {"id": "1", "image": "a.png", "conversations": [{"from": "human", "value": f"{token}\nWhat is it?"},
                                                          {"from": "gpt", "value": "A lung."}]}  # fmt: skip
    two = {"id": "2", "image": "b.png", "text": f"{token} and {token}"}
    cases, bad = read("jsonl", write_jsonl(tmp_path / "a.jsonl", [row, two]))
    assert [(case.id, case.text, len(case.views)) for case in cases] == [("1", "What is it?\nA lung.", 1)]
    assert [row.reason for row in bad] == ["the text has 2 attachment tokens, the row 1 images"]


@pytest.mark.parametrize("keep", ["", [], [""]])
def test_placeholders_stay_where_that_is_wanted(tmp_path: Path, keep: str | list[str]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"image": "a.png", "text": "<image> x"}])
    (case,), _ = read("jsonl", path, attachment_token=keep)
    assert (case.text, case.notes) == ("<image> x", ())


TOKENS = [
    ({}, ["<attachment>", "<|reserved_special_token_0|>", "<image>"]),
    ({"attachment_token": "<scan>"}, ["<scan>", "<image>"]),
    ({"attachment_token": ["<scan>", "<attachment>"]}, ["<scan>", "<attachment>", "<image>"]),
]
PARTS = ["<attachment>", "<|reserved_special_token_0|>", "<image>", "<scan>", "A lung.", " ", "\n"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(parts=st.lists(st.sampled_from(PARTS), max_size=8), images=st.integers(1, 3), chosen=st.sampled_from(TOKENS))
def test_any_of_the_attachment_tokens_is_removed_and_counted(
    tmp_path: Path, parts: list[str], images: int, chosen: tuple[dict[str, Any], list[str]]
) -> None:
    keys, tokens = chosen
    row = {"image": [f"{number}.png" for number in range(images)], "text": "".join(parts)}
    cases, bad = read("jsonl", write_jsonl(tmp_path / "a.jsonl", [row, {"text": "last"}]), **keys)
    found = [part for part in parts if part in tokens]
    if found and len(found) != images:
        assert [row.reason for row in bad] == [f"the text has {len(found)} attachment tokens, the row {images} images"]
        return
    assert not bad
    note = [f"attachment tokens, such as '{found[0]}', are removed from the text"] if found else []
    assert [list(case.notes) for case in cases] == [note, []]
    left = "".join("" if part in tokens else part for part in parts)
    assert "".join((cases[0].text or "").split()) == "".join(left.split())


def test_messages_with_parts(tmp_path: Path) -> None:
    parts: list[dict[str, Any]] = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    row = {"images": ["a.png"], "messages": [{"role": "user", "content": parts},
                                             {"role": "assistant", "content": "A lung."}]}  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    (case,), bad = read("jsonl", path, columns={"image": "images"})
    assert not bad
    assert (case.text, labelled([case])) == ("What is it?\nA lung.", [("a.png", (), 1)])
