"""What a JPEG says of itself, from the markers before its first scan: a few microseconds, and no decoding."""

from __future__ import annotations

import struct
from typing import Literal

from consilium.core.errors import ImageError
from consilium.data.images.pixels import ImageInfo, cut_short

ORIENTATION_TAG = 0x0112
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LOSSLESS_LS = 0xF7  # the frame marker of JPEG-LS
_HIERARCHICAL = (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF)
_BARE_MARKERS = frozenset((0x01, *range(0xD0, 0xD9)))


def probe_jpeg(data: bytes, *, name: str) -> ImageInfo:
    """Size, components and orientation from the markers before the first scan: a few microseconds."""
    position, orientation, frame = 2, 1, b""
    while True:
        position = data.find(b"\xff", position)
        if position < 0 or position + 4 > len(data):
            raise cut_short(name, "a JPEG that ends in its header")
        marker = data[position + 1]
        if marker == 0xFF or marker == 0x00 or marker in _BARE_MARKERS:
            position += 1 if marker == 0xFF else 2
            continue
        body, position = position + 4, position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in _FRAME_MARKERS or marker == _LOSSLESS_LS:
            frame = data[body : body + 6]
            _check_kind(marker, frame, name)
        elif marker == 0xE1 and data.startswith(b"Exif\0\0", body):
            orientation = _exif_orientation(data[body + 6 : position])
        elif marker == 0xDA or marker == 0xD9:
            break
    if len(frame) < 6 or marker == 0xD9:
        raise cut_short(name, "a JPEG without image data")
    # Compressed data cannot hold an end marker, so one after the start of the scan is the image's own; the
    # thumbnail in the EXIF block has another before it. What follows the end (padding, a second image) is harmless.
    if data.rfind(b"\xff\xd9", position) < 0:
        raise cut_short(name, "a JPEG without its end marker")
    _, height, width, components = struct.unpack(">BHHB", frame)
    if not height or not width:
        raise cut_short(name, f"a JPEG of {width} x {height} pixels")
    if orientation >= 5:
        height, width = width, height
    return ImageInfo(width, height, "JPEG", {1: "L", 4: "CMYK"}.get(components, "RGB"), orientation)


def _check_kind(marker: int, frame: bytes, name: str) -> None:
    """Refuse the kinds of JPEG that the decoder does not know, by the marker of the frame and the bits of a value."""
    bits = frame[0] if frame else 8
    kind = "JPEG-LS image" if marker == _LOSSLESS_LS else "hierarchical JPEG" if marker in _HIERARCHICAL else ""
    if not kind and bits != 8 and 2 <= bits <= 16:
        kind = f"JPEG of {bits} bits a value"
    if kind:
        raise ImageError(
            f"{name} is a {kind}, which is not read; convert it to a JPEG of 8 bits, PNG or TIFF, or leave the row out."
        )


def _exif_orientation(exif: bytes) -> int:
    """The orientation in an EXIF block; 1 (upright) where it has none or cannot be read."""
    if exif[:4] not in (b"II*\0", b"MM\0*"):
        return 1
    order: Literal["little", "big"] = "little" if exif[:2] == b"II" else "big"
    start = int.from_bytes(exif[4:8], order)
    for entry in range(start + 2, start + 2 + 12 * int.from_bytes(exif[start : start + 2], order), 12):
        if int.from_bytes(exif[entry : entry + 2], order) == ORIENTATION_TAG:
            kind, count = int.from_bytes(exif[entry + 2 : entry + 4], order), exif[entry + 4 : entry + 8]
            width = {3: 2, 4: 4}.get(kind, 0)  # SHORT, as the standard says, or LONG
            value = int.from_bytes(exif[entry + 8 : entry + 8 + width], order)
            return value if int.from_bytes(count, order) == 1 and 1 <= value <= 8 else 1
    return 1
