"""Small DICOM and NIfTI files for the tests."""

from __future__ import annotations

import io
from collections.abc import Sequence

import nibabel
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def dicom_dataset(stored: np.ndarray, *, bits: int | None = None, frames: bool = False, **keys: object) -> Dataset:
    """A DICOM data set of the stored values [H, W], [H, W, 3] or, with ``frames``, [F, H, W, ...]."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(entropy_srcs=["test"])
    dataset.PatientName = "Nobody^Known"
    shape = stored.shape[1:] if frames else stored.shape
    if frames:
        dataset.NumberOfFrames = len(stored)
    dataset.Rows, dataset.Columns = shape[:2]
    dataset.SamplesPerPixel = shape[2] if len(shape) == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if len(shape) == 3 else "MONOCHROME2"
    if len(shape) == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = 8 * stored.dtype.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    data = stored.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if stored.dtype.itemsize == 1 else "OW"
    for key, value in keys.items():
        setattr(dataset, key, value)
    return dataset


def dicom_bytes(dataset: Dataset) -> bytes:
    """The data set as a file."""
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def packed_bytes(dataset: Dataset, syntax: str, frames: Sequence[bytes]) -> bytes:
    """The data set as a file whose frames were packed already."""
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate(list(frames))
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dicom_bytes(dataset)


def nifti_bytes(values: np.ndarray, *, affine: np.ndarray | None = None, kind: type = nibabel.Nifti1Image) -> bytes:
    """A volume as a file."""
    data: bytes = kind(values, np.eye(4) if affine is None else affine).to_bytes()
    return data
