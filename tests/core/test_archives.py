"""Unpacking: what is whole comes out whole, and what would harm is refused by name and leaves nothing."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.core import archives
from consilium.core.archives import is_archive, stem, unpack, unpack_once
from consilium.core.errors import DataError

Make = Callable[[Path], None]
FILES = {"a/1.txt": b"one", "a/b/2.txt": b"two" * 1000, "3.txt": b""}


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def pack(path: Path, files: dict[str, bytes]) -> Path:
    return zipped(path, files) if path.suffix == ".zip" else tarred(path, files)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tar_member(name: str, kind: bytes, target: str = "") -> Callable[[tarfile.TarFile], None]:
    def add(archive: tarfile.TarFile) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        archive.addfile(member)

    return add


def tar_of(path: Path, *members: Callable[[tarfile.TarFile], None]) -> Path:
    tarred(path, {"first.txt": b"1"})
    with tarfile.open(path, "a") as archive:
        for add in members:
            add(archive)
    return path


def zip_of(path: Path, name: str, mode: int, data: str = "") -> Path:
    zipped(path, {"first.txt": b"1"})
    with zipfile.ZipFile(path, "a") as archive:
        member = zipfile.ZipInfo(name)
        member.create_system, member.external_attr = 3, mode << 16
        archive.writestr(member, data)
    return path


def encrypted(path: Path) -> Path:
    zipped(path, {"secret.txt": b"1"})
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag in the file's own header and in the directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["x.zip", "x.ZIP", "x.tar", "x.tar.gz", "x.tgz", "a.b.tgz"])
def test_an_archive_comes_out_as_it_went_in(tmp_path: Path, name: str) -> None:
    archive = tmp_path / name
    (zipped if name.lower().endswith("zip") else tarred)(archive, FILES)
    assert is_archive(archive)
    assert stem(archive) == name.lower().removesuffix(".gz").rpartition(".")[0]
    assert contents(unpack(archive, tmp_path / "out")) == FILES
    assert {path.name for path in tmp_path.iterdir()} == {name, "out", ".out.lock"}


def named(name: str, suffix: str) -> Callable[[Path], Path]:
    return lambda folder: pack(folder / f"x{suffix}", {"ok.txt": b"1", name: b"2"})


def linked(name: str, kind: bytes, target: str) -> Callable[[Path], Path]:
    return lambda folder: tar_of(folder / "x.tar", tar_member(name, kind, target))


HOSTILE: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    **{
        f"{suffix} {name}": (named(name, suffix), [f"'{name}'", why])
        for suffix in (".zip", ".tar", ".tgz")
        for name, why in [
            ("../evil.txt", "leads out of the folder (..)"),
            ("a/../../evil.txt", "leads out of the folder (..)"),
            ("..\\evil.txt", "leads out of the folder (..)"),
            ("/tmp/evil.txt", "has an absolute path"),
            ("\\\\host\\evil.txt", "has an absolute path"),
            ("C:/evil.txt", "has a drive letter"),
        ]
    },
    "tar symlink": (linked("l", tarfile.SYMTYPE, "../../etc"), ["'l'", "'../../etc'", "leads out"]),
    "tar absolute symlink": (linked("l", tarfile.SYMTYPE, "/etc"), ["'l'", "'/etc'", "leads out"]),
    "tar hard link": (linked("l", tarfile.LNKTYPE, "/etc/passwd"), ["'l'", "'/etc/passwd'", "leads out"]),
    "tar hard link up": (linked("l", tarfile.LNKTYPE, "../x.tar"), ["'l'", "leads out"]),
    "link that a later link leads out": (
        lambda f: tar_of(
            f / "x.tar", tar_member("a", tarfile.SYMTYPE, "b/.."), tar_member("b", tarfile.SYMTYPE, ".")
        ),
        ["'a'", "leads out"],
    ),
    "link through a link": (
        lambda f: tar_of(
            f / "x.tar", tar_member("a", tarfile.SYMTYPE, ".."), tar_member("a/b", tarfile.SYMTYPE, "first.txt")
        ),
        ["'a/b'", "leads out"],
    ),
    "file through a link": (
        lambda f: tar_of(
            f / "x.tar", tar_member("a", tarfile.SYMTYPE, ".."), lambda t: t.add(f / "x.tar", arcname="a/evil.txt")
        ),
        ["x.tar"],
    ),
    "tar device": (lambda f: tar_of(f / "x.tar", tar_member("null", tarfile.CHRTYPE)), ["'null'", "device or pipe"]),
    "tar pipe": (lambda f: tar_of(f / "x.tar", tar_member("fifo", tarfile.FIFOTYPE)), ["'fifo'", "device or pipe"]),
    "zip symlink": (lambda f: zip_of(f / "x.zip", "l", stat.S_IFLNK | 0o777, "../../etc"), ["'l'", "'../../etc'"]),
    "zip device": (lambda f: zip_of(f / "x.zip", "dev", stat.S_IFCHR | 0o666), ["'dev'", "device or pipe"]),
    "encrypted": (lambda f: encrypted(f / "x.zip"), ["'secret.txt'", "is encrypted"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_would_harm_is_refused_by_name_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    make, told = HOSTILE[kind]
    inner = tmp_path / "inner"
    inner.mkdir()
    archive = make(inner)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DataError) as refusal:
        unpack(archive, inner / "out")
    for text in [str(archive), *told]:
        assert text in str(refusal.value)
    left = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if not path.name.endswith(".lock")}
    assert {path: time for path, time in left.items() if path != inner} == before


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_links_that_stay_inside_are_kept(tmp_path: Path, kind: str) -> None:
    if kind == "zip":
        archive = zip_of(tmp_path / "x.zip", "d/l", stat.S_IFLNK | 0o777, "../first.txt")
    else:
        archive = tar_of(
            tmp_path / "x.tar",
            tar_member("d/l", tarfile.SYMTYPE, "../first.txt"),
            tar_member("h", tarfile.LNKTYPE, "first.txt"),
        )
    out = unpack(archive, tmp_path / "out")
    assert os.readlink(out / "d" / "l") == "../first.txt"
    assert all(data == b"1" for data in contents(out).values())
    assert len(contents(out)) == (2 if kind == "zip" else 3)


@pytest.mark.parametrize("name", ["x.zip", "x.tgz"])
def test_a_bomb_is_refused_before_it_goes_off(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(tmp_path / name, {"small.txt": b"1", "zeros.bin": bytes(2**21)})
    monkeypatch.setattr(archives, "RATIO_FREE", 2**20)
    with pytest.raises(DataError, match=r"'zeros.bin' it holds 2,097,153 bytes .* 200 times its own size .*yourself"):
        unpack(archive, tmp_path / "out")
    monkeypatch.setattr(archives, "RATIO_FREE", 2**28)
    with pytest.raises(DataError, match=r"more than the limit of 2,000,000 bytes\. If you trust it"):
        unpack(archive, tmp_path / "out", max_bytes=2_000_000)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 1)
    with pytest.raises(DataError, match="2 files, more than 1 files"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert len(contents(unpack(archive, tmp_path / "out"))) == 2


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
@pytest.mark.parametrize("damage", ["empty", "text", "half"])
def test_a_damaged_archive_is_named(tmp_path: Path, name: str, damage: str) -> None:
    archive = pack(tmp_path / name, {str(number): os.urandom(3000) for number in range(8)})
    whole = archive.read_bytes()
    archive.write_bytes({"empty": b"", "text": b"no archive at all " * 100, "half": whole[: len(whole) // 2]}[damage])
    with pytest.raises(DataError, match=rf"{name} is damaged or no archive"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@given(
    st.sampled_from(["x.zip", "x.tar", "x.tgz"]),
    st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 255)), max_size=5),
)
def test_no_damage_leads_out_of_the_folder(
    tmp_path_factory: pytest.TempPathFactory, name: str, flips: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("flips")
    data = bytearray(pack(folder / name, {"a/one.txt": b"1" * 500, "two.txt": b"2"}).read_bytes())
    for place, value in flips:
        data[place % len(data)] = value
    (folder / name).write_bytes(data)
    with contextlib.suppress(DataError):  # whatever else is raised fails the test
        unpack(folder / name, folder / "deep" / "out")
    assert {path.name for path in folder.iterdir()} == {name, "deep"}


def test_an_archive_is_unpacked_once_and_again_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(tmp_path / "x.zip", FILES)
    first = unpack_once(archive, tmp_path / "unpacked")
    assert first.name.startswith("x-")
    with monkeypatch.context() as patch:
        patch.setattr(archives, "_fill", lambda *_: pytest.fail("unpacked twice"))
        assert unpack_once(archive, tmp_path / "unpacked") == first
    zipped(archive, {"new.txt": b"1"})
    second = unpack_once(archive, tmp_path / "unpacked")
    assert second != first
    assert contents(second) == {"new.txt": b"1"}
    assert contents(first) == FILES
    with pytest.raises(DataError, match=r"none\.zip cannot be read"):
        unpack_once(tmp_path / "none.zip", tmp_path / "unpacked")


def test_what_a_kill_left_does_not_mix_in(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "x.zip", FILES)
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "half.txt").write_text("half", encoding="utf-8")
    assert contents(unpack(archive, tmp_path / "out")) == FILES
