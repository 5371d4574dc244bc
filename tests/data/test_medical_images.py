"""DICOM, NIfTI and frames: the right values, the right window, or an ImageError, whatever the bytes."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import pickle
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pydicom.uid
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_voi_lut
from pydicom.sequence import Sequence

from consilium.core.errors import ImageError, MissingExtraError
from consilium.core.places import facts, split_frame
from consilium.data.batches.loader import Loaded, Loader, evaluation_requests
from consilium.data.batches.readers import ImageReader, Readers
from consilium.data.batches.rows import Items
from consilium.data.config import ImageConfig, LoaderConfig
from consilium.data.images.reading import alone, decode, load_view, probe, read_bytes, resize_once
from consilium.data.store.prepare import prepare
from consilium.inputs import find_images
from tests.data.medical_samples import dicom_bytes, dicom_dataset, nifti_bytes, packed_bytes
from tests.data.samples import data_config, read

LIMIT = 10**6
RNG = np.random.default_rng(0)
CT = RNG.integers(0, 4096, (24, 20)).astype(np.uint16)
RESCALED = {"RescaleSlope": 1, "RescaleIntercept": -1024}


def pixels(data: bytes, window: tuple[float, float] | None = None) -> np.ndarray:
    result = decode(data, name="it", max_pixels=LIMIT, window=window)
    assert result.dtype == np.uint8
    assert result.shape[2] == 3
    return result


def grey(data: bytes, window: tuple[float, float] | None = None) -> np.ndarray:
    result = pixels(data, window)
    assert (result == result[..., :1]).all()
    return result[..., 0]


def levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Straight from low (0) to high (255)."""
    low, high = float(low), float(high)
    return np.rint((np.clip(values, low, high) - low) / (high - low) * 255).astype(np.uint8)


# DICOM: values and windows


def test_without_any_window_the_lowest_value_is_black_and_the_highest_white() -> None:
    data = dicom_bytes(dicom_dataset(CT, **RESCALED))
    info = probe(data, name="it", max_pixels=LIMIT)
    assert (info.width, info.height, info.format) == (20, 24, "DICOM")
    np.testing.assert_array_equal(grey(data), levels(CT, CT.min(), CT.max()))


def test_the_window_of_the_config_is_in_rescaled_units() -> None:
    own = {"WindowCenter": 500, "WindowWidth": 10, "RescaleSlope": 0.5, "RescaleIntercept": -1024}
    data = dicom_bytes(dicom_dataset(CT, **own))
    np.testing.assert_array_equal(grey(data, (40, 400)), levels(CT * 0.5 - 1024, -160, 240))
    view = load_view(data, name="it", image=ImageConfig(size=(24, 20), window=(40, 400)), box=None)
    np.testing.assert_array_equal(view[..., 0], levels(CT * 0.5 - 1024, -160, 240))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize(("centre", "width"), [(40, 400), (1500.5, 3000), (-100, 2)])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_the_files_own_window_is_that_of_the_standard(
    function: str | None, centre: float, width: float, kind: str
) -> None:
    dataset = dicom_dataset(CT, bits=12, WindowCenter=[centre, 7], WindowWidth=[width, 7], **RESCALED)
    dataset.PhotometricInterpretation = kind
    if function is not None:
        dataset.VOILUTFunction = function
    values = CT.astype(np.float64) - 1024
    if function == "SIGMOID":
        brightness = 1 / (1 + np.exp(-4 * (values - centre) / width))
    elif function == "LINEAR_EXACT":
        brightness = np.clip((values - centre) / width + 0.5, 0, 1)
    else:
        brightness = np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    expected = 255 * (1 - brightness if kind == "MONOCHROME1" else brightness)
    found = grey(dicom_bytes(dataset)).astype(float)
    assert np.abs(found - expected).max() <= 0.51
    by_pydicom = apply_voi_lut(CT.astype(np.float64) - 1024, dataset)  # from the lowest to the highest possible value
    theirs = (by_pydicom + 1024) / 4095 * 255
    assert np.abs(found - (255 - theirs if kind == "MONOCHROME1" else theirs)).max() <= 0.51


