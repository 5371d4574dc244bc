"""RET-CLIP files: a TSV of base64 images, a JSONL of texts."""

from __future__ import annotations

import base64
import json
import os
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fsspec.spec import AbstractBufferedFile
from hypothesis import given
from hypothesis import strategies as st

from consilium.core.errors import DataError
from consilium.data.case import BadRow, Case
from consilium.data.sources import lines as lines_of_files
from consilium.data.sources import ret_clip_tsv
from consilium.data.store.prepare import prepare
from tests.data.samples import data_config, image_bytes, read, write_jsonl

LEFT, RIGHT, OTHER = (image_bytes(seed) for seed in range(3))


def code(data: bytes) -> str:
    return base64.b64encode(data).decode()


def write(folder: Path, lines: Sequence[str], texts: Sequence[Any]) -> dict[str, str]:
    (folder / "images.tsv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return {"texts": str(write_jsonl(folder / "texts.jsonl", texts))} if texts else {}


def read_pairs(folder: Path, lines: Sequence[str], texts: Sequence[Any] = ()) -> tuple[list[Case], list[BadRow]]:
    return read("ret_clip_tsv", folder / "images.tsv", **write(folder, lines, texts))


def test_pairs_of_texts_and_images(tmp_path: Path) -> None:
    cases, bad = read_pairs(
        tmp_path,
        [f"7\t{code(LEFT)}\t{code(RIGHT)}", f"8\t{code(OTHER)}", f"9\t\t{code(RIGHT)}"],
        [
            {"text_id": 1, "text": "Drusen.", "image_ids": [8, 7]},
            {"text_id": 2, "text": "Both eyes.", "image_ids": ["7"]},
        ],
    )
    assert not bad
    assert [(case.id, case.text, case.group) for case in cases] == [
        ("1-7", "Drusen.", "7"), ("2-7", "Both eyes.", "7"), ("1-8", "Drusen.", "8"), ("9", None, "9"),
    ]  # fmt: skip
    assert [[(view.name, view.data) for view in case.views] for case in cases] == [
        [("left", LEFT), ("right", RIGHT)], [("left", LEFT), ("right", RIGHT)], [("", OTHER)], [("right", RIGHT)],
    ]  # fmt: skip
    assert [(case.file, case.line) for case in cases] == [(str(tmp_path / "images.tsv"), n) for n in (1, 1, 2, 3)]


def test_images_without_texts(tmp_path: Path) -> None:
    cases, bad = read_pairs(tmp_path, [f"a\t{code(LEFT)}", "", f"b\t{code(RIGHT)}"])
    assert not bad
    assert [(case.id, case.text, case.split, case.line) for case in cases] == [
        ("a", None, None, 1), ("b", None, None, 3),
    ]  # fmt: skip


def test_further_keys_of_a_text(tmp_path: Path) -> None:
    row = {"text_id": 1, "text": "Drusen.", "label": ["amd", "dry"], "split": "TEST", "group_id": "p1", "age": 70,
           "is_gt": False}  # fmt: skip
    texts = [{**row, "id": "x", "image_ids": [7]}, {**row, "text_id": 2, "id": "y", "image_ids": [7, 8]}]
    cases, bad = read_pairs(tmp_path, [f"7\t{code(LEFT)}", f"8\t{code(RIGHT)}"], texts)
    assert not bad
    assert [case.id for case in cases] == ["x", "y-7", "y-8"]
    for case in cases:
        assert (case.labels, case.split, case.group, case.is_gt) == (("amd", "dry"), "test", "p1", False)
        assert case.meta == {"age": "70"}


@given(data=st.binary(min_size=1, max_size=40), urlsafe=st.booleans(), padded=st.booleans())
def test_both_alphabets_with_and_without_padding(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, urlsafe: bool, padded: bool
) -> None:
    text = (base64.urlsafe_b64encode if urlsafe else base64.b64encode)(data).decode()
    (case,), bad = read_pairs(tmp_path_factory.mktemp("a"), [f"7\t{text if padded else text.rstrip('=')}"])
    assert not bad
    assert case.views[0].data == data


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("7", "has 1 columns; expected id<TAB>left<TAB>right"),
        ("7\ta\tb\tc", "has 4 columns"),
        (f"\t{code(LEFT)}", "no id in its first column"),
        ("7\t", "neither an image nor a text"),
        ("7\tabc!", "column 2 is no base64"),
        (f"7\t{code(LEFT)}\tabcde", "column 3 is no base64"),
        ("7\tab=cd", "column 2 is no base64"),
        ("1\tQUJD", "the image id '1' was given before, in line 1"),
    ],
)
def test_bad_lines_of_the_tsv(tmp_path: Path, line: str, reason: str) -> None:
    cases, bad = read_pairs(tmp_path, [f"1\t{code(LEFT)}", line, f"3\t{code(RIGHT)}"])
    assert [case.id for case in cases] == ["1", "3"]
    assert [(row.file, row.line) for row in bad] == [(str(tmp_path / "images.tsv"), 2)]
    assert reason in bad[0].reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"text_id": 2', "not valid JSON"),
        ("[1]", "holds a list"),
        ({"text": "a", "image_ids": [1]}, "has no text_id"),
        ({"text_id": 2, "text": " ", "image_ids": [1]}, "has no text"),
        ({"text_id": 2, "text": "a"}, "has no image_ids"),
        ({"text_id": 2, "text": "a", "image_ids": []}, "has no image_ids"),
        ({"text_id": 2, "text": "a", "image_ids": [[1]]}, "an image id is a list"),
        ({"text_id": 2, "text": "a", "image_ids": [99]}, "names the image '99', which"),
        ({"text_id": 1, "text": "a", "image_ids": [1]}, "the text id '1' was given before, in line 1"),
        ({"text_id": 2, "text": "a", "image_ids": [1], "split": "fold"}, "split 'fold' is unknown"),
        ({"text_id": 2, "text": "a", "image_ids": [1], "mask": ["m.png"]}, "mask is a list"),
    ],
)
def test_bad_lines_of_the_texts(tmp_path: Path, row: Any, reason: str) -> None:
    cases, bad = read_pairs(tmp_path, [f"1\t{code(LEFT)}"], [{"text_id": 1, "text": "Good.", "image_ids": [1]}, row])
    assert [case.text for case in cases] == ["Good."]
    assert [(row.file, row.line) for row in bad] == [(str(tmp_path / "texts.jsonl"), 2)]
    assert reason in bad[0].reason


