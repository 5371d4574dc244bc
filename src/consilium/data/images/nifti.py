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
from typing import TYPE_CHECKING, Any

import numpy as np

from consilium.core.errors import ImageError, MissingExtraError
from consilium.data.images.dicom import quiet
from consilium.data.images.pixels import (
    BYTES_PER_PIXEL,
    Curve,
    Grey,
    ImageInfo,
    Pixels,
    Values,
    cut_short,
    no_such_frame,
    not_understood,
    too_many_pixels,
)

if TYPE_CHECKING:
    from nibabel.arrayproxy import ArrayProxy

_GZIP = b"\x1f\x8b"
_FIRST = (b"n+1\0", b"ni1\0")
_SECOND = (b"n+2\0", b"ni2\0")
_LONGEST_HEADER = 540
_CHUNK = 2**20


@dataclass(frozen=True)
class _Volume:
    """A volume whose values were not read yet. ``shape`` and ``axes`` are of X, Y and Z, ``flips`` those that run down.

    ``values`` yields slices of the values in the units of the image; ``notes`` says what of the header was odd.
    """

    values: ArrayProxy
    size: int
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    shape: tuple[int, int, int]
    range: tuple[float, float]
    notes: tuple[str, ...]

    @property
    def is_colour(self) -> bool:
        """Whether the values are colours."""
        return self.values.dtype.names is not None


def is_nifti(data: bytes) -> bool:
    """Whether these are the bytes of a NIfTI volume, packed with gzip or not."""
    head = data[:348]
    if data.startswith(_GZIP):
        try:
            head = gzip.GzipFile(fileobj=io.BytesIO(data)).read(348)
        except (EOFError, OSError, zlib.error):
            return False
    return head[344:348] in _FIRST or head[4:8] in _SECOND


def probe_nifti(data: bytes, *, name: str, frame: int | None, max_pixels: int) -> ImageInfo:
    """What the header says of a slice; a volume that is too large or cut short is an ImageError."""
    with _opened(data, name) as volume:
        _check(volume, data, name=name, frame=frame, max_pixels=max_pixels)
        width, height, _ = volume.shape
        return ImageInfo(width, height, "NIfTI", "RGB" if volume.is_colour else "F", notes=volume.notes)


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
        dimensions = len(volume.values.shape)
        values_XY = np.asarray(volume.values[(*place[:dimensions], *(0,) * (dimensions - 3))])
        if dimensions > 2 and volume.axes[0] > volume.axes[1]:
            values_XY = values_XY.T
        values_XY = values_XY[:: -1 if volume.flips[0] else 1, :: -1 if volume.flips[1] else 1]
        values_HW = values_XY.T[::-1, ::-1]
        if volume.is_colour:
            return np.stack([values_HW[colour] for colour in ("R", "G", "B")], axis=2)
        low, high = volume.range
        with np.errstate(over="ignore"):
            values_HW = np.ascontiguousarray(values_HW, dtype=np.float32)
        return Grey(values_HW, Curve((low, high), (0.0, 1.0)) if low < high else None)


@contextlib.contextmanager
def _opened(data: bytes, name: str) -> Iterator[_Volume]:
    with quiet("nibabel.global"):
        try:
            import nibabel  # noqa: F401
        except ImportError:
            raise MissingExtraError("Reading NIfTI", "dicom") from None
        try:
            yield _volume(data, name)
        except ImageError:
            raise
        except Exception as error:  # nibabel raises anything on damaged files
            raise not_understood(name, "NIfTI file", "nib-convert of nibabel") from error


def _volume(data: bytes, name: str) -> _Volume:
    """What the header says; a field that cannot be used counts as one that says nothing."""
    import nibabel
    from nibabel.arrayproxy import ArrayProxy

    file = io.BytesIO(data)
    stream = gzip.GzipFile(fileobj=file) if data.startswith(_GZIP) else file
    head = stream.read(_LONGEST_HEADER)
    kind = nibabel.Nifti2Header if head[4:8] in _SECOND else nibabel.Nifti1Header
    length = kind.template_dtype.itemsize
    header: Any = kind(head[:length], check=False)  # type: ignore[no-untyped-call]
    notes: list[str] = []
    shape, dtype = _values_of(header, name)
    offset = float(header["vox_offset"])
    if header["magic"].item().startswith(b"ni") and offset < length:
        raise ImageError(
            f"{name} is the header of a NIfTI pair (.hdr and .img), whose values are in the other file; write both as "
            "one .nii file (nibabel: nib.load(...).to_filename('volume.nii.gz')), or leave the row out."
        )
    offset = max(offset, length + 4) if math.isfinite(offset) else length + 4
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):  # the standard: values are as they are stored
        slope, intercept = 1.0, 0.0
    elif not math.isfinite(intercept):
        notes.append("its scl_inter is no number and is taken as 0")
        intercept = 0.0
    values = ArrayProxy(stream, (shape, dtype, int(offset), slope, intercept))  # type: ignore[no-untyped-call]
    turns = _turns(header, notes)
    x, y, z = (turns[:, 0].tolist().index(axis) for axis in range(3))
    flips = (bool(turns[x, 1] < 0), bool(turns[y, 1] < 0), bool(turns[z, 1] < 0))
    sides = (*shape, 1)[:3]
    low, high = float(header["cal_min"]), float(header["cal_max"])
    if not math.isfinite(high - low) or low > high:
        notes.append("its cal_min and cal_max are no range and are left out")
        low = high = 0.0
    size = math.prod(shape) * dtype.itemsize
    return _Volume(values, size, (x, y, z), flips, (sides[x], sides[y], sides[z]), (low, high), tuple(notes))


