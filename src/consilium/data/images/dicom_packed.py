"""What the packed pixels of a DICOM file say of themselves, which counts where the file's fields say otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from consilium.data.images.dicom_fields import text, whole
from consilium.data.images.jpeg_header import probe_jpeg
from consilium.data.images.pixels import cut_short

if TYPE_CHECKING:
    from pydicom import Dataset

_ITEM = b"\xfe\xff\x00\xe0"
_JPEG = "1.2.840.10008.1.2.4.50"
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_OF_GREY, _OF_COLOUR = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"), ("RGB", "YBR_FULL", "YBR_FULL_422")
_END = b"\xff\xd9"
_CODING = b"\xff\x52"  # of JPEG 2000: the marker before its options, and where in these the transform of colours is
_TRANSFORM = 8


def settle(dataset: Dataset, *, name: str) -> list[str]:
    """Correct the fields of packed pixels by what these are; a note for each correction.

    Frames that are missing or cut short are an ImageError.
    """
    notes: list[str] = []
    frames = max(1, whole(dataset, "NumberOfFrames") or 1)
    fragments = _fragments(dataset, frames, notes)
    if len(fragments) < frames:
        raise cut_short(name, f"a DICOM file of {frames} frames with the pixels of {len(fragments)}")
    shown = b"".join(fragments) if frames == 1 else fragments[frames // 2] if len(fragments) == frames else None
    if shown is None:
        return notes
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in _JPEG_2000:
        if shown.rfind(_END) < 0:  # its decoder fills in what is lost
            raise cut_short(name, "a DICOM file without all of its pixels")
        coding = shown.find(_CODING)
        was_transformed = coding >= 0 and shown[coding + _TRANSFORM : coding + _TRANSFORM + 1] == b"\1"
        if was_transformed and text(dataset, "PhotometricInterpretation").startswith("YBR_FULL"):
            _correct(dataset, "PhotometricInterpretation", "YBR_ICT", notes)
    elif syntax == _JPEG and shown.startswith(b"\xff\xd8\xff"):
        _by_jpeg(dataset, shown, name, notes)
    return notes


def _by_jpeg(dataset: Dataset, frame: bytes, name: str, notes: list[str]) -> None:
    info = probe_jpeg(frame, name=name)
    height, width = (info.height, info.width) if info.orientation < 5 else (info.width, info.height)
    kind = text(dataset, "PhotometricInterpretation").upper()
    is_grey = info.mode == "L"
    for key, value in (("Rows", height), ("Columns", width), ("SamplesPerPixel", 1 if is_grey else 3)):
        _correct(dataset, key, value, notes)
    for key, value in (("BitsAllocated", 8), ("BitsStored", 8)):
        _correct(dataset, key, value, notes)
    if kind not in (_OF_GREY if is_grey else _OF_COLOUR):
        _correct(dataset, "PhotometricInterpretation", "MONOCHROME2" if is_grey else "YBR_FULL", notes)


def _correct(dataset: Dataset, key: str, value: int | str, notes: list[str]) -> None:
    given = whole(dataset, key) if isinstance(value, int) else text(dataset, key)
    if given != value:
        notes.append(f"its {key} is '{given}'; its packed pixels say {value}")
        setattr(dataset, key, value)


def _fragments(dataset: Dataset, frames: int, notes: list[str]) -> list[bytes]:
    """The fragments of the pixels. An offset table that is wrong is taken out, where there is one fragment a frame."""
    pixels = dataset.PixelData
    found: list[tuple[int, int]] = []
    place = 0
    while pixels[place : place + 4] == _ITEM:
        start = place + 8
        place = start + int.from_bytes(pixels[place + 4 : start], "little")
        found.append((start, place))
    if not found:
        return []
    table, fragments = found[0], found[1:]
    given = pixels[slice(*table)]
    offsets = [start - 8 - table[1] for start, _ in fragments]
    of_frames = offsets if len(fragments) == frames else offsets[:1] if frames == 1 else None
    if given and of_frames is not None and given != b"".join(offset.to_bytes(4, "little") for offset in of_frames):
        notes.append("its table of offsets is not that of its frames and is left out")
        dataset.PixelData = _ITEM + bytes(4) + pixels[table[1] :]
    if of_frames is not None and "ExtendedOffsetTable" in dataset:
        del dataset.ExtendedOffsetTable
    return [pixels[start:end] for start, end in fragments]
