"""All images but JPEG, DICOM and NIfTI, read through Pillow; and images written to be kept without loss.

Axes in names: H height, W width, C channel.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from consilium.core.errors import ImageError
from consilium.data.images.jpeg_header import ORIENTATION_TAG
from consilium.data.images.pixels import (
    Grey,
    ImageInfo,
    Pixels,
    curve_note,
    cut_short,
    damaged,
    no_such_frame,
    noted,
    on_white,
    upright,
)
from consilium.data.images.png import Png, is_png, ready
from consilium.data.images.tiff import is_tiff, unread_tiff
from consilium.data.images.unread import no_image

if TYPE_CHECKING:
    from PIL import Image

# Pillow warns of what it skips in a file (broken EXIF and the like); to whoever reads images here it is noise.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# Never EPS and the like, which run programs.
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000")
KNOWN = ("JPEG", "PNG", "TIFF", "WebP", "BMP", "GIF", "PPM", "JPEG 2000", "DICOM", "NIfTI")
_JPEG_2000 = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")
# How files of a kind start whose header Pillow may find damaged.
_KNOWN = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"BM": "BMP", b"GIF8": "GIF", b"RIFF": "WebP"}
_DESCRIPTION_TAG = 270


def probe_pillow(data: bytes, *, name: str, frame: int | None) -> ImageInfo:
    """What the header says; a file that is no image, or is without its end, is an ImageError."""
    with _opened(data, name, frame) as file:
        try:
            orientation = _orientation(file)
            width, height = _stored_size(file.image)
            frames = 1 if frame is not None else _frames(file.image)
        except Exception as error:  # as below
            raise damaged(name, error) from error
        if orientation >= 5:
            width, height = height, width
        notes = () if file.png is None else file.png.notes
        if frames > 1:
            notes += (f"it holds {frames} frames, of which the first is read",)
        return ImageInfo(width, height, str(file.image.format), file.image.mode, orientation, notes)


def read_pillow(data: bytes, *, name: str, frame: int | None, orientation: int) -> Pixels | Grey:
    """The image, turned upright: pixels, or grey values where it has more than 8 bits; the first frame unless one is
    named.

    Colours of 16 bits are cut to their upper 8, which is their full range within a level.
    """
    with _opened(data, name, frame) as file:
        try:
            file.image.load()
            image = _pixels(file)
        except Exception as error:  # as below
            raise damaged(name, error) from error
        if file.image.format == "TIFF":  # Pillow turns these itself
            return image
        if isinstance(image, Grey):
            return replace(image, values_HW=upright(image.values_HW, orientation))
        return upright(image, orientation)


def pixels_of(image: Image.Image) -> Pixels | Grey:
    """A loaded Pillow image as it lies: pixels, or grey values where it has more than 8 bits."""
    return _pixels(_File(image, png=None))


def lossless(image: Pixels | Grey, *, compressed: bool = True) -> bytes:
    """Pixels as a PNG; grey values as a TIFF of 32-bit floats that also holds how they are shown.

    Without compression (pixels as a PPM) it takes next to no time.
    """
    from PIL import Image

    stream = io.BytesIO()
    if isinstance(image, Grey):
        values = Image.fromarray(np.ascontiguousarray(image.values_HW, dtype=np.float32))
        tags = {_DESCRIPTION_TAG: curve_note(image)}
        values.save(stream, "TIFF", compression="tiff_adobe_deflate" if compressed else None, tiffinfo=tags)
    else:
        Image.fromarray(image).save(stream, "PNG" if compressed else "PPM")
    return stream.getvalue()


@dataclass(frozen=True)
class _File:
    """An image that Pillow has opened; ``png`` is what was read of a PNG before."""

    image: Image.Image
    png: Png | None


@contextlib.contextmanager
def _opened(data: bytes, name: str, frame: int | None) -> Iterator[_File]:
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ImageError(f"{name} is empty (0 bytes); copy it again, or leave the row out.")
    png = ready(data, name=name) if is_png(data) else None
    if data.startswith(_JPEG_2000) and data.rfind(b"\xff\xd9") < 0:  # its decoder fills in what is lost
        raise cut_short(name, "a JPEG 2000 image without its end marker")
    try:
        image = Image.open(io.BytesIO(data if png is None else png.data), formats=FORMATS)
        if frame is not None:
            frames = getattr(image, "n_frames", 1)
            if frame >= frames:
                raise no_such_frame(name, frame, frames)
            image.seek(frame)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise _unread(data, name, frame) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        size = str(error).partition(",")[0]  # what follows is about attacks
        raise ImageError(f"{name} is too large: {size}, Pillow's own above any max_pixels; reduce the image.") from None
    except Exception as error:  # Pillow's readers raise anything on damaged headers
        raise damaged(name, error) from error
    with image:
        yield _File(image, png)


def _unread(data: bytes, name: str, frame: int | None) -> ImageError:
    """The error of what Pillow does not know."""
    if is_tiff(data):
        return unread_tiff(data, name=name, frame=frame)
    for start, kind in _KNOWN.items():
        if data.startswith(start):
            return damaged(name, f"its header is not that of a {kind}")
    return no_image(data, name, ", ".join(KNOWN))


def _frames(image: Image.Image) -> int:
    """How many frames a file holds; those behind the first may be damaged."""
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # as above
        return 1


def _pixels(file: _File) -> Pixels | Grey:
    return _grey(file) if file.image.mode == "F" or file.image.mode.startswith("I") else _rgb(file)


def _grey(file: _File) -> Grey:
    tags: Any = getattr(file.image, "tag_v2", {})
    values_HW = np.asarray(file.image)
    # Pillow leaves 16-bit TIFFs in which 0 is white (PhotometricInterpretation 0) uninverted.
    grey = noted(values_HW, tags.get(_DESCRIPTION_TAG)) or Grey(values_HW, inverted=tags.get(262, 1) == 0)
    if file.png is None or file.png.clear is None:
        return grey
    return on_white(grey, values_HW == file.png.clear[0])


def _rgb(file: _File) -> Pixels:
    from PIL import Image

    if file.image.has_transparency_data:
        layered = file.image.convert("RGBA")
        if file.image.format == "BMP" and not np.asarray(layered.getchannel("A")).any():
            return np.array(layered.convert("RGB"))  # bytes that are not used, as in most such files
        paper = Image.new("RGB", file.image.size, "white")
        paper.paste(layered, mask=layered.getchannel("A"))
        return np.array(paper)
    pixels_HWC = np.array(file.image.convert("RGB"))
    if file.png is not None and file.png.clear is not None:
        pixels_HWC[(pixels_HWC == np.array(file.png.clear)).all(axis=2)] = 255
    return pixels_HWC


def _orientation(file: _File) -> int:
    # Pillow decodes a whole PNG to look for EXIF behind the pixels; look only where there is some.
    if file.png is not None and not file.png.has_exif:
        return 1
    try:
        value = int(file.image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF does not spoil the pixels
        return 1
    return value if 1 <= value <= 8 else 1


def _stored_size(image: Image.Image) -> tuple[int, int]:
    # Some versions of Pillow report a TIFF's size already turned; its tags never are.
    tags: Any = getattr(image, "tag_v2", {})
    return int(tags.get(256, image.size[0])), int(tags.get(257, image.size[1]))
