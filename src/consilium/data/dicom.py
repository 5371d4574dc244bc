"""DICOM files, read by pydicom: one frame in its own units, or in colour.

Axes in names: H height, W width, C channel.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import threading
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from consilium.core.errors import ImageError, MissingExtraError
from consilium.data.pixels import Curve, Grey, ImageInfo, Pixels, cut_short, damaged, no_such_frame, too_many_pixels

if TYPE_CHECKING:
    from pydicom import FileDataset

_DEFLATED = "1.2.840.10008.1.2.1.99"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_COLOURS = ("RGB", "PALETTE COLOR")
_quiet_lock = threading.RLock()


def is_dicom(data: bytes) -> bool:
    """Whether these are the bytes of a DICOM file."""
    return data[128:132] == b"DICM"


def probe_dicom(data: bytes, *, name: str, frame: int | None, max_pixels: int) -> ImageInfo:
    """What the header says. Pixels that are missing, cut short or packed in a way that cannot be read are an error."""
    with _reading(name):
        dataset = _parsed(data, name)
        info = ImageInfo(int(dataset.Columns), int(dataset.Rows), "DICOM", "RGB" if _is_colour(dataset) else "F")
        if info.width * info.height > max_pixels:
            raise too_many_pixels(info, name=name, max_pixels=max_pixels)
        _check_pixels(dataset, name)
        if frame is not None and frame >= _frames(dataset):
            raise no_such_frame(name, frame, _frames(dataset))
        return info


def read_dicom(data: bytes, *, name: str, frame: int | None) -> Pixels | Grey:
    """One frame (the middle one unless one is named): grey in the units that its rescaling gives, or colour.

    The file has passed ``probe_dicom``. Padding becomes NaN. The file's own first window (C.11.2 of part 3 of the
    standard), or lookup table, becomes the curve.
    """
    with _reading(name):
        dataset = _parsed(data, name)
        frame = _frames(dataset) // 2 if frame is None else frame
        return _colour(dataset, frame) if _is_colour(dataset) else _grey(dataset, frame)


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
            raise damaged(name, error) from error


def _parsed(data: bytes, name: str) -> FileDataset:
    """The file, with its pixels as they are stored."""
    from pydicom import dcmread

    # A deflated file may unpack to any size, and pydicom unpacks it as it reads.
    if _DEFLATED.encode() in data[132:4096]:
        raise _unreadable(name, _DEFLATED)
    dataset = dcmread(io.BytesIO(data))
    if "Rows" not in dataset or "Columns" not in dataset:
        if "SOPClassUID" not in dataset:  # what pydicom gives of a file that ends inside its packed pixels
            raise ImageError(
                f"{name} is a DICOM file without an image, or cut short; copy it again, or leave the row out."
            )
        kind = getattr(dataset.SOPClassUID, "name", dataset.SOPClassUID)
        raise ImageError(f"{name} is a DICOM file without an image ({kind}); leave the row out.")
    return dataset


def _check_pixels(dataset: FileDataset, name: str) -> None:
    from pydicom.pixels.utils import get_expected_length

    pixels = next((dataset[key].value for key in _PIXELS if key in dataset), None) or b""
    is_packed = dataset.file_meta.TransferSyntaxUID.is_compressed
    if not pixels or (not is_packed and len(pixels) < get_expected_length(dataset)):
        raise cut_short(name, "a DICOM file without all of its pixels")
    if is_packed:
        _check_syntax(dataset, name)


def _check_syntax(dataset: FileDataset, name: str) -> None:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import JPEGExtended12Bit

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    twelve_bits = syntax == JPEGExtended12Bit and int(dataset.BitsStored) > 8 and _only_pillow(syntax)
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


def _frames(dataset: FileDataset) -> int:
    return int(dataset.get("NumberOfFrames", None) or 1)


def _is_colour(dataset: FileDataset) -> bool:
    kind = str(dataset.get("PhotometricInterpretation", ""))
    return kind in _COLOURS or kind.startswith("YBR")


def _colour(dataset: FileDataset, frame: int) -> Pixels:
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    pixels_HWC = pixel_array(dataset, index=frame)  # makes RGB of YBR
    bits = int(dataset.BitsStored)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels_HWC = apply_color_lut(pixels_HWC, dataset)
        bits = 8 * pixels_HWC.dtype.itemsize
    if pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != 3:
        raise ValueError(f"colours of the shape {pixels_HWC.shape}")
    if bits == 8 and pixels_HWC.dtype == np.uint8:
        return np.ascontiguousarray(pixels_HWC)
    scaled_HWC: Pixels = np.rint(np.clip(pixels_HWC / (2**bits - 1), 0, 1) * 255).astype(np.uint8)
    return scaled_HWC


def _grey(dataset: FileDataset, frame: int) -> Grey:
    from pydicom.pixels.processing import apply_modality_lut
    from pydicom.pixels.utils import pixel_array

    stored_HW = pixel_array(dataset, index=frame)
    if stored_HW.ndim != 2:
        raise ValueError(f"grey values of the shape {stored_HW.shape}")
    rescaling = _macro(dataset, frame, "PixelValueTransformationSequence", "RescaleSlope")
    values_HW = np.array(apply_modality_lut(stored_HW, rescaling), dtype=np.float32)
    padding_HW = _is_padding(stored_HW, dataset)
    if padding_HW is not None:
        values_HW[padding_HW] = np.nan
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    return Grey(values_HW, _curve(_macro(dataset, frame, "FrameVOILUTSequence", "WindowCenter")), inverted=inverted)


def _macro(dataset: Any, frame: int, sequence: str, key: str) -> Any:
    """Where a property of a frame is told: in the file, or (enhanced files) of each frame, or of all."""
    if key not in dataset:
        for groups, number in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
            items = dataset.get(groups, None) or []
            if number < len(items) and items[number].get(sequence, None):
                return items[number][sequence].value[0]
    return dataset


def _is_padding(stored_HW: np.ndarray, dataset: FileDataset) -> np.ndarray | None:
    value = dataset.get("PixelPaddingValue", None)
    if value is None or stored_HW.dtype.kind == "f":
        return None
    limit = dataset.get("PixelPaddingRangeLimit", None)
    low, high = sorted((int(value), int(value if limit is None else limit)))
    padding_HW: np.ndarray = (stored_HW >= low) & (stored_HW <= high)
    return padding_HW


def _curve(place: Any) -> Curve | None:
    """The first window, or else the lookup table, that a file names."""
    centre, width = (_first(place.get(key, None)) for key in ("WindowCenter", "WindowWidth"))
    function = str(place.get("VOILUTFunction", None) or "LINEAR")
    if centre is not None and width is not None and math.isfinite(centre) and math.isfinite(width):
        if function == "SIGMOID" and width > 0:
            steps = np.linspace(-2.5, 2.5, 1025)
            return Curve(tuple(centre + width * steps), tuple(1 / (1 + np.exp(-4 * steps))))
        if function == "LINEAR_EXACT" and width > 0:
            return Curve((centre - width / 2, centre + width / 2), (0.0, 1.0))
        if function == "LINEAR" and width >= 1:
            return Curve((centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2), (0.0, 1.0))
    if place.get("VOILUTSequence", None):
        return _table(place.VOILUTSequence[0])
    return None


def _table(item: Any) -> Curve:
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    count = count or 2**16
    data = item.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, np.uint8 if len(data) <= count + 1 else np.dtype("<u2"))
    levels = np.asarray(data, dtype=np.float64)[:count] / (2**bits - 1)
    return Curve(tuple(float(value) for value in first + np.arange(len(levels))), tuple(levels.tolist()))


def _first(value: Any) -> float | None:
    """The first of one or several numbers; None where there is none."""
    if value is None or value == "":
        return None
    try:
        return float(value)
    except TypeError:
        return float(value[0])
