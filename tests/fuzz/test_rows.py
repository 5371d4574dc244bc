"""Damaged tables: every row that is used is the row of its own lines, whatever the damage around it."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import dropwhile
from pathlib import Path
from typing import Any

import pytest

from consilium.core.config import build
from consilium.core.errors import ConsiliumError
from consilium.data.case import BadRow, Case, looks_missing
from consilium.data.config import DataConfig
from consilium.data.sources.reading import read_source
from tests.fuzz.mutate import Mutator, change_value, fuzz

# What both forms share: the parts of a row that decide what a model learns from it.
Told = dict[str, object]


def told(case: Case) -> Told:
    return {
        "id": case.id,
        "images": [view.image for view in case.views],
        "names": [view.name for view in case.views],
        "bytes": [view.data for view in case.views],
        "text": case.text,
        "labels": case.labels,
        "split": case.split,
        "group": case.group,
        "is_gt": case.is_gt,
        "meta": case.meta,
    }


def items(source: Mapping[str, Any]) -> tuple[list[Case], list[BadRow], ConsiliumError | None]:
    """What a source gives before the error, if any, that ends it."""
    config = build(DataConfig, {"sources": [source]}, origin="fuzz").sources[0]
    cases: list[Case] = []
    bad: list[BadRow] = []
    try:
        for item in read_source(config):
            (cases if isinstance(item, Case) else bad).append(item)  # type: ignore[arg-type]
    except ConsiliumError as error:
        return cases, bad, error
    return cases, bad, None


# What a value means, said again without our code.

SPLITS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("unlabelled", "unlabeled", "unl"), "unlabelled"),
}


def plain(value: object) -> str:
    """A cell as text; a value that is no single one does not belong into a row that is used."""
    assert value is None or isinstance(value, str | int | float), value
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    return value.strip() if isinstance(value, str) else repr(value)


def path_of(folder: Path, value: object) -> str:
    text = plain(value)
    assert "\0" not in text
    return text if "://" in text else os.path.normpath(os.path.join(folder, text))


def expected_of(row: Mapping[str, Any], *, folder: Path, line: int, text: str) -> Told:
    """The case of a row whose keys are the default columns, as DESIGN and the guides say it."""
    given = row.get("image")
    if "modalities" in row:
        modalities = row["modalities"] if isinstance(row["modalities"], list) else [row["modalities"]]
        assert all(item.get("type", "image") == "image" for item in modalities)
        images = [path_of(folder, item["value"]) for item in modalities]
        names = [plain(item.get("name")) for item in modalities]
    else:
        found: list[Any] = []

        def collect(cell: Any) -> None:
            if isinstance(cell, list):
                for inner in cell:
                    collect(inner)
            elif isinstance(cell, dict):
                assert cell.get("bytes") is None  # JSON has no bytes
                collect(cell.get("path"))
            elif plain(cell):
                found.append(path_of(folder, cell))

        collect(given)
        images, names = found, [""] * len(found)
    assert images or text
    labels = row.get("label")
    labels = [plain(label) for label in (labels if isinstance(labels, list) else [labels])]
    labels = list(dict.fromkeys(label for label in labels if label))
    assert all(part.strip() for label in labels for part in label.split("."))
    split = plain(row.get("split")).lower()
    flag = plain(row.get("is_gt")).lower()
    assert flag in ("", "true", "1", "yes", "y", "t", "false", "0", "no", "n", "f")
    known = ("image", "text", "label", "split", "group_id", "id", "mask", "is_gt", "conversations", "modalities")
    return {
        "id": plain(row.get("id")) or f"s:{line}",
        "images": images,
        "names": names,
        "bytes": [None] * len(images),
        "text": text or None,
        "labels": tuple(labels),
        "split": SPLITS[split] if split else None,
        "group": plain(row.get("group_id")),
        "is_gt": flag not in ("false", "0", "no", "n", "f"),
        "meta": {key for key in row if key not in known},
    }


def without_gaps(row: Mapping[str, str]) -> dict[str, str]:
    """A row of a csv in which words for a missing value are empty cells, where the guide says that they are."""
    columns = ("id", "group_id", "split", "is_gt")
    return {key: "" if key in columns and looks_missing(cell) else cell for key, cell in row.items()}


def assert_justified(case: Case, row: Mapping[str, Any], *, folder: Path, text: str) -> None:
    """The case is its row and nothing else."""
    assert case.line is not None
    expected, found = expected_of(row, folder=folder, line=case.line, text=text), told(case)
    if not expected.pop("group"):
        found.pop("group")  # a group of its own
    assert set(case.meta) <= expected.pop("meta")  # type: ignore[operator]
    for key, value in case.meta.items():
        if isinstance(row[key], str | int | float | None):
            assert value == plain(row[key])
    del found["meta"]
    assert {key: value for key, value in found.items() if key in expected} == expected


# -- jsonl --------------------------------------------------------------------------------------------------------

JSONL = [
    {"id": "a", "image": "a.png", "text": "a chest x-ray", "label": "xray.chest", "split": "train", "group_id": "p1"},
    {"id": "b", "image": ["l.png", "r.png"], "text": "two eyes, one patient", "label": ["fundus", "eye"], "age": 61},
    {"id": "c", "modalities": [{"type": "image", "value": "c.png"}], "text": "caf\u00e9 \u4e2d", "is_gt": False},
    {
        "id": "d",
        "modalities": [{"type": "image", "value": "d1.png", "name": "left"}, {"type": "image", "value": "d2.png"}],
        "conversations": [{"role": "user", "content": "What?"}, {"from": "gpt", "value": 'An MRI "T1".'}],
        "label": "mri",
        "split": "val",
    },
    {"id": "g", "image": {"path": "g.png", "bytes": None}, "label": "ct"},
    {"id": 5, "text": "only text", "label": 3, "site": {"name": "x", "n": [1, 2.5, None]}, "split": "test"},
    {"id": "f", "image": "f.png", "label": "ct", "score": 0.25, "note": "a\\b\n"},
]
JSONL_TOKENS = [
    *(b'"', b"'", b"\\", b'\\"', b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r\n", b"\r", b"\t", b" ", b"\0", b"\v"),
    *(b"NaN", b"Infinity", b"-Infinity", b"null", b"true", b"-0", b"0.1", b"1e999", b"1E5", b"9" * 5000, b"1" * 4000),
    *(
        b'"\\ud800"',
        b'"\\ud83d\\ude00"',
        b"\xed\xa0\x80",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\x85",
        "\u2028".encode(),
        b"\x1a",
    ),
    *(
        b"[" * 2000,
        b'{"a":' * 2000,
        b"{}",
        b"[]",
        b"[[]]",
        b'{"bytes": "x"}',
        b'{"bytes": 5}',
        b'{"path": 5}',
        b'[{"path": "p.png"}]',
    ),
    *(
        b'"label": "other", ',
        b'"split": "test", ',
        b'"id": "a", ',
        b'"image": "z.png", ',
        b'"text": 5, ',
        b'"is_gt": "maybe", ',
    ),
    *(
        b'"label": 0.5, ',
        b'"label": {"a": 1}, ',
        b'"modalities": 3, ',
        b'"conversations": [3], ',
        b'"image": "http://x/y.png", ',
    ),
    *(
        b'"modalities": [{"type": "audio", "value": "a"}], ',
        b"<|reserved_special_token_0|>",
        b'"mask": "none.png", ',
        b"//",
        b"/* */",
    ),
]


def strict_object(raw: bytes) -> dict[str, Any]:
    """The object on a line by the letter of the standard: UTF-8, every key once."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs), "a key comes twice"
        return dict(pairs)

    row = json.loads(raw.decode("utf-8"), object_pairs_hook=once)
    assert isinstance(row, dict)
    return row


