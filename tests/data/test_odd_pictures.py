"""Pictures of kinds and with fields that Pillow does not read, or reads otherwise than they are meant."""

from __future__ import annotations

import io
import itertools
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from consilium.core.errors import ImageError
from consilium.data.images.reading import alone, decode, probe, resize_once
from tests.data.pictures import png, png_chunk, tiff

LIMIT = 10**6
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (13, 11, 3), dtype=np.uint8)


def encoded(picture: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def pixels(data: bytes, window: tuple[float, float] | None = None) -> np.ndarray:
    info = probe(data, name="it", max_pixels=LIMIT)
    found = decode(data, name="it", max_pixels=LIMIT, window=window)
    assert found.shape == (info.height, info.width, 3)
    return found


def notes(data: bytes) -> str:
    return "; ".join(probe(data, name="it", max_pixels=LIMIT).notes)


def refusal(data: bytes) -> str:
    messages = []
    for function in (probe, decode):
        with pytest.raises(ImageError) as caught:
            function(data, name="it", max_pixels=LIMIT)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    return messages[0]


def ranged(values: np.ndarray) -> np.ndarray:
    values = values.astype(float)
    return (values - values.min()) / (values.max() - values.min()) * 255


# TIFF

DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"]
FORMS = [
    *({"order": order, "is_big": big} for order in "<>" for big in (False, True)),
    {"tile": 16},
    {"deflated": True},
    {"deflated": True, "predictor": 2, "tile": 16, "order": ">"},
    {"deflated": True, "predictor": 2},
]


def values_of(dtype: str, samples: int) -> np.ndarray:
    unit = RNG.random((13, 11, samples))
    if dtype[0] == "f":
        return unit.astype(dtype)
    limits = np.iinfo(dtype)
    return (limits.min + unit * (limits.max - limits.min)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_grey_tiffs_of_every_type_are_read(dtype: str) -> None:
    for form, photometric in itertools.product(FORMS, (0, 1)):
        values = values_of(dtype, 1)
        if form.get("predictor") == 2 and dtype[0] == "f":
            continue
        expected = values[..., 0].astype(float) if dtype == "u1" else ranged(values[..., 0])
        expected = 255 - expected if photometric == 0 else expected
        assert np.abs(pixels(tiff(values, photometric=photometric, **form))[..., 0] - expected).max() <= 1, form


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_colour_tiffs_of_every_type_are_read(dtype: str, planar: bool) -> None:
    for form in FORMS:
        if form.get("predictor") == 2 and dtype[0] == "f":
            continue
        values = values_of(dtype, 3)
        if dtype[0] == "i":
            expected = ranged(values)
        else:
            expected = values.astype(float) * 255 / (1 if dtype[0] == "f" else np.iinfo(dtype).max)
        found = pixels(tiff(values, photometric=2, planar=planar, **form))
        assert np.abs(found - expected).max() <= 1, form


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("samples", [1, 3])
def test_the_predictor_of_floats_is_undone(dtype: str, samples: int) -> None:
    values = values_of(dtype, samples)
    expected = ranged(values[..., 0])[..., None] if samples == 1 else values.astype(float) * 255
    found = pixels(tiff(values, photometric=min(samples, 2), deflated=True, predictor=3))
    assert np.abs(found - expected).max() <= 1


def test_floats_beyond_0_to_1_are_shown_over_their_range_and_nan_is_black() -> None:
    values = RNG.normal(0, 50, (13, 11, 3)).astype(np.float32)
    assert np.abs(pixels(tiff(values, photometric=2)) - ranged(values)).max() <= 1
    values[0, 0] = np.nan
    assert (pixels(tiff(values, photometric=2))[0, 0] == 0).all()


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_cmyk_of_every_layout_is_read_alike(dtype: str) -> None:
    values = RNG.integers(0, 256, (13, 11, 4)).astype(dtype)
    expected = pixels(encoded(Image.frombytes("CMYK", (11, 13), values.astype("u1").tobytes()), "TIFF"))
    values = values * (257 if dtype == "u2" else 1)
    for planar in (False, True):
        np.testing.assert_array_equal(pixels(tiff(values.astype(dtype), photometric=5, planar=planar)), expected)


def test_transparent_pixels_of_deep_tiffs_lie_on_white() -> None:
    values = values_of("u2", 4)
    values[0, 0, 3], values[1, 1, 3] = 0, 65535
    found = pixels(tiff(values, photometric=2, more={338: [2]}))
    assert (found[0, 0] == 255).all()
    assert np.abs(found[1, 1] - values[1, 1, :3] / 257).max() <= 1
    grey = values_of("u2", 2) // 4
    grey[..., 1] = 65535
    grey[0, 0] = [5, 0]
    for window in (None, (100.0, 50.0)):
        assert (pixels(tiff(grey, photometric=1, more={338: [2]}), window)[0, 0] == 255).all()
    inner = pixels(tiff(grey, photometric=1, more={338: [2]}))[1:, :, 0]
    seen = grey[..., 0].copy()
    seen[0, 0] = seen[1, 0]  # what is transparent has no part in the range that is shown
    assert np.abs(inner - np.clip(ranged(seen)[1:], 0, 255)).max() <= 1


@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 99])
def test_deep_tiffs_are_turned_upright(orientation: int) -> None:
    deep = values_of("u2", 3)
    eight = encoded(Image.fromarray((deep >> 8).astype(np.uint8)), "TIFF", tiffinfo={274: orientation})
    np.testing.assert_array_equal(pixels(tiff(deep, photometric=2, more={274: [orientation]})), pixels(eight))


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    "tags",
    [
        {266: [0]},
        {266: [99]},
        {278: [0]},
        {278: [65535]},
        {274: [77]},
        {280: [9], 281: [3]},
        {339: [0]},
        {339: [99]},
        {254: [65535]},
        {305: [0], 306: [0], 270: [0]},
        {317: [2]},
        {338: []},
    ],
)
def test_tags_that_are_missing_or_odd_do_not_matter(dtype: str, samples: int, tags: dict[int, list[int]]) -> None:
    values = values_of(dtype, samples)
    photometric = 1 if samples == 1 else 2
    plain = tiff(values, photometric=photometric)
    np.testing.assert_array_equal(pixels(tiff(values, photometric=photometric, more=tags)), pixels(plain))


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("tag", [258, 262, 278, 279, 284, 339])
def test_tags_that_are_missing_are_what_the_others_imply(dtype: str, samples: int, tag: int) -> None:
    values = values_of(dtype, samples)
    plain = tiff(values, photometric=1 if samples == 1 else 2)
    place = plain.index(struct.pack("<H", tag), 8 + values.nbytes)
    missing = plain[:place] + struct.pack("<H", 65000) + plain[place + 2 :]
    np.testing.assert_array_equal(pixels(missing), pixels(plain))


