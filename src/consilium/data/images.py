"""Image bytes in, uint8 RGB pixels out: check, decode, crop and resize one image.

Axes in names: H height, W width, C channel. Pixels are always [H, W, 3], RGB, with EXIF orientation applied.
Colour profiles are ignored, as in torchvision and timm, whose weights were trained that way.
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import simplejpeg

from consilium.core import places
from consilium.core.errors import ImageError
from consilium.data.config import ImageConfig

if TYPE_CHECKING:
    from PIL import Image

Pixels = npt.NDArray[np.uint8]

# A scaled JPEG keeps at least this many times the pixels needed on each side, so that the antialiased resize
# that follows, not the decoder's coarse scaling, decides how the image looks.
MARGIN = 1.15
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM")  # never EPS and the like, which run programs
_ORIENTATION_TAG = 0x0112
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = frozenset((0x01, *range(0xD0, 0xD9)))
# What libjpeg says when pixels are lost; its other warnings (a stray byte, an odd version) lose nothing.
_JPEG_DAMAGE = ("remature end", "bad Huffman", "bad arithmetic", "instead of RST", "Inconsistent progression")


@dataclass(frozen=True)
class ImageInfo:
    """What an image's header says; ``width`` and ``height`` are those after ``orientation`` (EXIF, 1 to 8)."""

    width: int
    height: int
    format: str
    mode: str
    orientation: int = 1


@dataclass(frozen=True)
class Box:
    """A rectangle as fractions of the oriented image's width and height."""

    left: float
    top: float
    width: float
    height: float


WHOLE = Box(left=0.0, top=0.0, width=1.0, height=1.0)


def read_bytes(image: str | Path | bytes) -> bytes:
    """The bytes of an image given as a path or as bytes."""
    if isinstance(image, bytes):
        return image
    try:
        data = places.read_bytes(str(image))
    except FileNotFoundError:
        raise ImageError(f"{image} does not exist; correct the path, or leave the row out.") from None
    except IsADirectoryError:
        raise ImageError(f"{image} is a folder; give the path of an image file.") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise ImageError(f"{image} cannot be read ({error}); check the path and its permissions.") from error
    if not data:
        raise ImageError(f"{image} is empty (0 bytes); copy it again, or leave the row out.")
    return data


def probe(data: bytes, *, name: str, max_pixels: int) -> ImageInfo:
    """What the header says, without decoding; an image that is too large, cut short or no image is an ImageError."""
    if data.startswith(b"\xff\xd8\xff"):
        info = _probe_jpeg(data, name)
    else:
        with _open(data, name) as opened:
            png_chunks = _png_chunks(data, name) if opened.format == "PNG" else set()
            orientation = _orientation(opened, png_chunks)
            width, height = _stored_size(opened)
            if orientation >= 5:
                width, height = height, width
            info = ImageInfo(width, height, str(opened.format), opened.mode, orientation)
    if info.width * info.height > max_pixels:
        raise ImageError(
            f"{name} has {info.width} x {info.height} = {info.width * info.height:,} pixels, more than "
            f"max_pixels: {max_pixels:,}; reduce the image, or raise max_pixels."
        )
    return info


def decode(data: bytes, *, name: str, max_pixels: int, needed: tuple[int, int] | None = None) -> Pixels:
    """The pixels of an image, all of them or an image that is not decoded: nothing is filled in for lost data.

    ``needed`` (height, width) lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, as long as both sides keep
    ``MARGIN`` times that. Transparent pixels are laid on white, the paper that figures and charts are drawn
    for. Grey images of 16 or 32 bits or of floats are windowed from their lowest to their highest value,
    since many use a part of their range only (12 bits in 16). Of several frames the first is taken.
    """
    return _decode(data, probe(data, name=name, max_pixels=max_pixels), name, needed)


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
    pixels_HWC = _cut(_decode(data, info, name, needed), box)
    pixels_HWC = _resize(pixels_HWC, (height, width), image.interpolation)
    if (height, width) == image.size:
        return pixels_HWC
    canvas_HWC = np.zeros((*image.size, 3), np.uint8)
    top, left = (image.size[0] - height) // 2, (image.size[1] - width) // 2
    canvas_HWC[top : top + height, left : left + width] = pixels_HWC
    return canvas_HWC


