"""Files of lines: unpacked where they are packed with gzip, and one line of a stated length in memory at a time."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import IO, cast

from consilium.core.places import open_binary
from consilium.data.case import RowError

MAX_LINE = 256 * 2**20  # bytes, or characters of a csv file
_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@contextlib.contextmanager
def open_unpacked(path: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, here or in a bucket, as a stream; those in a gzip file are unpacked on the way."""
    with open_binary(path) as stream:
        is_packed = stream.read(2) == _GZIP
        stream.seek(0)
        if not is_packed:
            yield stream
            return
        try:
            with gzip.open(stream) as unpacked:
                yield cast(IO[bytes], unpacked)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise OSError(f"it is packed with gzip and damaged ({error}); copy it again, or unpack it") from None


def numbered_lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """The lines of a file with their numbers from 1, without a byte order mark; None for one above ``MAX_LINE``."""
    line = 0
    # The readline of a file in a bucket takes no limit.
    with io.BufferedReader(cast(io.RawIOBase, stream), 2**20) as buffered:
        while raw := buffered.readline(MAX_LINE):
            line += 1
            too_long = False
            while not raw.endswith(b"\n") and (more := buffered.readline(MAX_LINE)):
                raw, too_long = more, True
            yield line, None if too_long else raw.removeprefix(_BYTE_ORDER_MARK) if line == 1 else raw


def short(raw: bytes | None) -> bytes:
    """The line of ``numbered_lines``; one that is too long is a RowError."""
    if raw is None:
        raise RowError(f"the line has more than {MAX_LINE:,} bytes; divide it, or keep the row in a parquet file")
    return raw
