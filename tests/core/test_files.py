"""A file or folder is either the old one or the new one, whatever happens while it is written."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from consilium.core.files import atomic_file, atomic_folder, fingerprint, made_once, write_json, write_text


def test_file_is_replaced_when_the_block_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old")
    with atomic_file(path) as temporary:
        temporary.write_text("né")
        assert path.read_text() == "old"
    assert path.read_bytes() == "né".encode()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
def test_failed_block_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write_half() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("existed", [False, True])
def test_folder_is_replaced_whole(tmp_path: Path, existed: bool) -> None:
    path = tmp_path / "folder"
    if existed:
        path.mkdir()
        (path / "old").touch()
    with atomic_folder(path) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "new").write_text("x")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "folder",
        "folder/inner",
        "folder/inner/new",
    ]


def test_failed_block_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("x")

    def write_half() -> None:
        with atomic_folder(path) as temporary:
            (temporary / "new").write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_half()
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["folder", "folder/old"]


def test_old_folder_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("x")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError("refused")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="refused"), atomic_folder(path) as temporary:
        (temporary / "new").write_text("x")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["folder", "folder/old"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o007, 0o660)])
def test_files_follow_the_umask_whatever_wrote_them(tmp_path: Path, umask: int, mode: int) -> None:
    def write_for_the_owner(folder: Path) -> None:
        (folder / "inner").mkdir(exist_ok=True)
        path = folder / "inner" / "weights"
        path.touch()
        path.chmod(0o600)  # as safetensors and tempfile do

    before = os.umask(umask)
    try:
        with atomic_file(tmp_path / "file") as temporary:
            temporary.unlink()
            temporary.touch(mode=0o600)
        with atomic_folder(tmp_path / "folder") as temporary:
            write_for_the_owner(temporary)
        made_once(tmp_path / "made", write_for_the_owner)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.name in ("file", "weights")]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [mode] * 3


KILLED = """
import os, signal, sys
from pathlib import Path
from consilium.core.files import atomic_file, atomic_folder
kind, path = sys.argv[1], Path(sys.argv[2])
with (atomic_file if kind == "file" else atomic_folder)(path) as temporary:
    (temporary if kind == "file" else temporary / "weights").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_process_leaves_the_old_one_and_the_next_write_works(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "checkpoint"
    inner = path if kind == "file" else path / "weights"
    atomic = atomic_file if kind == "file" else atomic_folder

    def write(text: str) -> None:
        with atomic(path) as temporary:
            (temporary if kind == "file" else temporary / "weights").write_text(text)

    write("old")
    killed = subprocess.run([sys.executable, "-c", KILLED, kind, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert inner.read_text() == "old"
    write("new")
    assert inner.read_text() == "new"


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"größe": [1, None]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"größe": [1, None]}


def test_fingerprint_depends_on_content_not_on_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})
    assert fingerprint([1, 2]) != fingerprint([2, 1])
    assert fingerprint({"a": 1}) == "f9d86028c6e0d64e"  # stores and bundles on disk rely on it staying the same
