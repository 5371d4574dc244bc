"""Image bytes in, uint8 RGB pixels out: check, decode, crop and resize one image.

Axes in names: H height, W width, C channel. Pixels are always [H, W, 3], RGB, with EXIF orientation applied.
Colour profiles are ignored, as in torchvision and timm, whose weights were trained that way.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import simplejpeg

from consilium.core import places
from consilium.core.errors import ConsiliumError, ImageError
from consilium.data.config import ImageConfig
from consilium.data.images.dicom import is_dicom, probe_dicom, read_dicom
from consilium.data.images.jpeg_header import probe_jpeg
from consilium.data.images.nifti import is_nifti, probe_nifti, read_nifti
from consilium.data.images.pillow import lossless, probe_pillow, read_pillow
from consilium.data.images.pixels import (
    Grey,
    ImageInfo,
    Pixels,
    damaged,
    no_such_frame,
    not_understood,
    shown,
    too_many_pixels,
    upright,
    with_curve,
)
from consilium.data.images.tiff import is_tiff, probe_tiff, read_tiff

Kind = TypeVar("Kind", np.uint8, np.float32)

# A scaled JPEG keeps at least this many times the pixels needed on each side, so that the antialiased resize
# that follows, not the decoder's coarse scaling, decides how the image looks.
MARGIN = 1.15
_FRAME = b"\0consilium frame\0"
# What libjpeg says when pixels are lost; its other warnings (a stray byte, an odd version) lose nothing.
_JPEG_DAMAGE = ("remature end", "bad Huffman", "bad arithmetic", "instead of RST", "Inconsistent progression")


@dataclass(frozen=True)
class Box:
    """A rectangle as fractions of the oriented image's width and height."""

    left: float
    top: float
    width: float
    height: float


WHOLE = Box(left=0.0, top=0.0, width=1.0, height=1.0)


def read_bytes(image: str | Path | bytes) -> bytes:
    """The bytes of an image given as a path (``scan.dcm#12``: its frame 12) or as bytes."""
    if isinstance(image, bytes):
        return image
    try:
        path, frame = places.split_frame(str(image))
        data = places.read_bytes(path)
    except FileNotFoundError:
        raise ImageError(f"{image} does not exist; correct the path, or leave the row out.") from None
    except IsADirectoryError:
        raise ImageError(f"{image} is a folder; give the path of an image file.") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise ImageError(f"{image} cannot be read ({error}); check the path and its permissions.") from error
    if not data:
        raise ImageError(f"{image} is empty (0 bytes); copy it again, or leave the row out.")
    return data if frame is None else _wrapped(data, frame)


def probe(data: bytes, *, name: str, max_pixels: int) -> ImageInfo:
    """What the header says, without decoding; an image that is too large, cut short or no image is an ImageError."""
    with _image_errors(name):
        info = _probe(data, name, max_pixels)
    if info.width * info.height > max_pixels:
        raise too_many_pixels(info, name=name, max_pixels=max_pixels)
    return info


def decode(
    data: bytes,
    *,
    name: str,
    max_pixels: int,
    needed: tuple[int, int] | None = None,
    window: tuple[float, float] | None = None,
) -> Pixels:
    """The pixels of an image, all of them or an image that is not decoded: nothing is filled in for lost data.

    ``needed`` (height, width) lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, as long as both sides keep
    ``MARGIN`` times that. Transparent pixels are laid on white, the paper that figures and charts are drawn
    for. ``window`` [centre, width] in the image's own units decides how the grey values of DICOM and NIfTI, and of
    other images of more than 8 bits, are shown; without it the file's own window does, and without that they are
    shown from their lowest to their highest value, since many use a part of their range only (12 bits in 16). Of
    several frames the one that the path names is taken, else the first; of DICOM and NIfTI the middle one.
    """
    return _decode(data, probe(data, name=name, max_pixels=max_pixels), name, needed, window)


def load_view(data: bytes, *, name: str, image: ImageConfig, box: Box | None) -> Pixels:
    """One view of exactly ``image.size``: ``box`` (a training crop) resized to it, or the whole image fitted to it.

    ``fit: stretch`` resizes both sides on their own; ``crop`` cuts the largest centred rectangle of the right shape;
    ``pad`` keeps the shape and fills the rest with zeros (black), centred. A ``box`` takes the place of ``fit``. Its
    edges are rounded to whole pixels of the decoded image; resizing is antialiased.
    """
    info = probe(data, name=name, max_pixels=image.max_pixels)
    height, width = image.size
    if box is None and image.fit == "pad":
        zoom = min(height / info.height, width / info.width)
        height, width = max(1, round(info.height * zoom)), max(1, round(info.width * zoom))
    if box is None:
        box = _centred(info, height / width) if image.fit == "crop" else WHOLE
    needed = (math.ceil(height / box.height), math.ceil(width / box.width))
    pixels_HWC = _cut(_decode(data, info, name, needed, image.window), box)
    pixels_HWC = resize(pixels_HWC, (height, width), image.interpolation)
    if (height, width) == image.size:
        return pixels_HWC
    canvas_HWC = np.zeros((*image.size, 3), np.uint8)
    top, left = (image.size[0] - height) // 2, (image.size[1] - width) // 2
    canvas_HWC[top : top + height, left : left + width] = pixels_HWC
    return canvas_HWC


