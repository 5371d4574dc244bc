"""LMDB folders of RET-CLIP's and Chinese-CLIP's programs are read without an unpickler."""

from __future__ import annotations

import base64
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from consilium.core.errors import DataError, MissingExtraError
from consilium.data.case import BadRow, Case
from consilium.data.store.prepare import prepare
from tests.data.samples import data_config, image_bytes, read, write_jsonl
from tests.data.sources.lmdbs import eyes, write_database, write_old

LEFT, RIGHT, OTHER = (image_bytes(seed) for seed in range(3))


def code(data: bytes, *, urlsafe: bool = False) -> str:
    return (base64.urlsafe_b64encode if urlsafe else base64.b64encode)(data).decode()


def read_lmdb(folder: Path, **keys: Any) -> tuple[list[Case], list[BadRow]]:
    return read("ret_clip_lmdb", folder, **keys)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("urlsafe", [False, True])
def test_ret_clip(tmp_path: Path, protocol: int, urlsafe: bool) -> None:
    left, right = code(LEFT, urlsafe=urlsafe), code(RIGHT, urlsafe=urlsafe)
    images = {
        "p7": eyes(left, right, protocol=protocol),
        "p8": eyes("", right, protocol=protocol),
        "p9": eyes(left, ""),
    }
    pairs = [("p7", 1, "Both."), ("p8", 2, "Right."), ("p7", 2, "Right.")]
    cases, bad = read_lmdb(write_old(tmp_path / "eyes", images, pairs, protocol=protocol))
    assert not bad
    assert [(case.id, case.text, case.group, case.line) for case in cases] == [
        ("1-p7", "Both.", "p7", 1), ("2-p8", "Right.", "p8", 2), ("2-p7", "Right.", "p7", 3), ("p9", None, "p9", 4),
    ]  # fmt: skip
    both = [("left", LEFT), ("right", RIGHT)]
    assert [[(view.name, view.data) for view in case.views] for case in cases] == [
        both, [("right", RIGHT)], both, [("left", LEFT)],
    ]  # fmt: skip


def test_chinese_clip(tmp_path: Path) -> None:
    folder = write_old(tmp_path / "a", {"5": code(OTHER).encode()}, [(5, "t", "一")])
    (case,), bad = read_lmdb(folder, split="val", label_prefix="x")
    assert not bad
    assert (case.id, case.text, case.split, [(view.name, view.data) for view in case.views]) == (
        "t-5", "一", "val", [("", OTHER)],
    )  # fmt: skip


def test_the_cases_are_those_of_the_tsv(tmp_path: Path) -> None:
    """What their program makes of a TSV and JSONL is read as these are."""
    (tmp_path / "a.tsv").write_text(f"1\t{code(LEFT)}\t{code(RIGHT)}\n2\t{code(OTHER)}\t{code(LEFT)}\n")
    rows = [{"text_id": 4, "text": "a", "image_ids": [1]}, {"text_id": 5, "text": "b", "image_ids": [2, 1]}]
    of_tsv, _ = read("ret_clip_tsv", tmp_path / "a.tsv", texts=str(write_jsonl(tmp_path / "a.jsonl", rows)))
    images = {"1": eyes(code(LEFT), code(RIGHT)), "2": eyes(code(OTHER), code(LEFT))}
    pairs = [(image, row["text_id"], row["text"]) for row in rows for image in row["image_ids"]]  # type: ignore[attr-defined]
    of_lmdb, bad = read_lmdb(write_old(tmp_path / "lmdb", images, pairs))
    assert not bad

    def facts(cases: list[Case]) -> list[Any]:
        return sorted((case.id, case.group, case.texts, case.views, case.labels) for case in cases)

    assert facts(of_lmdb) == facts(of_tsv)


GOOD = eyes(code(LEFT), code(RIGHT))


@pytest.mark.parametrize(
    ("images", "pair", "reason"),
    [
        (GOOD, pickle.dumps(("p1", 2, Path("a"))), "calls or names Python code"),
        (GOOD, pickle.dumps(["p1", 2, "a"]), "holds more than text, bytes, numbers and tuples (EMPTY_LIST)"),
        (GOOD, pickle.dumps(("p1", "a")), "the pair is not (image_id, text_id, text)"),
        (GOOD, pickle.dumps(("p1", 2, "a"))[:-4], "cut short or damaged"),
        (GOOD, ("p99", 2, "a"), "image_ids names the image 'p99', which"),
        (GOOD, ("p" * 600, 2, "a"), "which"),
        (GOOD, ("p1", 2, " "), "the row has no text"),
        (GOOD, ("p1", 2, b"\xff"), "not UTF-8"),
        (GOOD, ("p1", 1, "a"), "the id '1-p1' was given before, in line 1"),
        (eyes(code(LEFT), "abcde"), ("bad", 2, "a"), "image 2 is no base64"),
        (eyes("ab!c", ""), ("bad", 2, "a"), "image 1 is no base64"),
        (b"ab=cd", ("bad", 2, "a"), "image 1 is no base64"),
        (pickle.dumps((code(LEFT), code(LEFT), code(RIGHT))), ("bad", 2, "a"), "it holds 3 items"),
        (pickle.dumps((code(LEFT), 7)), ("bad", 2, "a"), "expected base64 of one image, or of a left"),
        (pickle.dumps((os.getcwd, "a")), ("bad", 2, "a"), "calls or names Python code (posix.getcwd)"),
        (b'{"left": 3, "left": 2}\nabcde', ("bad", 2, "a"), "the key 'left' is given twice"),
        (b'{"left": 3, "right": 3}\nabcde', ("bad", 2, "a"), "not as long as the line before them says"),
        (eyes("", ""), ("bad", 2, " "), "the row has no text"),
    ],
)
def test_a_bad_pair_is_told_and_the_others_are_read(tmp_path: Path, images: bytes, pair: Any, reason: str) -> None:
    folder = write_old(tmp_path / "eyes", {"p1": GOOD, "bad": images}, [("p1", 1, "Good."), pair, ("p1", 3, "Last.")])
    cases, bad = read_lmdb(folder)
    assert [case.id for case in cases if case.text] == ["1-p1", "3-p1"]
    assert (str(folder), 2) in [(row.file, row.line) for row in bad]
    assert reason in next(row.reason for row in bad if row.line == 2)


