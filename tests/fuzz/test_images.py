"""Damaged images: an ImageError, or the pixels that Pillow reads out of the same bytes."""

from __future__ import annotations

import io
import random
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from consilium.data.config import ImageConfig
from consilium.data.images.reading import decode, load_view, probe
from consilium.data.images.tiff import is_tiff
from tests.fuzz.mutate import Mutator, fuzz

MAX_PIXELS = 1_000_000
VIEW = ImageConfig(size=(16, 24), max_pixels=MAX_PIXELS)


def encoded(mode: str, format: str, *, size: tuple[int, int] = (37, 29), **options: Any) -> bytes:
    """A picture with slopes and noise, [height, width]."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(height).integers(0, 30, (height, width))
    pixels = np.stack([x * 5 + noise, y * 6, (x + y) * 3 + noise], axis=2).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(pixels)
    if mode == "I;16":
        picture = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 16)
    elif mode == "RGBA":
        picture.putalpha(Image.fromarray((x * 8).clip(0, 255).astype(np.uint8)))
    else:
        picture = picture.convert(mode)
    stream = io.BytesIO()
    picture.save(stream, format=format, **options)
    return stream.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


CORPUS = [
    *(encoded("RGB", "JPEG", quality=90), encoded("RGB", "JPEG", progressive=True), encoded("L", "JPEG")),
    *(encoded("RGB", "JPEG", exif=turned(6)), encoded("RGB", "JPEG", subsampling=0, restart_marker_blocks=2)),
    *(encoded("CMYK", "JPEG"), encoded("RGB", "PNG"), encoded("P", "PNG"), encoded("RGBA", "PNG"), encoded("L", "PNG")),
    *(encoded("I;16", "PNG"), encoded("RGB", "PNG", exif=turned(8)), encoded("1", "PNG"), encoded("RGB", "TIFF")),
    *(encoded("I;16", "TIFF"), encoded("RGB", "TIFF", compression="tiff_lzw"), encoded("L", "TIFF")),
    *(encoded("RGB", "WEBP", lossless=True), encoded("RGB", "WEBP"), encoded("RGB", "BMP"), encoded("P", "BMP")),
    *(encoded("P", "GIF"), encoded("RGB", "PPM"), encoded("L", "PPM")),
]
TOKENS = [
    *(
        b"\xff\xd8\xff",
        b"\xff\xd9",
        b"\xff\xda",
        b"\xff\xc0",
        b"\xff\xc2",
        b"\xff\xc4",
        b"\xff\xdb",
        b"\xff\xdd\x00\x04\x00\x01",
    ),
    *(
        b"\xff\xd0",
        b"\xff\x00",
        b"\xff\xff",
        b"\xff\xe1\x00\x10Exif\0\0II*\0\x08\0\0\0",
        b"\xff\xee\x00\x0eAdobe\0d\0\0\0\0\x02",
    ),
    *(b"IEND", b"IDAT", b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"iTXt", b"zTXt", b"acTL", b"\0\0\0\0IEND\xaeB`\x82"),
    *(
        b"II*\0",
        b"MM\0*",
        b"II+\0\x08\0\0\0",
        b"RIFF",
        b"WEBPVP8 ",
        b"VP8L",
        b"VP8X",
        b"ANIM",
        b"BM",
        b"GIF89a",
        b"P6 99999 99999 255\n",
    ),
    *(
        b"P5\n1 1\n65535\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"\0\0\x7f\xff",
        b"\xff\xff\xff\xff",
        b"\x00\x01\x00\x00",
        b"\x89PNG\r\n\x1a\n",
    ),
]


def new_sums(data: bytes, chance: random.Random) -> bytes:
    """A PNG whose chunks have the sums of what they now hold, so that the damage reaches the decoder."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    changed, place = bytearray(data), 8
    while place + 12 <= len(changed):
        end = place + 8 + int.from_bytes(changed[place : place + 4], "big")
        if end + 4 > len(changed):
            break
        if chance.random() < 0.3 and end > place + 8:
            changed[chance.randrange(place + 8, end)] ^= 1 << chance.randrange(8)
        changed[end : end + 4] = zlib.crc32(changed[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(changed)


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def pillow(data: bytes, orientation: int) -> np.ndarray | None:
    """What Pillow alone makes of the bytes, as RGB, turned; None for what we show in a way of our own."""
    if is_tiff(data):  # of a tag that is missing or odd Pillow makes something else
        return None
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        if opened.mode not in ("RGB", "L", "1", "CMYK", "P") or opened.has_transparency_data:
            return None
        upright = opened.transpose(TURNS[orientation]) if orientation in TURNS else opened
        return np.asarray(upright.convert("RGB"))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_images(count: int) -> None:
    compared = 0

    def check(data: bytes) -> bool:
        nonlocal compared
        info = probe(data, name="x", max_pixels=MAX_PIXELS)
        assert info.width * info.height <= MAX_PIXELS
        pixels_HWC = decode(data, name="x", max_pixels=MAX_PIXELS)
        assert pixels_HWC.dtype == np.uint8
        assert pixels_HWC.shape == (info.height, info.width, 3)
        assert load_view(data, name="x", image=VIEW, box=None).shape == (16, 24, 3)
        expected_HWC = pillow(data, info.orientation)
        if expected_HWC is not None:
            compared += 1
            assert expected_HWC.shape == pixels_HWC.shape
            difference = np.abs(expected_HWC.astype(int) - pixels_HWC)
            assert difference.mean() < 2, (info, difference.mean())
        return True

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        used, refused = fuzz(check, Mutator(CORPUS, TOKENS, seed=8, own=[new_sums] * 2), count)
    assert used > count / 10
    assert compared > count / 20
    assert refused > count / 3