def zoomed(info: ImageInfo, image: ImageConfig, *, share: float) -> Box:
    """The centre of an image, in the shape in which ``image.fit`` shows it.

    With ``stretch`` it has ``share`` of the area of the image; else of the largest centred rectangle that has the shape
    of ``image.size``.
    """
    height, width = image.size
    whole = WHOLE if image.fit == "stretch" else _centred(info, height / width)
    wide, high = math.sqrt(share) * whole.width, math.sqrt(share) * whole.height
    return Box(left=(1 - wide) / 2, top=(1 - high) / 2, width=wide, height=high)


def resize_once(data: bytes, *, name: str, shorter: int, max_pixels: int) -> bytes:
    """The image with ``shorter`` pixels on its shorter side: a JPEG (quality 95, full colour resolution).

    Grey values that a window is for become a TIFF of 32-bit floats, so that nothing is lost before any window. Pixels
    are upright: no EXIF is left. An image whose shorter side is no longer than that stays as it is.
    """
    info = probe(data, name=name, max_pixels=max_pixels)
    zoom = shorter / min(info.width, info.height)
    if zoom >= 1:
        return data
    size = (max(1, round(info.height * zoom)), max(1, round(info.width * zoom)))
    image = _read(data, info, name, size)
    if isinstance(image, Grey):
        return lossless(_reduced(with_curve(image), size))
    pixels_HWC = resize(image, size, "bicubic")
    encoded: bytes = simplejpeg.encode_jpeg(pixels_HWC, quality=95, colorspace="RGB", colorsubsampling="444")
    return encoded


def alone(data: bytes, *, name: str, max_pixels: int) -> bytes:
    """One frame of DICOM, NIfTI or a file of several as a file of its own, without loss and without the header.

    Grey values are kept as 32-bit floats (TIFF) with the file's own window, pixels as PNG. Other images stay as they
    are.
    """
    info = probe(data, name=name, max_pixels=max_pixels)
    if info.format not in ("DICOM", "NIfTI") and not data.startswith(_FRAME):
        return data
    image = _read(data, info, name, None)
    return lossless(image)


def _wrapped(data: bytes, frame: int) -> bytes:
    """The bytes of a file of which one frame is meant; only the functions of this module see them."""
    return _FRAME + frame.to_bytes(8, "big") + data


def _unwrapped(data: bytes) -> tuple[int | None, bytes]:
    if not data.startswith(_FRAME):
        return None, data
    start = len(_FRAME) + 8
    return int.from_bytes(data[len(_FRAME) : start], "big"), data[start:]


@contextlib.contextmanager
def _image_errors(name: str) -> Iterator[None]:
    """No other error leaves a reader, whatever the bytes are."""
    try:
        yield
    except ConsiliumError:
        raise
    except Exception as error:
        raise not_understood(name, "file", "as PNG or TIFF") from error


def _probe(data: bytes, name: str, max_pixels: int) -> ImageInfo:
    frame, data = _unwrapped(data)
    if data.startswith(b"\xff\xd8\xff"):
        if frame:
            raise no_such_frame(name, frame, 1)
        return probe_jpeg(data, name=name)
    if is_dicom(data):
        return probe_dicom(data, name=name, frame=frame, max_pixels=max_pixels)
    if is_nifti(data):
        return probe_nifti(data, name=name, frame=frame, max_pixels=max_pixels)
    ours = probe_tiff(data, name=name, frame=frame) if is_tiff(data) else None
    return ours or probe_pillow(data, name=name, frame=frame)


def _decode(
    data: bytes, info: ImageInfo, name: str, needed: tuple[int, int] | None, window: tuple[float, float] | None
) -> Pixels:
    image = _read(data, info, name, needed)
    return shown(image, window) if isinstance(image, Grey) else image


def _read(data: bytes, info: ImageInfo, name: str, needed: tuple[int, int] | None) -> Pixels | Grey:
    with _image_errors(name):
        return _read_by_kind(data, info, name, needed)


