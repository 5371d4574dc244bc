"""Files on this machine and in buckets (``gs://``, ``s3://``, ``hf://``), read alike; a path is always text."""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from consilium.core.errors import MissingExtraError

BUCKETS = ("gs", "gcs", "s3", "hf")
# What a file system calls the thing that changes with a file's content.
_VERSIONS = ("etag", "ETag", "generation", "md5Hash", "blob_id", "LastModified", "updated", "mtime", "last_commit")


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


def absolute(path: str) -> str:
    """The path from the root of this machine, ``~`` written out; an address stays."""
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


def facts(path: str) -> FileFacts | None:
    """What is known of a file without reading it; None where there is none."""
    if not is_remote(path):
        try:
            found = os.stat(path)
        except (OSError, ValueError):  # ValueError: a zero byte
            return None
        return FileFacts(found.st_size, found.st_mtime_ns, stat.S_ISREG(found.st_mode))
    try:
        with remote_errors(path):
            return remote_facts(filesystem(path).info(path))
    except FileNotFoundError:
        return None


def remote_facts(info: dict[str, Any]) -> FileFacts:
    """The facts in what fsspec says of a file."""
    told = repr([info.get(key) for key in _VERSIONS])
    version = int.from_bytes(hashlib.blake2b(told.encode(), digest_size=8).digest(), "big") >> 1
    return FileFacts(int(info.get("size") or 0), version, info.get("type") == "file")


def exists(path: str) -> bool:
    """Whether there is a file at ``path``."""
    found = facts(path)
    return found is not None and found.is_file


@contextlib.contextmanager
def open_binary(path: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, as a stream."""
    if not is_remote(path):
        with open(path, "rb") as stream:
            yield stream
        return
    with remote_errors(path), filesystem(path).open(path, "rb") as stream:
        yield stream


def read_bytes(path: str) -> bytes:
    """All bytes of a file; one that cannot be read is an OSError."""
    if not is_remote(path):
        with open(path, "rb") as stream:
            return stream.read()
    with remote_errors(path):
        data: bytes = filesystem(path).cat_file(path)
        return data


def filesystem(path: str) -> Any:
    """The fsspec file system of an address; its extra missing is a MissingExtraError."""
    import fsspec

    scheme = path.partition("://")[0]
    if scheme not in BUCKETS:
        known = ", ".join(f"{name}://" for name in BUCKETS)
        raise OSError(f"{path} is an address of a kind that is not read; expected {known} or a path of this machine")
    try:
        return fsspec.filesystem(scheme)
    except ImportError:
        raise MissingExtraError(f"Reading {scheme}://", "cloud") from None


@contextlib.contextmanager
def remote_errors(path: str) -> Iterator[None]:
    """Whatever the library of a bucket raises as an OSError that names the path."""
    try:
        yield
    except (OSError, MissingExtraError, GeneratorExit):
        raise
    except Exception as error:
        raise OSError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