def text_of(row: Mapping[str, Any]) -> str:
    if row.get("text") is None and "conversations" in row:
        turns = row["conversations"]
        text = "\n".join(plain(turn["content"] if "content" in turn else turn["value"]) for turn in turns)
    else:
        text = plain(row.get("text"))
    token = "<|reserved_special_token_0|>"
    if token in text:
        lines = [" ".join(line.replace(token, " ").split()) for line in text.split("\n")]
        text = "\n".join(line for line in lines if line)
    return text


def change_line(data: bytes, chance: random.Random) -> bytes:
    """One value of one row becomes another."""
    lines = data.split(b"\n")
    number = chance.randrange(len(lines))
    try:
        row = json.loads(lines[number])
    except (ValueError, RecursionError):
        return data
    if isinstance(row, dict):
        change_value(row, chance)
    lines[number] = json.dumps(row, ensure_ascii=chance.random() < 0.5).encode(errors="surrogatepass")
    return b"\n".join(lines)


def test_damaged_jsonl(tmp_path: Path, count: int) -> None:
    path = tmp_path / "rows.jsonl"
    source = {"kind": "jsonl", "name": "s", "path": str(path)}
    lines = [json.dumps(row, ensure_ascii=number % 2 == 0).encode() for number, row in enumerate(JSONL)]
    path.write_bytes(b"\n".join(lines))
    whole, none, error = items(source)
    assert not none
    assert error is None
    good = {line: told(case) for line, case in zip(lines, whole, strict=True)}
    kept = 0

    def check(data: bytes) -> bool:
        nonlocal kept
        path.write_bytes(data)
        cases, bad, stopped = items(source)
        written = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        used = {case.line: case for case in cases}
        refused = {row.line: row for row in bad}
        assert len(used) == len(cases)
        assert not set(used) & set(refused)
        if stopped is None or cases or bad:  # every line has an outcome, also before an error about the columns
            assert sorted([*used, *refused]) == [n for n, raw in enumerate(written, start=1) if raw.strip()]  # type: ignore[type-var]
        for number, raw in enumerate(written, start=1):
            case = used.get(number)
            if case is not None:
                row = strict_object(raw)
                assert_justified(case, row, folder=tmp_path, text=text_of(row))
            if raw in good:  # not damaged: it stays what it was
                kept += 1
                assert told(case) == good[raw] if case else "was given before" in refused[number].reason
        assert len({case.id for case in cases}) == len(cases)
        if stopped is not None:
            raise stopped
        return bool(cases)

    used, _ = fuzz(check, Mutator([b"\n".join(lines), *lines], JSONL_TOKENS, seed=4, own=[change_line] * 6), count)
    assert used > count / 8
    assert kept > count / 3


