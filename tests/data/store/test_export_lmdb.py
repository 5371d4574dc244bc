"""The export as LMDB: read back as it was, killed at any moment, run again, never in the way of what is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from consilium.core.errors import DataError
from consilium.data.store import export_lmdb
from consilium.data.store.export import export
from consilium.data.store.store import Store
from tests.data.samples import write_jsonl
from tests.data.sources.lmdbs import contents, eyes, write_old
from tests.data.store.test_export import EYES, modalities, quick, round_trip, rows, store_of, world

__all__ = ["world"]
CASES = 23


@quick
@given(lines=rows(views=EYES))
def test_lmdb_and_back(world: Path, tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    """Unlike the TSV it holds cases without a text whole."""
    expected, found = round_trip(world, tmp_path, lines, "ret_clip_lmdb", embed=True)
    assert found == expected


@pytest.fixture(scope="module")
def store(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Cases of four images, so that several share their own."""
    folder = tmp_path_factory.mktemp("cases")
    lines = [
        {"text": f"text {n}", "split": "train", "modalities": modalities((f"{world}/scans/{n % 4}.png", "left"))}
        for n in range(CASES)
    ]
    source = {"kind": "jsonl", "name": "s", "path": str(write_jsonl(folder / "a.jsonl", lines))}
    return store_of(folder, source, embed=True)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_lmdb, "BATCH_ROWS", 4)


@pytest.fixture(scope="module")
def whole(store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[bytes, bytes]]:
    """The content that every way to write it must have."""
    out = tmp_path_factory.mktemp("whole") / "a.lmdb"
    assert export(store, out, form="ret_clip_lmdb").paths == [out]
    assert {path.name for path in out.parent.iterdir()} == {"a.lmdb", ".a.lmdb.lock"}
    return contents(out)


def test_nothing_is_pickled_and_ids_are_text(whole: dict[str, dict[bytes, bytes]]) -> None:
    assert (whole["imgs"][b"num_images"], whole["pairs"][b"num_samples"], whole["pairs"][b"format"]) == (
        b"4", b"23", b"1",
    )  # fmt: skip
    first = whole["pairs"][b"0"].decode()
    assert '"text_id": "1"' in first
    image_id = first.partition('"image_ids": ["')[2].partition('"')[0]
    assert whole["imgs"][image_id.encode()].startswith(b'{"left": ')
    values = [*whole["imgs"].values(), *whole["pairs"].values()]
    assert not [value for value in values if value[:1] in (b"\x80", b"(")]


class StoppedError(Exception):
    pass


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("moment", [1, 4, 5, 12, 22, 23])
def test_stopped_and_run_again(
    store: Store, tmp_path: Path, whole: dict[str, dict[bytes, bytes]], moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, _: int | None) -> None:
        if done == moment:
            raise StoppedError

    out = tmp_path / "a.lmdb"
    with pytest.raises(StoppedError):
        export(store, out, form="ret_clip_lmdb", progress=stop)
    assert not out.exists()
    read: list[int] = []
    real = export_lmdb.eye_images
    monkeypatch.setattr(export_lmdb, "eye_images", lambda job, row: (read.append(row), real(job, row))[1])
    export(store, out, form="ret_clip_lmdb")
    assert contents(out) == whole
    assert (len(read) == 4) is (moment <= 4), "images that were written are not read again"


KILL = """
import os, signal, sys
from pathlib import Path
from consilium.data.store import export_lmdb
from consilium.data.store.export import export
from consilium.data.store.store import Store

export_lmdb.BATCH_ROWS = 4

def stop(done, total):
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

export(Store.open(sys.argv[1]), Path(sys.argv[2]), form="ret_clip_lmdb", progress=stop)
"""


def test_killed_again_and_again(store: Store, tmp_path: Path, whole: dict[str, dict[bytes, bytes]]) -> None:
    out = tmp_path / "a.lmdb"
    for moment in (2, 11, 20):
        command = [sys.executable, "-c", KILL, str(store.path), str(out), str(moment)]
        assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL
        assert not out.exists()
    export(store, out, form="ret_clip_lmdb")
    assert contents(out) == whole


@pytest.mark.usefixtures("small_batches")
def test_what_a_stopped_run_of_other_cases_left_is_not_used(store: Store, world: Path, tmp_path: Path) -> None:
    def stop(done: int, _: int | None) -> None:
        if done == 10:
            raise StoppedError

    with pytest.raises(StoppedError):
        export(store, tmp_path / "a.lmdb", form="ret_clip_lmdb", progress=stop)
    lines = [{"text": f"text {n}", "modalities": modalities((f"{world}/scans/0.png", "left"))} for n in range(6)]
    source = {"kind": "jsonl", "name": "s", "path": str(write_jsonl(tmp_path / "b.jsonl", lines))}
    other = store_of(tmp_path, source, embed=True)
    export(other, tmp_path / "a.lmdb", form="ret_clip_lmdb")
    export(other, tmp_path / "b.lmdb", form="ret_clip_lmdb")
    assert contents(tmp_path / "a.lmdb") == contents(tmp_path / "b.lmdb")


def test_run_again_it_writes_nothing(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "a.lmdb"
    export(store, out, form="ret_clip_lmdb")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    done = export(store, out, form="ret_clip_lmdb")
    assert done.notes[-1] == "the LMDB was there already and holds the same."
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_nothing_is_replaced_unasked(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "a.lmdb"
    some = store.table.select([0, 1])
    export(store, out, form="ret_clip_lmdb", cases=some)
    with pytest.raises(DataError, match=r"exists and holds something else; .* or --overwrite"):
        export(store, out, form="ret_clip_lmdb")
    assert contents(out)["pairs"][b"num_samples"] == b"2"
    export(store, out, form="ret_clip_lmdb", overwrite=True)
    assert contents(out)["pairs"][b"num_samples"] == b"23"
    os.truncate(out / "imgs" / "data.mdb", 9000)
    with pytest.raises(DataError, match="exists and holds something else"):
        export(store, out, form="ret_clip_lmdb")


def test_what_no_export_wrote_is_never_replaced(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file.lmdb").write_text("mine")
    (tmp_path / "folder.lmdb").mkdir()
    (tmp_path / "folder.lmdb" / "mine.txt").write_text("mine")
    write_old(tmp_path / "old.lmdb", {"p1": eyes("", "")}, [("p1", 1, "a")])
    messages = {"file": "is a file", "folder": r"holds 'mine\.txt', which", "old": "an LMDB that another program wrote"}
    for name, message in messages.items():
        with pytest.raises(DataError, match=message):
            export(store, tmp_path / f"{name}.lmdb", form="ret_clip_lmdb", overwrite=True)


def test_a_left_eye_twice(world: Path, tmp_path: Path) -> None:
    lines = [{"text": "a", "id": "c7", "modalities": modalities(("scans/0.png", "left"), ("scans/1.png", "left"))}]
    source = {"kind": "jsonl", "name": "s", "path": str(write_jsonl(world / "twice.jsonl", lines))}
    with pytest.raises(DataError, match="case 'c7' has the views 'left', 'left'"):
        export(store_of(tmp_path, source), tmp_path / "x.lmdb", form="ret_clip_lmdb")
    assert not (tmp_path / "x.lmdb").exists()