def test_a_lookup_table_is_applied_where_there_is_no_window() -> None:
    table = Dataset()
    table.LUTDescriptor = [300, 100, 12]
    table.add_new("LUTData", "US", [int(4095 * (entry / 299) ** 2) for entry in range(300)])
    stored = np.arange(480, dtype=np.uint16).reshape(20, 24)
    dataset = dicom_dataset(stored, bits=12, VOILUTSequence=Sequence([table]))
    expected = np.rint(apply_voi_lut(stored, dataset) / 4095 * 255)
    np.testing.assert_array_equal(grey(dicom_bytes(dataset)), expected)
    np.testing.assert_array_equal(grey(dicom_bytes(dataset), (200, 101)), levels(stored, 149.5, 250.5))
    dataset.WindowCenter, dataset.WindowWidth = 200, 101
    np.testing.assert_array_equal(grey(dicom_bytes(dataset)), levels(stored, 149.5, 249.5))


def test_a_modality_table_is_applied() -> None:
    table = Dataset()
    table.LUTDescriptor = [256, 0, 16]
    table.add_new("LUTData", "US", [entry * entry for entry in range(256)])
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    data = dicom_bytes(dicom_dataset(stored, ModalityLUTSequence=Sequence([table])))
    np.testing.assert_array_equal(grey(data), levels(stored.astype(float) ** 2, 0, 255**2))


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_signed_values_of_fewer_bits_than_they_take(bits: int) -> None:
    values = RNG.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (9, 7)).astype(np.int16)
    dirty = values & np.int16((1 << bits) - 1 if bits < 16 else -1)  # the unused bits are not the sign's
    data = dicom_bytes(dicom_dataset(dirty, bits=bits))
    np.testing.assert_array_equal(grey(data), levels(values, values.min(), values.max()))


def test_padding_is_black_and_does_not_count() -> None:
    stored = np.array([[-2000, 0, 100, 200, -1990]], np.int16)
    dataset = dicom_dataset(stored, PhotometricInterpretation="MONOCHROME1")
    assert grey(dicom_bytes(dataset)).tolist() == [[255, 23, 12, 0, 254]]
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    dataset.add_new("PixelPaddingRangeLimit", "SS", -1990)
    assert grey(dicom_bytes(dataset)).tolist() == [[0, 255, 128, 0, 0]]
    assert grey(dicom_bytes(dataset), (0, 2000)).tolist() == [[0, 128, 115, 102, 0]]


def test_padding_that_is_found_by_its_stored_value() -> None:
    stored = np.array([[0, 10, 20]], np.uint16)
    data = dicom_bytes(dicom_dataset(stored, PixelPaddingValue=0, RescaleSlope=2, RescaleIntercept=0))
    assert grey(data).tolist() == [[0, 0, 255]]


@pytest.mark.parametrize(("centre", "width"), [("", ""), (40, 0), (40, 0.5), (float("nan"), 400)])
def test_a_window_that_is_none_is_ignored(centre: object, width: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = dicom_bytes(dicom_dataset(CT, WindowCenter=centre, WindowWidth=width))
    np.testing.assert_array_equal(grey(data), levels(CT, CT.min(), CT.max()))


def test_float_pixels_are_read() -> None:
    values = np.array([[0.0, 0.25, 1.0]], np.float32)
    dataset = dicom_dataset(values)
    dataset.FloatPixelData = values.tobytes()
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    assert grey(dicom_bytes(dataset)).tolist() == [[0, 64, 255]]


# DICOM: colour

PICTURE = np.asarray(Image.fromarray(RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((32, 24), 3))


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb_of_both_orders(planar: int) -> None:
    stored = PICTURE if planar == 0 else np.ascontiguousarray(PICTURE.transpose(2, 0, 1))
    dataset = dicom_dataset(PICTURE, PlanarConfiguration=planar)
    dataset.PixelData = stored.tobytes()
    np.testing.assert_array_equal(pixels(dicom_bytes(dataset)), PICTURE)
    assert probe(dicom_bytes(dataset), name="it", max_pixels=LIMIT).mode == "RGB"
    np.testing.assert_array_equal(pixels(dicom_bytes(dataset), (40, 400)), PICTURE)


def test_ybr_full_becomes_rgb() -> None:
    stored = np.asarray(Image.fromarray(PICTURE).convert("YCbCr"))
    luma, blue, red = np.moveaxis(stored.astype(float), 2, 0) - np.array([0, 128, 128])[:, None, None]
    expected = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=2)
    data = dicom_bytes(dicom_dataset(stored, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(pixels(data) - np.clip(expected, 0, 255)).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_is_looked_up(bits: int) -> None:
    stored = RNG.integers(0, 4, (6, 8)).astype(np.uint8)
    palette = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 0], [10, 20, 250]])
    dataset = dicom_dataset(stored, PhotometricInterpretation="PALETTE COLOR")
    for channel, name in enumerate(("Red", "Green", "Blue")):
        entries = palette[:, channel] * (257 if bits == 16 else 1)
        dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [4, 0, bits])
        dataset.add_new(
            f"{name}PaletteColorLookupTableData", "OW", entries.astype("<u2" if bits == 16 else "u1").tobytes()
        )
    np.testing.assert_array_equal(pixels(dicom_bytes(dataset)), palette[stored])