def resize_once(data: bytes, *, name: str, shorter: int, max_pixels: int) -> bytes:
    """The image as a JPEG (quality 95, full colour resolution) with ``shorter`` pixels on its shorter side.

    Pixels are upright: no EXIF is left. An image whose shorter side is no longer than that stays as it is.
    """
    info = probe(data, name=name, max_pixels=max_pixels)
    zoom = shorter / min(info.width, info.height)
    if zoom >= 1:
        return data
    size = (round(info.height * zoom), round(info.width * zoom))
    pixels_HWC = _resize(_decode(data, info, name, size), size, "bicubic")
    encoded: bytes = simplejpeg.encode_jpeg(pixels_HWC, quality=95, colorspace="RGB", colorsubsampling="444")
    return encoded


def _decode(data: bytes, info: ImageInfo, name: str, needed: tuple[int, int] | None) -> Pixels:
    if info.format != "JPEG":
        return _decode_other(data, name)
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
            raise _damaged(name, error) from error
        return _decode_other(data, name)
    if colours == "CMYK":
        # Pillow knows the colours; decoding first finds the damage that Pillow would fill with grey.
        return _decode_other(data, name)
    return _oriented(pixels_HWC, info.orientation)


def _is_enough(info: ImageInfo, eighths: int, needed: tuple[int, int]) -> bool:
    return info.height * eighths >= 8 * MARGIN * needed[0] and info.width * eighths >= 8 * MARGIN * needed[1]


def _oriented(pixels_HWC: Pixels, orientation: int) -> Pixels:
    """Turned upright (EXIF: 2 to 4 mirror and turn by half, 5 to 8 also exchange rows and columns)."""
    if orientation >= 5:
        pixels_HWC = pixels_HWC.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels_HWC = pixels_HWC[::-1]
    if orientation in (2, 3, 6, 7):
        pixels_HWC = pixels_HWC[:, ::-1]
    return np.ascontiguousarray(pixels_HWC)


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


def _resize(pixels_HWC: Pixels, size: tuple[int, int], interpolation: Literal["bilinear", "bicubic"]) -> Pixels:
    """Antialiased resize; torch's uint8 kernel matches Pillow's to a level and takes a quarter of the time."""
    import torch
    from torch.nn.functional import interpolate

    if pixels_HWC.shape[:2] == size:
        return np.ascontiguousarray(pixels_HWC)
    images_1CHW = torch.from_numpy(pixels_HWC)[None].permute(0, 3, 1, 2)  # in this order torch sees channels_last
    resized_1CHW = interpolate(images_1CHW, size, mode=interpolation, antialias=True, align_corners=False)
    return np.ascontiguousarray(resized_1CHW[0].permute(1, 2, 0).numpy())


# JPEG headers


def _probe_jpeg(data: bytes, name: str) -> ImageInfo:
    """Size, components and orientation from the markers before the first scan: a few microseconds."""
    position, orientation, frame = 2, 1, b""
    while True:
        position = data.find(b"\xff", position)
        if position < 0 or position + 4 > len(data):
            raise _cut_short(name, "a JPEG that ends in its header")
        marker = data[position + 1]
        if marker == 0xFF or marker == 0x00 or marker in _BARE_MARKERS:
            position += 1 if marker == 0xFF else 2
            continue
        body, position = position + 4, position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in _FRAME_MARKERS:
            frame = data[body : body + 6]
        elif marker == 0xE1 and data.startswith(b"Exif\0\0", body):
            orientation = _exif_orientation(data[body + 6 : position])
        elif marker == 0xDA or marker == 0xD9:
            break
    if len(frame) < 6 or marker == 0xD9:
        raise _cut_short(name, "a JPEG without image data")
    # Compressed data cannot hold an end marker, so one after the start of the scan is the image's own; the
    # thumbnail in the EXIF block has another before it. What follows the end (padding, a second image) is harmless.
    if data.rfind(b"\xff\xd9", position) < 0:
        raise _cut_short(name, "a JPEG without its end marker")
    _, height, width, components = struct.unpack(">BHHB", frame)
    if not height or not width:
        raise _cut_short(name, f"a JPEG of {width} x {height} pixels")
    if orientation >= 5:
        height, width = width, height
    return ImageInfo(width, height, "JPEG", {1: "L", 4: "CMYK"}.get(components, "RGB"), orientation)


