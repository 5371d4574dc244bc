"""What DICOM headers say of whose image it is."""

from __future__ import annotations

from consilium.core.errors import MissingExtraError
from consilium.core.places import open_binary, split_frame
from consilium.data.images.dicom import is_dicom, quiet

_START = 4096  # bytes within which a file has said that it is DICOM


def dicom_header(path: str, keyword: str) -> str:
    """A value of a file's DICOM header as text, its pixels unread; '' where there is none, or no DICOM file."""
    try:
        from pydicom import dcmread
    except ImportError:
        raise MissingExtraError("Reading DICOM headers", "dicom") from None
    with quiet("pydicom"):
        try:
            with open_binary(split_frame(path)[0]) as file:
                if not is_dicom(file.read(_START)):
                    return ""
                file.seek(0)
                dataset = dcmread(file, stop_before_pixels=True, specific_tags=[keyword], force=True)
                return str(dataset.get(keyword, None) or "").strip()
        except Exception:  # a damaged file is found out, and said, when its image is read
            return ""