# -- csv ----------------------------------------------------------------------------------------------------------

CSV = (
    b"id,image,text,label,split,group_id,is_gt,age\r\n"
    b"a,a.png,a chest x-ray,xray.chest,train,p1,true,61\r\n"
    b'b,b.png,"two, with ""quotes""",ct,val,p2,,\r\n'
    b'c,c.png,"two\nlines",mri,test,p3,0,7.5\r\n'
    b"\r\n"
    b"d,d.png,caf\xc3\xa9 \xe4\xb8\xad,ct,,p4,no,\r\n"
    b'"e",,"only text",,unlabelled,p5,1,x\r\n'
    b"f,f.png,plain,eye,dev,p6,,5\r\n"
)
CSV_TOKENS = [
    *(
        b'"',
        b'""',
        b'"""',
        b"'",
        b",",
        b";",
        b"\t",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b'",',
        b',"',
        b'\n"',
        b'"\n',
        b"\0",
    ),
    *(
        b"\xff",
        b"\xed\xa0\x80",
        b"\xc3",
        b"\xef\xbb\xbf",
        b"\x85",
        "\u2028".encode(),
        b"\v",
        b"\f",
        b"\x1c",
        b"\x1a",
        b"\\",
    ),
    *(
        b"9" * 5000,
        b"x" * 140_000,
        b"NaN",
        b"nan",
        b"1e999",
        b"=1+1",
        b"label",
        b"id,",
        b",,,,,,,",
        b"train",
        b"maybe",
        b"a.png",
    ),
]


PLAIN = re.compile(r'[^",\r\n]+')
LONGEST = 64 * 2**20  # characters of a cell: what an open quote may swallow before it is called one


