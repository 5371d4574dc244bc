"""DICOM files, read by pydicom: one frame in its own units, or in colour.

Axes in names: H height, W width, C channel.
"""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from consilium.core.errors import ImageError, MissingExtraError
from consilium.data.images.dicom_fields import curve, items, padding, palette, rescaled, whole
from consilium.data.images.dicom_layout import PIXELS, Layout, layout, side
from consilium.data.images.dicom_packed import settle
from consilium.data.images.pixels import (
    BYTES_PER_PIXEL,
    Grey,
    ImageInfo,
    Pixels,
    Values,
    cut_short,
    damaged,
    no_such_frame,
    not_understood,
    too_many_pixels,
)

if TYPE_CHECKING:
    from pydicom import FileDataset

_DEFLATED = b"1.2.840.10008.1.2.1.99"
# How files without a preamble start: with meta information, with the data set, with a data set in big endian.
_FIRST_GROUPS = (b"\x02\0", b"\x08\0", b"\0\x08")
_FIRST_ELEMENTS = 0x70  # of these groups
_FIRST_TYPES = (b"UL", b"OB", b"UI", b"CS", b"SH", b"DA", b"TM", b"DT", b"LO", b"PN", b"ST")
_FIRST_BYTES = 1024  # more than the first element ever has
_PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", _DEFLATED.decode())  # nothing packed
_TOOL = "dcmconv of DCMTK"
_quiet_lock = threading.RLock()


def is_dicom(data: bytes) -> bool:
    """Whether these are the first 132 bytes (or more) of a DICOM file, with its preamble or, in old ones, without."""
    return data[128:132] == b"DICM" or data.startswith(b"DICM") or _starts_with_an_element(data)


def probe_dicom(data: bytes, *, name: str, frame: int | None, max_pixels: int) -> ImageInfo:
    """What the header says. Pixels that are missing, cut short or packed in a way that cannot be read are an error."""
    with _reading(name):
        dataset = _parsed(data, name, limit=BYTES_PER_PIXEL * max_pixels + 2**20)
        width, height = side(dataset, "Columns", name), side(dataset, "Rows", name)
        if width * height > max_pixels:
            raise too_many_pixels(ImageInfo(width, height, "DICOM", "F"), name=name, max_pixels=max_pixels)
        found = _layout(dataset, name)
        width, height = side(dataset, "Columns", name), side(dataset, "Rows", name)
        if frame is not None and frame >= found.frames:
            raise no_such_frame(name, frame, found.frames)
        if not found.is_colour:
            _in_units(np.empty((0, 0), np.int16), dataset, found, _chosen(found, frame))
        elif found.kind == "PALETTE COLOR" and "SegmentedRedPaletteColorLookupTableData" not in dataset:
            palette(dataset, name=name, is_little=found.is_little)
        return ImageInfo(width, height, "DICOM", "RGB" if found.is_colour else "F", notes=tuple(found.notes))


