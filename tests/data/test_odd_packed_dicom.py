"""Packed DICOM whose fields do not say what the packed pixels are: the pixels count, and a note says so."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit

from consilium.core.errors import ImageError
from consilium.data.images.reading import decode, probe
from tests.data.medical_samples import dicom_bytes, dicom_dataset, packed_bytes

LIMIT = 10**6
PICTURE = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((32, 24), 3)
)


def jpeg(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()


def jpeg_2000(picture: np.ndarray, *, transformed: bool) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG2000", irreversible=False, no_jp2=True, mct=int(transformed))
    return stream.getvalue()


def notes(data: bytes) -> str:
    return "; ".join(probe(data, name="it", max_pixels=LIMIT).notes)


def pixels(data: bytes) -> np.ndarray:
    info = probe(data, name="it", max_pixels=LIMIT)
    found = decode(data, name="it", max_pixels=LIMIT)
    assert found.shape == (info.height, info.width, 3)
    return found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("PhotometricInterpretation", "YBR_RCT"),
        ("PhotometricInterpretation", "MONOCHROME2"),
        ("PhotometricInterpretation", "PALETTE COLOR"),
        ("SamplesPerPixel", 1),
        ("Rows", 12),
        ("Columns", 500),
        ("BitsAllocated", 16),
        ("BitsStored", 7),
    ],
)
def test_a_jpeg_counts_more_than_the_fields(key: str, value: object) -> None:
    dataset = dicom_dataset(PICTURE, PhotometricInterpretation="YBR_FULL")
    setattr(dataset, key, value)
    data = packed_bytes(dataset, JPEGBaseline8Bit, [jpeg(PICTURE)])
    assert np.abs(pixels(data).astype(int) - PICTURE).max() <= 9
    assert f"its {key} is '{value}'" in notes(data)


def test_a_grey_jpeg_is_grey_whatever_the_fields_say() -> None:
    grey = PICTURE[..., 0].copy()
    data = packed_bytes(
        dicom_dataset(PICTURE, PhotometricInterpretation="YBR_FULL_422"), JPEGBaseline8Bit, [jpeg(grey)]
    )
    expected = (grey.astype(float) - grey.min()) / (grey.max() - grey.min()) * 255
    assert np.abs(pixels(data)[..., 0] - expected).max() <= 9


@pytest.mark.parametrize("kind", ["YBR_FULL", "YBR_FULL_422", "YBR_RCT", "RGB"])
def test_colours_that_the_decoder_of_jpeg_2000_has_made_are_not_made_again(kind: str) -> None:
    frame = jpeg_2000(PICTURE, transformed=True)
    data = packed_bytes(dicom_dataset(PICTURE, PhotometricInterpretation=kind), JPEG2000Lossless, [frame])
    np.testing.assert_array_equal(pixels(data), PICTURE)


def frames_of(count: int, **keys: object) -> Dataset:
    dataset = dicom_dataset(np.stack([PICTURE] * count), frames=True, PhotometricInterpretation="YBR_FULL", **keys)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([jpeg(PICTURE), jpeg(255 - PICTURE), jpeg(PICTURE)])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset


@pytest.mark.parametrize("offset", [0, 7, 99999, 2**32 - 1])
def test_a_wrong_table_of_offsets_does_not_matter(offset: int) -> None:
    dataset = frames_of(3)
    assert np.abs(pixels(dicom_bytes(dataset)).astype(int) - (255 - PICTURE)).max() <= 9
    assert not notes(dicom_bytes(dataset))
    start = 8 + 4  # of the offset of the second frame
    dataset.PixelData = dataset.PixelData[:start] + offset.to_bytes(4, "little") + dataset.PixelData[start + 4 :]
    data = dicom_bytes(dataset)
    assert np.abs(pixels(data).astype(int) - (255 - PICTURE)).max() <= 9
    assert "its table of offsets" in notes(data)


def test_frames_that_are_missing_are_counted() -> None:
    with pytest.raises(ImageError, match="DICOM file of 9 frames with the pixels of 3: it was cut short"):
        probe(dicom_bytes(frames_of(9)), name="it", max_pixels=LIMIT)


def test_packed_pixels_that_are_cut_short_are_noticed_in_the_header() -> None:
    whole = jpeg(PICTURE)
    shortened = jpeg_2000(PICTURE, transformed=True)
    for syntax, frame in ((JPEGBaseline8Bit, whole), (JPEG2000Lossless, shortened)):
        dataset = dicom_dataset(PICTURE, PhotometricInterpretation="YBR_FULL")
        with pytest.raises(ImageError, match="cut short"):
            probe(packed_bytes(dataset, syntax, [frame[: len(frame) // 2]]), name="it", max_pixels=LIMIT)


def test_more_bytes_than_the_fields_describe_are_said() -> None:
    dataset = dicom_dataset(PICTURE[..., 0].copy())
    dataset.PixelData = PICTURE.tobytes()
    assert "it has 2,304 bytes of pixels, its fields describe 768; the others are left out" in notes(
        dicom_bytes(dataset)
    )