def _read_by_kind(data: bytes, info: ImageInfo, name: str, needed: tuple[int, int] | None) -> Pixels | Grey:
    frame, data = _unwrapped(data)
    if info.format == "JPEG":
        return _decode_jpeg(data, info, name, needed)
    if info.format == "DICOM":
        return read_dicom(data, name=name, frame=frame)
    if info.format == "NIfTI":
        return read_nifti(data, name=name, frame=frame)
    image = read_tiff(data, name=name, frame=frame, orientation=info.orientation) if is_tiff(data) else None
    if image is None:
        image = read_pillow(data, name=name, frame=frame, orientation=info.orientation)
    return image


def _decode_jpeg(data: bytes, info: ImageInfo, name: str, needed: tuple[int, int] | None) -> Pixels | Grey:
    height, width = (info.height, info.width) if info.orientation < 5 else (info.width, info.height)
    eighths = 8
    if needed is not None:
        # Only halvings have fast code in libjpeg-turbo; 3/8, 5/8 and so on cost more than the whole image.
        halvings = (e for e in (1, 2, 4) if _is_enough(info, e, needed))
        eighths = next(halvings, 8)
    rows, columns = math.ceil(height * eighths / 8), math.ceil(width * eighths / 8)
    try:
        colours = "CMYK" if info.mode == "CMYK" else "RGB"
        pixels_HWC = simplejpeg.decode_jpeg(data, colours, min_height=rows, min_width=columns)
    except ValueError as error:
        if any(sign in str(error) for sign in _JPEG_DAMAGE):
            raise damaged(name, str(error)) from error
        return read_pillow(data, name=name, frame=None, orientation=info.orientation)
    if colours == "CMYK":
        # Pillow knows the colours; decoding first finds the damage that Pillow would fill with grey.
        return read_pillow(data, name=name, frame=None, orientation=info.orientation)
    return upright(pixels_HWC, info.orientation)


def _is_enough(info: ImageInfo, eighths: int, needed: tuple[int, int]) -> bool:
    return info.height * eighths >= 8 * MARGIN * needed[0] and info.width * eighths >= 8 * MARGIN * needed[1]


def _centred(info: ImageInfo, shape: float) -> Box:
    """The largest centred box whose height / width is ``shape``."""
    width = min(1.0, info.height / shape / info.width)
    height = min(1.0, info.width * shape / info.height)
    return Box(left=(1 - width) / 2, top=(1 - height) / 2, width=width, height=height)


def _cut(pixels_HWC: Pixels, box: Box) -> Pixels:
    rows, columns = pixels_HWC.shape[:2]
    top, left = min(round(box.top * rows), rows - 1), min(round(box.left * columns), columns - 1)
    bottom = max(top + 1, round((box.top + box.height) * rows))
    right = max(left + 1, round((box.left + box.width) * columns))
    return pixels_HWC[top:bottom, left:right]


def _reduced(grey: Grey, size: tuple[int, int]) -> Grey:
    """Grey values resized, within their range; a pixel that mostly covers nothing (NaN) is nothing."""
    values_HW = grey.values_HW.astype(np.float32)
    is_there_HW = np.isfinite(values_HW)
    if not is_there_HW.any():
        return replace(grey, values_HW=np.full(size, np.nan, np.float32))
    low, high = values_HW[is_there_HW].min(), values_HW[is_there_HW].max()
    filled_HWC = np.stack([np.where(is_there_HW, values_HW - low, 0), is_there_HW], axis=2, dtype=np.float32)
    resized_HWC = resize(filled_HWC, size, "bicubic")
    above_HW, cover_HW = resized_HWC[..., 0], resized_HWC[..., 1]
    values_HW = np.where(cover_HW < 0.5, np.nan, (low + above_HW / np.maximum(cover_HW, 0.5)).clip(low, high))
    return replace(grey, values_HW=values_HW)


def resize(
    pixels_HWC: npt.NDArray[Kind], size: tuple[int, int], interpolation: Literal["bilinear", "bicubic"] = "bilinear"
) -> npt.NDArray[Kind]:
    """Antialiased resize; torch's uint8 kernel matches Pillow's to a level and takes a quarter of the time."""
    import torch
    from torch.nn.functional import interpolate

    if pixels_HWC.shape[:2] == size:
        return np.ascontiguousarray(pixels_HWC)
    images_1CHW = torch.from_numpy(pixels_HWC)[None].permute(0, 3, 1, 2)  # in this order torch sees channels_last
    resized_1CHW = interpolate(images_1CHW, size, mode=interpolation, antialias=True, align_corners=False)
    return np.ascontiguousarray(resized_1CHW[0].permute(1, 2, 0).numpy())
