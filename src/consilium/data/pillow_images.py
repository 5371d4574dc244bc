"""All images but JPEG, DICOM and NIfTI, read through Pillow; and images written to be kept without loss.

Axes in names: H height, W width, C channel.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from consilium.core.errors import ImageError
from consilium.data.jpeg_header import ORIENTATION_TAG
from consilium.data.pixels import Grey, ImageInfo, Pixels, curve_note, cut_short, damaged, no_such_frame, noted

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000")  # never EPS and the like, which run programs
_DESCRIPTION_TAG = 270


def probe_pillow(data: bytes, *, name: str, frame: int | None) -> ImageInfo:
    """What the header says; a file that is no image, or a PNG without its end, is an ImageError."""
    with _open(data, name, frame) as opened:
        png_chunks = _png_chunks(data, name) if opened.format == "PNG" else set()
        orientation = _orientation(opened, png_chunks)
        width, height = _stored_size(opened)
        if orientation >= 5:
            width, height = height, width
        return ImageInfo(width, height, str(opened.format), opened.mode, orientation)


def read_pillow(data: bytes, *, name: str, frame: int | None, upright: bool = True) -> Pixels | Grey:
    """The image: pixels, or grey values where it has more than 8 bits; the first frame unless one is named.

    Colours of 16 bits are cut to their upper 8, which is their full range within a level.
    """
    from PIL import ImageOps

    opened = _open(data, name, frame)
    with opened:
        try:
            opened.load()
            if upright:
                ImageOps.exif_transpose(opened, in_place=True)
            return pixels_of(opened)
        except Exception as error:  # as in _open
            raise damaged(name, error) from error


def pixels_of(image: Image.Image) -> Pixels | Grey:
    """A loaded Pillow image as it lies: pixels, or grey values where it has more than 8 bits."""
    return _grey(image) if image.mode == "F" or image.mode.startswith("I") else _rgb(image)


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


def _open(data: bytes, name: str, frame: int | None) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ImageError(f"{name} is empty (0 bytes); copy it again, or leave the row out.")
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
        if frame is not None:
            frames = getattr(opened, "n_frames", 1)
            if frame >= frames:
                raise no_such_frame(name, frame, frames)
            opened.seek(frame)
        return opened
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(
            f"{name} is no image of a known kind (JPEG, PNG, TIFF, WebP, BMP, GIF, PPM, JPEG 2000, DICOM, NIfTI), or "
            f"cut short: it starts with {data[:16]!r}; convert it, or leave the row out."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        size = str(error).partition(",")[0]  # what follows is about attacks
        raise ImageError(f"{name} is too large: {size}, Pillow's own above any max_pixels; reduce the image.") from None
    except Exception as error:  # Pillow's readers raise anything on damaged headers
        raise damaged(name, error) from error


def _grey(opened: Image.Image) -> Grey:
    tags: Any = getattr(opened, "tag_v2", {})
    values_HW = np.asarray(opened)
    # Pillow leaves 16-bit TIFFs in which 0 is white (PhotometricInterpretation 0) uninverted.
    return noted(values_HW, tags.get(_DESCRIPTION_TAG)) or Grey(values_HW, inverted=tags.get(262, 1) == 0)


def _rgb(opened: Image.Image) -> Pixels:
    from PIL import Image

    if opened.has_transparency_data:
        layered = opened.convert("RGBA")
        paper = Image.new("RGB", opened.size, "white")
        paper.paste(layered, mask=layered.getchannel("A"))
        return np.array(paper)
    return np.array(opened.convert("RGB"))


def _png_chunks(data: bytes, name: str) -> set[bytes]:
    """The kinds of chunks in a PNG, which must be whole up to its end."""
    kinds: set[bytes] = set()
    position = 8
    while b"IEND" not in kinds:
        if position + 12 > len(data):
            raise cut_short(name, "a PNG without its end (IEND)")
        kinds.add(data[position + 4 : position + 8])
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return kinds


def _orientation(opened: Image.Image, png_chunks: set[bytes]) -> int:
    # Pillow decodes a whole PNG to look for EXIF behind the pixels; look only where there is some.
    if opened.format == "PNG" and "exif" not in opened.info and b"eXIf" not in png_chunks:
        return 1
    try:
        value = int(opened.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF does not spoil the pixels
        return 1
    return value if 1 <= value <= 8 else 1


def _stored_size(opened: Image.Image) -> tuple[int, int]:
    # Some versions of Pillow report a TIFF's size already turned; its tags never are.
    tags: Any = getattr(opened, "tag_v2", {})
    return int(tags.get(256, opened.size[0])), int(tags.get(257, opened.size[1]))
