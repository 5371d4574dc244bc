"""Patients that are in several splits, and masks among images, are named with the key that mends it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilium.data.guards import folders
from consilium.data.guards.folders import folder_warnings
from consilium.data.store.prepare import prepare
from tests.data.medical_samples import dicom_bytes, dicom_dataset
from tests.data.samples import data_config, write_images, write_jsonl

SPLITS = {"val": 0.3, "test": 0.3}


def warnings(root: Path, source: dict[str, Any], **sections: Any) -> dict[str, list[str]]:
    """What is said about one source."""
    config = data_config(root, {"name": "s", **source}, **{"split": SPLITS, **sections})
    store = prepare(config).store
    return {what: found for what, found in folder_warnings(store, store.table, config).items() if found}


def write_scans(folder: Path, patients: dict[str, str], *, slices: int = 6) -> None:
    """DICOM slices in a folder per patient, with the PatientID that belongs to it."""
    rng = np.random.default_rng(0)
    for place, patient in patients.items():
        for number in range(slices):
            scan = dicom_dataset(rng.integers(0, 4000, (8, 8), dtype=np.uint16), PatientID=patient)
            path = folder / place / f"IM{number}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(dicom_bytes(scan))


def test_folders_in_several_splits(tmp_path: Path) -> None:
    write_images(tmp_path / "d", [f"{label}/{p}/{n}.png" for label in "ab" for p in ("x1", "y2") for n in range(9)])
    source = {"kind": "folder", "path": str(tmp_path / "d")}
    (message,) = warnings(tmp_path, source)["patient"]
    assert "files of the folder 'a/x1' are in train, val and test (and those of 3 other folders)" in message
    assert "set data.sources.0.group_by: folder" in message
    assert warnings(tmp_path, {**source, "group_by": "folder"}) == {}
    assert warnings(tmp_path, {**source, "group_pattern": "([a-z][0-9])/"}) == {}


def test_one_folder_of_all_images_of_a_label_is_no_patient(tmp_path: Path) -> None:
    write_images(tmp_path / "d", [f"{label}/images/{n}.png" for label in "ab" for n in range(9)])
    assert "patient" not in warnings(tmp_path, {"kind": "folder", "path": str(tmp_path / "d")})


def test_patient_ids_in_several_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scans(tmp_path / "d", {f"{label}/{n}": f"{label}{n}" for label in "ab" for n in range(4)})
    source = {"kind": "folder", "path": str(tmp_path / "d")}
    first, second = warnings(tmp_path, source)["patient"]
    assert re.search(r"files of one PatientID are in .* \(and those of \d other PatientIDs\)", first)
    assert "set data.sources.0.group_by: PatientID" in first
    assert "group_by: folder" in second
    assert "a0" not in first  # a name of a person stays where it is
    monkeypatch.setattr(folders, "dicom_header", None)  # what was read is kept
    assert len(warnings(tmp_path, source)["patient"]) == 2
    monkeypatch.undo()
    assert warnings(tmp_path, {**source, "group_by": "PatientID"}) == {}


def test_of_many_scans_some_headers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scans(tmp_path / "d", {f"{label}/{n}": f"{label}{n}" for label in "ab" for n in range(5)})
    read = []
    own = folders.dicom_header
    monkeypatch.setattr(folders, "dicom_header", lambda path, key: read.append(path) or own(path, key))
    monkeypatch.setattr(folders, "BLOCKS", 3)
    monkeypatch.setattr(folders, "OF_FILES", 8)
    found = warnings(tmp_path, {"kind": "folder", "path": str(tmp_path / "d")})
    assert len(read) == 24
    assert "one PatientID" in found["patient"][0]


@pytest.mark.parametrize("patients", [("ANON", "Anonymous"), ("0", "1"), ("same", "same"), ("", "x")])
def test_ids_that_tell_no_patients_apart(tmp_path: Path, patients: tuple[str, str]) -> None:
    write_scans(tmp_path / "d", {"a": patients[0], "b": patients[1]}, slices=1)
    write_scans(tmp_path / "d", {"a": patients[0]}, slices=9)
    found = warnings(tmp_path, {"kind": "folder", "path": str(tmp_path / "d")})
    assert "patient" not in found


def test_patients_in_the_names_of_a_table(tmp_path: Path) -> None:
    names = [f"person{p}_{n}.png" for p in range(6) for n in range(6)]
    write_images(tmp_path / "d", names)
    rows = [{"image": name, "label": "ab"[n % 2], "patient": name.partition("_")[0]} for n, name in enumerate(names)]
    path = write_jsonl(tmp_path / "d/a.jsonl", rows)
    source = {"kind": "jsonl", "path": str(path)}
    (message,) = warnings(tmp_path, source)["patient"]
    assert "name 'person0'" in message
    assert "name that in data.sources.0.columns.group" in message
    assert warnings(tmp_path, {**source, "columns": {"group": "patient"}}) == {}


def test_patients_in_file_names_of_a_folder(tmp_path: Path) -> None:
    write_images(
        tmp_path / "d", [f"{label}/patient_0{p}_{n}.png" for label in "ab" for p in range(3) for n in range(9)]
    )
    source = {"kind": "folder", "path": str(tmp_path / "d")}
    (message,) = warnings(tmp_path, source)["patient"]
    assert "set data.sources.0.group_pattern: '(patient_[0-9]+)'" in message
    assert warnings(tmp_path, {**source, "group_pattern": "(patient_[0-9]+)"}) == {}


def test_masks_and_thumbnails(tmp_path: Path) -> None:
    names = [f"{label}/{n}{end}.png" for label in "ab" for n in range(3) for end in ("", "_mask", "_thumb")]
    write_images(tmp_path / "d", names)
    source = {"kind": "folder", "path": str(tmp_path / "d")}
    found = warnings(tmp_path, source)
    assert "6 of 18 images look like masks of others (such as a/0_mask.png of a/0.png)" in found["mask"][0]
    assert "set data.sources.0.exclude: ['*_mask.*']" in found["mask"][0]
    assert "set data.sources.0.exclude: ['*_thumb.*']" in found["thumbnail"][0]
    assert warnings(tmp_path, {**source, "exclude": ["*_mask.*", "*_thumb.*"]}) == {}


def test_masks_in_a_table(tmp_path: Path) -> None:
    names = [f"{n}{end}.png" for n in range(4) for end in ("", "_mask")]
    write_images(tmp_path / "d", names)
    path = write_jsonl(tmp_path / "d/a.jsonl", [{"image": name, "label": "x"} for name in names])
    assert "take their rows out" in warnings(tmp_path, {"kind": "jsonl", "path": str(path)})["mask"][0]


def test_a_path_at_the_wrong_level(tmp_path: Path) -> None:
    write_images(tmp_path / "d", [f"v2/{label}/{n}.png" for label in ("ct", "mri") for n in range(3)])
    found = warnings(tmp_path, {"kind": "folder", "path": str(tmp_path / "d")})
    assert "all images have the label 'v2'" in found["layout"][0]
