"""TIFFs of whole bytes: any number of bits, signs, floats, planes and channels, most of which Pillow does not read.

Axes in names: H height, W width, S sample (a channel of a pixel), R row of a strip or tile.
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from consilium.core.errors import ImageError
from consilium.data.images.pixels import (
    Grey,
    ImageInfo,
    Pixels,
    Values,
    cut_short,
    damaged,
    no_such_frame,
    noted,
    on_white,
    upright,
)

Order = Literal["<", ">"]
_STARTS: dict[bytes, tuple[Order, bool]] = {
    b"II*\0": ("<", False),
    b"MM\0*": (">", False),
    b"II+\0": ("<", True),
    b"MM\0+": (">", True),
}
# The types of a tag's values: bytes, text, 16, 32 and 64 bits; others (fractions, floats) are in no tag that counts.
_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_PLAIN, _LZW, _DEFLATE, _PACKBITS, _LZMA, _ZSTD = 1, 5, (8, 32946), 32773, 34925, 50000
_COMPRESSIONS = (_PLAIN, _LZW, *_DEFLATE, _PACKBITS, _LZMA, _ZSTD)
_WITH_PREDICTOR = (_LZW, *_DEFLATE, _LZMA, _ZSTD)
_KINDS: dict[int, Literal["u", "i", "f"]] = {0: "u", 1: "u", 2: "i", 3: "f", 4: "u"}
_FORMS = (1, 2, 3, 4, 5, 6)
_MOST_VALUES, _MOST_PAGES, _MOST_SAMPLES = 2**22, 2**16, 64
_DESCRIPTION, _CMYK = 270, 5
_AT_ONCE = 2**26  # bytes that are unpacked together
# How else pixels may be packed that the library with Pillow unpacks: fax and JPEG.
_OF_PILLOW = (2, 3, 4, 6, 7, 32771, 32809)


@dataclass(frozen=True)
class _Page:
    """The tags of a page, and how many pages the file has."""

    data: bytes
    order: Order
    is_big: bool
    tags: dict[int, tuple[int, ...]]
    pages: int

    def one(self, tag: int, default: int) -> int:
        """The first value of a tag."""
        return (self.tags.get(tag) or (default,))[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, as stored."""
        return self.one(257, 0), self.one(256, 0)

    @property
    def samples(self) -> int:
        """The number of channels."""
        return self.one(277, 1)

    @property
    def photometric(self) -> int:
        """How the values are meant: 0 and 1 grey (0: low is white), 2 red, green, blue."""
        return self.one(262, 2 if self.samples >= 3 else 1)

    @property
    def dtype(self) -> np.dtype[np.generic] | None:
        """The type of every sample; None where they differ or are no whole bytes."""
        bits = set(self.tags.get(258) or (self._likely_bits(),))
        forms = {form if form in _FORMS else 1 for form in self.tags.get(339) or (1,)}
        if len(bits) > 1 or len(forms) > 1:
            return None
        (size,), kind = bits, _KINDS.get(forms.pop())
        sizes = (16, 32, 64) if kind == "f" else (8, 16, 32, 64)
        return None if kind is None or size not in sizes else np.dtype(f"{self.order}{kind}{size // 8}")

    def _likely_bits(self) -> int:
        """The bits of a sample where no tag gives them: 1 as the standard says, or what strips of plain bytes hold."""
        height, width = self.size
        stored = sum(self.tags.get(279, ())) if self.one(259, 1) == _PLAIN else 0
        values = height * width * self.samples
        if not stored or not values or stored % values or stored == height * -(-width * self.samples // 8):
            return 1
        return 8 * (stored // values)

    def described(self) -> str:
        """What kind of TIFF it is."""
        form = self.one(339, 1)
        bits = "/".join(map(str, list(dict.fromkeys(self.tags.get(258) or (1,)))[:4]))
        kind = {2: "signed whole numbers", 3: "floating point", 5: "complex whole numbers", 6: "complex numbers"}
        packed = "" if self.one(259, 1) == 1 else f", compression {self.one(259, 1)}"
        channels = "1 channel" if self.samples == 1 else f"{self.samples} channels"
        size = "1 bit" if bits == "1" else f"{bits} bits"
        return (
            f"TIFF of {channels} of {size} each ({kind.get(form, 'whole numbers')}; photometric interpretation "
            f"{self.photometric}{packed})"
        )


def is_tiff(data: bytes) -> bool:
    """Whether these are the bytes of a TIFF."""
    return data[:4] in _STARTS


def probe_tiff(data: bytes, *, name: str, frame: int | None) -> ImageInfo | None:
    """What the tags say; None for a page that is left to Pillow. A page without all of its pixels is an ImageError."""
    page = _page(data, name, frame)
    if page is None:
        return None
    if page.one(259, 1) not in (*_COMPRESSIONS, *_OF_PILLOW):
        raise unread_tiff(data, name=name, frame=frame)
    if not _is_ours(page):
        return None
    height, width = page.size
    if (page.photometric < 2 and page.samples > 4) or page.samples > _MOST_SAMPLES:
        raise unread_tiff(data, name=name, frame=frame)
    if height < 1 or width < 1:
        raise cut_short(name, f"a TIFF of {width} x {height} pixels")
    notes = []
    if page.samples > 4 and page.photometric == 2:
        notes.append(f"it has {page.samples} channels, of which the first three are read as red, green and blue")
    elif page.samples > 2 and page.photometric < 2:
        notes.append(f"its {page.samples} channels are called grey and are read as red, green and blue")
    if frame is None and page.pages > 1:
        notes.append(f"it holds {page.pages} frames, of which the first is read")
    orientation = page.one(274, 1)
    orientation = orientation if 1 <= orientation <= 8 else 1
    if orientation >= 5:
        height, width = width, height
    colours = "CMYK" if page.photometric == _CMYK else "RGB"
    mode = colours if page.samples > 2 else "L" if page.dtype == np.uint8 else "F"
    return ImageInfo(width, height, "TIFF", mode, orientation, tuple(notes))


def read_tiff(data: bytes, *, name: str, frame: int | None, orientation: int) -> Pixels | Grey | None:
    """The pixels of a page that has passed ``probe_tiff``: grey values, or colours over their full range.

    None for a page that is left to Pillow.

    Whole numbers of colours are cut to their upper 8 bits; floats are from 0 to 1, or else from their lowest to their
    highest value.
    """
    page = _page(data, name, frame)
    if page is None or not _is_ours(page):
        return None
    try:
        values_HWS = upright(_values(page, name), orientation)
    except ImageError:
        raise
    except (ValueError, OSError, zlib.error) as error:
        raise damaged(name, error) from error
    has_alpha = page.samples in (2, 4) and page.one(338, 0) in (1, 2)
    if page.samples <= 2 and values_HWS.dtype != np.uint8:
        values_HW = values_HWS[..., 0]
        text = bytes(value % 256 for value in page.tags.get(_DESCRIPTION, ())).decode("latin-1")
        grey = noted(values_HW, text) or Grey(values_HW, inverted=page.photometric == 0)
        return on_white(grey, values_HWS[..., 1] == 0) if has_alpha else grey
    if page.photometric == _CMYK:
        return _from_cmyk(_levels(values_HWS[..., :4]))
    levels_HWC = _levels(values_HWS[..., :3] if page.samples > 2 else np.dstack([values_HWS[..., 0]] * 3))
    if page.photometric == 0:
        levels_HWC = 255 - levels_HWC
    if not has_alpha:
        return levels_HWC
    opacity_HW1 = _levels(values_HWS[..., -1:]) / 255
    if page.one(338, 0) == 1:  # the colours were multiplied by it already
        return np.rint(np.minimum(levels_HWC + 255 * (1 - opacity_HW1), 255)).astype(np.uint8)
    return np.rint(levels_HWC * opacity_HW1 + 255 * (1 - opacity_HW1)).astype(np.uint8)


def unread_tiff(data: bytes, *, name: str, frame: int | None) -> ImageError:
    """The error of a kind of TIFF that is not read."""
    page = _page(data, name, frame)
    if page is None:
        return cut_short(name, "a TIFF without its directory")
    return ImageError(
        f"{name} is a {page.described()}, which is not read; convert it to grey values or RGB of 8 or 16 "
        "bits (in ImageJ: Image > Type, then save as TIFF), or leave the row out."
    )


def _is_ours(page: _Page) -> bool:
    dtype = page.dtype
    if dtype is None or page.photometric not in (0, 1, 2, _CMYK) or page.one(259, 1) not in _COMPRESSIONS:
        return False
    return page.one(266, 1) != 2 and page.samples >= {2: 3, _CMYK: 4}.get(page.photometric, 1)


def _page(data: bytes, name: str, frame: int | None) -> _Page | None:
    """The directory of a page (the first unless one is named); None where it cannot be read."""
    order, is_big = _STARTS[data[:4]]
    places = list(_directories(data, order, is_big=is_big))
    if not places:
        return None
    if frame is not None and frame >= len(places):
        raise no_such_frame(name, frame, len(places))
    tags = _tags(data, places[frame or 0], order, is_big=is_big)
    return _Page(data, order, is_big, tags, len(places))


def _directories(data: bytes, order: Order, *, is_big: bool) -> Iterator[int]:
    """Where the directories of the pages are; a chain that leads nowhere, or back, ends."""
    count_kind, entry, pointer = ("Q", 20, "Q") if is_big else ("H", 12, "I")
    first = struct.calcsize(count_kind)
    seen: set[int] = set()
    try:
        (place,) = struct.unpack_from(f"{order}{pointer}", data, 8 if is_big else 4)
        while place and place not in seen and len(seen) < _MOST_PAGES:
            (count,) = struct.unpack_from(f"{order}{count_kind}", data, place)
            if not count or place + first + count * entry > len(data):
                return
            yield place
            seen.add(place)
            (place,) = struct.unpack_from(f"{order}{pointer}", data, place + first + count * entry)
    except struct.error:
        return


def _tags(data: bytes, place: int, order: Order, *, is_big: bool) -> dict[int, tuple[int, ...]]:
    """The whole numbers of a directory; what lies beyond the file, or is of another type, is left out."""
    count_kind, number_kind, inline = ("Q", "Q", 8) if is_big else ("H", "I", 4)
    (count,) = struct.unpack_from(f"{order}{count_kind}", data, place)
    place += struct.calcsize(count_kind)
    found: dict[int, tuple[int, ...]] = {}
    for _ in range(count):
        tag, kind, values = struct.unpack_from(f"{order}HH{number_kind}", data, place)
        start = place + 4 + inline
        place = start + inline
        if kind not in _TYPES or not 0 < values <= _MOST_VALUES:
            continue
        form = f"{order}{values}{_TYPES[kind]}"
        size = struct.calcsize(form)
        if size > inline:
            (start,) = struct.unpack_from(f"{order}{number_kind}", data, start)
        if start + size <= len(data):
            found.setdefault(tag, struct.unpack_from(form, data, start))
    return found


def _values(page: _Page, name: str) -> Values:
    """All values [H, W, S] in the byte order of this machine."""
    dtype = page.dtype
    assert dtype is not None
    (height, width), samples = page.size, page.samples
    planes = samples if page.one(284, 1) == 2 else 1  # planes of their own, or all samples of a pixel together
    offsets = page.tags.get(324, page.tags.get(273, ()))
    sizes = page.tags.get(325, page.tags.get(279, ()))
    if len(sizes) < len(offsets):  # some writers leave it out where nothing is compressed
        sizes = (len(page.data),) * len(offsets)
    row = width * samples // planes * dtype.itemsize
    tile = _tile(page, sizes, len(offsets) // planes, row)
    if min(tile) < 1 or tile[0] * tile[1] > 4 * height * width + 2**20:
        raise ImageError(f"{name} is a TIFF in tiles of {tile[1]} x {tile[0]} pixels; write it anew in strips.")
    down, across = -(-height // tile[0]), -(-width // tile[1])
    if len(offsets) < down * across * planes:
        raise cut_short(name, "a TIFF without all of its strips or tiles")
    result_HWS = np.empty((height, width, samples), dtype.newbyteorder("="))
    for plane in range(planes):
        numbers = range(plane * down * across, (plane + 1) * down * across)
        segments = [page.data[offsets[number] : offsets[number] + sizes[number]] for number in numbers]
        tops = [place // across * tile[0] for place in range(down * across)]
        rows = [tile[0] if 322 in page.tags else min(tile[0], height - top) for top in tops]
        channels = slice(None) if planes == 1 else slice(plane, plane + 1)
        blocks = _unpacked(segments, rows, page, (tile[1], samples // planes), dtype, name)
        for place, (top, block_RWS) in enumerate(zip(tops, blocks, strict=True)):
            left = place % across * tile[1]
            kept_RWS = block_RWS[: height - top, : width - left]
            result_HWS[top : top + len(kept_RWS), left : left + kept_RWS.shape[1], channels] = kept_RWS
    return result_HWS


def _tile(page: _Page, sizes: Sequence[int], strips: int, row: int) -> tuple[int, int]:
    """Height and width of a tile; a strip is as wide as the image.

    Where the rows of a strip are not given, there is one strip, or the first one says so by its size.
    """
    if 322 in page.tags:
        return page.one(323, 0), page.one(322, 0)
    height, width = page.size
    rows = page.one(278, 0)
    if strips > 1 and not 0 < rows < height:
        rows = sizes[0] // row if page.one(259, 1) == _PLAIN else -(-height // strips)
    return min(rows, height) if rows > 0 else height, width


def _unpacked(
    segments: Sequence[bytes],
    rows: Sequence[int],
    page: _Page,
    shape: tuple[int, int],
    dtype: np.dtype[np.generic],
    name: str,
) -> Iterator[Values]:
    """The values [R, W, S] of strips or tiles of so many rows, each of ``shape``."""
    row = shape[0] * shape[1] * dtype.itemsize
    compression = page.one(259, 1)
    step = max(1, _AT_ONCE // (row * rows[0]))
    for start in range(0, len(segments), step):
        some, heights = segments[start : start + step], rows[start : start + step]
        if compression == _PLAIN:
            plain = [segment[: row * height] for segment, height in zip(some, heights, strict=True)]
        elif compression in _DEFLATE:
            plain = [
                zlib.decompressobj().decompress(segment, row * height)
                for segment, height in zip(some, heights, strict=True)
            ]
        else:
            plain = _by_libtiff(some, heights, compression, row)
        for block, height in zip(plain, heights, strict=True):
            if len(block) < row * height:
                raise damaged(name, "one of its strips or tiles is cut short")
            predictor = page.one(317, 1) if compression in _WITH_PREDICTOR else 1
            yield _predicted(block, (height, *shape), dtype, predictor)


def _predicted(block: bytes, shape: tuple[int, int, int], dtype: np.dtype[np.generic], predictor: int) -> Values:
    """The values of a block, of which a predictor may have kept differences."""
    if predictor == 3:  # of every row first all upper bytes, then the next ones; each the difference to the one before
        bytes_RBS = np.frombuffer(block, np.uint8).reshape(shape[0], -1, shape[2]).cumsum(axis=1, dtype=np.uint8)
        planes_RBW = bytes_RBS.reshape(shape[0], dtype.itemsize, -1)
        return planes_RBW.transpose(0, 2, 1).copy().view(dtype.newbyteorder(">")).reshape(shape)
    values_RWS = np.frombuffer(block, dtype).reshape(shape)
    if predictor == 2:
        whole = np.dtype(f"u{dtype.itemsize}")
        values_RWS = values_RWS.astype(dtype.newbyteorder("=")).view(whole).cumsum(axis=1, dtype=whole)
        values_RWS = values_RWS.view(dtype.newbyteorder("="))
    return values_RWS


def _by_libtiff(segments: Sequence[bytes], rows: Sequence[int], compression: int, row: int) -> list[bytes]:
    """Segments unpacked by the library that Pillow brings, as the strips of one tall TIFF of bytes."""
    from PIL import Image

    count, form = len(segments), "<" + "I" * len(segments)
    body = b"".join(segment + bytes(len(segment) % 2) for segment in segments)
    starts = list(itertools.accumulate((len(segment) + len(segment) % 2 for segment in segments), initial=8))
    places, sizes = struct.pack(form, *starts[:-1]), struct.pack(form, *map(len, segments))
    at, height = 8 + len(body), sum(rows)
    offsets, lengths = (at, at + len(places)) if count > 1 else (8, len(segments[0]))
    tags = [(256, 4, 1, row), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1)]
    tags += [(273, 4, count, offsets), (277, 3, 1, 1), (278, 4, 1, rows[0]), (279, 4, count, lengths)]
    entries = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    head = b"II*\0" + struct.pack("<I", at + len(places) + len(sizes))
    with Image.open(io.BytesIO(head + body + places + sizes + entries), formats=["TIFF"]) as image:
        unpacked = image.tobytes()
    ends = [row * end for end in itertools.accumulate(rows, initial=0)]
    return [unpacked[start:end] for start, end in itertools.pairwise(ends)]


def _from_cmyk(levels_HWC: Pixels) -> Pixels:
    from PIL import Image

    height, width, _ = levels_HWC.shape
    return np.array(Image.frombytes("CMYK", (width, height), levels_HWC.tobytes()).convert("RGB"))


def _levels(values_HWC: Values) -> Pixels:
    """Values of colours in 256 levels: those of whole numbers without a sign by their upper 8 bits."""
    if values_HWC.dtype.kind == "u":
        upper_HWC: Pixels = (values_HWC >> np.array(8 * (values_HWC.dtype.itemsize - 1), values_HWC.dtype)).astype(
            np.uint8
        )
        return upper_HWC
    values_HWC = values_HWC.astype(np.float64)
    finite = values_HWC[np.isfinite(values_HWC)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled_HWC = (values_HWC - low) / ((high - low) or 1.0)
    levels_HWC: Pixels = np.rint(255 * np.nan_to_num(scaled_HWC, nan=0).clip(0, 1)).astype(np.uint8)
    return levels_HWC