def test_colours_of_16_bits_keep_their_range() -> None:
    stored = (PICTURE.astype(np.uint16) * 257)[:, :31]
    np.testing.assert_array_equal(pixels(dicom_bytes(dicom_dataset(stored))), PICTURE[:, :31])


# DICOM: packed


def encoded(picture: np.ndarray, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, kind, **options)
    return stream.getvalue()


def test_rle_is_unpacked() -> None:
    dataset = dicom_dataset(CT, **RESCALED)
    dataset.compress(pydicom.uid.RLELossless)
    np.testing.assert_array_equal(grey(dicom_bytes(dataset), (0, 2000)), levels(CT - 1024.0, -1000, 1000))


def test_jpeg_2000_of_16_bits_is_unpacked() -> None:
    frame = encoded(CT, "JPEG2000", irreversible=False, no_jp2=True)
    data = packed_bytes(dicom_dataset(CT, **RESCALED), pydicom.uid.JPEG2000Lossless, [frame])
    np.testing.assert_array_equal(grey(data), levels(CT, CT.min(), CT.max()))


@pytest.mark.parametrize("kind", ["YBR_FULL_422", "YBR_FULL", "RGB"])
def test_colour_jpegs_keep_their_colours(kind: str) -> None:
    frame = encoded(PICTURE, "JPEG", quality=95, **({"keep_rgb": True} if kind == "RGB" else {"subsampling": 0}))
    dataset = dicom_dataset(PICTURE, PhotometricInterpretation=kind)
    data = packed_bytes(dataset, pydicom.uid.JPEGBaseline8Bit, [frame])
    assert np.abs(pixels(data).astype(int) - np.asarray(Image.open(io.BytesIO(frame)).convert("RGB"))).max() <= 2


@pytest.mark.parametrize("kind", ["YBR_RCT", "RGB"])
def test_colour_jpeg_2000_keeps_its_colours(kind: str) -> None:
    frame = encoded(PICTURE, "JPEG2000", irreversible=False, no_jp2=True, mct=int(kind == "YBR_RCT"))
    dataset = dicom_dataset(PICTURE, PhotometricInterpretation=kind)
    np.testing.assert_array_equal(pixels(packed_bytes(dataset, pydicom.uid.JPEG2000Lossless, [frame])), PICTURE)


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        (pydicom.uid.JPEGLosslessSV1, "JPEG Lossless"),
        (pydicom.uid.JPEGLSLossless, "JPEG-LS"),
        (pydicom.uid.JPEGExtended12Bit, "JPEG Extended"),
        (pydicom.uid.MPEG2MPML, "MPEG2"),
    ],
)
def test_what_cannot_be_unpacked_is_named_from_the_header(syntax: str, name: str) -> None:
    dataset = dicom_dataset(CT, bits=12)
    data = packed_bytes(dataset, syntax, [b"\xff\xd8" + bytes(50)])
    for function in (probe, decode):
        with pytest.raises(ImageError, match=f"scan is a DICOM file packed as {name}.*{syntax}.*gdcmconv"):
            function(data, name="scan", max_pixels=LIMIT)


# DICOM: what is wrong

PLAIN = dicom_bytes(dicom_dataset(CT, WindowCenter=40, WindowWidth=400, **RESCALED))
RLE = dicom_dataset(CT)
RLE.compress(pydicom.uid.RLELossless)


@pytest.mark.parametrize("data", [PLAIN[:-1], PLAIN[:-500], PLAIN[:-970], dicom_bytes(RLE)[:-30]])
def test_a_dicom_cut_short_is_noticed_in_its_header(data: bytes) -> None:
    for function in (probe, decode):
        with pytest.raises(
            ImageError, match=r"scan is a DICOM file without (all of its pixels: it was|an image, or) cut short"
        ):
            function(data, name="scan", max_pixels=LIMIT)


