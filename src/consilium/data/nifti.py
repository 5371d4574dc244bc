"""NIfTI volumes (.nii, .nii.gz), read by nibabel: one axial slice in its own units.

Axes in names: X towards the patient's right, Y towards the front, H height, W width.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from consilium.core.errors import ImageError, MissingExtraError
from consilium.data.dicom import quiet
from consilium.data.pixels import (
    BYTES_PER_PIXEL,
    Curve,
    Grey,
    ImageInfo,
    Pixels,
    cut_short,
    damaged,
    no_such_frame,
    too_many_pixels,
)

_GZIP = b"\x1f\x8b"
_CHUNK = 2**20


@dataclass(frozen=True)
class _Volume:
    """A volume that was not read yet. ``axes`` are the file's axes for X, Y and Z, ``flips`` those that run down."""

    image: Any
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    shape: tuple[int, int, int]


def is_nifti(data: bytes) -> bool:
    """Whether these are the bytes of a NIfTI volume, packed with gzip or not."""
    head = data[:348]
    if data.startswith(_GZIP):
        try:
            head = gzip.GzipFile(fileobj=io.BytesIO(data)).read(348)
        except (EOFError, OSError, zlib.error):
            return False
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


def probe_nifti(data: bytes, *, name: str, frame: int | None, max_pixels: int) -> ImageInfo:
    """What the header says of a slice; a volume that is too large or cut short is an ImageError."""
    with _opened(data, name) as volume:
        _check(volume, data, name=name, frame=frame, max_pixels=max_pixels)
        colour = volume.image.get_data_dtype().names is not None
        return ImageInfo(volume.shape[0], volume.shape[1], "NIfTI", "RGB" if colour else "F")


def read_nifti(data: bytes, *, name: str, frame: int | None) -> Pixels | Grey:
    """One axial slice (the middle one unless one is named; 0 is the lowest), as radiologists look at it.

    The file has passed ``probe_nifti``. The patient's right is on the left, the front on top. Axes are those closest
    to the patient's; of a volume with time the first moment is taken. The display range of the header, where it has
    one, becomes the curve.
    """
    with _opened(data, name) as volume:
        depth = volume.shape[2]
        frame = depth // 2 if frame is None else frame
        place: list[Any] = [slice(None)] * 3
        place[volume.axes[2]] = depth - 1 - frame if volume.flips[2] else frame
        proxy = volume.image.dataobj
        rest = (0,) * (len(proxy.shape) - 3)
        values_XY = np.asarray(proxy[(*place[: len(proxy.shape)], *rest)])
        if len(proxy.shape) > 2 and volume.axes[0] > volume.axes[1]:
            values_XY = values_XY.T
        values_XY = values_XY[:: -1 if volume.flips[0] else 1, :: -1 if volume.flips[1] else 1]
        values_HW = values_XY.T[::-1, ::-1]
        if values_HW.dtype.names is not None:
            return np.stack([values_HW[colour] for colour in ("R", "G", "B")], axis=2)
        low, high = (float(volume.image.header[key]) for key in ("cal_min", "cal_max"))
        curve = Curve((low, high), (0.0, 1.0)) if math.isfinite(high - low) and low < high else None
        return Grey(np.ascontiguousarray(values_HW, dtype=np.float32), curve)


@contextlib.contextmanager
def _opened(data: bytes, name: str) -> Iterator[_Volume]:
    with quiet("nibabel.global"):
        try:
            import nibabel
        except ImportError:
            raise MissingExtraError("Reading NIfTI", "dicom") from None
        try:
            file = io.BytesIO(data)
            stream = gzip.GzipFile(fileobj=file) if data.startswith(_GZIP) else file
            kind = nibabel.Nifti2Image if stream.read(8)[4:8] in (b"n+2\0", b"ni2\0") else nibabel.Nifti1Image
            stream.seek(0)
            yield _volume(kind.from_stream(stream), name)
        except ImageError:
            raise
        except Exception as error:  # nibabel raises anything on damaged files
            raise damaged(name, error) from error


def _volume(image: Any, name: str) -> _Volume:
    import nibabel

    dtype = image.get_data_dtype()
    if len(image.shape) < 2 or 0 in image.shape or dtype.kind == "c" or (dtype.names or ("R",))[0] != "R":
        raise ImageError(
            f"{name} is a NIfTI file of {' x '.join(map(str, image.shape))} values of the kind {dtype}; expected a "
            "volume of whole or real numbers, or of colours. Convert it, or leave the row out."
        )
    shape = (*image.shape, 1)[:3]
    # Of each axis of the file: the axis of the patient that it is closest to, and which way it runs.
    turns = nibabel.io_orientation(image.affine)  # type: ignore[no-untyped-call]
    x, y, z = (turns[:, 0].tolist().index(axis) for axis in range(3))
    flips = (bool(turns[x, 1] < 0), bool(turns[y, 1] < 0), bool(turns[z, 1] < 0))
    return _Volume(image, (x, y, z), flips, (shape[x], shape[y], shape[z]))


def _check(volume: _Volume, data: bytes, *, name: str, frame: int | None, max_pixels: int) -> None:
    width, height, depth = volume.shape
    info = ImageInfo(width, height, "NIfTI", "F")
    if width * height > max_pixels:
        raise too_many_pixels(info, name=name, max_pixels=max_pixels)
    image = volume.image
    size = math.prod(image.shape) * image.get_data_dtype().itemsize
    if size > BYTES_PER_PIXEL * max_pixels:
        raise ImageError(
            f"{name} unpacks to {size:,} bytes, more than the {BYTES_PER_PIXEL} x max_pixels: {max_pixels:,} of any "
            "file; cut it into smaller volumes, or raise max_pixels."
        )
    if not _holds(data, int(image.dataobj.offset) + size):
        raise cut_short(name, f"a NIfTI volume without all of its {size:,} bytes of values")
    if frame is not None and frame >= depth:
        raise no_such_frame(name, frame, depth)


def _holds(data: bytes, size: int) -> bool:
    """Whether a file holds so many bytes, unpacked."""
    if not data.startswith(_GZIP):
        return len(data) >= size
    if int.from_bytes(data[-4:], "little") == size % 2**32:  # what gzip writes last is the size
        return True
    found = 0
    try:
        with gzip.open(io.BytesIO(data)) as stream:  # of several parts, or with something behind the values
            while found < size and (chunk := stream.read(_CHUNK)):
                found += len(chunk)
    except (EOFError, OSError, zlib.error):
        return False
    return found >= size
