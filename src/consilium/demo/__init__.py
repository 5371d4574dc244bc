"""The embedded demo data: small, real medical images that the demo, the guides and the tests use.

``data/`` holds five tables that the ordinary sources read; image and mask paths are relative to the table::

    modality.csv        about 98 images of each of 13 modalities; label = modality
    isic2017.jsonl      dermoscopy, text and ``context`` without the diagnosis; label = diagnosis
    idrid_grades.jsonl  fundus photographs, text; label = grade of diabetic retinopathy, 0 to 4
    vqa_rad.jsonl       CT, MRI and chest X-ray, ``question`` and ``answer``; label = yes or no, else none
    masks.csv           masks of skin lesions (ISIC-2017) and nuclei (DSB2018); pixel value = index in ``classes``

An image lies there once, whatever tables name it, and has one split and one ``group_id`` in all of them.
Each row names its source, licence and provenance; ``LICENSES.md`` has the rest. Research use only, not for diagnosis.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from consilium.core.errors import DataError


def demo_data_path() -> Path:
    """The folder of the embedded demo data."""
    folder = files(__name__) / "data"
    if not isinstance(folder, Path) or not folder.is_dir():
        raise DataError(
            f"the demo data is not a folder at {folder}; it comes with the installed package: "
            "install consilium unpacked (not from inside a zip archive), or again if files were removed"
        )
    return folder