def test_strips_that_libtiff_unpacks_are_those_of_pillow() -> None:
    for compression in ("tiff_lzw", "packbits"):
        for picture in (PICTURE, RNG.integers(0, 65536, (300, 400)).astype(np.uint16)):
            packed, plain = (encoded(picture, "TIFF", compression=kind) for kind in (compression, None))
            np.testing.assert_array_equal(pixels(packed), pixels(plain))


def test_more_channels_than_colours() -> None:
    values = values_of("u1", 5)
    found = tiff(values, photometric=2, more={338: [0, 0]})
    np.testing.assert_array_equal(pixels(found), values[..., :3])
    assert "5 channels, of which the first three" in notes(found)
    called_grey = tiff(values[..., :3], photometric=1)
    np.testing.assert_array_equal(pixels(called_grey), values[..., :3])
    assert "3 channels are called grey" in notes(called_grey)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiff(values_of("u1", 5), photometric=1), "is a TIFF of 5 channels of 8 bits each"),
        (tiff(values_of("u2", 1), photometric=3), "is a TIFF of 1 channel of 16 bits each .* interpretation 3"),
        (tiff(values_of("u1", 3), photometric=2, more={259: [34712]}), "TIFF of 3 channels .* compression 34712"),
        (tiff(values_of("u2", 1), photometric=1, more={258: [14]}), "is a TIFF of 1 channel of 14 bits each"),
        (tiff(values_of("u2", 1), photometric=1, more={339: [6]}), "TIFF of 1 channel .*complex numbers"),
    ],
)
def test_kinds_of_tiff_that_are_not_read_are_named(data: bytes, message: str) -> None:
    found = refusal(data)
    assert re.search(message, found)
    assert "which is not read; convert it to" in found
    assert "damaged" not in found