@pytest.mark.parametrize("length", [132, 140, 300, 500, len(PLAIN) - 961])
def test_a_dicom_header_cut_short_is_an_error(length: int) -> None:
    with pytest.raises(ImageError, match="scan is"):
        probe(PLAIN[:length], name="scan", max_pixels=LIMIT)


def test_a_dicom_without_an_image_says_what_it_is() -> None:
    dataset = dicom_dataset(CT)
    for key in ("Rows", "Columns", "PixelData"):
        delattr(dataset, key)
    dataset.SOPClassUID = pydicom.uid.EncapsulatedPDFStorage
    with pytest.raises(ImageError, match=r"without an image \(Encapsulated PDF Storage\)"):
        probe(dicom_bytes(dataset), name="scan", max_pixels=LIMIT)


def test_the_pixel_limit_is_that_of_one_frame_and_is_checked_from_the_header() -> None:
    data = dicom_bytes(dicom_dataset(np.stack([CT] * 9), frames=True))
    assert probe(data, name="it", max_pixels=480).height == 24
    with pytest.raises(ImageError, match="20 x 24 = 480 pixels, more than max_pixels: 479"):
        probe(data, name="it", max_pixels=479)
    huge = dicom_dataset(CT)
    huge.Rows = huge.Columns = 65535
    with pytest.raises(ImageError, match="more than max_pixels"):
        probe(dicom_bytes(huge), name="it", max_pixels=LIMIT)


# Frames


def test_the_middle_frame_is_taken_unless_one_is_named(tmp_path: Path) -> None:
    frames = np.stack([np.full((4, 5), 10 * number, np.uint8) for number in range(7)])
    path = tmp_path / "scan.dcm"
    path.write_bytes(dicom_bytes(dicom_dataset(frames, frames=True)))
    window = (30, 60)
    assert (grey(read_bytes(path), window) == levels(np.array(30), 0, 60)).all()
    for frame in range(7):
        assert (grey(read_bytes(f"{path}#{frame}"), window) == levels(np.array(10 * frame), 0, 60)).all()
    with pytest.raises(ImageError, match=r"scan.dcm#7: there is no frame 7; the file has 7 frames, 0 to 6"):
        probe(read_bytes(f"{path}#7"), name=f"{path}#7", max_pixels=LIMIT)


