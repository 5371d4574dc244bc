"""How the pixels of a DICOM file are laid out, by fields of which any may be missing or wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from consilium.core.errors import ImageError
from consilium.data.images.dicom_fields import numbers, text, whole
from consilium.data.images.pixels import cut_short

if TYPE_CHECKING:
    from pydicom import Dataset

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PADDING = 16  # bytes behind the pixels of which nothing is said
_GREYS = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420")
_UNREAD = ("ARGB", "CMYK", "HSV", "XYB", "YBR_PARTIAL_422")


@dataclass
class Layout:
    """What the fields say once they agree, and a note of each that did not; the data set holds the same.

    ``shift`` is by how many bits the values lie above the lowest bit that they are stored in.
    """

    kind: str
    frames: int
    is_little: bool
    shift: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def is_colour(self) -> bool:
        """Whether the pixels are colours, not grey values."""
        return self.kind not in _GREYS


def side(dataset: Dataset, key: str, name: str) -> int:
    """The number of rows or columns."""
    found = whole(dataset, key)
    if found is None or not 0 < found < 2**16:
        raise _wrong(dataset, key, name, "a whole number above 0")
    return found


def layout(dataset: Dataset, *, name: str, is_packed: bool, is_little: bool) -> Layout:
    """How the pixels are laid out. What the data set does not say, or says in a way that cannot be, is corrected in it.

    Pixels that are missing or cut short, and fields that nothing can stand in for, are an ImageError.
    """
    key = next((key for key in PIXELS if key in dataset), None)
    pixels = b"" if key is None else dataset[key].value or b""
    if not pixels:
        raise cut_short(name, "a DICOM file without all of its pixels")
    found = Layout(_kind(dataset, name), 1, is_little)
    found.frames = _frames(dataset, found)
    samples = 3 if found.is_colour and found.kind != "PALETTE COLOR" else 1
    _corrected(dataset, "SamplesPerPixel", samples, whole(dataset, "SamplesPerPixel") == samples, found)
    if samples == 3 and is_packed:
        dataset.PlanarConfiguration = whole(dataset, "PlanarConfiguration") or 0
    elif samples == 3:
        _corrected(dataset, "PlanarConfiguration", 0, whole(dataset, "PlanarConfiguration") in (0, 1), found)
    values = side(dataset, "Rows", name) * side(dataset, "Columns", name) * samples * found.frames
    if key == "PixelData":
        _bits(dataset, found, 0 if is_packed else len(pixels) / values, name, is_packed=is_packed)
    else:  # floats, of which these fields are not required
        dataset.BitsAllocated = dataset.BitsStored = 64 if key == "DoubleFloatPixelData" else 32
        dataset.PixelRepresentation = 0
    if not is_packed:
        _check_length(found, len(pixels), values * int(dataset.BitsAllocated), name)
    dataset.PhotometricInterpretation = found.kind
    return found


def _check_length(found: Layout, length: int, bits: int, name: str) -> None:
    """Compare the bytes of the pixels with what they need."""
    needed = -(-bits // 8)
    if found.kind == "YBR_FULL_422" and length >= needed:
        found.notes.append("its PhotometricInterpretation is YBR_FULL_422, its pixels are YBR_FULL")
        found.kind = "YBR_FULL"
    elif found.kind == "YBR_FULL_422":
        needed = needed // 3 * 2
    if length < needed:
        raise cut_short(name, "a DICOM file without all of its pixels")
    if length > needed + _PADDING:
        found.notes.append(
            f"it has {length:,} bytes of pixels, its fields describe {needed:,}; the others are left out"
        )


def _kind(dataset: Dataset, name: str) -> str:
    kind = text(dataset, "PhotometricInterpretation").upper()
    samples = whole(dataset, "SamplesPerPixel")
    if kind in _UNREAD or (samples is not None and samples not in (1, 3)):
        raise ImageError(
            f"{name} is a DICOM file of {samples} values a pixel whose PhotometricInterpretation is '{kind}', which is "
            "not read; convert it to RGB or MONOCHROME2, or leave the row out."
        )
    if kind in _GREYS and samples in (1, None):
        return kind
    if kind in _COLOURS and (samples is None or (samples == 1) == (kind == "PALETTE COLOR")):
        return kind
    return "RGB" if samples == 3 else "MONOCHROME2"


def _frames(dataset: Dataset, found: Layout) -> int:
    given = numbers(dataset, "NumberOfFrames")
    frames = whole(dataset, "NumberOfFrames")
    if given and (frames is None or frames < 1):
        found.notes.append("its NumberOfFrames is no number above 0 and is taken as 1")
    frames = max(1, frames or 1)
    dataset.NumberOfFrames = frames
    return frames


def _bits(dataset: Dataset, found: Layout, bytes_per_value: float, name: str, *, is_packed: bool) -> None:
    """BitsAllocated, BitsStored, HighBit and PixelRepresentation, which pydicom needs."""
    allocated, stored = whole(dataset, "BitsAllocated"), whole(dataset, "BitsStored")
    if allocated is None or allocated not in (1, 8, 16, 32, 64):
        likely = (8 if (stored or 16) <= 8 else 16) if is_packed else 8 * int(bytes_per_value)
        if likely not in (8, 16, 32, 64) or (allocated is not None and allocated > 0):
            raise _wrong(dataset, "BitsAllocated", name, "1, 8, 16, 32 or 64")
        found.notes.append(f"its BitsAllocated is missing and is taken as {likely}")
        allocated = likely
    dataset.BitsAllocated = allocated
    _corrected(dataset, "BitsStored", allocated, stored is not None and 0 < stored <= allocated, found)
    _corrected(dataset, "PixelRepresentation", 0, whole(dataset, "PixelRepresentation") in (0, 1), found)
    stored, high = int(dataset.BitsStored), whole(dataset, "HighBit")
    if not is_packed and high is not None and stored <= high < allocated:
        found.shift = high + 1 - stored


def _corrected(dataset: Dataset, key: str, value: int, is_right: bool, found: Layout) -> None:
    if is_right:
        setattr(dataset, key, whole(dataset, key))
        return
    state = "is missing" if key not in dataset or not numbers(dataset, key) else "cannot be right"
    found.notes.append(f"its {key} {state} and is taken as {value}")
    setattr(dataset, key, value)


def _wrong(dataset: Dataset, key: str, name: str, expected: str) -> ImageError:
    given = text(dataset, key)
    state = f"is '{given[:40]}'" if given else "is missing"
    return ImageError(
        f"{name} is a DICOM file whose {key} {state}; expected {expected}. Correct it (with dcmodify of DCMTK), or "
        "leave the row out."
    )
