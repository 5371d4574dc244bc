"""Pillow images and arrays are read as files that hold the same pixels are, bit for bit; the rest says what it is."""

from __future__ import annotations

import io
import struct
import zlib
from collections import UserDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from consilium.core.errors import ImageError
from consilium.data.images.in_memory import as_file, name_of
from consilium.data.images.reading import decode, read_bytes

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 2**16, (20, 30), dtype=np.uint16)


def pixels(view: object, window: tuple[float, float] | None = None) -> np.ndarray:
    return decode(read_bytes(as_file(view)), name="x", max_pixels=10**6, window=window)


def png(array: np.ndarray) -> bytes:
    """The PNG of an array, also of 16-bit colours, which Pillow does not write."""
    height, width = array.shape[:2]
    rows = array.astype(array.dtype.newbyteorder(">")).reshape(height, -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 8 * array.itemsize, 0 if array.ndim == 2 else 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "array",
    [
        COLOURS,
        COLOURS[..., 0],
        DEEP,
        RNG.integers(0, 2**16, (20, 30, 3), dtype=np.uint16),
        (DEEP >> 4).astype(np.uint16),  # 12 bits in 16
        np.full((3, 5), 700, np.uint16),
        np.full((1, 1, 3), 9, np.uint8),
    ],
    ids=["colours", "grey", "deep", "deep colours", "12 bits", "flat", "one pixel"],
)
def test_an_array_is_read_as_its_png(array: np.ndarray) -> None:
    for window in (None, (30000.0, 20000.0)):
        expected = decode(png(array), name="x", max_pixels=10**6, window=window)
        np.testing.assert_array_equal(pixels(array, window), expected)
        for same in (array.astype(array.dtype.newbyteorder(">")), np.asfortranarray(array), array[::-1][::-1]):
            np.testing.assert_array_equal(pixels(same, window), expected)


def test_signed_values_are_read_as_their_tiff() -> None:
    hounsfield = (DEEP.astype(np.int32) - 2**15).astype(np.int16)
    for window in (None, (40.0, 400.0)):
        expected = pixels(saved(Image.fromarray(hounsfield.astype(np.float32)), "TIFF"), window)
        np.testing.assert_array_equal(pixels(hounsfield, window), expected)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("I;16", "PNG"),
        ("RGB", "WEBP"), ("P", "GIF"), ("L", "BMP"), ("CMYK", "TIFF"), ("I", "TIFF"), ("F", "TIFF"), ("I;16", "TIFF"),
        ("YCbCr", "TIFF"), ("CMYK", "JPEG"), ("L", "JPEG"), ("RGB", "JPEG"),
    ],
)  # fmt: skip
def test_a_pillow_image_is_read_as_its_file(mode: str, kind: str) -> None:
    image = Image.fromarray(DEEP) if mode in ("I", "F", "I;16") else Image.fromarray(COLOURS)
    if "A" in mode:
        image.putalpha(Image.fromarray(COLOURS[..., 1]))
    data = saved(image.convert(mode), kind)
    expected = decode(data, name="x", max_pixels=10**6)
    opened = Image.open(io.BytesIO(data))
    assert opened.mode == mode
    for _ in range(2):  # before and after it was loaded
        np.testing.assert_array_equal(pixels(opened), expected)


def test_transparency_of_a_palette_and_low_values_that_are_white() -> None:
    palette = Image.fromarray(COLOURS).convert("P")
    white = DEEP.astype("<u2")
    for data in (saved(palette, "PNG", transparency=3), saved(palette, "GIF", transparency=3), tiff(white)):
        np.testing.assert_array_equal(pixels(Image.open(io.BytesIO(data))), decode(data, name="x", max_pixels=10**6))
    np.testing.assert_array_equal(pixels(Image.open(io.BytesIO(tiff(white)))), 255 - pixels(white))