def _values_of(header: Any, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and type of the values; a side of the third axis on that is 0 is 1, as some programs write it."""
    dimensions = int(header["dim"][0])
    sides = [int(side) for side in header["dim"][1 : 1 + max(0, min(7, dimensions))]]
    shape = tuple(side if axis < 2 or side > 0 else 1 for axis, side in enumerate(sides))
    code = int(header["datatype"])
    try:
        dtype: np.dtype[Any] | None = header.get_data_dtype()
    except Exception:  # nibabel raises errors of several kinds for codes that are no type
        dtype = None
    is_readable = dtype is not None and dtype.kind in "biufV" and (dtype.names or ("R",))[0] == "R"
    if len(shape) < 2 or min(shape) < 1 or dimensions > 7 or dtype is None or not dtype.itemsize or not is_readable:
        kind = dtype if dtype is not None and dtype.itemsize else code
        raise ImageError(
            f"{name} is a NIfTI file of {' x '.join(map(str, shape)) or 'no'} values of the kind {kind}; expected a "
            "volume of whole or real numbers, or of colours. Convert it, or leave the row out."
        )
    return shape, dtype


def _turns(header: Any, notes: list[str]) -> Values:
    """For each axis of the file: the axis of the patient that it is closest to, and which way it runs.

    By the sform, else the qform, as the standard says; without a usable one by the axes of the file, of which X runs
    towards the patient's left, as programs that write neither have it.
    """
    for form, found in (("sform", _sform(header)), ("qform", _qform(header))):
        if found is None:
            continue
        if np.isfinite(found).all() and np.linalg.matrix_rank(found / np.abs(found).max(initial=1e-30)) == 3:
            return _closest(found)
        notes.append(f"its {form} gives no orientation and is left out")
    notes.append(
        "it does not say how it lies in the patient: the axes of the file are taken, left and right may be wrong"
    )
    return _closest(np.diag([-1.0, 1.0, 1.0]))


def _closest(affine_33: Values) -> Values:
    import nibabel

    affine_44 = np.eye(4)
    affine_44[:3, :3] = affine_33
    turns: Values = nibabel.io_orientation(affine_44)  # type: ignore[no-untyped-call]
    return turns


def _sform(header: Any) -> Values | None:
    if header["sform_code"] <= 0:
        return None
    return np.array([header[f"srow_{axis}"][:3] for axis in "xyz"], dtype=np.float64)


def _qform(header: Any) -> Values | None:
    """The rotation of the qform; sizes of voxels that cannot be are 1, and a direction that is not given is upward."""
    import nibabel

    if header["qform_code"] <= 0:
        return None
    quaternion = np.array([header[f"quatern_{axis}"] for axis in "bcd"], dtype=np.float64)
    length = float(np.linalg.norm(quaternion))
    if not math.isfinite(length):
        return np.full((3, 3), np.nan)
    quaternion /= max(1.0, length)
    real = math.sqrt(max(0.0, 1 - float(quaternion @ quaternion)))
    sizes = np.abs(header["pixdim"][1:4].astype(np.float64))
    sizes[~np.isfinite(sizes) | (sizes == 0)] = 1
    sizes[2] *= -1 if header["pixdim"][0] < 0 else 1
    rotated: Values = sizes * nibabel.quaternions.quat2mat([real, *quaternion])  # type: ignore[no-untyped-call]
    return rotated


def _check(volume: _Volume, data: bytes, *, name: str, frame: int | None, max_pixels: int) -> None:
    width, height, depth = volume.shape
    info = ImageInfo(width, height, "NIfTI", "F")
    if width * height > max_pixels:
        raise too_many_pixels(info, name=name, max_pixels=max_pixels)
    size = volume.size
    if size > BYTES_PER_PIXEL * max_pixels:
        raise ImageError(
            f"{name} unpacks to {size:,} bytes, more than the {BYTES_PER_PIXEL} x max_pixels: {max_pixels:,} of any "
            "file; cut it into smaller volumes, or raise max_pixels."
        )
    if not _holds(data, int(volume.values.offset) + size):
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