def read_dicom(data: bytes, *, name: str, frame: int | None) -> Pixels | Grey:
    """One frame (the middle one unless one is named): grey in the units that its rescaling gives, or colour.

    The file has passed ``probe_dicom``. Padding becomes NaN. The file's own first window (C.11.2 of part 3 of the
    standard), or lookup table, becomes the curve.
    """
    with _reading(name):
        dataset = _parsed(data, name)
        found = _layout(dataset, name)
        frame = _chosen(found, frame)
        if found.is_colour:
            return _colour(dataset, found, frame, name)
        return _in_units(_stored(dataset, found, frame), dataset, found, frame)


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Keep the warnings of a reader, which says what it finds odd in a file, off the screen.

    Python's filters of warnings are shared by all threads, so one thread at a time.
    """
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [logging.getLogger(logger) for logger in loggers]
        before = [logger.disabled for logger in found]
        for logger in found:
            logger.disabled = True
        try:
            yield
        finally:
            for logger, disabled in zip(found, before, strict=True):
                logger.disabled = disabled


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    with quiet("pydicom"):
        try:
            import pydicom.pixels  # noqa: F401
        except ImportError:
            raise MissingExtraError("Reading DICOM", "dicom") from None
        try:
            yield
        except ImageError:
            raise
        except Exception as error:  # pydicom raises anything on damaged files
            raise not_understood(name, "DICOM file", _TOOL) from error


def _starts_with_an_element(data: bytes) -> bool:
    """Whether the first bytes are an element that DICOM files start with, its type named or not."""
    if data[:2] not in _FIRST_GROUPS:
        return False
    order: Literal["little", "big"] = "big" if data[0] == 0 else "little"
    element, size = int.from_bytes(data[2:4], order), int.from_bytes(data[4:8], order)
    if element > _FIRST_ELEMENTS:
        return False
    is_typed = data[4:6] in _FIRST_TYPES and int.from_bytes(data[6:8], order) <= _FIRST_BYTES
    return is_typed or (order == "little" and 0 < size <= _FIRST_BYTES and size % 2 == 0 and len(data) > 16)


def _parsed(data: bytes, name: str, *, limit: int = 0) -> FileDataset:
    """The file, with its pixels as they are stored; what is deflated may take ``limit`` bytes (0: any number)."""
    from pydicom import dcmread

    if data.startswith(b"DICM"):
        data = bytes(128) + data
    if _DEFLATED in data[:4096]:
        data = _inflated(data, name, limit)
    dataset = dcmread(io.BytesIO(data), force=True)
    if "Rows" not in dataset or "Columns" not in dataset:
        if "SOPClassUID" not in dataset:  # what pydicom gives of a file that ends inside its packed pixels
            raise ImageError(
                f"{name} is a DICOM file without an image, or cut short; copy it again, or leave the row out."
            )
        kind = str(getattr(dataset.SOPClassUID, "name", ""))
        kind = kind if kind.isascii() and kind.isprintable() and kind else "of an unknown kind"
        if "Image Storage" in kind:  # the elements behind one that is written wrongly are not found
            raise not_understood(name, f"DICOM file ({kind}) in which no Rows and Columns are found", _TOOL)
        raise ImageError(f"{name} is a DICOM file without an image ({kind}); leave the row out.")
    return dataset


def _inflated(data: bytes, name: str, limit: int) -> bytes:
    """The data set of a deflated file, alone; other files are returned as they are."""
    from pydicom.filereader import read_dataset

    start = io.BytesIO(data)
    if data[128:132] == b"DICM":
        start.seek(132)
    meta = read_dataset(start, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    if meta.get("TransferSyntaxUID", None) != _DEFLATED.decode():
        return data
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflate.decompress(data[start.tell() :], limit)
    except zlib.error as error:
        raise damaged(name, error) from error
    if inflate.unconsumed_tail:
        raise ImageError(
            f"{name} is a deflated DICOM file that unpacks to more than {limit:,} bytes, the most that an image of "
            "max_pixels can need; raise max_pixels, or leave the row out."
        )
    if not inflate.eof:
        raise cut_short(name, "a deflated DICOM file without its end")
    return inflated


def _layout(dataset: FileDataset, name: str) -> Layout:
    """The layout of the pixels, which are packed in a way that can be read, or not packed."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    is_implicit, is_little = dataset.original_encoding
    is_packed = any(dataset[key].is_undefined_length for key in PIXELS if key in dataset)
    notes = []
    if is_packed:
        _check_syntax(dataset, name)
        notes = settle(dataset, name=name)
    else:  # whatever the meta information says: some programs unpack files and leave it as it was
        explicit = ExplicitVRBigEndian if is_little is False else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit
    found = layout(dataset, name=name, is_packed=is_packed, is_little=is_little is not False)
    found.notes[:0] = notes
    return found


def _check_syntax(dataset: FileDataset, name: str) -> None:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import JPEGExtended12Bit

    syntax = dataset.file_meta.get("TransferSyntaxUID", None)
    if syntax is None or syntax in _PLAIN:
        raise ImageError(
            f"{name} is a DICOM file whose pixels are packed, and its TransferSyntaxUID does not say how; correct it, "
            "or leave the row out."
        )
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    twelve_bits = syntax == JPEGExtended12Bit and (whole(dataset, "BitsStored") or 12) > 8 and _only_pillow(syntax)
    if not available or twelve_bits:
        raise _unreadable(name, syntax)


def _only_pillow(syntax: str) -> bool:
    from pydicom.pixels.decoders.base import get_decoder

    return get_decoder(syntax).available_plugins == ("pillow",)