def tiff(values: np.ndarray) -> bytes:
    """A TIFF of 16-bit values in which 0 is white."""
    data = bytearray(saved(Image.fromarray(values), "TIFF"))
    entry = struct.pack("<HHII", 262, 3, 1, 1)
    assert entry in data
    return bytes(data.replace(entry, struct.pack("<HHII", 262, 3, 1, 0)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_pillow_image_as_it_turns_a_file(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for mode, kind in (("RGB", "PNG"), ("RGB", "JPEG"), ("I;16", "PNG"), ("RGB", "WEBP"), ("RGB", "TIFF")):
        image = Image.fromarray(DEEP if mode == "I;16" else COLOURS)
        data = saved(image, kind, exif=exif)
        opened = Image.open(io.BytesIO(data))
        expected = decode(data, name="x", max_pixels=10**6)
        for _ in range(2):
            np.testing.assert_array_equal(pixels(opened), expected)
        assert expected.shape[:2] == ((20, 30) if orientation < 5 else (30, 20))


def test_the_frame_that_a_pillow_image_stands_at_is_read() -> None:
    frames = [Image.fromarray(COLOURS), Image.fromarray(COLOURS[::-1].copy())]
    opened = Image.open(io.BytesIO(saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])))
    opened.seek(1)
    np.testing.assert_array_equal(pixels(opened), COLOURS[::-1])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "None is no image: expected a path, the bytes of an image file, a Pillow image or an array"),
        (3, "3 is no image"),
        (float("nan"), "nan is no image"),
        (np.float32(2), "is no image"),
        ({"image": COLOURS}, "give the image in it"),
        (UserDict(), "give the image in it"),
        (io.BytesIO(b"x"), r"what its read\(\) returns"),
        (COLOURS.tolist(), r"list\[20\] is no image.*numpy.array"),
        (torch.zeros(3, 4, 5), r"tensor\[3x4x5 float32\] is no image.*permute\(1, 2, 0\)"),
        (object(), "object is no image"),
        (COLOURS[..., :1], r"array\[20x30x1 uint8\] is no image: .*give array\[..., 0\]"),
        (COLOURS[..., :2], "two channels"),
        (np.dstack([COLOURS, COLOURS[..., 0]]), "four channels; .*PIL.Image.fromarray"),
        (COLOURS.transpose(2, 0, 1), r"channels come first; give numpy.moveaxis\(array, 0, -1\)\. An array is"),
        (np.zeros((4, 20, 30), np.uint8), r"channels come first; give .*\[..., :3\]"),
        (COLOURS[None, ..., 0], r"first axis is a single channel; give array\[0\]"),
        (np.zeros((7, 20, 30), np.uint16), r"of a stack or volume give the slices, one item each: list\(array\)"),
        (COLOURS[None], r"give array\[0\], its only image"),
        (np.stack([COLOURS, COLOURS]), r"one item each: list\(array\)"),
        (np.zeros(5, np.uint8), r"array.tobytes\(\)"),
        (np.zeros(5), "one axis where an image has height and width"),
        (np.array(3), "no axis"),
        (np.zeros((0, 4), np.uint8), "it is empty"),
        (np.zeros((4, 0, 3), np.uint8), "it is empty"),
        (COLOURS / 255, r"float64, from 0 to 1; give \(255 \* array\).round\(\).astype\('uint8'\)"),
        (COLOURS.astype(np.float32), r"float32, from 0 to 255; give array.round\(\).astype\('uint8'\)"),
        (COLOURS / 127.5 - 1, "float64, from -1 to 1; colours go from 0 to 255"),
        (DEEP - 1e5, r"give PIL.Image.fromarray\(array.astype\('float32'\)\)"),
        (DEEP.astype(np.int64), r"give PIL.Image.fromarray\(array.astype\('float32'\)\)"),
        (COLOURS.astype(int), r"int64, from 0 to 255; give array.round\(\).astype\('uint8'\)"),
        (COLOURS.astype(np.int16) - 9, "int16, from -9 to 246; colours go from 0 to 255"),
        (COLOURS > 9, r"it is True and False; give array.astype\('uint8'\) \* 255"),
        (np.full((4, 5), np.nan), "none of its values is a number"),
        (np.array([["a"]]), "values are of type <U1"),
        (np.array([[None]]), "values are of type object"),
        (np.ma.masked_array(COLOURS, COLOURS > 9), r"masked; give array.filled\(0\)"),
        (Image.new("RGB", (0, 5)), r"image\[0x5 RGB\] has no pixels"),
    ],
)
def test_what_is_no_image_says_what_it_is_and_what_to_give(given: object, said: str) -> None:
    with pytest.raises(ImageError, match=said) as raised:
        as_file(given)
    assert "\n" not in str(raised.value)
    assert name_of(given) in str(raised.value)


def test_floats_that_the_advice_turns_into_an_image() -> None:
    for array, advised in (
        (COLOURS / 255, (255 * (COLOURS / 255)).round().astype("uint8")),
        (COLOURS.astype(float), COLOURS),
    ):
        with pytest.raises(ImageError):
            as_file(array)
        np.testing.assert_array_equal(pixels(advised), COLOURS)


def test_a_file_that_pillow_opened_and_cannot_load(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    data = saved(Image.fromarray(COLOURS), "PNG")
    path.write_bytes(data[: len(data) // 2])
    with Image.open(path) as cut_short, pytest.raises(ImageError, match=r"a\.png cannot be taken from Pillow.*cut"):
        as_file(cut_short)
    path.write_bytes(data)
    with Image.open(path) as closed:
        pass
    with pytest.raises(ImageError, match=r"a\.png cannot be taken from Pillow .*open it again"):
        as_file(closed)


def test_names(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(COLOURS).save(path)
    with Image.open(path) as opened:
        assert [name_of(view) for view in (path, np.str_("b"), b"abc", COLOURS, DEEP, opened, opened.copy())] == [
            str(path), "b", "bytes[3]", "array[20x30x3 uint8]", "array[20x30 uint16]", str(path), "image[30x20 RGB]"
        ]  # fmt: skip