def test_an_id_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "images.tsv").write_bytes(b"\xff\t" + code(LEFT).encode() + b"\r\n\xef\t\n")
    _, bad = read("ret_clip_tsv", tmp_path / "images.tsv")
    assert [row.reason for row in bad] == ["the id is not UTF-8 text"] * 2


def test_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    (tmp_path / "images.tsv").write_bytes(b"\xef\xbb\xbf7\t" + code(LEFT).encode() + b"\r\n")
    (case,), bad = read("ret_clip_tsv", tmp_path / "images.tsv")
    assert not bad
    assert (case.id, case.views[0].data) == ("7", LEFT)


def test_lines_longer_than_the_blocks_of_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class BucketFile(AbstractBufferedFile):  # type: ignore[misc]
        def _fetch_range(self, start: int, end: int) -> bytes:
            with open(self.path, "rb") as file:
                file.seek(start)
                return file.read(end - start)

    def open_binary(path: str) -> BucketFile:
        return BucketFile(None, path, size=Path(path).stat().st_size, block_size=500)

    lines = [f"{number}\t{code(os.urandom(2000))}" for number in range(5)]
    texts = [{"text_id": 1, "text": "a" * 3000, "image_ids": [3]}]
    here = read_pairs(tmp_path, lines, texts)
    monkeypatch.setattr(lines_of_files, "open_binary", open_binary)
    assert read_pairs(tmp_path, lines, texts) == here
    assert len(here[0]) == 5


