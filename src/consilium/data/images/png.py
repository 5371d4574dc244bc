"""PNGs made ready for Pillow: without the chunks beside the pixels, which may be damaged or large.

What the chunks say of transparent colours is read here, since Pillow compares it with levels that it has changed.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from consilium.data.images.pixels import cut_short, damaged

_WITH_HEADER = 33  # bytes
_START = b"\x89PNG\r\n\x1a\n"
_FRAMES = {b"acTL": 8, b"fcTL": 26, b"fdAT": None}  # of an animation, and how long they are
_GREY, _RGB, _PALETTE = 0, 2, 3
_DEPTHS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Png:
    """A PNG of the chunks that its pixels need, whether it has EXIF, and its transparent colour, if it has one.

    ``clear`` is that colour in the levels that Pillow gives: red, green and blue, or one level of grey of 16 bits.
    """

    data: bytes
    has_exif: bool
    clear: tuple[int, ...] | None
    notes: tuple[str, ...]


def is_png(data: bytes) -> bool:
    """Whether these are the bytes of a PNG."""
    return data.startswith(_START)


def ready(data: bytes, *, name: str) -> Png:
    """The PNG for Pillow; one that is cut short is an ImageError.

    As in libpng, a chunk beside the pixels whose check sum is wrong counts as missing. Texts, profiles and the like
    are left out: they do not change how the image is shown here.
    """
    chunks = list(_chunks(data, name))
    _, start, end = chunks[0]
    depth, colours = (data[start + 8], data[start + 9]) if end - start == 13 else (0, -1)
    beside = {kind: (start, end) for kind, start, end in chunks if kind in (b"tRNS", b"eXIf")}
    unsound = {kind for kind, start, end in chunks if not _is_sound(data, kind, start, end)}
    notes = [f"its chunk {kind.decode()} is damaged and is left out" for kind in sorted(unsound)]
    wanted = {b"eXIf"} - unsound
    if not unsound & _FRAMES.keys():
        wanted |= _FRAMES.keys()
    clear = None
    if b"tRNS" in beside and b"tRNS" not in unsound:
        if colours == _PALETTE:
            wanted.add(b"tRNS")
        elif colours in (_GREY, _RGB) and depth in _DEPTHS:
            clear = _clear(data[slice(*beside[b"tRNS"])], depth, colours)
            notes += [] if clear else ["its chunk tRNS names no colour and is left out"]
    kept = [(start - 8, end + 4) for kind, start, end in chunks if not kind[0] & 32 or kind in wanted]
    if len(kept) < len(chunks):
        data = b"".join([_START, *(data[start:end] for start, end in kept)])
    return Png(data, b"eXIf" in wanted and b"eXIf" in beside, clear, tuple(notes))


def _chunks(data: bytes, name: str) -> Iterator[tuple[bytes, int, int]]:
    """Each chunk's kind and where its content starts and ends."""
    place, kind = len(_START), b""
    while kind != b"IEND":
        if data[len(_START) + 4 : len(_START) + 8] != b"IHDR" or len(data) < _WITH_HEADER:
            raise damaged(name, "a PNG that does not start with a whole header, IHDR")
        if place + 12 > len(data):
            raise cut_short(name, "a PNG without its end (IEND)")
        kind, start = data[place + 4 : place + 8], place + 8
        place = start + int.from_bytes(data[place : place + 4], "big") + 4
        yield kind, start, place - 4


def _is_sound(data: bytes, kind: bytes, start: int, end: int) -> bool:
    """Whether a chunk beside the pixels that is read is as it was written; of the others Pillow or nobody asks."""
    if kind not in (b"tRNS", b"eXIf", *_FRAMES):
        return True
    length = _FRAMES.get(kind)
    has_length = length is None or end - start == length
    return has_length and zlib.crc32(data[start - 4 : end]) == int.from_bytes(data[end : end + 4], "big")


def _clear(content: bytes, depth: int, colours: int) -> tuple[int, ...] | None:
    count = 1 if colours == _GREY else 3
    if len(content) != 2 * count:
        return None
    values = [int.from_bytes(content[2 * number : 2 * number + 2], "big") for number in range(count)]
    if depth == 16:
        return tuple(values) if colours == _GREY else tuple(value >> 8 for value in values)
    highest = 2**depth - 1
    return tuple((value & highest) * 255 // highest for value in values) * (3 // count)
