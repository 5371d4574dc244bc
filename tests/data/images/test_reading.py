"""What ``consilium.data.images.reading`` promises: right pixels or an ImageError, never filler."""

from __future__ import annotations

import contextlib
import io
import math
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from consilium.core.errors import ImageError
from consilium.data.config import ImageConfig
from consilium.data.images import reading as images
from consilium.data.images.reading import Box, decode, load_view, probe, read_bytes, resize_once

LIMIT = 100_000_000
ORIENTATION = 0x0112


def noise(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """A picture without fine detail, so that JPEG and resizing change it little."""
    coarse = Image.fromarray(noise(6, 8, seed=seed))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def encoded(picture: Image.Image | np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(data: bytes, **options: object) -> np.ndarray:
    return decode(data, name="it", max_pixels=LIMIT, **options)


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    assert one.shape == other.shape
    return np.abs(one.astype(int) - other.astype(int))


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[ORIENTATION] = orientation
    return block


# Decoding


LOSSLESS = [
    ("PNG", "1", {}),
    ("PNG", "L", {}),
    ("PNG", "P", {}),
    ("PNG", "RGB", {}),
    ("BMP", "L", {}),
    ("BMP", "RGB", {}),
    ("TIFF", "1", {}),
    ("TIFF", "L", {}),
    ("TIFF", "RGB", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF", "CMYK", {}),
    ("WEBP", "RGB", {"lossless": True}),
    ("GIF", "P", {}),
    ("PPM", "RGB", {}),
]


@pytest.mark.parametrize(("kind", "mode", "options"), LOSSLESS)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 99))
def test_lossless_formats_decode_exactly(
    kind: str, mode: str, options: dict[str, object], height: int, width: int, seed: int
) -> None:
    data = encoded(Image.fromarray(noise(height, width, seed=seed)).convert(mode), kind, **options)
    info = probe(data, name="it", max_pixels=LIMIT)
    assert (info.width, info.height, info.format, info.mode) == (width, height, kind, Image.open(io.BytesIO(data)).mode)
    result = pixels_of(data)
    assert result.dtype == np.uint8
    assert result.shape == (height, width, 3)
    np.testing.assert_array_equal(result, by_pillow(data))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1, "quality": 95}])
@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_jpeg_decodes_as_pillow_does(mode: str, options: dict[str, object], height: int, width: int) -> None:
    data = encoded(Image.fromarray(smooth(height, width)).convert(mode), "JPEG", **options)
    info = probe(data, name="it", max_pixels=LIMIT)
    assert (info.width, info.height, info.format, info.mode) == (width, height, "JPEG", mode)
    assert difference(pixels_of(data), by_pillow(data)).max() <= 2


def test_transparent_pixels_lie_on_white() -> None:
    rgba = np.full((1, 3, 4), (10, 20, 30, 255), np.uint8)
    rgba[0, 1, 3], rgba[0, 2, 3] = 0, 128
    expected = [[10, 20, 30], [255, 255, 255], [132, 137, 142]]
    assert difference(pixels_of(encoded(rgba, "PNG"))[0], np.array(expected)).max() <= 1
    assert difference(pixels_of(encoded(rgba, "WEBP", lossless=True))[0, :2], np.array(expected[:2])).max() == 0
    grey = Image.fromarray(rgba[..., [0, 3]], "LA")
    assert difference(pixels_of(encoded(grey, "PNG"))[0, :, 0], np.array([10, 255, 132])).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_colour_is_white(kind: str) -> None:
    picture = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    picture.putpalette([200, 0, 0, 0, 90, 0])
    assert pixels_of(encoded(picture, kind, transparency=0)).tolist() == [[[255, 255, 255], [0, 90, 0]]]


