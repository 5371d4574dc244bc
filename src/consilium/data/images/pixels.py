"""What all readers of images share: what a header says, grey values and how they are shown, and their errors.

Axes in names: H height, W width, C channel.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from consilium.core.errors import ImageError

Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[Any]

# No uncompressed image takes more (four channels of 16 bits); a larger file is not read into memory.
BYTES_PER_PIXEL = 8
_NOTE = "consilium curve "
# Decoders speak in sentences when they raise these; other exceptions hold what Python says.
_OF_PROGRAMMERS = ("decoder error", "decoder object", "codec configuration")
_OF_DECODERS = (str, OSError, SyntaxError, EOFError, zlib.error)


@dataclass(frozen=True)
class ImageInfo:
    """What an image's header says; ``width`` and ``height`` are those after ``orientation`` (EXIF, 1 to 8).

    ``notes`` says what is odd in the file and how it is read all the same.
    """

    width: int
    height: int
    format: str
    mode: str
    orientation: int = 1
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Curve:
    """How bright each value is shown: straight between these points, level before the first and after the last.

    ``values`` rise; a brightness of 0 is black and 1 white.
    """

    values: tuple[float, ...]
    brightness: tuple[float, ...]


@dataclass(frozen=True)
class Grey:
    """A grey image in its own units, before it becomes 256 levels; NaN is where the image has nothing.

    ``curve`` is the window that the file itself names; ``inverted`` says that its low values are white.
    """

    values_HW: Values
    curve: Curve | None = None
    inverted: bool = False


def window_curve(window: tuple[float, float]) -> Curve:
    """Straight from centre - width / 2 (black) to centre + width / 2 (white)."""
    centre, width = window
    return Curve((centre - width / 2, centre + width / 2), (0.0, 1.0))


def range_curve(values_HW: Values) -> Curve | None:
    """Straight from the lowest finite value to the highest; None for a flat image."""
    finite = values_HW if values_HW.dtype.kind in "biu" else values_HW[np.isfinite(values_HW)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    return Curve((low, high), (0.0, 1.0)) if low < high else None


def shown(grey: Grey, window: tuple[float, float] | None) -> Pixels:
    """The image in 256 levels by ``window``, else by its own curve, else from its lowest to its highest value.

    A flat image without any window is black, and so is what is not finite.
    """
    curve = window_curve(window) if window is not None else grey.curve or range_curve(grey.values_HW)
    if curve is None:
        return np.zeros((*grey.values_HW.shape, 3), np.uint8)
    brightness_HW = _brightness(grey.values_HW, curve)
    if grey.inverted:
        brightness_HW = 1 - brightness_HW
    levels_HW = np.rint(255 * np.where(np.isfinite(grey.values_HW), brightness_HW, 0)).astype(np.uint8)
    return np.dstack([levels_HW] * 3)


def _brightness(values_HW: Values, curve: Curve) -> npt.NDArray[np.float64]:
    if curve.brightness == (0.0, 1.0) and curve.values[0] < curve.values[1]:  # nearly all, ten times as fast
        low, high = curve.values
        with np.errstate(over="ignore"):
            return np.clip((values_HW.astype(np.float64) - low) / (high - low), 0, 1)
    return np.interp(values_HW, curve.values, curve.brightness)


def with_curve(grey: Grey) -> Grey:
    """The same image, whose own range is a curve of its own, so that it looks the same when it is reduced."""
    return grey if grey.curve is not None else replace(grey, curve=range_curve(grey.values_HW))


def curve_note(grey: Grey) -> str:
    """The curve as a text to keep beside the values."""
    curve = grey.curve or Curve((), ())
    return _NOTE + json.dumps([curve.values, curve.brightness, grey.inverted])


def noted(values_HW: Values, note: object) -> Grey | None:
    """The image of values that ``curve_note`` was kept beside; None where ``note`` is something else, or damaged."""
    if not isinstance(note, str) or not note.startswith(_NOTE):
        return None
    try:
        values, brightness, inverted = json.loads(note.removeprefix(_NOTE).rstrip("\0"))
        points = sorted(zip(map(float, values), map(float, brightness), strict=True))
    except (ValueError, TypeError):
        return None
    curve = Curve(tuple(value for value, _ in points), tuple(bright for _, bright in points)) if points else None
    return Grey(values_HW, curve, inverted=bool(inverted))


def upright(array_HW: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Pixels or values turned upright (EXIF: 2 to 4 mirror and turn by half, 5 to 8 also exchange rows and columns)."""
    if orientation >= 5:
        array_HW = array_HW.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array_HW = array_HW[::-1]
    if orientation in (2, 3, 6, 7):
        array_HW = array_HW[:, ::-1]
    return np.ascontiguousarray(array_HW)


def on_white(grey: Grey, is_clear_HW: npt.NDArray[np.bool_]) -> Grey:
    """Grey values whose transparent pixels are white under every window; the others are shown as without them."""
    if not is_clear_HW.any():
        return grey
    opaque = grey.values_HW[~is_clear_HW].astype(np.float64)
    opaque = opaque[np.isfinite(opaque)]
    low, high = (float(opaque.min()), float(opaque.max())) if opaque.size else (0.0, 0.0)
    dtype = grey.values_HW.dtype
    ends = (2 * low - high - 1, 2 * high - low + 1) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    white = float(ends[0] if grey.inverted else ends[1])
    if low == high:  # what is not transparent is black, as an image of one value is
        low, high = min(low, white), max(low, white)
    values_HW = np.where(is_clear_HW, white, grey.values_HW).astype(np.float32)
    return replace(grey, values_HW=values_HW, curve=grey.curve or Curve((low, high), (0.0, 1.0)))


def too_many_pixels(info: ImageInfo, *, name: str, max_pixels: int) -> ImageError:
    """The error of an image that is larger than allowed."""
    return ImageError(
        f"{name} has {info.width} x {info.height} = {info.width * info.height:,} pixels, more than "
        f"max_pixels: {max_pixels:,}; reduce the image, or raise max_pixels."
    )


def no_such_frame(name: str, frame: int, frames: int) -> ImageError:
    """The error of a frame that a file does not have."""
    there = "one frame, 0" if frames == 1 else f"{frames} frames, 0 to {frames - 1}"
    return ImageError(f"{name}: there is no frame {frame}; the file has {there}. Correct the number after '#'.")


def cut_short(name: str, what: str) -> ImageError:
    """The error of a file that ends too early."""
    return ImageError(f"{name} is {what}: it was cut short; copy or download it again, or leave the row out.")


def damaged(name: str, error: Exception | str) -> ImageError:
    """The error of a file whose decoder finds it damaged and may say why; what Python itself says is left out."""
    said = " ".join(str(error).split()) if isinstance(error, _OF_DECODERS) else ""
    if isinstance(error, zlib.error):
        said = "its compressed data cannot be unpacked"
    elif any(words in said for words in _OF_PROGRAMMERS):
        said = ""
    reason = f" ({said})" if said else ""
    return ImageError(f"{name} is damaged and cannot be decoded{reason}; copy it again, or leave the row out.")


def not_understood(name: str, kind: str, tool: str) -> ImageError:
    """The error of a file in which a reader meets what it does not know, which need not be damage."""
    return ImageError(
        f"{name} is a {kind} that cannot be read: something in it is not as the standard says, or it is damaged. Copy "
        f"it again; if that does not help, write it anew with another program ({tool}), or leave the row out."
    )