def test_a_deep_tiff_without_all_of_its_pixels_is_cut_short() -> None:
    data = tiff(values_of("u2", 3), photometric=2)
    with pytest.raises(ImageError, match="cut short"):
        decode(data[:20] + data[-300:], name="it", max_pixels=LIMIT)
    missing = tiff(values_of("u2", 3), photometric=2, more={279: [330, 330, 100]})
    with pytest.raises(ImageError, match="cut short"):
        decode(missing, name="it", max_pixels=LIMIT)
    packed = bytearray(tiff(values_of("u2", 3), photometric=2, deflated=True))
    packed[12:16] = b"\xff" * 4
    with pytest.raises(ImageError, match=r"damaged and cannot be decoded \(its compressed data cannot be unpacked\)"):
        decode(bytes(packed), name="it", max_pixels=LIMIT)


def test_deep_tiffs_are_kept_and_reduced_as_they_look() -> None:
    values = np.linspace(-1, 1, 64 * 64).reshape(64, 64, 1)
    data = tiff(values, photometric=0)
    assert alone(data, name="it", max_pixels=LIMIT) is data
    reduced = decode(resize_once(data, name="it", shorter=16, max_pixels=LIMIT), name="it", max_pixels=LIMIT)
    blocks = pixels(data)[..., 0].reshape(16, 4, 16, 4).mean(axis=(1, 3))
    assert np.abs(reduced[2:-2, 2:-2, 0] - blocks[2:-2, 2:-2]).max() <= 2


# PNG

GREY8 = RNG.integers(0, 256, (4, 6)).astype(np.uint8)


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"history\0\0" + zlib.compress(b"step " * 600_000)),
        png_chunk(b"iTXt", b"history\0\1\0\0\0" + zlib.compress(b"step " * 600_000)),
        png_chunk(b"zTXt", b"history\0\5what"),
        png_chunk(b"tEXt", b"no end", is_sound=False),
        png_chunk(b"iCCP", b"profile\0\0broken"),
        png_chunk(b"iCCP", b"profile\0\0broken", is_sound=False),
        png_chunk(b"gAMA", b"\0"),
        png_chunk(b"pHYs", b"\0\0"),
        png_chunk(b"sRGB", b""),
        png_chunk(b"sBIT", b""),
        png_chunk(b"cHRM", b"short"),
        png_chunk(b"tIME", b"\xff"),
        png_chunk(b"bKGD", b"\0\0\0\0"),
        png_chunk(b"prVt", bytes(9), is_sound=False),
        png_chunk(b"eXIf", b"no exif"),
        png_chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0", is_sound=False),
        png_chunk(b"tRNS", b"\0"),
        png_chunk(b"tRNS", b"\0\5", is_sound=False),
        png_chunk(b"acTL", b"short"),
        png_chunk(b"fcTL", b"short"),
    ],
    ids=lambda chunk: chunk[4:8].decode(),
)
def test_what_stands_beside_the_pixels_of_a_png_does_not_matter(chunk: bytes) -> None:
    data = png(GREY8.tobytes(), width=6, height=4, depth=8, colours=0, beside=chunk)
    np.testing.assert_array_equal(pixels(data)[..., 0], GREY8)
    behind = data[:-12] + chunk + data[-12:]
    np.testing.assert_array_equal(pixels(behind)[..., 0], GREY8)
    is_named = chunk[4:8] in (b"tRNS", b"acTL", b"fcTL") or (chunk[4:8] == b"eXIf" and b"MM" in chunk)
    assert (f"its chunk {chunk[4:8].decode()}" in notes(data)) == is_named


def test_a_damaged_chunk_of_pixels_is_damage() -> None:
    data = bytearray(png(GREY8.tobytes(), width=6, height=4, depth=8, colours=0))
    data[45] ^= 255
    with pytest.raises(ImageError, match=r"damaged|cut short"):
        decode(bytes(data), name="it", max_pixels=LIMIT)