def test_a_line_that_is_too_long_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_of_files, "MAX_LINE", 1000)
    cases, bad = read_pairs(tmp_path, ["1\tQUJD", f"2\t{'A' * 3500}", "3\tQUJD"])
    assert [case.id for case in cases] == ["1", "3"]
    assert [row.line for row in bad] == [2]
    assert bad[0].reason == "the line has more than 1,000 bytes; divide it, or keep the row in a parquet file"


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    line = code(os.urandom(2**20))
    config = {"kind": "ret_clip_tsv", "name": "s", "path": str(tmp_path / "images.tsv")}
    texts = [{"text_id": n, "text": "a", "image_ids": [39 - n]} for n in range(40)]
    config |= write(tmp_path, [f"{n}\t{line}" for n in range(40)], texts)
    source = data_config(tmp_path, config).sources[0]
    tracemalloc.start()
    count = sum(isinstance(item, Case) for item in ret_clip_tsv.read_ret_clip_tsv(source))  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 40
    assert peak < 12 * 2**20, f"{peak / 2**20:.0f} MiB for a file of {40 * len(line) / 2**20:.0f} MiB"


def test_prepared_with_embedded_images_and_again_when_the_texts_change(tmp_path: Path) -> None:
    texts = write(tmp_path, [f"1\t{code(LEFT)}\t{code(RIGHT)}"], [{"text_id": 1, "text": "Old.", "image_ids": [1]}])
    source = {"kind": "ret_clip_tsv", "name": "s", "path": str(tmp_path / "images.tsv"), **texts}
    with pytest.raises(DataError, match=r"set data\.store\.images: embed"):
        prepare(data_config(tmp_path, source))
    config = data_config(tmp_path, source, store={"images": "embed"})
    table = prepare(config).store.table
    assert (table.images(0), table.view_names(0), table.texts) == ([LEFT, RIGHT], ["left", "right"], ["Old."])
    assert not prepare(config).created
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text_id": 1, "text": "New text.", "image_ids": [1]}))
    changed = prepare(config)
    assert changed.created
    assert changed.store.table.texts == ["New text."]


def test_relative_paths_make_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = write(tmp_path, [f"1\t{code(LEFT)}"], [{"text_id": 1, "text": "Old.", "image_ids": [1]}])
    source = {"kind": "ret_clip_tsv", "name": "s", "path": str(tmp_path / "images.tsv"), **texts}
    whole = prepare(data_config(tmp_path, source, store={"images": "embed"}))
    monkeypatch.chdir(tmp_path)
    source |= {"path": "images.tsv", "texts": "texts.jsonl"}
    again = prepare(data_config(tmp_path, source, store={"images": "embed"}))
    assert (again.created, again.store.path) == (False, whole.store.path)


@pytest.mark.parametrize("missing", ["images.tsv", "texts.jsonl"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    texts = write(tmp_path, [f"1\t{code(LEFT)}"], [{"text_id": 1, "text": "a", "image_ids": [1]}])
    (tmp_path / missing).unlink()
    with pytest.raises(DataError, match=f"{missing} does not exist"):
        read("ret_clip_tsv", tmp_path / "images.tsv", **texts)


def test_an_image_that_is_none_is_told_with_its_line(tmp_path: Path) -> None:
    texts = write(
        tmp_path, [f"1\t{code(LEFT)}", f"2\t{code(b'no image')}"], [{"text_id": 1, "text": "a", "image_ids": [2]}]
    )
    source = {"kind": "ret_clip_tsv", "name": "s", "path": str(tmp_path / "images.tsv"), **texts}
    with pytest.raises(DataError, match=r"images\.tsv:2: "):
        prepare(data_config(tmp_path, source, store={"images": "embed"}))