def test_a_transparent_rgb_colour_is_white() -> None:
    data = encoded(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8), "PNG", transparency=(1, 2, 3))
    assert pixels_of(data).tolist() == [[[255, 255, 255], [4, 5, 6]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_windowed_over_the_range_it_uses(kind: str) -> None:
    twelve_bits = np.linspace(0, 4095, 256).round().astype(np.uint16)[None]
    result = pixels_of(encoded(twelve_bits, kind))
    np.testing.assert_array_equal(result, np.repeat(np.arange(256)[None, :, None], 3, axis=2))
    offset = pixels_of(encoded((twelve_bits + 30_000).astype(np.uint16), kind))
    np.testing.assert_array_equal(offset, result)


def test_floats_and_32_bit_integers_are_windowed_and_nan_is_black() -> None:
    values = np.array([[-1.5, 0.0, 1.5, np.nan, np.inf]], np.float32)
    assert pixels_of(encoded(values, "TIFF"))[0, :, 0].tolist() == [0, 128, 255, 0, 0]
    whole = np.array([[-(2**31), 0, 2**31 - 1]], np.int32)
    assert pixels_of(encoded(whole, "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    nothing = np.full((1, 2), np.nan, np.float32)
    assert pixels_of(encoded(nothing, "TIFF"))[0, :, 0].tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_window_is_applied_to_grey_of_16_bits_and_to_nothing_less(kind: str) -> None:
    values = np.array([[0, 900, 1000, 1051, 1100, 65535]], np.uint16)
    window = (1000.0, 200.0)
    assert pixels_of(encoded(values, kind), window=window)[0, :, 0].tolist() == [0, 0, 128, 193, 255, 255]
    view = load_view(
        encoded(np.repeat(values, 6, axis=0).repeat(2, axis=1), kind),
        name="it",
        image=ImageConfig(size=(12, 12), window=window),
        box=Box(left=0.5, top=0, width=1 / 6, height=1),
    )
    assert (view == 193).all()
    picture = noise(5, 6)
    for eight_bits in (picture, picture[..., 0]):
        data = encoded(eight_bits, kind)
        np.testing.assert_array_equal(pixels_of(data, window=window), pixels_of(data))


def test_a_window_is_applied_to_floats_and_nan_is_black() -> None:
    values = np.array([[-1.5, 0.0, 0.5, 7.0, np.nan, np.inf]], np.float32)
    assert pixels_of(encoded(values, "TIFF"), window=(0.5, 2.0))[0, :, 0].tolist() == [0, 64, 128, 255, 0, 0]


@pytest.mark.parametrize("window", [(40, 0), (40, -5)])
def test_a_window_has_a_width(window: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"expected \[centre, width\] with a width above 0"):
        ImageConfig(window=window)


def png_of_16_bits(values_HWC: np.ndarray) -> bytes:
    """A PNG of two, three or four channels of 16 bits, which Pillow does not write."""
    height, width, channels = values_HWC.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HWC)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def tiff_of_16_bits(values_HWC: np.ndarray, *, order: str) -> bytes:
    """An RGB TIFF of 16 bits in one strip, which Pillow does not write; ``order`` is that of its bytes, < or >."""
    height, width, _ = values_HWC.shape
    body = values_HWC.astype(f"{order}u2").tobytes()
    bits = 8 + len(body)  # where the three numbers of bits lie
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2),
            (273, 4, 1, 8), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(body))]  # fmt: skip
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + (struct.pack(f"{order}HH", value, 0) if kind == 3 and count == 1 else struct.pack(f"{order}I", value))
        for tag, kind, count, value in tags
    )
    start = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, bits + 6)
    return (
        start + body + struct.pack(f"{order}3H", 16, 16, 16) + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    )


@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_colours_of_16_bits_are_shown_over_their_full_range(height: int, width: int, seed: int) -> None:
    """Pillow takes the upper byte, which is value * 255 / 65535 within a level, and exact for black and white."""
    values = np.random.default_rng(seed).integers(0, 65536, (height, width, 3)).astype(np.uint16)
    values[0, 0], values[-1, -1] = 0, 65535
    expected = values / 65535 * 255
    for data in (png_of_16_bits(values), tiff_of_16_bits(values, order="<"), tiff_of_16_bits(values, order=">")):
        found = pixels_of(data)
        assert np.abs(found - expected).max() <= 1
        assert (found[-1, -1] == 255).all()
        assert found[0, 0].max() == 0 or height * width == 1