def test_long_texts_that_pillow_writes_do_not_matter() -> None:
    notes_of = PngImagePlugin.PngInfo()
    notes_of.add_itxt("history", "step " * 600_000, zip=True)
    np.testing.assert_array_equal(pixels(encoded(PICTURE, "PNG", pnginfo=notes_of)), PICTURE)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_the_transparent_grey_of_few_bits_is_white(depth: int) -> None:
    highest = 2**depth - 1
    row = np.arange(8) % (highest + 1)
    bits = (row[:, None] >> np.arange(depth)[::-1] & 1).astype(np.uint8).reshape(-1)
    for clear in {0, 1, highest}:
        chunk = png_chunk(b"tRNS", struct.pack(">H", clear))
        data = png(np.packbits(bits).tobytes(), width=8, height=1, depth=depth, colours=0, beside=chunk)
        expected = np.where(row == clear, 255, row * 255 // highest)
        np.testing.assert_array_equal(pixels(data)[0, :, 0], expected)


@pytest.mark.parametrize("window", [None, (1500.0, 3000.0), (100.0, 50.0), (30000.0, 65535.0)])
def test_the_transparent_grey_is_white_in_8_and_16_bits_alike(window: tuple[float, float] | None) -> None:
    values = np.array([[0, 1000, 2000, 3000, 777]], np.uint16)
    chunk = png_chunk(b"tRNS", struct.pack(">H", 777))
    data = png(values.astype(">u2").tobytes(), width=5, height=1, depth=16, colours=0, beside=chunk)
    plain = png(values[:, :4].astype(">u2").tobytes(), width=4, height=1, depth=16, colours=0)
    found = pixels(data, window)[0, :, 0]
    assert found[4] == 255
    np.testing.assert_array_equal(found[:4], pixels(plain, window)[0, :, 0])
    eight = png(bytes([0, 100, 200, 250, 77]), width=5, height=1, depth=8, colours=0,
                beside=png_chunk(b"tRNS", struct.pack(">H", 77)))  # fmt: skip
    assert pixels(eight)[0, :, 0].tolist() == [0, 100, 200, 250, 255]


def test_only_transparent_pixels_are_white() -> None:
    chunk = png_chunk(b"tRNS", struct.pack(">H", 777))
    data = png(np.full((2, 2), 777, ">u2").tobytes(), width=2, height=2, depth=16, colours=0, beside=chunk)
    assert (pixels(data) == 255).all()


def test_the_transparent_colour_of_16_bits_is_white() -> None:
    values = np.array([[[1000, 2000, 3000], [40000, 2000, 3000]]], ">u2")
    chunk = png_chunk(b"tRNS", struct.pack(">3H", 1000, 2000, 3000))
    data = png(values.tobytes(), width=2, height=1, depth=16, colours=2, beside=chunk)
    assert pixels(data).tolist() == [[[255, 255, 255], [156, 7, 11]]]


def test_a_palette_with_transparency_stays_right() -> None:
    beside = png_chunk(b"PLTE", bytes([9, 8, 7, 60, 50, 40])) + png_chunk(b"tRNS", b"\0\xff\x10")
    data = png(bytes([0, 1]), width=2, height=1, depth=8, colours=3, beside=beside)
    assert pixels(data).tolist() == [[[255, 255, 255], [60, 50, 40]]]


# JPEG and others


def jpeg_with(segment: bytes, marker: int, *, picture: bytes) -> bytes:
    return picture[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(segment) + 2) + segment + picture[2:]


SMOOTH = np.asarray(Image.fromarray(PICTURE[:4, :4]).resize((24, 16), 3))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    ("marker", "segment"),
    [
        (0xE1, b"Exif\0\0" + b"\xff" * 30),
        (0xE1, b"Exif\0\0II"),
        (0xE1, b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\x01\x03\0\1\0\0\0\0\0\0\0"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation='6'"),
        (0xE2, b"ICC_PROFILE\0\5\1broken"),
        (0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
        (0xED, b"Photoshop 3.0\0008BIM\x04\x04\xff\xff\xff\xff\xff"),
        (0xFE, b"\xff\xd9 \xff\xda"),
    ],
)
def test_what_stands_beside_the_pixels_of_a_jpeg_does_not_matter(mode: str, marker: int, segment: bytes) -> None:
    plain = encoded(Image.fromarray(SMOOTH).convert(mode), "JPEG")
    np.testing.assert_array_equal(pixels(jpeg_with(segment, marker, picture=plain)), pixels(plain))


@pytest.mark.parametrize(
    ("marker", "bits", "what"),
    [(0xC1, 12, "JPEG of 12 bits a value"), (0xC3, 16, "JPEG of 16 bits"), (0xF7, 8, "JPEG-LS"), (0xC5, 8, "hierarch")],
)
def test_kinds_of_jpeg_that_are_not_read_are_named(marker: int, bits: int, what: str) -> None:
    data = bytearray(encoded(SMOOTH, "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 1], data[place + 4] = marker, bits
    message = refusal(bytes(data))
    assert what in message
    assert "damaged" not in message


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_jpeg_2000_is_read(dtype: type) -> None:
    values = (SMOOTH[..., 0].astype(dtype) * (16 if dtype is np.uint16 else 1)).astype(dtype)
    for plain in (True, False):
        data = encoded(values, "JPEG2000", irreversible=False, no_jp2=plain)
        expected = ranged(values) if dtype is np.uint16 else values
        assert np.abs(pixels(data)[..., 0] - expected).max() <= 0.6
        with pytest.raises(ImageError, match=r"JPEG 2000 image without its end marker: it was cut short|damaged"):
            decode(data[: len(data) // 2], name="it", max_pixels=LIMIT)
    colours = encoded(SMOOTH, "JPEG2000", irreversible=False)
    np.testing.assert_array_equal(pixels(colours), SMOOTH)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_of_several_frames_is_read_and_said(kind: str) -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (10, 90, 200)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.abs(pixels(data).astype(int) - 10).max() <= 1
    assert "it holds 3 frames, of which the first is read" in notes(data)
    assert not notes(encoded(frames[0], kind))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"P5\n2 1\n4095\n" + struct.pack(">2H", 100, 4000), [0, 255]),
        (b"P5 2 1 100 \0d", [0, 255]),
        (b"P2\n# made by hand\n2 1\n255\n3 200\n", [3, 200]),
        (b"P4\n8 1\n\x0f", [255] * 4 + [0] * 4),
        (b"P1\n2 1\n0 1\n", [255, 0]),
        (b"P6\n1 1\n255\nabc", [97]),
    ],
)
def test_portable_maps_are_read(data: bytes, expected: list[int]) -> None:
    assert pixels(data)[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"8BPS\0\1" + bytes(40), "a Photoshop file"),
        (b"%PDF-1.7 ...", "a PDF file"),
        (b"\xef\xbb\xbf<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "an AVIF image"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "a video"),
        (b"NRRD0004\ntype: short", "an NRRD volume"),
        (b"ObjectType = Image\nNDims = 3", "a MetaImage header"),
        (b"\x93NUMPY\1\0", "a NumPy array"),
        (b"PK\3\4" + bytes(30), "a zip archive"),
        (bytes(5000), "a file of zeros"),
        (b"\x5c\1\0\0" + bytes(344), "an Analyze 7.5 header"),
    ],
)
def test_other_files_are_named_with_what_to_do(data: bytes, what: str) -> None:
    message = refusal(data)
    assert f"it is {what}" in message
    assert "no image of a known kind" in message
    assert message.endswith(", or leave the row out.")


@pytest.mark.parametrize("alpha", [0, 255])
def test_unused_bytes_of_a_bmp_are_not_transparency(alpha: int) -> None:
    rows = np.dstack([PICTURE[::-1, :, ::-1], np.full((13, 11), alpha, np.uint8)]).tobytes()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 11, 13, 1, 32, 3, len(rows), 0, 0, 0, 0) + masks + bytes(52)
    data = struct.pack("<2sIHHI", b"BM", 14 + 108 + len(rows), 0, 0, 14 + 108) + header + rows
    np.testing.assert_array_equal(pixels(data), PICTURE)


@pytest.mark.parametrize("note", ["consilium curve [[1, 2], [0]]", "consilium curve {", "consilium curve [1, 2, 3]"])
def test_a_damaged_note_of_a_kept_copy_is_none(note: str) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    data = encoded(Image.fromarray(values), "TIFF", tiffinfo={270: note})
    assert np.abs(pixels(data)[..., 0] - ranged(values)).max() <= 0.6