def records(data: bytes) -> Iterator[tuple[int, list[str] | None]]:
    """The line and cells of every record, as RFC 4180 has them; None where it is none. Written out, character for
    character: cells divide at commas, quotes at the start of a cell hold anything, two of them in it are one."""
    text = data.decode("utf-8-sig", errors="surrogateescape")
    place, line = 0, 1
    while place < len(text):
        first, cells, cell, state, broken = line, [], "", "start", False
        while True:
            if state in ("plain", "quoted") and not broken and (run := PLAIN.match(text, place, place + LONGEST)):
                cell, place = cell + run[0], run.end()
            mark = text[place : place + 1]
            ends = "\r\n" if text.startswith("\r\n", place) else mark if mark in ("\r", "\n") else ""
            line += bool(ends)
            place += len(ends or mark)
            if (not mark and state != "quoted") or (ends and state != "quoted"):
                break
            if not mark:
                broken = True  # the file ends in a quote
                break
            if broken:
                continue  # up to the end of the line
            if state == "quoted":
                if mark == '"':
                    state = "quote"
                else:
                    cell += ends or mark
            elif mark == ",":
                cells, cell, state = [*cells, cell], "", "start"
            elif mark == '"' and state == "start":
                state = "quoted"
            elif mark == '"' and state == "quote":
                cell, state = cell + mark, "quoted"
            elif state == "quote":
                broken = True  # something after the closing quote
                state = "plain"
            else:
                cell, state = cell + mark, "plain"
            if len(cell) > LONGEST:
                broken, state = True, "plain"
        empty = not cells and not cell and state == "start"
        yield first, None if broken else [] if empty else [*cells, cell]


def test_the_second_reader_of_csv_knows_its_trade() -> None:
    found = list(records(b'a,"b ""x""\n",c\r\n\r\n1,2\r3,"4"5,6\n"x'))
    assert found == [(1, ["a", 'b "x"\n', "c"]), (3, []), (4, ["1", "2"]), (5, None), (6, None)]


def table_rows(data: bytes) -> list[tuple[int, list[str] | None]]:
    """The header and the rows below it: blank lines above it, and those of empty cells alone, are none."""
    rows = [(line, [] if cells and not any(cells) and len(cells) > 1 else cells) for line, cells in records(data)]
    return list(dropwhile(lambda row: row[1] == [] or (row[1] is not None and not "".join(row[1]).strip()), rows))


def test_damaged_csv(tmp_path: Path, count: int) -> None:
    path = tmp_path / "rows.csv"
    source = {"kind": "csv", "name": "s", "path": str(path), "columns": {"meta": None}}
    path.write_bytes(CSV)
    whole, none, error = items(source)
    assert not none
    assert error is None
    header = next(records(CSV))[1]
    cells_of = dict(records(CSV))
    good = {tuple(cells_of[case.line] or []): told(case) for case in whole if case.line is not None}
    kept = 0

    def check(data: bytes) -> bool:
        nonlocal kept
        path.write_bytes(data)
        cases, bad, stopped = items(source)
        rows = table_rows(data)
        used = {case.line: case for case in cases}
        refused = {row.line: row for row in bad}
        assert len(used) == len(cases)
        assert not set(used) & set(refused)
        if stopped is None:
            columns = rows[0][1]
            assert columns is not None
            assert sorted([*used, *refused]) == [line for line, cells in rows[1:] if cells != []]  # type: ignore[type-var]
        for line, cells in rows[1:]:
            case = used.get(line)
            if case is not None:
                assert cells is not None
                row = without_gaps(dict(zip(columns, cells, strict=True)))
                assert_justified(case, row, folder=tmp_path, text=plain(row.get("text")))
            if stopped is None and columns == header and tuple(cells or ()) in good:
                kept += 1
                expected = good[tuple(cells or ())]
                assert told(case) == expected if case else "was given before" in refused[line].reason
        if stopped is not None:
            raise stopped
        return bool(cases)

    used, _ = fuzz(check, Mutator([CSV, CSV.replace(b"\r\n", b"\n")], CSV_TOKENS, seed=5), count)
    assert used > count / 2
    assert kept > count / 3


@pytest.mark.parametrize("make", [lambda: b'{"id": "a", "text": "x"}\n' * 3, lambda: b"text\n" + b'"x\n' * 50_000])
def test_long_runs_stay_cheap(tmp_path: Path, make: Callable[[], bytes]) -> None:
    data = make()
    kind = "csv" if data.startswith(b"text") else "jsonl"
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(data)
    cases, bad, _ = items({"kind": kind, "name": "s", "path": str(path)})
    assert len(cases) <= 1
    assert bad
