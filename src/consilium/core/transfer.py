"""From buckets to this machine, once for each content, and back."""

from __future__ import annotations

import os
import posixpath
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from consilium.core.files import fingerprint, made_once
from consilium.core.places import FileFacts, facts, filesystem, is_remote, join, remote_errors

WAITS = (1.0, 5.0, 20.0)  # seconds before each further try


def cache_folder() -> Path:
    """Where downloads and unpacked bundles lie: CONSILIUM_CACHE, or ~/.cache/consilium. It may be deleted."""
    return Path(os.environ.get("CONSILIUM_CACHE") or "~/.cache/consilium").expanduser().absolute()


def fetch(place: str | Path, *, names: Sequence[str] = ()) -> Path:
    """A file or folder on this machine; an address is downloaded once for each content, into the cache.

    Of a folder in a bucket those files come that lie in it under one of ``names``. A path of this machine is given
    back. What cannot be had is an OSError.
    """
    address = str(place)
    if not is_remote(address):
        return Path(place).expanduser()
    address = address.rstrip("/")
    found = facts(address)
    if found is not None and found.is_file:
        files = {posixpath.basename(address): (address, found)}
    else:
        looked = {name: (join(address, name), facts(join(address, name))) for name in names}
        files = {name: (path, known) for name, (path, known) in looked.items() if known is not None and known.is_file}
    if not files:
        wanted = f" (looked there for {', '.join(names)})" if names else ""
        raise FileNotFoundError(f"{address} does not exist, or this machine may not see it{wanted}")

    def download(folder: Path) -> None:
        for name, (path, known) in files.items():
            _retried(partial(_download, path, folder / name, known))

    key = fingerprint([address, *((name, known.size, known.version) for name, (_, known) in files.items())])
    folder = made_once(cache_folder() / f"{posixpath.basename(address)}-{key}", download)
    return folder / posixpath.basename(address) if found is not None and found.is_file else folder


def _download(path: str, target: Path, known: FileFacts) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with remote_errors(path):
        filesystem(path).get_file(path, str(target))
    if target.stat().st_size != known.size:
        raise OSError(f"{path} came with {target.stat().st_size:,} of its {known.size:,} bytes")


def send(file: Path, address: str) -> None:
    """Copy a file into a bucket, with more than one try; in the end it is an OSError."""

    def upload() -> None:
        with remote_errors(address):
            filesystem(address).put_file(str(file), address)

    _retried(upload)


def _retried(action: Callable[[], None]) -> None:
    for wait in (*WAITS, None):
        try:
            return action()
        except (FileNotFoundError, PermissionError):
            raise  # another try changes nothing
        except OSError:
            if wait is None:
                raise
            time.sleep(wait)
    return None