def test_transparent_pixels_of_16_bits_lie_on_white() -> None:
    values = np.full((1, 3, 4), 65535, np.uint16) * np.array([0.1, 0.5, 0.9, 1])
    values[0, 1, 3] = 0
    found = pixels_of(png_of_16_bits(values.astype(np.uint16)))
    assert found[0].tolist() == [[25, 127, 230], [255, 255, 255], [25, 127, 230]]
    grey = pixels_of(png_of_16_bits(values[..., [1, 3]].astype(np.uint16)))
    assert grey[0, :, 0].tolist() == [127, 255, 127]


def test_a_flat_16_bit_image_is_black() -> None:
    assert pixels_of(encoded(np.full((2, 2), 700, np.uint16), "PNG")).max() == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero_tiffs_are_not_negatives(dtype: type) -> None:
    values = np.array([[0, 100, 255]], dtype)  # Pillow inverts 8-bit values itself when it writes such a file
    data = encoded(values, "TIFF", tiffinfo={262: 0})
    expected = [0, 100, 255] if dtype is np.uint8 else [255, 155, 0]
    assert pixels_of(data)[0, :, 0].tolist() == expected


def test_the_first_frame_is_taken() -> None:
    frames = [Image.new("L", (4, 3), value) for value in (50, 200)]
    for kind in ("TIFF", "GIF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert (pixels_of(data) == 50).all()


# Orientation


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(smooth(16, 24), kind, exif=exif(orientation), **options)
    info = probe(data, name="it", max_pixels=LIMIT)
    assert (info.width, info.height) == ((24, 16) if orientation < 5 else (16, 24))
    assert difference(pixels_of(data), by_pillow(data)).max() <= (2 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_scaled_decoding_is_oriented_too(orientation: int) -> None:
    data = encoded(smooth(160, 240), exif=exif(orientation))
    whole = pixels_of(data)
    needed = (whole.shape[0] // 4, whole.shape[1] // 4)
    half = pixels_of(data, needed=needed)
    assert half.shape == (whole.shape[0] // 2, whole.shape[1] // 2, 3)
    averaged = whole.reshape(half.shape[0], 2, half.shape[1], 2, 3).mean(axis=(1, 3))
    assert difference(half, averaged).mean() < 2


@pytest.mark.parametrize(
    ("block", "orientation"),
    [
        (b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHH", 1, ORIENTATION, 3, 1, 6, 0), 6),
        (b"II*\0\x08\0\0\0" + struct.pack("<HHHIHH", 1, ORIENTATION, 3, 1, 6, 0), 6),
        (b"II*\0\x08\0\0\0" + struct.pack("<HHHIHH", 1, ORIENTATION, 3, 1, 77, 0), 1),
        (b"II*\0\xff\xff\0\0", 1),
        (b"", 1),
    ],
)
def test_exif_of_either_byte_order_is_read_and_a_damaged_one_is_upright(block: bytes, orientation: int) -> None:
    plain = encoded(smooth(16, 24))
    segment = b"\xff\xe1" + struct.pack(">H", 8 + len(block)) + b"Exif\0\0" + block
    assert probe(plain[:2] + segment + plain[2:], name="it", max_pixels=LIMIT).orientation == orientation


def test_exif_behind_the_pixels_of_a_png_counts() -> None:
    data = encoded(noise(4, 6), "PNG")
    block = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, ORIENTATION, 3, 1, 6, 0, 0)
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
    data = data[:-12] + chunk + data[-12:]
    info = probe(data, name="it", max_pixels=LIMIT)
    assert (info.width, info.height) == (4, 6)
    assert pixels_of(data).shape == (6, 4, 3)


# Scaled decoding


@given(
    height=st.integers(8, 400), width=st.integers(8, 400), needed=st.tuples(st.integers(1, 300), st.integers(1, 300))
)
def test_a_jpeg_is_scaled_as_far_as_the_margin_allows(height: int, width: int, needed: tuple[int, int]) -> None:
    result = pixels_of(encoded(smooth(height, width), quality=50), needed=needed)
    enough = [e for e in (1, 2, 4) if all(s * e / 8 >= 1.15 * n for s, n in zip((height, width), needed, strict=True))]
    eighths = min(enough, default=8)
    assert result.shape == (math.ceil(height * eighths / 8), math.ceil(width * eighths / 8), 3)


@given(left=st.floats(0, 0.5), top=st.floats(0, 0.5), width=st.floats(0.2, 0.5), height=st.floats(0.2, 0.5))
@settings(max_examples=20)
def test_the_scale_follows_from_the_crop(left: float, top: float, width: float, height: float) -> None:
    data = encoded(smooth(480, 640))
    seen: list[tuple[int, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        whole_decode = simplejpeg.decode_jpeg

        def recorded(*arguments: object, **options: object) -> np.ndarray:
            pixels = whole_decode(*arguments, **options)
            seen.append(pixels.shape)
            return pixels

        patch.setattr(images.simplejpeg, "decode_jpeg", recorded)
        config = ImageConfig(size=(32, 48))
        load_view(data, name="it", image=config, box=Box(left=left, top=top, width=width, height=height))
    assert seen[0][0] * height >= 1.15 * 32
    assert seen[0][1] * width >= 1.15 * 48
    assert seen[0][0] < 480 or 240 * height < 1.15 * 33 or 320 * width < 1.15 * 49


# Views


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    fit=st.sampled_from(["stretch", "crop", "pad"]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    kind=st.sampled_from(["JPEG", "PNG"]),
)
def test_a_view_has_the_size_asked_for(
    height: int, width: int, size: tuple[int, int], fit: str, interpolation: str, kind: str
) -> None:
    config = ImageConfig(size=size, fit=fit, interpolation=interpolation)
    view = load_view(encoded(smooth(height, width), kind), name="it", image=config, box=None)
    assert view.shape == (*size, 3)
    assert view.dtype == np.uint8
    assert view.flags.c_contiguous


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(24, 32), (100, 70), (300, 200)])
def test_stretch_resizes_as_pillow_does(interpolation: str, size: tuple[int, int]) -> None:
    picture = Image.fromarray(noise(120, 160))
    view = load_view(
        encoded(picture, "PNG"), name="it", image=ImageConfig(size=size, interpolation=interpolation), box=None
    )
    expected = np.asarray(picture.resize(size[::-1], Image.Resampling[interpolation.upper()]))
    assert difference(view, expected).max() <= 2


def test_a_box_is_cut_out_and_takes_the_place_of_fit() -> None:
    picture = noise(40, 60)
    box = Box(left=10 / 60, top=8 / 40, width=24 / 60, height=16 / 40)
    for fit in ("stretch", "crop", "pad"):
        view = load_view(encoded(picture, "PNG"), name="it", image=ImageConfig(size=(16, 24), fit=fit), box=box)
        np.testing.assert_array_equal(view, picture[8:24, 10:34])


def test_crop_takes_the_centre_in_the_right_shape() -> None:
    picture = noise(32, 64)
    view = load_view(encoded(picture, "PNG"), name="it", image=ImageConfig(size=(32, 32), fit="crop"), box=None)
    np.testing.assert_array_equal(view, picture[:, 16:48])
    tall = load_view(encoded(picture, "PNG"), name="it", image=ImageConfig(size=(8, 64), fit="crop"), box=None)
    np.testing.assert_array_equal(tall, picture[12:20])


def test_pad_keeps_the_shape_and_fills_with_black() -> None:
    picture = np.maximum(noise(16, 32), 1)
    view = load_view(encoded(picture, "PNG"), name="it", image=ImageConfig(size=(32, 32), fit="pad"), box=None)
    np.testing.assert_array_equal(view[8:24], picture)
    assert view[:8].max() == view[24:].max() == 0


def test_a_view_of_a_large_jpeg_is_close_to_one_decoded_in_full() -> None:
    picture = smooth(801, 1203)  # odd sides: the scaled image's last row and column are part of a pixel
    data = encoded(picture, quality=90)
    config = ImageConfig(size=(96, 128))
    full = load_view(encoded(pixels_of(data), "PNG"), name="it", image=config, box=None)
    assert pixels_of(data, needed=(96, 128)).shape[0] < 400
    assert difference(load_view(data, name="it", image=config, box=None), full).mean() < 1


# Resizing once


def test_resize_once_leaves_small_images_as_they_are() -> None:
    for data in (encoded(noise(64, 90), "PNG"), encoded(noise(64, 90), exif=exif(6))):
        assert resize_once(data, name="it", shorter=64, max_pixels=LIMIT) is data


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_resize_once_reduces_to_an_upright_jpeg(kind: str) -> None:
    data = encoded(smooth(300, 450), kind, exif=exif(6))
    result = resize_once(data, name="it", shorter=64, max_pixels=LIMIT)
    info = probe(result, name="it", max_pixels=LIMIT)
    assert (info.width, info.height, info.format, info.orientation) == (64, 96, "JPEG", 1)
    expected = Image.fromarray(by_pillow(data)).resize((64, 96), Image.Resampling.BICUBIC)
    assert difference(pixels_of(result), np.asarray(expected)).mean() < 2


def test_resize_once_keeps_detail() -> None:
    picture = Image.fromarray(noise(90, 120))
    result = pixels_of(resize_once(encoded(picture, "PNG"), name="it", shorter=60, max_pixels=LIMIT))
    sharp, soft = (
        difference(result, np.asarray(picture.resize((80, 60), Image.Resampling[name]))).mean()
        for name in ("BICUBIC", "BILINEAR")
    )
    assert sharp < soft / 2


# Bad input


def test_read_bytes_gives_bytes_and_files(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"abc")
    assert read_bytes(path) == read_bytes(str(path)) == read_bytes(b"abc") == b"abc"


def test_read_bytes_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    for name, reason in (("gone.jpg", "does not exist"), ("", "is a folder"), ("empty.jpg", r"empty \(0 bytes\)")):
        with pytest.raises(ImageError, match=reason) as caught:
            read_bytes(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(ImageError, match="null"):
        read_bytes("a\0b.jpg")


def _with_thumbnail(data: bytes) -> bytes:
    thumbnail = encoded(noise(8, 8))  # a whole JPEG, end marker and all, inside the header
    body = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail
    return data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body + data[2:]


JPEG, PNG, CMYK = encoded(noise(60, 80)), encoded(noise(60, 80), "PNG"), Image.new("CMYK", (60, 80))
VISIBLY_BAD = {
    "text": (b"Dear colleague, the image is attached.", "no image of a known kind"),
    "empty": (b"", "empty"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known kind"),
    "jpeg start only": (JPEG[:3], "cut short"),
    "jpeg header only": (JPEG[:200], "cut short"),
    "jpeg half": (JPEG[: len(JPEG) // 2], "without its end"),
    "jpeg without end": (JPEG[:-2], "without its end"),
    "jpeg half, whole thumbnail": (_with_thumbnail(JPEG)[:-500], "without its end"),
    "jpeg without pixels": (b"\xff\xd8\xff\xd9", "no image of a known kind|cut short"),
    "png half": (PNG[: len(PNG) // 2], "without its end"),
    "png without end": (PNG[:-12], "without its end"),
    "png start only": (PNG[:20], "damaged"),
    "webp half": (encoded(noise(60, 80), "WEBP")[:2000], "damaged"),
}
BAD_INSIDE = {
    "jpeg half, end put back": JPEG[: len(JPEG) // 2] + b"\xff\xd9",
    "progressive jpeg half, end put back": encoded(noise(60, 80), progressive=True)[:3000] + b"\xff\xd9",
    "cmyk jpeg half, end put back": encoded(Image.fromarray(noise(60, 80)).convert("CMYK"))[:3000] + b"\xff\xd9",
    "tiff half": encoded(noise(60, 80), "TIFF")[:5000],
    "bmp half": encoded(noise(60, 80), "BMP")[:5000],
    "gif half": encoded(Image.fromarray(noise(60, 80)).convert("P"), "GIF")[:2000],
    "ppm half": encoded(noise(60, 80), "PPM")[:5000],
    "png with broken pixels": PNG[:3000] + bytes(500) + PNG[3500:],
}


@pytest.mark.parametrize("case", VISIBLY_BAD)
def test_probe_and_decode_refuse(case: str) -> None:
    data, reason = VISIBLY_BAD[case]
    for function in (probe, decode):
        with pytest.raises(ImageError, match=reason) as caught:
            function(data, name="scan_7.jpg", max_pixels=LIMIT)
        assert str(caught.value).startswith("scan_7.jpg is")


@pytest.mark.parametrize("case", BAD_INSIDE)
def test_decode_refuses_what_the_header_does_not_show(case: str) -> None:
    with pytest.raises(ImageError, match=r"scan_7.* is damaged and cannot be decoded \(.+\)"):
        decode(BAD_INSIDE[case], name="scan_7", max_pixels=LIMIT)


@pytest.mark.parametrize("tail", [bytes(100), b"\xff\xff", b"trailer" * 50, encoded(noise(9, 9), "JPEG")])
def test_bytes_after_the_end_of_a_jpeg_are_harmless(tail: bytes) -> None:
    assert probe(JPEG + tail, name="it", max_pixels=LIMIT).width == 80
    np.testing.assert_array_equal(pixels_of(JPEG + tail), pixels_of(JPEG))


def test_stray_bytes_between_jpeg_segments_are_harmless() -> None:
    start = JPEG.find(b"\xff\xda")
    np.testing.assert_array_equal(pixels_of(JPEG[:start] + b"\0\0" + JPEG[start:]), pixels_of(JPEG))


def huge(kind: str) -> bytes:
    """A header that claims 20,000 x 10,000 pixels, whole enough to pass for an image, with hardly a pixel behind it."""
    if kind == "JPEG":
        frame = JPEG.find(b"\xff\xc0")
        return JPEG[: frame + 5] + struct.pack(">HH", 10_000, 20_000) + JPEG[frame + 9 :]
    if kind == "PNG":
        body = b"IHDR" + struct.pack(">II", 20_000, 10_000) + PNG[24:29]
        return PNG[:12] + body + struct.pack(">I", zlib.crc32(body)) + PNG[33:]
    data = encoded(noise(4, 4), "BMP")
    return data[:18] + struct.pack("<ii", 20_000, 10_000) + data[26:]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_a_200_megapixel_image_is_refused_from_its_header(kind: str) -> None:
    for function in (probe, decode):
        with pytest.raises(ImageError, match=r"pixels.*[Rr]educe the image"):
            function(huge(kind), name="slide", max_pixels=LIMIT)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_pixel_limit_is_exact(kind: str) -> None:
    data = encoded(noise(10, 12), kind)
    assert decode(data, name="it", max_pixels=120).shape == (10, 12, 3)
    with pytest.raises(ImageError, match="12 x 10 = 120 pixels, more than max_pixels: 119"):
        decode(data, name="it", max_pixels=119)


@given(
    data=st.sampled_from(
        [
            JPEG,
            PNG,
            encoded(noise(20, 30), exif=exif(6)),
            *(encoded(noise(20, 30), kind) for kind in ("TIFF", "WEBP", "BMP", "PPM")),
            encoded(noise(20, 30)[..., 0].astype(np.uint16) * 9, "PNG"),
            encoded(Image.fromarray(noise(20, 30)).convert("P"), "GIF", transparency=3),
        ]
    ),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    kept=st.floats(0, 1) | st.just(1.0),
)
@pytest.mark.filterwarnings("ignore")  # Pillow warns about the damage it finds
def test_damaged_bytes_give_pixels_or_an_image_error(
    data: bytes, changes: list[tuple[float, int]], kept: float
) -> None:
    broken = bytearray(data)
    for place, value in changes:
        broken[int(place * len(broken))] = value
    config = ImageConfig(size=(8, 8), max_pixels=10**6)
    with contextlib.suppress(ImageError):
        assert load_view(bytes(broken[: int(kept * len(broken))]), name="it", image=config, box=None).shape == (8, 8, 3)


def test_importing_the_module_loads_no_torch() -> None:
    code = "import sys, consilium.data.images.reading; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