def test_a_bad_image_without_a_text(tmp_path: Path) -> None:
    (case,), (bad,) = read_lmdb(write_old(tmp_path / "a", {"p1": GOOD, "p2": b"!"}, [("p1", 1, "a")]))
    assert (case.id, bad.line) == ("1-p1", 2)
    assert "the image b'p2': image 1 is no base64" in bad.reason


def test_a_pair_that_is_missing(tmp_path: Path) -> None:
    write_database(tmp_path / "a" / "imgs", {"p1": GOOD})
    write_database(tmp_path / "a" / "pairs", {"1": pickle.dumps(("p1", 1, "a")), "num_samples": b"2"})
    (case,), (bad,) = read_lmdb(tmp_path / "a")
    assert (case.id, bad.line) == ("1-p1", 1)
    assert "the pair 0 of 2 is missing" in bad.reason


@pytest.mark.parametrize("name", ["imgs", "pairs"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.99])
def test_a_file_cut_short(tmp_path: Path, name: str, kept: float) -> None:
    images = {f"p{number}": eyes(code(os.urandom(6000)), "") for number in range(60)}
    folder = write_old(tmp_path / "a", images, [(key, 1, f"text {key} " * 40) for key in images])
    file = folder / name / "data.mdb"
    os.truncate(file, max(1, int(kept * file.stat().st_size)))
    with pytest.raises(DataError, match=r"a cannot be read: .*(cut short|damaged, or no LMDB).*copy it again"):
        read_lmdb(folder)


def test_what_is_no_lmdb(tmp_path: Path) -> None:
    folder = write_old(tmp_path / "a", {"p1": GOOD}, [("p1", 1, "a")])
    (folder / "pairs" / "data.mdb").write_bytes(b"no database " * 4000)
    with pytest.raises(DataError, match="damaged, or no LMDB"):
        read_lmdb(folder)


def test_a_database_that_was_not_written_to_its_end(tmp_path: Path) -> None:
    write_database(tmp_path / "a" / "imgs", {"p1": GOOD})
    write_database(tmp_path / "a" / "pairs", {"0": pickle.dumps(("p1", 1, "a"))})
    with pytest.raises(DataError, match="does not say how many pairs it holds"):
        read_lmdb(tmp_path / "a")


def test_a_newer_format(tmp_path: Path) -> None:
    write_database(tmp_path / "a" / "imgs", {"p1": b'{"": 0}\n'})
    write_database(tmp_path / "a" / "pairs", {"num_samples": b"0", "format": b"2"})
    with pytest.raises(DataError, match="has format 2; this version reads 1"):
        read_lmdb(tmp_path / "a")


def test_the_folder_above_the_splits(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write_old(tmp_path / "lmdb" / split, {"p1": GOOD}, [("p1", 1, "a")])
    with pytest.raises(DataError, match=r"but train, valid in it does; make each a source of its own"):
        read_lmdb(tmp_path / "lmdb")
    with pytest.raises(DataError, match=r"nowhere/pairs/data\.mdb does not exist"):
        read_lmdb(tmp_path / "nowhere")


def test_a_bucket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="an LMDB is read from this machine; copy gs://b/eyes here"):
        prepare(data_config(tmp_path, {"kind": "ret_clip_lmdb", "name": "s", "path": "gs://b/eyes"}))


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_old(tmp_path / "a", {"p1": GOOD}, [("p1", 1, "a")])
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'consilium\[lmdb\]'"):
        read_lmdb(folder)


def test_prepared_and_again_when_it_changes(tmp_path: Path) -> None:
    source = {"kind": "ret_clip_lmdb", "name": "s", "path": str(tmp_path / "a")}
    write_old(tmp_path / "a", {"p1": GOOD}, [("p1", 1, "Old.")])
    with pytest.raises(DataError, match=r"set data\.store\.images: embed"):
        prepare(data_config(tmp_path, source))
    config = data_config(tmp_path, source, store={"images": "embed"})
    table = prepare(config).store.table
    assert (table.images(0), table.view_names(0), table.texts) == ([LEFT, RIGHT], ["left", "right"], ["Old."])
    assert not prepare(config).created
    (tmp_path / "a").rename(tmp_path / "b")
    write_old(tmp_path / "a", {"p1": GOOD}, [("p1", 1, "Changed.")])
    assert prepare(config).store.table.texts == ["Changed."]
