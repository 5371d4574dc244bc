"""Damaged DICOM, NIfTI, deep TIFF, PNG and JPEG 2000: every reader gives pixels or an ImageError, in words of ours."""

from __future__ import annotations

import gzip
import io
import re
import warnings

import numpy as np
import pydicom
import pytest
from PIL import Image

from consilium.core.errors import ImageError
from consilium.data.config import ImageConfig
from consilium.data.images.reading import alone, decode, load_view, probe, resize_once
from tests.data.medical_samples import dicom_bytes, dicom_dataset, nifti_bytes
from tests.data.pictures import png, png_chunk, tiff
from tests.fuzz.mutate import Mutator, fuzz
from tests.fuzz.test_images import new_sums

MAX_PIXELS = 10**5
VIEW = ImageConfig(size=(8, 8), max_pixels=MAX_PIXELS, window=(40, 400), fit="pad")
CHANCE = np.random.default_rng(0)
DEEP = CHANCE.integers(0, 4096, (12, 10)).astype(np.uint16)
PYTHONS = re.compile(r"\w+Error\b|not in list|could not convert|NoneType|out of range|unpack requires|cannot reshape")


def _dicom() -> list[bytes]:
    table = pydicom.Dataset()
    table.LUTDescriptor = [300, 100, 12]
    table.add_new("LUTData", "US", list(range(300)))
    tables = {key: pydicom.Sequence([table]) for key in ("ModalityLUTSequence", "VOILUTSequence")}
    window = {"WindowCenter": [40, 50], "WindowWidth": [400, 300], "RescaleSlope": 1, "RescaleIntercept": -1024}
    deflated, packed = dicom_dataset(DEEP), dicom_dataset(DEEP)
    deflated.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    packed.compress(pydicom.uid.RLELossless)
    plain = dicom_bytes(dicom_dataset(DEEP, PixelPaddingValue=5, **window))
    more = [dicom_dataset(DEEP, **tables), deflated, packed, dicom_dataset(np.stack([DEEP] * 3), frames=True)]
    return [plain, plain[132:], *map(dicom_bytes, more)]


def _others() -> list[bytes]:
    volume = CHANCE.integers(-100, 1000, (9, 8, 5)).astype(np.int16)
    colours = CHANCE.random((12, 10, 3)).astype(np.float32)
    stream = io.BytesIO()
    Image.fromarray(DEEP).save(stream, "JPEG2000")
    transparent = png_chunk(b"tRNS", b"\0\5") + png_chunk(b"tEXt", b"a\0b")
    return [
        nifti_bytes(volume),
        gzip.compress(nifti_bytes(volume), mtime=0),
        tiff(DEEP[..., None], photometric=1),
        tiff(DEEP[..., None].astype(np.float64), photometric=0, order=">", is_big=True),
        tiff(colours, photometric=2, planar=True, deflated=True, predictor=3),
        tiff((colours * 60000).astype(np.uint16), photometric=2, tile=16, deflated=True, predictor=2),
        png(DEEP.astype(">u2").tobytes(), width=10, height=12, depth=16, colours=0, beside=transparent),
        stream.getvalue(),
    ]


TOKENS = [
    *(b"40,5", b"\\", b"DS", b"SQ", b"UN", b"\xfe\xff\x00\xe0", b"\xff\xff\xff\xff", b"1.2.840.10008.1.2.1.99"),
    *(b"\x28\0\x50\x10", b"\x28\0\x08\0", b"\x28\0\0\x30", b"MONOCHROME1", b"PALETTE COLOR", b"n+1\0", b"ni1\0"),
    *(b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\0\0", b"\x03\0\x01\0\0\0", b"\x1d\x01", b"\x53\x01", b"tRNS", b"fcTL"),
]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_readers_of_damaged_files(count: int) -> None:
    def check(data: bytes) -> bool:
        try:
            info = probe(data, name="x", max_pixels=MAX_PIXELS)
            pixels_HWC = decode(data, name="x", max_pixels=MAX_PIXELS)
            assert pixels_HWC.shape == (info.height, info.width, 3)
            assert load_view(data, name="x", image=VIEW, box=None).shape == (8, 8, 3)
            kept = alone(data, name="x", max_pixels=MAX_PIXELS)
            np.testing.assert_array_equal(decode(kept, name="x", max_pixels=MAX_PIXELS), pixels_HWC)
            resize_once(data, name="x", shorter=6, max_pixels=MAX_PIXELS)
        except ImageError as error:
            if PYTHONS.search(str(error)):
                raise AssertionError(f"Python's own words: {error}") from error
            raise
        return True

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        used, refused = fuzz(check, Mutator(_dicom() + _others(), TOKENS, seed=9, own=[new_sums]), count)
    assert used > count / 10
    assert refused > count / 5
