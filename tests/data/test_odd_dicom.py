"""Optional fields of DICOM files that are missing, wrong or odd: the image is read all the same, and a note says so."""

from __future__ import annotations

import io
import struct

import numpy as np
import pydicom
import pydicom.uid
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from consilium.core.errors import ImageError
from consilium.data.images.reading import decode, probe
from tests.data.medical_samples import dicom_bytes, dicom_dataset, packed_bytes

LIMIT = 10**6
RNG = np.random.default_rng(0)
CT = RNG.integers(0, 4096, (24, 20)).astype(np.uint16)
PICTURE = RNG.integers(0, 256, (24, 20, 3), dtype=np.uint8)


def notes(data: bytes) -> str:
    return "; ".join(probe(data, name="it", max_pixels=LIMIT).notes)


def pixels(data: bytes, window: tuple[float, float] | None = None) -> np.ndarray:
    return decode(data, name="it", max_pixels=LIMIT, window=window)


def grey(data: bytes, window: tuple[float, float] | None = None) -> np.ndarray:
    return pixels(data, window)[..., 0]


def levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Straight from low (0) to high (255)."""
    return np.rint((np.clip(values.astype(float), low, high) - low) / (high - low) * 255).astype(np.uint8)


def written(dataset: Dataset, **texts: str) -> bytes:
    """The file with these texts as decimal strings, which pydicom itself does not write where they are no numbers."""
    for key, text in texts.items():
        tag = pydicom.datadict.tag_for_keyword(key)
        assert tag is not None
        dataset.add_new(tag, "LO", text)
    data = dicom_bytes(dataset)
    for key in texts:
        tag = pydicom.datadict.tag_for_keyword(key)
        assert tag is not None
        head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
        vr = pydicom.datadict.dictionary_VR(tag)
        assert head + b"LO" in data
        data = data.replace(head + b"LO", head + vr.encode())
    return data


# Windows


@pytest.mark.parametrize(
    ("centre", "width", "low", "high"),
    [
        ("40,5", "400", -159.5, 239.5),
        ("40,5", "400,0\\20,0", -159.5, 239.5),
        (" 40.5 ", "400", -159.5, 239.5),
        ("40.5\\7", "400\\7", -159.5, 239.5),
        ("soft\\40.5", "soft\\400", -159.5, 239.5),
        ("100\\40.5", "0\\400", -159.5, 239.5),
    ],
)
def test_a_window_written_oddly_is_read(centre: str, width: str, low: float, high: float) -> None:
    data = written(dicom_dataset(CT), WindowCenter=centre, WindowWidth=width)
    np.testing.assert_array_equal(grey(data), levels(CT, low, high))
    assert not notes(data)


@pytest.mark.parametrize(
    ("centre", "width"), [("soft", "tissue"), ("40", "0"), ("40", "-400"), ("40", "nan"), ("1e39", "400"), ("40", "")]
)
def test_a_window_that_cannot_be_used_is_left_out_and_noted(centre: str, width: str) -> None:
    data = written(dicom_dataset(CT), WindowCenter=centre, WindowWidth=width)
    np.testing.assert_array_equal(grey(data), levels(CT, CT.min(), CT.max()))
    assert f"WindowCenter '{centre}'" in notes(data)


def test_an_empty_window_is_none() -> None:
    data = written(dicom_dataset(CT), WindowCenter="", WindowWidth="")
    np.testing.assert_array_equal(grey(data), levels(CT, CT.min(), CT.max()))
    assert not notes(data)


def test_an_unknown_function_of_the_window_is_linear() -> None:
    data = dicom_bytes(dicom_dataset(CT, WindowCenter=40.5, WindowWidth=400, VOILUTFunction="CURVED"))
    np.testing.assert_array_equal(grey(data), levels(CT, -159.5, 239.5))
    assert "VOILUTFunction 'CURVED'" in notes(data)


# Rescaling and tables


@pytest.mark.parametrize(
    ("slope", "intercept", "factor", "offset", "noted"),
    [
        ("0,5", "-1024,0", 0.5, -1024, ""),
        ("2", "", 2, 0, ""),
        ("", "-1024", 1, -1024, ""),
        ("", "", 1, 0, ""),
        ("two", "-1024", 1, -1024, "RescaleSlope 'two'"),
        ("2", "none", 2, 0, "RescaleIntercept 'none'"),
        ("0", "-1024", 1, 0, "RescaleSlope 0.0"),
        ("1e300", "0", 1, 0, "RescaleSlope 1e+300"),
        ("inf", "0", 1, 0, "RescaleSlope 'inf'"),
    ],
)
def test_rescaling_written_oddly(slope: str, intercept: str, factor: float, offset: float, noted: str) -> None:
    data = written(dicom_dataset(CT), RescaleSlope=slope, RescaleIntercept=intercept)
    np.testing.assert_array_equal(grey(data, (0, 2000)), levels(CT * float(factor) + offset, -1000, 1000))
    assert noted in notes(data)
    assert bool(noted) == bool(notes(data))


def table(entries: np.ndarray, bits: int, *, first: int = 0, kind: str = "US", form: str = "OW") -> Dataset:
    found = Dataset()
    found.add_new("LUTDescriptor", kind, [len(entries) % 2**16, first, bits])
    if form == "bytes":
        found.add_new("LUTData", "OB", entries.astype("u1").tobytes())
    elif form == "OW":
        found.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    else:
        found.add_new("LUTData", "US", entries.tolist())
    return found


@pytest.mark.parametrize("form", ["OW", "US"])
@pytest.mark.parametrize("bits", [0, 8, 9, 10, 11, 12, 13, 14, 15, 16, 77])
def test_a_modality_table_of_any_bits_is_applied(bits: int, form: str) -> None:
    entries = (np.arange(4096) * 7 % 251 if bits == 8 else np.arange(4096) * 7 % 1009) * 1
    stored = CT
    data = dicom_bytes(dicom_dataset(stored, ModalityLUTSequence=Sequence([table(entries, bits, form=form)])))
    np.testing.assert_array_equal(grey(data), levels(entries[stored], 0, entries[stored].max()))


def test_a_modality_table_of_bytes_is_applied() -> None:
    entries = np.arange(256)[::-1] // 2
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for form in ("bytes", "OW"):
        data = dicom_bytes(dicom_dataset(stored, ModalityLUTSequence=Sequence([table(entries, 8, form=form)])))
        np.testing.assert_array_equal(grey(data, (100, 200)), levels(entries[stored], 0, 200))


@pytest.mark.parametrize(("first", "kind"), [(-1024, "SS"), (64512, "US")])
def test_the_first_value_of_a_table_may_lack_its_sign(first: int, kind: str) -> None:
    entries = np.arange(2048) ** 2 // 64
    stored = (CT // 2).astype(np.int16) - 1024
    found = table(entries, 16, first=first, kind=kind)
    expected = entries[stored.astype(int) + 1024]
    data = dicom_bytes(dicom_dataset(stored, ModalityLUTSequence=Sequence([found])))
    np.testing.assert_array_equal(grey(data, (20000, 40000)), levels(expected, 0, 40000))
    data = dicom_bytes(dicom_dataset(stored, VOILUTSequence=Sequence([found])))
    assert np.abs(grey(data).astype(int) - levels(expected, 0, 65535)).max() <= 1


def test_a_table_of_65536_entries_says_0() -> None:
    entries = np.arange(2**16)[::-1]
    data = dicom_bytes(dicom_dataset(CT, ModalityLUTSequence=Sequence([table(entries, 16)])))
    np.testing.assert_array_equal(grey(data, (63000, 6000)), levels(entries[CT], 60000, 66000))


@pytest.mark.parametrize("sequence", ["ModalityLUTSequence", "VOILUTSequence"])
def test_a_table_that_cannot_be_used_is_left_out_and_noted(sequence: str) -> None:
    empty, short, none = table(np.arange(4), 12), table(np.arange(4), 12), Dataset()
    empty.LUTData = b""
    short.LUTDescriptor = [4096, 0]
    for found in (empty, short, none):
        data = dicom_bytes(dicom_dataset(CT, **{sequence: Sequence([found])}))
        np.testing.assert_array_equal(grey(data), levels(CT, CT.min(), CT.max()))
        assert sequence in notes(data)
    data = dicom_bytes(dicom_dataset(CT, **{sequence: Sequence([])}))
    assert not notes(data)


def test_a_table_with_fewer_entries_than_it_says_ends_with_its_last() -> None:
    found = table(np.arange(1000), 16)
    found.LUTDescriptor = [4096, 0, 16]
    data = dicom_bytes(dicom_dataset(CT, ModalityLUTSequence=Sequence([found])))
    np.testing.assert_array_equal(grey(data, (500, 1000)), levels(np.minimum(CT, 999), 0, 1000))


def test_entries_above_their_bits_count_as_more_bits() -> None:
    found = table(np.arange(4096), 8)
    data = dicom_bytes(dicom_dataset(CT, VOILUTSequence=Sequence([found])))
    np.testing.assert_array_equal(grey(data), levels(CT, 0, 4095))


# The layout of the pixels


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize(
    ("key", "value", "noted"),
    [
        ("PhotometricInterpretation", None, ""),
        ("PhotometricInterpretation", "", ""),
        ("PhotometricInterpretation", "GREY", ""),
        ("PhotometricInterpretation", "monochrome2", ""),
        ("PhotometricInterpretation", "RGB", ""),
        ("SamplesPerPixel", None, "SamplesPerPixel is missing"),
        ("BitsAllocated", None, "BitsAllocated is missing and is taken as 16"),
        ("BitsStored", None, "BitsStored is missing and is taken as 16"),
        ("BitsStored", 0, "BitsStored cannot be right"),
        ("BitsStored", 17, "BitsStored cannot be right"),
        ("HighBit", None, ""),
        ("HighBit", 99, ""),
        ("HighBit", 15, ""),
        ("PixelRepresentation", None, "PixelRepresentation is missing and is taken as 0"),
        ("PixelRepresentation", 7, "PixelRepresentation cannot be right"),
        ("NumberOfFrames", 0, "NumberOfFrames"),
        ("NumberOfFrames", "", ""),
        ("PlanarConfiguration", 9, ""),
    ],
)
def test_a_field_of_the_layout_that_is_missing_or_wrong(key: str, value: object, noted: str) -> None:
    dataset = dicom_dataset(CT, bits=12)
    if value is None:
        delattr(dataset, key)
    else:
        setattr(dataset, key, value)
    data = dicom_bytes(dataset)
    np.testing.assert_array_equal(grey(data), levels(CT, CT.min(), CT.max()))
    assert noted in notes(data)


@pytest.mark.parametrize("key", ["PhotometricInterpretation", "SamplesPerPixel", "PlanarConfiguration", "BitsStored"])
def test_a_field_of_a_colour_image_that_is_missing(key: str) -> None:
    dataset = dicom_dataset(PICTURE)
    delattr(dataset, key)
    np.testing.assert_array_equal(pixels(dicom_bytes(dataset)), PICTURE)


def test_frames_that_are_no_number_are_one() -> None:
    data = written(dicom_dataset(CT), NumberOfFrames="one")
    np.testing.assert_array_equal(grey(data), levels(CT, CT.min(), CT.max()))
    assert "NumberOfFrames" in notes(data)


@pytest.mark.parametrize("signed", [False, True])
def test_values_in_the_upper_bits_are_moved_down(signed: bool) -> None:
    values = CT.astype(np.int16) - 2048 if signed else CT
    stored = (values.astype(np.int64) << 4 & 0xFFFF).astype(np.uint16)
    dataset = dicom_dataset(stored, bits=12, HighBit=15, PixelRepresentation=int(signed))
    np.testing.assert_array_equal(grey(dicom_bytes(dataset), (0, 4096)), levels(values, -2048, 2048))


def test_padding_may_lack_its_sign() -> None:
    stored = np.array([[-2000, 0, 100, 200]], np.int16)
    dataset = dicom_dataset(stored)
    dataset.add_new("PixelPaddingValue", "US", 65536 - 2000)
    assert grey(dicom_bytes(dataset)).tolist() == [[0, 0, 128, 255]]
    dataset.add_new("PixelPaddingRangeLimit", "US", 65535)
    dataset.add_new("PixelPaddingValue", "SS", -32768)
    assert grey(dicom_bytes(dataset)).tolist() == [[0, 0, 128, 255]]
    dataset.add_new("PixelPaddingValue", "LO", "none")
    assert grey(dicom_bytes(dataset)).tolist() == [[0, 232, 243, 255]]
    assert "PixelPaddingValue 'none'" in notes(dicom_bytes(dataset))


def test_full_colours_called_halved_are_read_as_they_are() -> None:
    stored = np.asarray(Image.fromarray(PICTURE).convert("YCbCr"))
    full = pixels(dicom_bytes(dicom_dataset(stored, PhotometricInterpretation="YBR_FULL")))
    halved = dicom_bytes(dicom_dataset(stored, PhotometricInterpretation="YBR_FULL_422"))
    np.testing.assert_array_equal(pixels(halved), full)
    assert "YBR_FULL" in notes(halved)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("Rows", 0, "whose Rows is '0'; expected a whole number above 0"),
        ("BitsAllocated", 12, "whose BitsAllocated is '12'; expected 1, 8, 16, 32 or 64"),
        ("PhotometricInterpretation", "CMYK", "PhotometricInterpretation is 'CMYK', which is not read; convert it to"),
        ("SamplesPerPixel", 4, "of 4 values a pixel .* not read"),
        ("PhotometricInterpretation", "PALETTE COLOR", "RedPaletteColorLookupTableDescriptor"),
    ],
)
def test_what_nothing_can_stand_in_for_is_named(key: str, value: object, message: str) -> None:
    dataset = dicom_dataset(CT)
    setattr(dataset, key, value)
    for function in (probe, decode):
        with pytest.raises(ImageError, match=message) as caught:
            function(dicom_bytes(dataset), name="it", max_pixels=LIMIT)
        assert "damaged" not in str(caught.value)


def test_a_palette_whose_entries_are_bytes_though_it_says_words() -> None:
    stored = RNG.integers(0, 4, (6, 8)).astype(np.uint8)
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 0], [10, 20, 250]])
    for entry in ("<u2", "u1"):
        dataset = dicom_dataset(stored, PhotometricInterpretation="PALETTE COLOR")
        for channel, name in enumerate(("Red", "Green", "Blue")):
            dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [4, 0, 16])
            packed = colours[:, channel].astype(entry).tobytes()
            dataset.add_new(f"{name}PaletteColorLookupTableData", "OW", packed)
        np.testing.assert_array_equal(pixels(dicom_bytes(dataset)), colours[stored])


# Files: beginnings, meta information, ways of packing


def bare(dataset: Dataset, *, implicit: bool, little: bool = True) -> bytes:
    """The data set alone."""
    stream = io.BytesIO()
    del dataset.file_meta
    pydicom.dcmwrite(stream, dataset, implicit_vr=implicit, little_endian=little)
    return stream.getvalue()


def test_files_without_a_preamble_are_read() -> None:
    whole = dicom_bytes(dicom_dataset(CT))
    big = dicom_dataset(CT)
    big.PixelData = CT.astype(">u2").tobytes()
    forms = [
        whole[132:],
        whole[128:],
        bare(dicom_dataset(CT), implicit=True),
        bare(dicom_dataset(CT), implicit=False),
        bare(big, implicit=False, little=False),
    ]
    for data in forms:
        assert probe(data, name="it", max_pixels=LIMIT).format == "DICOM"
        np.testing.assert_array_equal(grey(data), levels(CT, CT.min(), CT.max()))


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("syntax", [None, pydicom.uid.JPEG2000Lossless, "1.2.840.113619.5.2.9", "nonsense"])
def test_unpacked_pixels_are_read_whatever_the_meta_information_says(syntax: str | None) -> None:
    dataset = dicom_dataset(CT)
    data = dicom_bytes(dataset)
    uid = b"1.2.840.10008.1.2.1\0"
    if syntax is None:
        place = data.index(uid) - 8
        data = data[:place] + data[place + 8 + len(uid) :]
    else:
        data = data.replace(struct.pack("<H", len(uid)) + uid, struct.pack("<H", 26) + syntax.ljust(26, "\0").encode())
    np.testing.assert_array_equal(grey(data), levels(CT, CT.min(), CT.max()))


def test_packed_pixels_that_are_called_unpacked_are_named() -> None:
    frame = io.BytesIO()
    Image.fromarray(PICTURE).save(frame, "JPEG")
    data = packed_bytes(dicom_dataset(PICTURE), pydicom.uid.JPEGBaseline8Bit, [frame.getvalue()])
    data = data.replace(b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.1\0\0\0")
    with pytest.raises(ImageError, match="pixels are packed, and its TransferSyntaxUID does not say how"):
        probe(data, name="it", max_pixels=LIMIT)


def test_deflated_files_are_read_up_to_a_limit() -> None:
    dataset = dicom_dataset(CT)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data = dicom_bytes(dataset)
    np.testing.assert_array_equal(grey(data), levels(CT, CT.min(), CT.max()))
    np.testing.assert_array_equal(grey(data[132:]), levels(CT, CT.min(), CT.max()))
    with pytest.raises(ImageError, match="without its end: it was cut short"):
        probe(data[:-200], name="it", max_pixels=LIMIT)
    dataset.add_new(0x00410010, "LO", "Private")
    dataset.add_new(0x00411001, "OB", bytes(12 * 10**6))
    with pytest.raises(ImageError, match=r"deflated DICOM file that unpacks to more than .* bytes"):
        probe(dicom_bytes(dataset), name="it", max_pixels=LIMIT)


@pytest.mark.parametrize(
    "data", [b"", b"\x08\0", b"\x08\0\x05\0", b"\x08\0" + bytes(200), b"\x02\0 some text that is no DICOM" * 9]
)
def test_other_files_are_not_taken_for_dicom(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"no image of a known kind|is empty"):
        probe(data, name="it", max_pixels=LIMIT)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_odd_elements_beside_the_image_do_not_matter() -> None:
    dataset = dicom_dataset(CT)
    dataset.add_new(0x00100030, "LO", "not a date")
    dataset.add_new(0x00090010, "LO", "PRIVATE")
    dataset.add_new(0x00091001, "UN", b"\xfe\xff\x00\xe0\xff\xff\xff\xff junk")
    dataset.add_new(0x00080005, "LO", "ISO_IR 999")
    dataset.add_new(0x00101010, "LO", "old")
    data = dicom_bytes(dataset)
    for tag, vr in ((0x00100030, b"DA"), (0x00080005, b"CS"), (0x00101010, b"AS")):
        head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
        data = data.replace(head + b"LO", head + vr)
    np.testing.assert_array_equal(grey(data), levels(CT, CT.min(), CT.max()))
    with pytest.raises(ImageError, match=r"\(CT Image Storage\) in which no Rows and Columns are found.*dcmconv"):
        probe(data.replace(b"\x10\0\x10\0PN", b"\x10\0\x10\0??"), name="it", max_pixels=LIMIT)


def test_pixels_of_an_odd_length_need_no_padding() -> None:
    stored = RNG.integers(0, 256, (3, 5)).astype(np.uint8)
    data = dicom_bytes(dicom_dataset(stored))
    place = data.index(struct.pack("<HH", 0x7FE0, 0x10)) + 8
    data = data[:place] + struct.pack("<I", 15) + data[place + 4 : -1]
    np.testing.assert_array_equal(grey(data), levels(stored, stored.min(), stored.max()))