def _unreadable(name: str, syntax: str) -> ImageError:
    from pydicom.uid import UID

    return ImageError(
        f"{name} is a DICOM file packed as {UID(syntax).name} ({syntax}), which cannot be unpacked here; rewrite it "
        "unpacked (with dcmconv or dcmdjpeg of DCMTK, or gdcmconv --raw), or install a decoder that pydicom uses "
        "(pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg)."
    )


def _chosen(found: Layout, frame: int | None) -> int:
    return found.frames // 2 if frame is None else frame


def _stored(dataset: FileDataset, found: Layout, frame: int) -> Values:
    """The values of a frame as they are stored; in colour after what is luma and chroma became RGB."""
    from pydicom.pixels.utils import pixel_array

    if not found.shift:
        return pixel_array(dataset, index=frame)
    # The values lie above the lowest bits, as in files of before 1993; or HighBit is wrong, as in more recent ones.
    stored, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
    dataset.BitsStored, dataset.PixelRepresentation = dataset.BitsAllocated, 0
    raw: Values = pixel_array(dataset, index=frame)
    if (raw >> stored).any():
        raw = raw >> found.shift
    raw = raw & np.array(2**stored - 1, raw.dtype)
    if signed:
        raw = raw.astype(np.int64)
        raw -= (raw >> (stored - 1)) << stored
    return raw


def _in_units(stored_HW: Values, dataset: FileDataset, found: Layout, frame: int) -> Grey:
    if stored_HW.ndim != 2:
        raise ValueError(f"grey values of the shape {stored_HW.shape}")
    is_little, notes = found.is_little, found.notes
    transformation = _macro(dataset, frame, "PixelValueTransformationSequence", "RescaleSlope")
    values_HW = rescaled(stored_HW, transformation, is_little=is_little, notes=notes)
    padding_HW = padding(stored_HW, dataset, notes)
    if padding_HW is not None:
        values_HW[padding_HW] = np.nan
    place = _macro(dataset, frame, "FrameVOILUTSequence", "WindowCenter")
    own = curve(values_HW, place, is_little=is_little, notes=notes)
    return Grey(values_HW, own, inverted=found.kind == "MONOCHROME1")


def _macro(dataset: Any, frame: int, sequence: str, key: str) -> Any:
    """Where a property of a frame is given: in the file, or (enhanced files) of each frame, or of all."""
    if key not in dataset:
        for groups, number in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
            groups_of_frames = items(dataset, groups)
            found = items(groups_of_frames[number], sequence) if number < len(groups_of_frames) else []
            if found:
                return found[0]
    return dataset


def _colour(dataset: FileDataset, found: Layout, frame: int, name: str) -> Pixels:
    pixels_HWC = _stored(dataset, found, frame)
    highest = 2 ** int(dataset.BitsStored) - 1
    if found.kind == "PALETTE COLOR":
        pixels_HWC, highest = _looked_up(pixels_HWC, dataset, found, name)
    if pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != 3:
        raise ValueError(f"colours of the shape {pixels_HWC.shape}")
    if highest == 255 and pixels_HWC.dtype == np.uint8:
        return np.ascontiguousarray(pixels_HWC)
    scaled_HWC: Pixels = np.rint(np.clip(pixels_HWC / highest, 0, 1) * 255).astype(np.uint8)
    return scaled_HWC


def _looked_up(stored_HW: Values, dataset: FileDataset, found: Layout, name: str) -> tuple[Values, int]:
    """The colours of a palette, and their highest value."""
    from pydicom.pixels.processing import apply_color_lut

    if "SegmentedRedPaletteColorLookupTableData" in dataset:
        colours_HWC = apply_color_lut(stored_HW, dataset)[..., :3]
        return colours_HWC, 2 ** (8 * colours_HWC.dtype.itemsize) - 1
    low, high = float(stored_HW.min()), float(stored_HW.max())
    tables = [table.meeting(low, high) for table in palette(dataset, name=name, is_little=found.is_little)]
    highest = max(table.highest for table in tables)
    if all(table.entries.max() <= 255 for table in tables):  # 8 bits, whatever the palette says
        highest = 255
    return np.dstack([table(stored_HW) for table in tables]), highest