def test_pages_and_single_images_have_frames_too(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (4 + page, 3), (page, 50, 200)) for page in range(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    Image.fromarray(PICTURE).save(tmp_path / "one.jpg")
    assert (pixels(read_bytes(tmp_path / "pages.tif")) == [0, 50, 200]).all()
    last = read_bytes(str(tmp_path / "pages.tif#2"))
    assert probe(last, name="it", max_pixels=LIMIT).width == 6
    assert (pixels(last) == [2, 50, 200]).all()
    first = read_bytes(str(tmp_path / "one.jpg#0"))
    np.testing.assert_array_equal(pixels(first), pixels(read_bytes(tmp_path / "one.jpg")))
    for name, there in (("pages.tif#3", "3 frames, 0 to 2"), ("one.jpg#1", "one frame, 0")):
        with pytest.raises(ImageError, match=there):
            decode(read_bytes(str(tmp_path / name)), name=name, max_pixels=LIMIT)


def test_frames_of_an_enhanced_file_have_their_own_scale_and_window() -> None:
    dataset = dicom_dataset(np.stack([CT] * 2), frames=True)

    def groups(slope: float, intercept: float, **window: object) -> Dataset:
        group, scale, shown = Dataset(), Dataset(), Dataset()
        scale.RescaleSlope, scale.RescaleIntercept = slope, intercept
        group.PixelValueTransformationSequence = Sequence([scale])
        for key, value in window.items():
            setattr(shown, key, value)
        if window:
            group.FrameVOILUTSequence = Sequence([shown])
        return group

    dataset.PerFrameFunctionalGroupsSequence = Sequence([groups(1, 0), groups(2, -1000)])
    own = {"WindowCenter": 0, "WindowWidth": 1000, "VOILUTFunction": "LINEAR_EXACT"}
    dataset.SharedFunctionalGroupsSequence = Sequence([groups(5, 5, **own)])
    data = dicom_bytes(dataset)
    np.testing.assert_array_equal(grey(data), levels(CT * 2.0 - 1000, -500, 500))


@given(name=st.text("ab#0123456789./", min_size=1, max_size=12))
def test_a_path_is_split_at_its_last_number(name: str) -> None:
    for path in (f"/nowhere/{name}", f"gs://bucket/{name}"):
        file, frame = split_frame(path)
        assert path == (file if frame is None else f"{file}#{path.rpartition('#')[2]}")
        assert frame is None or frame == int(path.rpartition("#")[2])
        number = path.rpartition("#")[2]
        assert frame is not None or "#" not in path or not number.isdigit() or len(number) > 9  # no file has so many


def test_a_file_whose_name_ends_like_a_frame_is_itself(tmp_path: Path) -> None:
    for name, colour in (("a#3", 30), ("b#1.png", 60), ("a", 90)):
        Image.new("RGB", (4, 3), (colour,) * 3).save(tmp_path / name, "PNG")
    for name, colour in (("a#3", 30), ("b#1.png", 60), ("a#0", 90), ("a#3#0", 30)):
        assert (pixels(read_bytes(tmp_path / name)) == colour).all()
        assert facts(str(tmp_path / name)) is not None
    with pytest.raises(ImageError, match="c#3 does not exist"):
        read_bytes(tmp_path / "c#3")
    assert facts(str(tmp_path / "c#3")) is None


# NIfTI

VOLUME = RNG.integers(-1000, 1000, (5, 6, 7)).astype(np.int16)


def axial(data: bytes, slice_number: int) -> np.ndarray:
    """By nibabel: a slice of the volume turned to the patient's axes, right on the left and front on top."""
    canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(data)).get_fdata()
    return np.fliplr(np.flipud(canonical[:, :, slice_number].T))


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((-1, 1), repeat=3)))
def test_every_orientation_is_turned_to_the_same_view(axes: tuple[int, ...], signs: tuple[int, ...]) -> None:
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (to, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[to, axis] = sign * (1.5 + axis)
    data = nifti_bytes(VOLUME, affine=affine)
    for packed in (data, gzip.compress(data)):
        info = probe(packed, name="it", max_pixels=LIMIT)
        expected = axial(data, VOLUME.shape[axes.index(2)] // 2)
        assert (info.height, info.width, info.format) == (*expected.shape, "NIfTI")
        np.testing.assert_array_equal(grey(packed), levels(expected, expected.min(), expected.max()))


def test_a_slice_may_be_named_and_windowed(tmp_path: Path) -> None:
    path = tmp_path / "volume.nii.gz"
    path.write_bytes(gzip.compress(nifti_bytes(VOLUME)))
    for number in (0, 6):
        expected = levels(axial(nifti_bytes(VOLUME), number), -200, 200)
        np.testing.assert_array_equal(grey(read_bytes(f"{path}#{number}"), (0, 400)), expected)
    with pytest.raises(ImageError, match="no frame 7; the file has 7 frames, 0 to 6"):
        probe(read_bytes(f"{path}#7"), name="it", max_pixels=LIMIT)


def test_scale_display_range_time_and_the_second_format() -> None:
    stored = axial(nifti_bytes(VOLUME), 3)
    data = bytearray(nifti_bytes(np.stack([VOLUME, VOLUME * 0], axis=3)))
    data[112:120] = struct.pack("<2f", 2.0, 10.0)
    np.testing.assert_array_equal(grey(bytes(data), (100, 900)), levels(stored * 2 + 10, -350, 550))
    data[124:132] = struct.pack("<2f", 300, -200)
    np.testing.assert_array_equal(grey(bytes(data)), levels(stored * 2 + 10, -200, 300))
    second = nifti_bytes(VOLUME, kind=nibabel.Nifti2Image)
    np.testing.assert_array_equal(grey(second), levels(stored, stored.min(), stored.max()))


def test_flat_and_coloured_volumes() -> None:
    plane = nifti_bytes(VOLUME[:, :, 0])
    expected = np.fliplr(np.flipud(VOLUME[:, :, 0].T))
    np.testing.assert_array_equal(grey(plane), levels(expected, expected.min(), expected.max()))
    colours = np.zeros((4, 5, 1), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["R"], colours["B"] = 200, np.arange(20).reshape(4, 5, 1)
    found = pixels(nifti_bytes(colours))
    assert (found[..., 0] == 200).all()
    np.testing.assert_array_equal(found[..., 2], np.fliplr(np.flipud(np.arange(20).reshape(4, 5).T)))


@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, lambda data: gzip.compress(data[:99]) + gzip.compress(data[99:])]
)
def test_a_volume_cut_short_is_noticed_from_its_header(pack: object) -> None:
    assert callable(pack)
    whole = nifti_bytes(np.tile(VOLUME, (4, 4, 1)))
    assert probe(pack(whole), name="it", max_pixels=LIMIT).width == 20
    assert probe(pack(whole + bytes(99)), name="it", max_pixels=LIMIT).width == 20
    for damaged in (pack(whole)[:-9], pack(whole)[: len(pack(whole)) // 2], pack(whole[:-1])):
        with pytest.raises(ImageError, match=r"volume without all of its .* cut short"):
            probe(damaged, name="it", max_pixels=LIMIT)


def test_a_volume_that_unpacks_to_too_much_is_refused_before_it_does() -> None:
    header = nibabel.Nifti1Header()
    header.set_data_shape((1000, 1000, 8000))
    header.set_data_dtype(np.uint8)
    bomb = gzip.compress(header.binaryblock + bytes(10**6))
    with pytest.raises(ImageError, match=r"unpacks to 8,000,000,000 bytes"):
        probe(bomb, name="it", max_pixels=LIMIT)
    with pytest.raises(ImageError, match="1000 x 1000 = 1,000,000 pixels, more than max_pixels: 999,999"):
        probe(bomb, name="it", max_pixels=LIMIT - 1)


@pytest.mark.parametrize("values", [VOLUME.astype(np.complex64), np.zeros(5, np.uint8)])
def test_volumes_that_are_no_images_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ImageError, match="expected a volume of whole or real numbers"):
        probe(nifti_bytes(values), name="it", max_pixels=LIMIT)


def test_other_gzip_files_are_no_images() -> None:
    with pytest.raises(ImageError, match="no image of a known kind"):
        probe(gzip.compress(b"hello" * 100), name="it", max_pixels=LIMIT)


# Kept copies


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID", None])
def test_a_frame_kept_alone_looks_the_same_under_every_window(kind: str, function: str | None) -> None:
    own = {} if function is None else {"WindowCenter": 200, "WindowWidth": 900, "VOILUTFunction": function}
    dataset = dicom_dataset(CT, PhotometricInterpretation=kind, PixelPaddingValue=int(CT[0, 0]), **RESCALED, **own)
    data = dicom_bytes(dataset)
    kept = alone(data, name="it", max_pixels=LIMIT)
    assert b"Nobody" in data
    assert b"Nobody" not in kept
    assert alone(kept, name="it", max_pixels=LIMIT) is kept
    for window in (None, (40.0, 400.0)):
        np.testing.assert_array_equal(grey(kept, window), grey(data, window))


def test_colours_and_pages_kept_alone_are_unchanged(tmp_path: Path) -> None:
    data = dicom_bytes(dicom_dataset(PICTURE))
    np.testing.assert_array_equal(pixels(alone(data, name="it", max_pixels=LIMIT)), PICTURE)
    pages = [Image.fromarray((CT + page * 1000).astype(np.uint16)) for page in range(2)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    page = read_bytes(str(tmp_path / "pages.tif#1"))
    kept = alone(page, name="it", max_pixels=LIMIT)
    np.testing.assert_array_equal(grey(kept, (2000, 2000)), levels(CT + 1000.0, 1000, 3000))
    whole = read_bytes(tmp_path / "pages.tif")
    assert alone(whole, name="it", max_pixels=LIMIT) is whole


@pytest.mark.parametrize("source", ["dicom", "png"])
def test_a_reduced_copy_keeps_values_for_every_window(source: str) -> None:
    steps = np.linspace(0, 60000, 64 * 64).reshape(64, 64).astype(np.uint16)
    data = dicom_bytes(dicom_dataset(steps)) if source == "dicom" else encoded(steps, "PNG")
    copy = resize_once(data, name="it", shorter=16, max_pixels=LIMIT)
    assert probe(copy, name="it", max_pixels=LIMIT).height == 16
    blocks = steps.reshape(16, 4, 16, 4).mean(axis=(1, 3))
    inner = (slice(2, -2), slice(2, -2))  # the bicubic edge leans to one side
    for window in ((30000.0, 3000.0), (100.0, 60000.0)):
        expected = levels(blocks, window[0] - window[1] / 2, window[0] + window[1] / 2)
        assert np.abs(grey(copy, window)[inner].astype(int) - expected[inner]).max() <= 2
    expected = levels(blocks, 0, 60000)
    assert np.abs(grey(copy)[inner].astype(int) - expected[inner]).max() <= 1


def test_what_is_nothing_stays_nothing_in_a_reduced_copy() -> None:
    values = np.full((64, 64), 500, np.int16)
    values[:, :32], values[:32, 32:] = -2000, 700
    dataset = dicom_dataset(values)
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    copy = grey(resize_once(dicom_bytes(dataset), name="it", shorter=16, max_pixels=LIMIT))
    assert (copy[:, :8] == 0).all()
    assert (copy[:7, 8:] > 250).all()
    empty = dicom_dataset(np.zeros((64, 64), np.uint8), PixelPaddingValue=0)
    assert (grey(resize_once(dicom_bytes(empty), name="it", shorter=16, max_pixels=LIMIT)) == 0).all()


# From a table to a store


@pytest.mark.parametrize(("images", "resize"), [("reference", None), ("embed", None), ("embed", 16)])
def test_frames_go_through_a_store(tmp_path: Path, images: str, resize: int | None) -> None:
    volume = RNG.integers(-1000, 1000, (20, 24, 5)).astype(np.int16)
    (tmp_path / "volume.nii.gz").write_bytes(gzip.compress(nifti_bytes(volume)))
    (tmp_path / "scan").write_bytes(PLAIN)  # no extension
    rows = ["image,label", *(f"volume.nii.gz#{number},{number % 2}" for number in range(5)), "scan,1"]
    (tmp_path / "cases.csv").write_text("\n".join(rows) + "\n")
    source = {"kind": "csv", "name": "s", "path": str(tmp_path / "cases.csv")}
    config = data_config(tmp_path, source, store={"images": images, "resize": resize})
    table = prepare(config).store.table
    for number in range(5):
        expected = axial(nifti_bytes(volume), number)
        found = read_bytes(table.images(number)[0])
        if resize is None:
            np.testing.assert_array_equal(grey(found, (100, 900)), levels(expected, -350, 550))
        else:
            assert grey(found, (100, 900)).shape == (19, 16)
    assert len(set(table.groups[:5])) == 1  # slices of one volume stay together
    assert len(dict(table.file_hashes())) == 6
    assert len({digest for _, digest in table.file_hashes()}) == 6
    assert prepare(config).created is False
    if images == "reference":
        (tmp_path / "volume.nii.gz").write_bytes(gzip.compress(nifti_bytes(volume + 1)))
        assert prepare(config).created is True


def test_bad_frames_and_files_are_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "volume.nii").write_bytes(nifti_bytes(VOLUME))
    (tmp_path / "short.dcm").write_bytes(PLAIN[:-5])
    (tmp_path / "scan.dcm").write_bytes(PLAIN)
    rows = ["image,label", "volume.nii#3,a", "volume.nii#7,a", "short.dcm,a", "gone.nii#1,b", "scan.dcm,b"]
    (tmp_path / "cases.csv").write_text("\n".join(rows) + "\n")
    source = {"kind": "csv", "name": "s", "path": str(tmp_path / "cases.csv")}
    prepared = prepare(data_config(tmp_path, source, on_bad_row="quarantine"))
    assert len(prepared.store.table) == 2
    reasons = {row.line: row.reason for row in prepared.bad_rows}
    assert set(reasons) == {3, 4, 5}
    assert "no frame 7" in reasons[3]
    assert "cut short" in reasons[4]
    assert "gone.nii#1 does not exist" in reasons[5]


def test_a_folder_of_medical_images_is_a_source(tmp_path: Path) -> None:
    for name in ("a/one.dcm", "a/two.DICOM", "b/three.nii", "b/four.nii.gz", "b/notes.gz"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    cases, bad = read("folder", tmp_path / "images")
    assert sorted(case.views[0].image.rpartition("/")[2] for case in cases) == [
        "four.nii.gz",
        "one.dcm",
        "three.nii",
        "two.DICOM",
    ]
    assert not bad


# Whatever the bytes

GZIPPED = gzip.compress(nifti_bytes(VOLUME), mtime=0)
SOUND = [PLAIN, dicom_bytes(RLE), dicom_bytes(dicom_dataset(PICTURE)), nifti_bytes(VOLUME), GZIPPED]


@settings(max_examples=400)
@given(
    data=st.sampled_from(SOUND),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    in_header=st.booleans(),
    kept=st.floats(0, 1) | st.just(1.0),
)
def test_damaged_bytes_give_pixels_or_an_image_error_and_no_warning(
    data: bytes, changes: list[tuple[float, int]], in_header: bool, kept: float
) -> None:
    broken = bytearray(data)
    for place, value in changes:
        broken[int(place * (min(len(broken), 900) if in_header else len(broken)))] = value
    config = ImageConfig(size=(8, 8), max_pixels=LIMIT)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with contextlib.suppress(ImageError):
            view = load_view(bytes(broken[: int(kept * len(broken))]), name="it", image=config, box=None)
            assert view.shape == (8, 8, 3)
    assert not caught


def test_odd_files_write_nothing_on_the_screen(tmp_path: Path) -> None:
    odd = bytearray(nifti_bytes(VOLUME))
    odd[80:92] = struct.pack("<3f", 0, 0, 0)  # sizes of the voxels, of which nibabel warns
    (tmp_path / "odd.nii").write_bytes(odd)
    dataset = dicom_dataset(CT, WindowCenter=40, WindowWidth=400)
    data = bytearray(dicom_bytes(dataset))
    place = data.index(b"Nobody^Known")
    data[place : place + 2] = b"\xff\xfe"
    (tmp_path / "odd.dcm").write_bytes(data + b"\1\2\3")
    code = (
        "from consilium.data.images.reading import decode, read_bytes\n"
        "for name in ('odd.nii', 'odd.dcm'):\n"
        "    decode(read_bytes(name), name=name, max_pixels=1000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def hide(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize(("package", "data", "what"), [("pydicom", PLAIN, "DICOM"), ("nibabel", GZIPPED, "NIfTI")])
def test_without_the_extra_it_is_named(package: str, data: bytes, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(package, monkeypatch)
    with pytest.raises(MissingExtraError, match=rf"Reading {what} needs the extra 'dicom'.*consilium\[dicom\]"):
        probe(data, name="it", max_pixels=LIMIT)


# Training and prediction


def loaded(*images: str | bytes, window: tuple[float, float] | None, workers: int) -> Loaded:
    loading = LoaderConfig(batch_size=8, workers=workers)
    image = ImageConfig(size=(24, 20), window=window)
    loader = Loader(Readers(images=ImageReader(Items(images), image=image)), config=loading)
    (found,) = loader.load(evaluation_requests(range(len(images)), config=loading))
    return found


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_shows_every_form_by_the_window(tmp_path: Path, workers: int) -> None:
    (tmp_path / "scan.dcm").write_bytes(dicom_bytes(dicom_dataset(np.stack([CT, CT // 2]), frames=True, **RESCALED)))
    names, _ = find_images([f"{tmp_path}/scan.dcm#0", f"{tmp_path}/scan.dcm"])
    found = loaded(*names, alone(PLAIN, name="it", max_pixels=LIMIT), window=(40, 400), workers=workers)
    assert not found.errors
    assert found.batch is not None
    for number, stored in enumerate((CT, CT // 2, CT)):
        image_HWC = found.batch.views.pixels[number, 0].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(image_HWC[..., 0], levels(stored - 1024.0, -160, 240))


def test_a_loader_without_the_extra_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    hide("pydicom", monkeypatch)
    found = loaded(PLAIN, alone(encoded(PICTURE, "PNG"), name="it", max_pixels=LIMIT), window=None, workers=0)
    assert found.batch is not None
    assert found.batch.rows_B.tolist() == [1]
    ((row, error),) = found.errors
    assert row == 0
    assert isinstance(error, MissingExtraError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301  # as it comes from a worker


def test_prediction_finds_medical_images_in_folders(tmp_path: Path) -> None:
    for name in ("a.dcm", "b/c.nii.gz", "b/d.NII", "notes.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names, _ = find_images([str(tmp_path)])
    assert [Path(name).name for name in names] == ["a.dcm", "c.nii.gz", "d.NII"]
