"""The LMDB form of RET-CLIP's data: a folder with the databases ``imgs`` and ``pairs``.

``pairs`` has a key for each pair, ``0``, ``1`` ..., and ``num_samples``; ``imgs`` has the images of each image id, and
``num_images``. What Consilium writes has ``format`` in ``pairs``, a pair as a line of JSON, and images as they are
behind a line of JSON with the length of each; what other programs write is a pickle or base64.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from consilium.core.errors import MissingExtraError
from consilium.data.case import RowError, View
from consilium.data.sources.jsonl import json_object
from consilium.data.sources.pickled import plain_value
from consilium.data.sources.ret_clip import eye_views

IMAGES, PAIRS = "imgs", "pairs"
DATA = "data.mdb"
PAIR_COUNT, IMAGE_COUNT, FORMAT_KEY = b"num_samples", b"num_images", b"format"
FORMAT = b"1"
LONGEST_KEY = 511  # bytes
_LONGEST_HEADER = 4096  # bytes
_AGAIN = "copy it again, or write it again from its TSV and JSONL"


def lmdb_library() -> Any:
    """The lmdb package; without it a MissingExtraError."""
    try:
        import lmdb
    except ImportError:
        raise MissingExtraError("An LMDB", "lmdb") from None
    return lmdb


class LmdbFolder:
    """The pairs and images of a folder, read at random; it can be read from one thread of one process."""

    def __init__(self, folder: str, pairs: Any, images: Any) -> None:
        self.folder = folder
        self._pairs, self._images = pairs, images
        self.is_ours = pairs.get(FORMAT_KEY) is not None
        if pairs.get(FORMAT_KEY) not in (None, FORMAT):
            raise OSError(f"{folder} has format {_shown(pairs.get(FORMAT_KEY))}; this version reads {_shown(FORMAT)}")
        count = pairs.get(PAIR_COUNT)
        if count is None or not bytes(count).isdigit():
            raise OSError(f"{folder}/{PAIRS} does not say how many pairs it holds (num_samples), so it was not "
                          f"written to its end; {_AGAIN}")  # fmt: skip
        self.count = int(bytes(count))

    def pair(self, number: int) -> bytes | None:
        """The value of a pair, by its number from 0; None where there is none."""
        found = self._pairs.get(pair_key(number))
        return None if found is None else bytes(found)

    def holds(self, image_id: str) -> bool:
        """Whether there are images of this id."""
        return self._raw(image_id) is not None

    def views(self, image_id: str) -> list[View] | None:
        """The images of an id, None where there are none; a value that cannot be used is a RowError."""
        found = self._raw(image_id)
        return None if found is None else unpacked_images(found)

    def image_ids(self) -> Iterator[bytes]:
        """The keys of all images."""
        return (key for key in map(bytes, self._images.cursor().iternext(values=False)) if key != IMAGE_COUNT)

    def _raw(self, image_id: str) -> memoryview | None:
        key = image_id.encode()
        found: memoryview | None = self._images.get(key) if 0 < len(key) <= LONGEST_KEY else None
        return found


@contextlib.contextmanager
def open_lmdb(folder: str) -> Iterator[LmdbFolder]:
    """A folder of ``imgs`` and ``pairs``; one that is cut short or damaged is an OSError."""
    lmdb = lmdb_library()
    try:
        with _transaction(lmdb, folder, PAIRS) as pairs, _transaction(lmdb, folder, IMAGES) as images:
            yield LmdbFolder(folder, pairs, images)
    except lmdb.Error as error:
        raise OSError(f"{folder} is damaged, or no LMDB ({error}); {_AGAIN}") from None


@contextlib.contextmanager
def _transaction(lmdb: Any, folder: str, name: str) -> Iterator[Any]:
    path = os.path.join(folder, name)
    with lmdb.open(path, readonly=True, create=False, lock=False, readahead=False, max_dbs=0) as environment:
        # What lies behind the end of a file is mapped, too, and looking at it would end this process.
        pages, size = environment.info()["last_pgno"] + 1, os.path.getsize(os.path.join(path, DATA))
        expected = pages * environment.stat()["psize"]
        if size < expected:
            raise OSError(f"{path}/{DATA} is cut short: it has {size:,} bytes of {expected:,}; {_AGAIN}")
        with environment.begin(buffers=True) as transaction:
            yield transaction


def pair_key(number: int) -> bytes:
    """The key of a pair, by its number from 0."""
    return str(number).encode()


def pair_row(raw: bytes) -> dict[str, Any]:
    """A pair as a row {text_id, text, image_ids ...}; one that cannot be used is a RowError."""
    if raw.startswith(b"{"):
        return json_object(raw)
    value = plain_value(raw)
    if not isinstance(value, tuple) or len(value) != 3:
        raise RowError("the pair is not (image_id, text_id, text), as RET-CLIP and Chinese-CLIP write it")
    image_id, text_id, text = (_text(item) for item in value)
    return {"text_id": text_id, "text": text, "image_ids": [image_id]}


def packed_images(images: Mapping[str, bytes]) -> bytes:
    """The images of an id as they are stored: a line that says how many bytes each has, and these; b'' is none."""
    header = json.dumps({name: len(image) for name, image in images.items() if image})
    return b"".join([header.encode(), b"\n", *images.values()])


def unpacked_images(raw: memoryview) -> list[View]:
    """The images in a stored value, ours or another program's."""
    first = bytes(raw[:1])
    if first == b"{":
        header, end, _ = bytes(raw[:_LONGEST_HEADER]).partition(b"\n")
        sizes = json_object(header)
        start = len(header) + len(end)
        if not all(isinstance(size, int) and size >= 0 for size in sizes.values()) or (
            sum(sizes.values()) != len(raw) - start
        ):
            raise RowError("the images are not as long as the line before them says")
        views = []
        for name, size in sizes.items():
            views.append(View("", name, bytes(raw[start : start + size])))
            start += size
        return views
    if first not in (b"\x80", b"("):  # Chinese-CLIP's: base64 alone
        return _eyes([bytes(raw)])
    value = plain_value(bytes(raw))
    cells = value if isinstance(value, tuple) else (value,)
    if len(cells) not in (1, 2) or not all(isinstance(cell, str | bytes) for cell in cells):
        raise RowError(f"it holds {len(cells)} items; expected base64 of one image, or of a left and a right eye")
    return _eyes([cell.encode() if isinstance(cell, str) else cell for cell in cells])


def _eyes(cells: list[bytes]) -> list[View]:
    return eye_views(cells, called="image", first=1)


def _text(value: Any) -> Any:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise RowError("a text of the pair is not UTF-8") from None


def _shown(value: Any) -> str:
    return bytes(value).decode("ascii", "backslashreplace")
