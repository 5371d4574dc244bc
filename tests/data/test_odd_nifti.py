"""Fields of NIfTI headers that are missing, wrong or odd: the volume is read all the same, and a note says so."""

from __future__ import annotations

import struct

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilium.core.errors import ImageError
from consilium.data.images.reading import decode, probe
from tests.data.medical_samples import nifti_bytes

LIMIT = 10**6
VOLUME = np.random.default_rng(0).normal(100, 20, (12, 10, 7)).astype(np.float32)
SAGITTAL = np.array([[0, 0, 3.0, 0], [1, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
# Where the fields of a NIfTI-1 header are, and of which type.
FIELDS = {"dim": (40, "h"), "datatype": (70, "h"), "bitpix": (72, "h"), "pixdim": (76, "f"), "vox_offset": (108, "f"),
          "scl_slope": (112, "f"), "scl_inter": (116, "f"), "cal_max": (124, "f"), "cal_min": (128, "f"),
          "intent_code": (68, "h"), "qform_code": (252, "h"), "sform_code": (254, "h"), "quatern": (256, "f"),
          "srow": (280, "f"), "magic": (344, "s"), "extension": (348, "b"), "xyzt_units": (123, "b")}  # fmt: skip


def changed(data: bytes, **fields: object) -> bytes:
    """The file with these values from the start of a field on; ``field_2`` is the value with the number 2."""
    found = bytearray(data)
    for key, value in fields.items():
        name, _, number = key.rpartition("_") if key.rpartition("_")[2].isdigit() else (key, "", "0")
        place, kind = FIELDS[name]
        values = value if isinstance(value, list) else [value]
        packed = value if isinstance(value, bytes) else struct.pack(f"<{len(values)}{kind}", *values)
        place += int(number) * struct.calcsize(kind)
        found[place : place + len(packed)] = packed
    return bytes(found)


def volume(*, sform: int = 0, qform: int = 0, affine: np.ndarray = SAGITTAL, values: np.ndarray = VOLUME) -> bytes:
    image = nibabel.Nifti1Image(values, affine)
    image.set_qform(affine, 1)
    return changed(image.to_bytes(), sform_code=sform, qform_code=qform)


def notes(data: bytes) -> str:
    return "; ".join(probe(data, name="it", max_pixels=LIMIT).notes)


def grey(data: bytes) -> np.ndarray:
    return decode(data, name="it", max_pixels=LIMIT)[..., 0]


def shown(values: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The middle slice as nibabel turns it: the right of the patient on the left, the front on top."""
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(values.astype(np.float32), affine)).get_fdata()
    plane = turned[:, :, turned.shape[2] // 2].T[::-1, ::-1]
    return np.rint((plane - plane.min()) / (plane.max() - plane.min()) * 255).astype(np.uint8)


BASE = np.diag([-1.0, 1, 1, 1])
NOT_FOUND = "it does not say how it lies in the patient"


@pytest.mark.parametrize("rows", [[0.0] * 12, [float("nan")] * 12, [1.0] * 12, [3e38, 3e38, 3e38, 0.0] * 3])
def test_a_good_qform_takes_the_place_of_an_sform_that_is_none(rows: list[float]) -> None:
    data = changed(volume(sform=1, qform=1), srow=rows)
    np.testing.assert_array_equal(grey(data), shown(VOLUME, SAGITTAL))
    assert notes(data) == "its sform gives no orientation and is left out"
    data = changed(data, qform_code=0)
    np.testing.assert_array_equal(grey(data), shown(VOLUME, BASE))
    assert NOT_FOUND in notes(data)
    assert "left and right may be wrong" in notes(data)


def test_a_qform_that_is_none_is_left_out() -> None:
    data = changed(volume(qform=1), quatern=[float("nan")] * 3)
    np.testing.assert_array_equal(grey(data), shown(VOLUME, BASE))
    assert notes(data).startswith("its qform gives no orientation and is left out")


@pytest.mark.parametrize(
    "pixdim", [[1.0, 0.0, 0.0, 0.0], [1.0, -1.0, -2.0, -3.0], [1.0, float("nan"), 1.0, 1.0], [0.0, 1.0, 2.0, 3.0]]
)
def test_sizes_of_voxels_that_cannot_be_do_not_matter(pixdim: list[float]) -> None:
    whole = volume(qform=1)
    with_pixdim = changed(whole, pixdim=pixdim)
    upright = abs(float(np.frombuffer(whole[76:80], "<f4")[0])) * (1 if pixdim[0] >= 0 else -1)
    np.testing.assert_array_equal(grey(with_pixdim), grey(changed(whole, pixdim=upright)))
    np.testing.assert_array_equal(grey(changed(volume(), pixdim=pixdim)), shown(VOLUME, BASE))
    np.testing.assert_array_equal(grey(changed(volume(sform=1), pixdim=pixdim)), shown(VOLUME, SAGITTAL))


def test_a_quaternion_longer_than_1_is_shortened() -> None:
    whole = nibabel.Nifti1Image(VOLUME, np.diag([1.0, -1, -1, 1]))
    whole.set_qform(whole.affine, 1)
    data = changed(whole.to_bytes(), sform_code=0, quatern=[1.0005, 0.0, 0.0])
    np.testing.assert_array_equal(grey(data), shown(VOLUME, whole.affine))


@given(seed=st.integers(0, 10**6), sform=st.integers(0, 4), qform=st.integers(0, 4))
@settings(max_examples=60)
def test_orientation_is_that_of_nibabel(seed: int, sform: int, qform: int) -> None:
    chance = np.random.default_rng(seed)
    turned = np.eye(4)
    turned[:3, :3] = np.linalg.qr(chance.normal(size=(3, 3)))[0] * chance.uniform(0.5, 3, 3)
    turned[:3, 3] = chance.normal(size=3)
    image = nibabel.Nifti1Image(VOLUME, turned)
    image.set_qform(turned, qform)
    image.set_sform(turned[:, [1, 0, 2, 3]] if chance.random() < 0.5 else turned, sform)
    data = image.to_bytes()
    np.testing.assert_array_equal(grey(data), shown(VOLUME, nibabel.Nifti1Image.from_bytes(data).affine))


@pytest.mark.parametrize(
    ("slope", "intercept", "factor", "offset", "noted"),
    [
        (0.0, 5.0, 1, 0, ""),
        (float("nan"), 5.0, 1, 0, ""),
        (2.0, 5.0, 2, 5, ""),
        (-2.0, 0.0, -2, 0, ""),
        (2.0, float("nan"), 2, 0, "scl_inter"),
    ],
)
def test_scaling_that_is_none(slope: float, intercept: float, factor: float, offset: float, noted: str) -> None:
    data = changed(volume(sform=1), scl_slope=slope, scl_inter=intercept)
    found = decode(data, name="it", max_pixels=LIMIT, window=(100, 400))[..., 0]
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(VOLUME * np.float32(factor) + offset, SAGITTAL))
    plane = turned.get_fdata()[:, :, turned.shape[2] // 2].T[::-1, ::-1]
    assert np.abs(found - np.clip((plane + 100) / 400, 0, 1) * 255).max() <= 0.6
    assert noted in notes(data)


@pytest.mark.parametrize("ends", [(90.0, 20.0), (float("nan"), 5.0), (0.0, float("inf"))])
def test_a_display_range_that_is_none_is_left_out(ends: tuple[float, float]) -> None:
    data = changed(volume(sform=1), cal_min=ends[0], cal_max=ends[1])
    np.testing.assert_array_equal(grey(data), shown(VOLUME, SAGITTAL))
    assert "cal_min and cal_max" in notes(data)


def test_other_odd_fields_do_not_matter() -> None:
    expected = shown(VOLUME, SAGITTAL)
    whole = volume(sform=1)
    for field in (
        {"bitpix": 7},
        {"vox_offset": 0.0},
        {"vox_offset": 348.0},
        {"vox_offset": float("nan")},
        {"intent_code": 9999},
        {"xyzt_units": 99},
        {"extension": b"\1\0\0\0"},
        {"magic": b"ni1\0"},
        {"dim": [4, 12, 10, 7, 0]},
        {"dim": [7, 12, 10, 7, 0, 0, 0, 0]},
    ):
        np.testing.assert_array_equal(grey(changed(whole, **field)), expected)
    extended = changed(whole, vox_offset=368.0, extension=b"\1\0\0\0")
    for length in (16, 0, -5, 10**9, 13):
        data = extended[:352] + struct.pack("<ii", length, 6) + bytes(8) + extended[352:]
        np.testing.assert_array_equal(grey(data), expected)


def test_a_volume_of_two_axes_may_say_that_the_third_is_0() -> None:
    flat = VOLUME[:, :, :1]
    data = changed(nifti_bytes(flat, affine=np.eye(4)), dim=[3, 12, 10, 0])
    np.testing.assert_array_equal(grey(data), shown(flat, np.eye(4)))


def test_big_endian_and_second_form() -> None:
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        image = kind(VOLUME, SAGITTAL)
        np.testing.assert_array_equal(grey(image.to_bytes()), shown(VOLUME, SAGITTAL))
        header = image.header.as_byteswapped(">")
        swapped = kind(VOLUME, SAGITTAL, header)
        np.testing.assert_array_equal(grey(swapped.to_bytes()), shown(VOLUME, SAGITTAL))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"datatype": 0}, "values of the kind 0; expected a volume"),
        ({"datatype": 1}, "values of the kind 1; expected a volume"),
        ({"datatype": 32}, "values of the kind complex64; expected a volume"),
        ({"dim": [3, 12, 0, 7]}, "12 x 0 x 7 values"),
        ({"dim": [3, -1, 1, 1]}, "-1 x 1 x 1 values"),
        ({"magic": b"ni1\0", "vox_offset": 0.0}, r"header of a NIfTI pair \(.hdr and .img\)"),
        ({"vox_offset": 1e6}, "cut short"),
    ],
)
def test_what_nothing_can_stand_in_for_is_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        probe(changed(volume(sform=1), **fields), name="it", max_pixels=LIMIT)
    assert "damaged" not in str(caught.value)
