"""Files on this machine and in buckets (``gs://``, ``s3://``, ``hf://``), read alike; a path is always text."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import posixpath
import re
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import unquote

from consilium.core.errors import ConsiliumError, MissingExtraError

_FRAME = re.compile("[0-9]{1,9}")
BUCKETS = ("gs", "gcs", "s3", "hf")
THREADS = 32  # that wait for a bucket at the same time
MOST_CORES = 8
# What a file system calls the thing that changes with a file's content; the first that it tells counts, since a
# listing and a look at one file may tell the others in different words.
_VERSIONS = ("md5Hash", "generation", "ETag", "etag", "blob_id", "mtime", "LastModified", "updated")
_ACCESS = {
    "gs": "`gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "`aws configure`, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "hf": "`hf auth login`, or HF_TOKEN",
}
# Errors of the libraries that find no usable key on this machine.
_NO_ACCESS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError")


@dataclass(frozen=True)
class FileFacts:
    """``version`` changes when the file does: nanoseconds of its last change, or a hash of what its bucket says."""

    size: int
    version: int
    is_file: bool


def is_remote(path: str) -> bool:
    """Whether a path is an address (``gs://bucket/file``)."""
    return "://" in path


def is_bucket(path: str) -> bool:
    """Whether a path lies in a kind of bucket that can be read."""
    return is_remote(path) and path.partition("://")[0] in BUCKETS


def local_path(path: str) -> str:
    """The path of this machine that a ``file://`` address names; others stay."""
    if not path.lower().startswith("file://"):
        return path
    return unquote(path[len("file://") :].removeprefix("localhost"))


def absolute(path: str) -> str:
    """The path from the root of this machine, ``~`` written out; an address of another one stays."""
    path = local_path(path)
    return path.rstrip("/") if is_remote(path) else os.path.abspath(os.path.expanduser(path))


def join(root: str, path: str) -> str:
    """``path`` seen from ``root``; an absolute path or an address stays."""
    if is_remote(path):
        return path
    if is_remote(root):
        scheme, _, rest = root.partition("://")
        return f"{scheme}://{posixpath.normpath(posixpath.join(rest, path.lstrip('/')))}"
    return os.path.normpath(os.path.join(root, path))


def parent(path: str) -> str:
    """The folder of a path."""
    return path.rpartition("/")[0] if is_remote(path) else os.path.dirname(path)


def split_frame(path: str) -> tuple[str, int | None]:
    """The file and the frame that a path such as ``scan.dcm#12`` names; None where it names none.

    A file of this machine whose own name ends that way is that file.
    """
    file, mark, frame = path.rpartition("#")
    if not mark or not _FRAME.fullmatch(frame) or (not is_remote(path) and os.path.exists(path)):
        return path, None
    return file, int(frame)


def reading_threads(*, remote: bool) -> int:
    """How many threads read and decode images best: from a bucket a thread mostly waits."""
    return THREADS if remote else min(MOST_CORES, os.cpu_count() or 1)


def facts(path: str) -> FileFacts | None:
    """What is known of a file (of the file that a frame is in) without reading it; None where there is none."""
    path, _ = split_frame(path)
    if not is_remote(path):
        try:
            found = os.stat(path)
        except (OSError, ValueError):  # ValueError: a zero byte
            return None
        return FileFacts(found.st_size, found.st_mtime_ns, stat.S_ISREG(found.st_mode))
    try:
        with remote_errors(path):
            return _remote_facts(filesystem(path).info(path))
    except FileNotFoundError:
        return None


def facts_of(paths: Sequence[str]) -> list[FileFacts | None]:
    """The facts of many files; each folder of a bucket is listed once, so that no file there is asked for alone."""
    paths = [split_frame(path)[0] for path in paths]
    folders = sorted({parent(path) for path in paths if is_remote(path)})
    with ThreadPoolExecutor(THREADS) as pool:
        listings = dict(zip(folders, pool.map(names_in, folders), strict=True))
    return [listings[parent(path)].get(posixpath.basename(path)) if is_remote(path) else facts(path) for path in paths]


def names_in(folder: str) -> dict[str, FileFacts]:
    """The names in one folder of a bucket; none where it does not exist."""
    try:
        with remote_errors(folder):
            listing = filesystem(folder).ls(folder, detail=True)
    except FileNotFoundError:
        return {}
    return {posixpath.basename(info["name"]): _remote_facts(info) for info in listing}


def find(folder: str) -> dict[str, FileFacts]:
    """All files under a folder of a bucket by their path from there, sorted, out of its listing alone."""
    with remote_errors(folder):
        listing = filesystem(folder).find(folder, detail=True)
    start = len(folder.partition("://")[2].rstrip("/")) + 1
    return {path[start:]: _remote_facts(info) for path, info in sorted(listing.items())}


def matches(pattern: str) -> list[str]:
    """The files of a bucket that a glob names, sorted."""
    scheme = pattern.partition("://")[0]
    with remote_errors(pattern):
        return [f"{scheme}://{path}" for path in sorted(filesystem(pattern).glob(pattern))]


def _remote_facts(info: dict[str, Any]) -> FileFacts:
    """The facts in what fsspec says of a file."""
    told = repr(next((info[key] for key in _VERSIONS if info.get(key)), None))
    version = int.from_bytes(hashlib.blake2b(told.encode(), digest_size=8).digest(), "big") >> 1
    return FileFacts(int(info.get("size") or 0), version, info.get("type") == "file")


def exists(path: str) -> bool:
    """Whether there is a file at ``path``."""
    found = facts(path)
    return found is not None and found.is_file


@contextlib.contextmanager
def open_binary(path: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, as a stream."""
    with open(path, "rb") if not is_remote(path) else io.BufferedReader(_RemoteFile(path), 2**20) as stream:
        yield stream


class _RemoteFile(io.RawIOBase):
    """A file of a bucket that fails like one of this machine: with an OSError."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: Any = None  # what cannot be opened is closed all the same, when Python removes it
        with remote_errors(path):
            self._file = filesystem(path).open(path, "rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with remote_errors(self._path):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed and self._file is not None:
            self._file.close()
        super().close()


def read_bytes(path: str) -> bytes:
    """All bytes of a file; one that cannot be read is an OSError."""
    if not is_remote(path):
        with open(path, "rb") as stream:
            return stream.read()
    with remote_errors(path):
        data: bytes = filesystem(path).cat_file(path)
        return data


def filesystem(path: str) -> Any:
    """The fsspec file system of an address; its extra missing is a MissingExtraError.

    What it listed before it forgets: a file that changed since must be seen.
    """
    import fsspec

    scheme = path.partition("://")[0]
    if scheme not in BUCKETS:
        known = ", ".join(f"{name}://" for name in BUCKETS)
        raise OSError(f"{path} is an address of a kind that is not read; expected {known} or a path of this machine")
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError:
        raise MissingExtraError(f"Reading {scheme}://", "cloud") from None


@contextlib.contextmanager
def remote_errors(path: str) -> Iterator[None]:
    """Whatever the library of a bucket raises as an OSError that names the path and says what to look at."""
    try:
        yield
    except ConsiliumError:
        raise
    except Exception as error:  # each library has errors of its own
        if isinstance(error, FileNotFoundError) or _status(error) == 404:
            raise FileNotFoundError(
                f"{path} does not exist, or this machine may not see it: check the address, and its access"
            ) from error
        scheme = path.partition("://")[0].replace("gcs", "gs")
        if scheme not in _ACCESS:
            raise
        words = " ".join(str(error).split())[:300]
        raise (PermissionError if _refused(error) else OSError)(
            f"{path} cannot be reached ({type(error).__name__}: {words}). Check the address, the network, and that "
            f"this machine has access: {_ACCESS[scheme]}"
        ) from error


def _status(error: Exception) -> int | None:
    """The status of HTTP that an error of a bucket's library carries."""
    found = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "code", None)
    return found if isinstance(found, int) else None


def _refused(error: Exception) -> bool:
    """Whether access is missing, which no other try mends."""
    no_access = isinstance(error, PermissionError) or type(error).__name__ in _NO_ACCESS
    return no_access or _status(error) in (401, 403) or str(error).startswith("Forbidden")  # gcsfs says it in words
