"""Images that are in memory already, Pillow images and arrays, as bytes that are read as those of a file are.

Axes in names: H height, W width, C channel.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

import numpy as np

from consilium.core.errors import ImageError
from consilium.core.places import local_path
from consilium.data.images.jpeg_header import ORIENTATION_TAG
from consilium.data.images.pillow import lossless, pixels_of
from consilium.data.images.pixels import Grey, Pixels

if TYPE_CHECKING:
    import torch
    from PIL import Image

View: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray"

_ARRAY = "An array is [H, W] or [H, W, 3] (RGB), of uint8 or of 16-bit integers"
_EXPECTED = (
    "expected a path, the bytes of an image file, a Pillow image or an array ([H, W] or [H, W, 3], of uint8 or of "
    "16-bit integers); a list or tuple of these is one case of several views"
)


def name_of(view: object) -> str:
    """A view in an answer: its path, or what it is and how large."""
    if isinstance(view, str | os.PathLike):
        return str(os.fsdecode(view))  # numpy's texts are texts too, but not when they are printed
    if isinstance(view, bytes | bytearray | memoryview):
        return f"bytes[{len(bytes(view))}]"
    if isinstance(view, np.ndarray):
        return f"array[{'x'.join(map(str, view.shape))} {view.dtype}]"
    if is_tensor(view):
        return f"tensor[{'x'.join(map(str, view.shape))} {str(view.dtype).removeprefix('torch.')}]"
    if _is_pillow(view):
        return str(getattr(view, "filename", "") or f"image[{view.width}x{view.height} {view.mode}]")
    if view is None or isinstance(view, int | float | complex | np.generic):
        return str(view)
    return type(view).__name__ + (f"[{len(view)}]" if isinstance(view, list | tuple) else "")


def as_file(view: object) -> str | bytes:
    """The path of a view, or the bytes of a file that holds it; what is no image is an ImageError."""
    if isinstance(view, str | os.PathLike):
        if not os.fspath(view):
            raise ImageError("a path is empty; give that of an image file.")
        return os.path.expanduser(local_path(str(os.fsdecode(view))))
    if isinstance(view, bytes | bytearray | memoryview):
        return bytes(view)
    if isinstance(view, np.ndarray):
        return lossless(_from_array(view), compressed=False)
    if _is_pillow(view):
        return lossless(_from_pillow(view), compressed=False)
    raise ImageError(f"{name_of(view)} is no image: {_EXPECTED}{_advice(view)}.")


def _advice(view: object) -> str:
    """How to make an image of what is none, where that is known."""
    if is_tensor(view):
        return "; of a tensor [C, H, W] from 0.0 to 1.0 give (255 * t).round().byte().permute(1, 2, 0).cpu().numpy()"
    if isinstance(view, io.IOBase):
        return "; of an open file give what its read() returns"
    if isinstance(view, Mapping):
        return "; give the image in it"
    if isinstance(view, list | tuple):
        return "; of numbers in lists give numpy.array(..., dtype='uint8')"
    return ""


def _is_pillow(view: object) -> TypeGuard[Image.Image]:
    from PIL import Image

    return isinstance(view, Image.Image)


def is_tensor(view: object) -> TypeGuard[torch.Tensor]:
    """Whether it is torch's; a model's input is no image."""
    import torch

    return isinstance(view, torch.Tensor)


def _from_pillow(image: Image.Image) -> Pixels | Grey:
    """What a file of this image holds, upright; the image itself stays as it is."""
    from PIL import ImageOps

    if not all(image.size):
        raise ImageError(f"{name_of(image)} has no pixels ({image.width} x {image.height}); leave it out.")
    try:
        image.load()
        turned = image.getexif().get(ORIENTATION_TAG, 1) != 1
        return pixels_of(ImageOps.exif_transpose(image) if turned else image)
    except Exception as error:  # Pillow raises anything on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(
            f"{name_of(image)} cannot be taken from Pillow ({reason}). If its file was cut short or closed, copy or "
            "open it again; other kinds of images convert with image.convert('RGB')."
        ) from error


def _from_array(array: np.ndarray) -> Pixels | Grey:
    """What a PNG (of int16 a TIFF) of this array holds."""
    if problem := _problem(array):
        raise ImageError(f"{name_of(array)} is no image: {problem}. {_ARRAY}.")
    if array.dtype.itemsize == 1:
        return np.dstack([array] * 3) if array.ndim == 2 else np.ascontiguousarray(array)
    if array.ndim == 2:
        return Grey(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))
    return np.ascontiguousarray(array >> 8, np.uint8)  # as files of 16-bit colours are read


def _problem(array: np.ndarray) -> str:
    """What keeps an array from being an image, and what to do; nothing of an image."""
    if isinstance(array, np.ma.MaskedArray):
        return "some of its values are masked; give array.filled(0)"
    if not array.size:
        return "it is empty; leave it out"
    return _wrong_shape(array) or _wrong_values(array)


def _wrong_shape(array: np.ndarray) -> str:
    shape = array.shape
    if array.ndim == 1 and array.dtype == np.uint8:
        return "it has one axis; if it holds the bytes of a file, give array.tobytes()"
    if array.ndim < 2:
        return f"it has {'one axis' if array.ndim else 'no axis'} where an image has height and width"
    if array.ndim > 3:
        return "give array[0], its only image" if shape[0] == 1 else "several images are one item each: list(array)"
    if array.ndim == 2 or shape[2] == 3:
        return ""
    if shape[2] == 1:
        return "its last axis is a single channel; give array[..., 0]"
    if shape[2] == 4:
        return "it has four channels; give array[..., :3], or PIL.Image.fromarray(array) if the fourth is transparency"
    if shape[2] == 2:
        return "it has two channels; give array[..., 0], or PIL.Image.fromarray(array) if the second is transparency"
    if shape[0] in (3, 4):
        return "its channels come first; give numpy.moveaxis(array, 0, -1)" + ("[..., :3]" if shape[0] == 4 else "")
    if shape[0] == 1:
        return "its first axis is a single channel; give array[0]"
    return "its last axis is not 3 colours; of a stack or volume give the slices, one item each: list(array)"


def _wrong_values(array: np.ndarray) -> str:
    kind, size, is_colour = array.dtype.kind, array.dtype.itemsize, array.ndim == 3
    if (kind == "u" and size <= 2) or (kind == "i" and size == 2 and not is_colour):
        return ""
    if kind == "b":
        return "it is True and False; give array.astype('uint8') * 255"
    if kind not in "iuf":
        return f"its values are of type {array.dtype}"
    there = array[np.isfinite(array)]
    if not there.size:
        return "none of its values is a number"
    low, high = there.min() + 0, there.max() + 0
    held = f"its values are {array.dtype}, from {low:g} to {high:g}"
    if kind == "f" and low >= 0 and high <= 1:
        return f"{held}; give (255 * array).round().astype('uint8')"
    if low >= 0 and high <= 255:
        return f"{held}; give array.round().astype('uint8')"
    if not is_colour:
        return f"{held}; give PIL.Image.fromarray(array.astype('float32')), which is read as a TIFF of such values is"
    return f"{held}; colours go from 0 to 255. A normalisation must be undone first: the model has its own"
