"""Unpacking of archives that nobody vouches for: whole, inside one folder, or not at all."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path

from consilium.core.errors import DataError
from consilium.core.files import fingerprint, made_once

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_BYTES = 2**40  # all files of an archive together
MAX_RATIO = 200  # times the size of the archive; counted from RATIO_FREE bytes on
RATIO_FREE = 2**28
MAX_MEMBERS = 20_000_000
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError)


def is_archive(path: str | Path) -> bool:
    """Whether a path names an archive, by its end."""
    return str(path).lower().endswith(SUFFIXES)


def stem(path: str | Path) -> str:
    """The name of an archive without its end: ``images`` of ``images.tar.gz``."""
    name = Path(path).name
    return name[: -len(next(end for end in sorted(SUFFIXES, key=len, reverse=True) if name.lower().endswith(end)))]


def unpack_once(archive: Path, root: Path) -> Path:
    """The folder ``{root}/{name}-{fingerprint}`` with what is in an archive; another one when the archive changed."""
    try:
        found = archive.stat()
    except OSError as error:
        raise DataError(f"the archive {archive} cannot be read: {error}.") from error
    key = fingerprint([str(archive.absolute()), found.st_size, found.st_mtime_ns])
    return unpack(archive, root / f"{stem(archive)}-{key}")


def unpack(archive: Path, folder: Path, *, max_bytes: int = MAX_BYTES) -> Path:
    """Unpack a zip or tar into the new ``folder``: all of it, or nothing and a DataError that names what is not safe.

    Refused are names that lead out of the folder (``..``, from the root, drive letters), links that do, devices,
    encrypted members, and more than ``max_bytes``, ``MAX_RATIO`` times the archive or the free disk. Links are
    made last, so that nothing is ever written through one. A folder that is there already stays as it is.
    """
    try:
        return made_once(folder, lambda made: _fill(archive, made, _Limit(archive, made, max_bytes)))
    except tarfile.FilterError as error:
        raise _refuse(archive, error.tarinfo.name, f"is not safe ({error})") from error
    except _DAMAGE as error:
        words = " ".join(str(error).split())
        raise DataError(f"the archive {archive} is damaged or no archive: {words}. Copy it again.") from error
    except OSError as error:
        raise DataError(f"the archive {archive} cannot be unpacked: {error}.") from error


class _Limit:
    """Counts what is unpacked, and stops a bomb before it is."""

    def __init__(self, archive: Path, folder: Path, max_bytes: int) -> None:
        self._archive, self._bytes, self._members = archive, 0, 0
        ratio = max(RATIO_FREE, MAX_RATIO * archive.stat().st_size)
        free = shutil.disk_usage(folder).free
        self._limits = (
            (max_bytes, f"the limit of {max_bytes:,} bytes"),
            (ratio, f"{MAX_RATIO} times its own size (the limit here: {ratio:,} bytes), as only a trap is"),
            (free, f"the {free:,} bytes that are free on the disk of {folder.parent}"),
        )

    def add(self, name: str, size: int) -> None:
        self._members += 1
        self._bytes += size
        limit, told = min(self._limits)
        if self._members > MAX_MEMBERS:
            limit, told = -1, f"{MAX_MEMBERS:,} files"
        if self._bytes > limit:
            raise DataError(
                f"the archive {self._archive} is refused: up to '{name}' it holds {self._bytes:,} bytes in "
                f"{self._members:,} files, more than {told}. If you trust it, unpack it yourself and give the folder."
            )


def _refuse(archive: Path, name: str, why: str) -> DataError:
    return DataError(
        f"the archive {archive} is refused: its member '{name}' {why}. Nothing was unpacked; pack it anew without that."
    )


def _check_name(archive: Path, name: str) -> None:
    parts = re.split(r"[\\/]", name)
    if ".." in parts:
        raise _refuse(archive, name, "leads out of the folder (..)")
    if not parts[0]:
        raise _refuse(archive, name, "has an absolute path")
    if re.match(r"[A-Za-z]:", name):
        raise _refuse(archive, name, "has a drive letter")


def _fill(archive: Path, folder: Path, limit: _Limit) -> None:
    links = (_fill_zip if archive.name.lower().endswith(".zip") else _fill_tar)(archive, folder, limit)
    places = [(folder / name, name, target) for name, target, _ in links]

    def check(path: Path, name: str, target: str) -> None:
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            raise _refuse(archive, name, f"is a link to '{target}', which leads out of the folder")

    for (path, name, target), (_, _, hard) in zip(places, links, strict=True):
        check(path.parent, name, target)
        path.parent.mkdir(parents=True, exist_ok=True)
        if hard:
            check(folder / target, name, target)
            os.link(folder / target, path)
        else:
            path.symlink_to(target)
    for place in places:  # only now, since a link may lead out by way of a later one
        check(*place)


_Links = list[tuple[str, str, bool]]  # name, target, and whether it is a hard one


def _fill_zip(archive: Path, folder: Path, limit: _Limit) -> _Links:
    links = []
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            _check_name(archive, member.filename)
            if member.flag_bits & 1:
                raise _refuse(archive, member.filename, "is encrypted")
            limit.add(member.filename, member.file_size)
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where no Unix system packed it
            if kind == stat.S_IFLNK:
                links.append((member.filename, opened.read(member).decode(errors="surrogateescape"), False))
            elif kind in (0, stat.S_IFREG, stat.S_IFDIR):
                opened.extract(member, folder)
            else:
                raise _refuse(archive, member.filename, "is a device or pipe")
    return links


def _fill_tar(archive: Path, folder: Path, limit: _Limit) -> _Links:
    links = []
    with tarfile.open(archive) as opened:
        for member in opened:
            _check_name(archive, member.name)
            limit.add(member.name, member.size)
            if member.issym() or member.islnk():
                links.append((member.name, member.linkname, member.islnk()))
            elif member.isreg() or member.isdir():
                opened.extract(member, folder, filter="data")
            else:
                raise _refuse(archive, member.name, "is a device or pipe")
    return sorted(links, key=lambda link: not link[2])  # hard links first: no other link stands in their way yet