def _exif_orientation(exif: bytes) -> int:
    """The orientation in an EXIF block; 1 (upright) where it has none or cannot be read."""
    order: Literal["little", "big"] = "little" if exif[:2] == b"II" else "big"
    start = int.from_bytes(exif[4:8], order)
    for entry in range(start + 2, start + 2 + 12 * int.from_bytes(exif[start : start + 2], order), 12):
        if int.from_bytes(exif[entry : entry + 2], order) == _ORIENTATION_TAG:
            value = int.from_bytes(exif[entry + 8 : entry + 10], order)
            return value if 1 <= value <= 8 else 1
    return 1


# Everything else, through Pillow


def _open(data: bytes, name: str) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ImageError(f"{name} is empty (0 bytes); copy it again, or leave the row out.")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError(
            f"{name} is no image of a known kind (JPEG, PNG, TIFF, WebP, BMP, GIF, PPM), or cut short: it starts with "
            f"{data[:16]!r}; convert it, or leave the row out."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        size = str(error).partition(",")[0]  # what follows is about attacks
        raise ImageError(f"{name} is too large: {size}, Pillow's own above any max_pixels; reduce the image.") from None
    except Exception as error:  # Pillow's readers raise anything on damaged headers
        raise _damaged(name, error) from error


def _decode_other(data: bytes, name: str) -> Pixels:
    from PIL import ImageOps

    opened = _open(data, name)
    with opened:
        try:
            opened.load()
            ImageOps.exif_transpose(opened, in_place=True)
            return _to_rgb(opened)
        except Exception as error:  # as in _open
            raise _damaged(name, error) from error


def _to_rgb(opened: Image.Image) -> Pixels:
    from PIL import Image

    if opened.mode == "F" or opened.mode.startswith("I"):
        values_HW = np.asarray(opened)
        # Pillow leaves 16-bit TIFFs in which 0 is white (PhotometricInterpretation 0) uninverted.
        grey_HW = _window(-values_HW.astype(np.float32) if _is_white_zero(opened) else values_HW)
        return np.repeat(grey_HW[:, :, None], 3, axis=2)
    if opened.has_transparency_data:
        layered = opened.convert("RGBA")
        paper = Image.new("RGB", opened.size, "white")
        paper.paste(layered, mask=layered.getchannel("A"))
        return np.array(paper)
    return np.array(opened.convert("RGB"))


def _is_white_zero(opened: Image.Image) -> bool:
    tags: Any = getattr(opened, "tag_v2", {})
    return bool(tags.get(262, 1) == 0)


def _window(values_HW: npt.NDArray[Any]) -> Pixels:
    """Linear from the lowest finite value (0) to the highest (255); a flat image is 0, and so is NaN."""
    values_HW = values_HW.astype(np.float32 if values_HW.dtype.itemsize <= 2 else np.float64)
    finite_HW = np.isfinite(values_HW)
    low = values_HW.min(where=finite_HW, initial=np.inf)
    high = values_HW.max(where=finite_HW, initial=-np.inf)
    if not low < high:
        return np.zeros(values_HW.shape, np.uint8)
    scaled_HW = (np.clip(np.where(finite_HW, values_HW, low), low, high) - low) * (255 / (high - low))
    result: Pixels = np.rint(scaled_HW).astype(np.uint8)
    return result


def _png_chunks(data: bytes, name: str) -> set[bytes]:
    """The kinds of chunks in a PNG, which must be whole up to its end."""
    kinds: set[bytes] = set()
    position = 8
    while b"IEND" not in kinds:
        if position + 12 > len(data):
            raise _cut_short(name, "a PNG without its end (IEND)")
        kinds.add(data[position + 4 : position + 8])
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return kinds


def _orientation(opened: Image.Image, png_chunks: set[bytes]) -> int:
    # Pillow decodes a whole PNG to look for EXIF behind the pixels; look only where there is some.
    if opened.format == "PNG" and "exif" not in opened.info and b"eXIf" not in png_chunks:
        return 1
    try:
        value = int(opened.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF does not spoil the pixels
        return 1
    return value if 1 <= value <= 8 else 1


def _stored_size(opened: Image.Image) -> tuple[int, int]:
    # Some versions of Pillow report a TIFF's size already turned; its tags never are.
    tags: Any = getattr(opened, "tag_v2", {})
    return int(tags.get(256, opened.size[0])), int(tags.get(257, opened.size[1]))


def _cut_short(name: str, what: str) -> ImageError:
    return ImageError(f"{name} is {what}: it was cut short; copy or download it again, or leave the row out.")


def _damaged(name: str, error: Exception) -> ImageError:
    return ImageError(f"{name} is damaged and cannot be decoded ({error}); copy it again, or leave the row out.")
