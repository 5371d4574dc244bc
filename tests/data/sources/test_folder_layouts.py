"""Folders as people have them: splits at other places, patients below labels, leavings of storage systems."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from consilium.core.errors import ConfigError, DataError
from consilium.data.sources.files import list_inputs
from consilium.data.sources.layout import layout_notes, layout_of
from consilium.data.store.prepare import prepare
from consilium.inputs import find_images
from tests.data.medical_samples import dicom_bytes, dicom_dataset
from tests.data.samples import data_config, image_bytes, read, write_images


def source_of(folder: Path, **keys: object):  # type: ignore[no-untyped-def]
    """A folder source called 's'."""
    return data_config(folder.parent, {"kind": "folder", "name": "s", "path": str(folder), **keys}).sources[0]


def notes(folder: Path, **keys: object) -> list[str]:
    """What is noted about the layout of a folder."""
    source = source_of(folder, **keys)
    beside = [path.name for path in folder.parent.iterdir() if path.is_dir()]
    names = [file.name for file in list_inputs(source).files]
    return layout_notes(source, layout_of(source, names), names, beside=beside)


# Splits below the labels.


def test_splits_below_labels_are_an_error_that_names_the_key(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["ct/train/a.png", "ct/test/b.png", "mri/train/c.png", "mri/test/d.png"])
    with pytest.raises(DataError, match=r"called like splits \(test, train\).*set split_folders: below"):
        read("folder", tmp_path / "d")
    cases, bad = read("folder", tmp_path / "d", split_folders="below")
    assert not bad
    assert [(case.labels, case.split) for case in cases] == [
        (("ct",), "test"), (("ct",), "train"), (("mri",), "test"), (("mri",), "train")
    ]  # fmt: skip
    cases, _ = read("folder", tmp_path / "d", split_folders="none")
    assert {case.split for case in cases} == {None}


def test_an_image_beside_splits_below_labels_is_a_bad_row(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["ct/train/a.png", "ct/b.png", "ct/more/c.png"])
    _, bad = read("folder", tmp_path / "d", split_folders="below")
    assert [row.reason.rpartition(", ")[2] for row in bad] == ["here is none", "here is 'more'"]


def test_labels_of_two_levels_over_splits(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["ct/train/a.png", "ct/test/b.png"])
    with pytest.raises(DataError, match=r"split_folders: below and label_levels: 1"):
        read("folder", tmp_path / "d", label_levels=2)


def test_one_folder_called_test_below_labels_is_no_split(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["ct/test/a.png", "ct/p1/b.png", "mri/c.png"])
    cases, _ = read("folder", tmp_path / "d")
    assert [case.split for case in cases] == [None, None, None]


# A root at the wrong level.


def test_a_root_above_data_sets_with_splits(tmp_path: Path) -> None:
    write_images(tmp_path / "d", [f"v2/{split}/{label}/a.png" for split in ("train", "test") for label in "ab"])
    with pytest.raises(DataError, match=r"if the labels lie below them, give .*/d/v2 as the path"):
        read("folder", tmp_path / "d")


def test_a_root_above_labels_is_noted(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["v2/ct/a.png", "v2/mri/b.png"])
    (note,) = notes(tmp_path / "d")
    assert "all images have the label 'v2', and below it lie the folders ct, mri" in note
    assert f"give {tmp_path / 'd/v2'} as the path, or set label_levels: 2" in note
    assert not notes(tmp_path / "d/v2")


def test_folders_of_patients_are_no_labels(tmp_path: Path) -> None:
    write_images(tmp_path / "d", [f"{label}/patient_0{n}/a.png" for label in ("ct", "mri") for n in range(3)])
    assert not notes(tmp_path / "d")


def test_a_root_that_is_a_label_has_patients_for_labels(tmp_path: Path) -> None:
    write_images(tmp_path / "d/ct", [f"patient_0{n}/a.png" for n in range(3)])
    (note,) = notes(tmp_path / "d/ct")
    assert "called like patients (patient_00, patient_01, patient_02); if they are, give the folder above" in note


def test_folders_below_labels_that_look_like_splits_are_noted(tmp_path: Path) -> None:
    write_images(tmp_path / "d", [f"{label}/{part}_set/a.png" for label in ("ct", "mri") for part in ("train", "test")])
    assert "test_set, train_set below the labels look like splits and are not read so" in notes(tmp_path / "d")[0]


def test_a_root_below_the_splits_is_noted(tmp_path: Path) -> None:
    write_images(tmp_path / "d", [f"{split}/{label}/a.png" for split in ("train", "test") for label in "ab"])
    (note,) = notes(tmp_path / "d/train")
    assert "called like a split, and test beside it is not read; give the folder above" in note
    assert not notes(tmp_path / "d/train", split="train")


def test_a_label_folder_of_splits_as_root(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["ct/train/a.png", "ct/test/b.png"])
    _, bad = read("folder", tmp_path / "d/ct")
    assert all("set split_folders: below" in row.reason for row in bad)


def test_an_image_in_the_root_beside_labels(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["ct/a.png", "overview.png"])
    _, bad = read("folder", tmp_path / "d")
    assert bad[0].reason.endswith("put it into the folder of its label, or leave it out (exclude)")


# Labels and splits with names alike.


def test_splits_beside_labels(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["train/ct/a.png", "ct/b.png"])
    with pytest.raises(DataError, match=r"exclude: \[ct\].*split_folders: none"):
        read("folder", tmp_path / "d")
    cases, _ = read("folder", tmp_path / "d", exclude=["ct/*"])
    assert [case.split for case in cases] == ["train"]


def test_labels_that_are_really_called_so(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["test/a.png", "dev/b.png"])
    cases, bad = read("folder", tmp_path / "d", split_folders="none")
    assert not bad
    assert [(case.labels, case.split) for case in cases] == [(("dev",), None), (("test",), None)]


@pytest.mark.parametrize(
    "folders", [("train_images", "test_images"), ("TrainData", "TestData"), ("fold1", "fold2"), ("Fold_1", "Fold_2")]
)
def test_parts_of_a_data_set_are_no_labels(tmp_path: Path, folders: tuple[str, str]) -> None:
    write_images(tmp_path / "d", [f"{folder}/{n}.png" for folder in folders for n in range(2)])
    with pytest.raises(DataError, match=r"look like parts of a data set"):
        read("folder", tmp_path / "d")
    assert not read("folder", tmp_path / "d", split_folders="none")[1]


@pytest.mark.parametrize("folders", [("stress_test", "ct"), ("train",), ("contrast", "latest"), ("fold1", "other")])
def test_other_names_are_left_in_peace(tmp_path: Path, folders: tuple[str, ...]) -> None:
    write_images(tmp_path / "d", [f"{folder}/x/{n}.png" for folder in folders for n in range(2)])
    assert not read("folder", tmp_path / "d")[1]


# Groups.


def test_a_group_pattern_sees_the_path_where_the_name_has_none(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["ct/patient_01/a.png", "ct/patient_01/b.png", "mri/patient_02/x_patient_03.png"])
    cases, bad = read("folder", tmp_path / "d", group_pattern="(patient_[0-9]+)")
    assert not bad
    assert [case.group for case in cases] == ["patient_01", "patient_01", "patient_03"]


def test_a_pattern_of_the_path_alone(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["ct/a7/1.png", "mri/a7/2.png", "mri/3.png"])
    cases, bad = read("folder", tmp_path / "d", group_pattern="^[^/]+/([^/]+)/")
    assert [case.group for case in cases] == ["a7", "a7"]
    assert "finds no group in the file name or its path, mri/3.png" in bad[0].reason


def test_groups_by_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["ct/p1/s1/a.png", "ct/p1/s2/b.png", "mri/p1/c.png", "mri/d.png"])
    cases, _ = read("folder", tmp_path / "d", group_by="folder")
    assert [case.group for case in cases] == ["p1", "p1", "s:mri/d.png", "p1"]


@pytest.mark.parametrize("key", ["PatientID", "StudyInstanceUID"])
def test_groups_by_dicom_header(tmp_path: Path, key: str) -> None:
    for number, patient in enumerate(("1.1", "1.2", "1.1")):
        scan = dicom_dataset(np.full((4, 4), number, np.uint16))
        setattr(scan, key, patient)
        path = tmp_path / f"d/ct/{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dicom_bytes(scan))
    write_images(tmp_path / "d", ["ct/other.png"])
    cases, bad = read("folder", tmp_path / "d", group_by=key)
    assert [case.group for case in cases] == ["1.1", "1.2", "1.1"]
    assert f"group_by: {key} needs a DICOM header" in bad[0].reason


def test_one_way_to_name_the_group(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both name the group"):
        source_of(tmp_path / "d", group_by="folder", group_pattern="(p)")


# Files taken and left aside.


def test_every_ending_that_is_read(tmp_path: Path) -> None:
    jpeg = image_bytes(format="JPEG")
    kinds = {"GIF": ["gif"], "PPM": ["ppm", "pnm"], "JPEG2000": ["jp2"], "BMP": ["dib"]}
    files = dict.fromkeys(("jfif", "jpe", "JPG", "Jpeg", "jif"), jpeg)
    files |= {ending: image_bytes(format=kind) for kind, endings in kinds.items() for ending in endings}
    (tmp_path / "d/ct").mkdir(parents=True)
    for ending, data in files.items():
        (tmp_path / f"d/ct/a.{ending}").write_bytes(data)
    source = {"kind": "folder", "name": "s", "path": str(tmp_path / "d")}
    prepared = prepare(data_config(tmp_path, source))
    assert (prepared.store.manifest.cases, prepared.bad_rows, prepared.notes()) == (len(files), [], [])
    assert len(find_images([str(tmp_path / "d")])[0]) == len(files)


def test_leavings_of_storage_systems_are_skipped_and_said(tmp_path: Path) -> None:
    left = ["ct/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "$RECYCLE.BIN/x.jpg", ".Trash-1000/files/b.jpg", "ct/._a.jpg",
            "__MACOSX/ct/a.jpg", "lost+found/c.jpg", "System Volume Information/d.jpg", "#recycle/e.jpg"]  # fmt: skip
    write_images(tmp_path / "d", ["ct/a.jpg", *left])
    (tmp_path / "d/ct/Thumbs.db").write_bytes(b"x")
    inputs = list_inputs(source_of(tmp_path / "d"))
    assert [file.name for file in inputs.files] == ["ct/a.jpg"]
    assert len(inputs.skipped) == inputs.skipped.total() == 9
    assert all(reason.endswith("(left by a storage system)") for reason in inputs.skipped)
    assert find_images([str(tmp_path / "d")])[0] == [str(tmp_path / "d/ct/a.jpg")]


def test_include_and_exclude(tmp_path: Path) -> None:
    names = ["ct/a.png", "ct/a_mask.png", "ct/thumbs/a.png", "ct/deep/er/b.JPG", "mri/c.jpg"]
    write_images(tmp_path / "d", names)

    def found(**keys: object) -> list[str]:
        return [file.name for file in list_inputs(source_of(tmp_path / "d", **keys)).files]

    assert found(exclude=["*_mask.*", "thumbs"]) == ["ct/a.png", "ct/deep/er/b.JPG", "mri/c.jpg"]
    assert found(include=["*.jpg"]) == ["ct/deep/er/b.JPG", "mri/c.jpg"]
    assert found(include=["ct"], exclude=["**/er"]) == ["ct/a.png", "ct/a_mask.png", "ct/thumbs/a.png"]
    assert found(include=["*/*.png"]) == ["ct/a.png", "ct/a_mask.png"]
    assert found(include=["ct/**/*.png"]) == ["ct/a.png", "ct/a_mask.png", "ct/thumbs/a.png"]
    skipped = list_inputs(source_of(tmp_path / "d", exclude=["*_mask.*"], include=["*.png"])).skipped
    assert skipped == {"file that exclude names ('*_mask.*')": 1, "file that include does not name": 2}


def test_patterns_that_leave_nothing(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["ct/a.png"])
    with pytest.raises(DataError, match=r"1 x file that include does not name skipped"):
        list_inputs(source_of(tmp_path / "d", include=["*.dcm"]))


@pytest.mark.parametrize(("splits", "expected"), [(False, "mri"), (True, "train/mri")])
def test_an_empty_class_folder_is_said(tmp_path: Path, splits: bool, expected: str) -> None:
    above = tmp_path / "d/train" if splits else tmp_path / "d"
    write_images(above, ["ct/a.png"])
    (above / "mri/deeper").mkdir(parents=True)
    (above / "mri/notes.txt").write_text("x")
    (above / "left").mkdir()
    inputs = list_inputs(source_of(tmp_path / "d", exclude=["left"]))
    assert inputs.skipped == {".txt file": 1, f"label folder without an image ({expected})": 1}


# Names.


@pytest.mark.parametrize("name", [".", "..", "..."])
def test_names_that_are_folders_of_paths_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f'`sources.0.name` is "{name}"')):
        data_config(tmp_path, {"kind": "folder", "name": name, "path": "x"})


def test_folders_of_one_name_in_two_unicode_forms_are_two_labels(tmp_path: Path) -> None:
    """They are named by the guards, since a person sees one."""
    names = [unicodedata.normalize(form, "zähne") for form in ("NFC", "NFD")]
    write_images(tmp_path / "d", [f"{name}/a.png" for name in names])
    assert sorted(case.labels[0] for case in read("folder", tmp_path / "d")[0]) == sorted(names)
