"""Folders of images, and what holds for every kind of source."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from consilium.core.errors import ConfigError, DataError
from consilium.data.sources.files import list_inputs
from consilium.inputs import find_images
from tests.data.medical_samples import dicom_bytes, dicom_dataset
from tests.data.samples import data_config, read, write_images, write_jsonl


def test_split_and_modality_folders(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["train/ct/brain/a.jpg", "Validation/mri/b.png", "test/ct/c.JPG".lower()])
    cases, bad = read("folder", tmp_path / "d")
    assert not bad
    assert [(case.split, case.labels) for case in cases] == [("val", ("mri",)), ("test", ("ct",)), ("train", ("ct",))]
    assert [case.id for case in cases] == ["s:Validation/mri/b.png", "s:test/ct/c.jpg", "s:train/ct/brain/a.jpg"]
    assert all(case.group == case.id and os.path.isabs(case.views[0].image) for case in cases)


def test_plain_label_folders_have_no_split(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["ct/a.jpg", "mri/b.jpg"])
    cases, _ = read("folder", tmp_path / "d", label_prefix="rad")
    assert [(case.split, case.labels) for case in cases] == [(None, ("rad.ct",)), (None, ("rad.mri",))]


@pytest.mark.parametrize(("levels", "labels"), [(0, ()), (1, ("ct",)), (2, ("ct.brain",)), (3, ("ct.brain.v1_2",))])
def test_label_levels_and_dots_in_names(tmp_path: Path, levels: int, labels: tuple[str, ...]) -> None:
    write_images(tmp_path / "d", ["train/ct/brain/v1.2/a.jpg"])
    cases, _ = read("folder", tmp_path / "d", label_levels=levels)
    assert cases[0].labels == labels


def test_image_above_the_label_folders_is_a_bad_row(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["ct/brain/a.jpg", "ct/b.jpg"])
    cases, bad = read("folder", tmp_path / "d", label_levels=2)
    assert len(cases) == 1
    assert [(row.file, row.line) for row in bad] == [(str(tmp_path / "d/ct/b.jpg"), None)]
    assert "below 1 folder, label_levels: 2 needs 2; put it into the folder of its label" in bad[0].reason


@pytest.mark.parametrize(
    ("name", "advice"), [("a.jpg", "the folder above as the path"), ("train/a.jpg", "put it into the folder of its")]
)
def test_a_folder_of_one_label_is_sent_to_the_folder_above(tmp_path: Path, name: str, advice: str) -> None:
    write_images(tmp_path / "d", [name])
    _, bad = read("folder", tmp_path / "d")
    assert advice in bad[0].reason


def test_image_beside_the_splits_is_a_bad_row(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["train/a.jpg", "b.jpg"])
    cases, bad = read("folder", tmp_path / "d", label_levels=0)
    assert [case.split for case in cases] == ["train"]
    assert "beside the split folders" in bad[0].reason


def test_folders_that_become_one_label_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["a.b/1.jpg", "a_b/2.jpg"])
    with pytest.raises(DataError, match=r"a\.b and a_b both become the label 'a_b'"):
        read("folder", tmp_path / "d")


def test_split_folders_beside_others_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["train/ct/1.jpg", "extra/2.jpg"])
    with pytest.raises(DataError, match=r"split folders \(train\) beside others \(extra\)"):
        read("folder", tmp_path / "d")


def test_other_files_are_skipped_and_counted(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["ct/a.jpg", "ct/.hidden.jpg", ".cache/b.jpg"])
    (tmp_path / "d/ct/notes.txt").write_text("x")
    (tmp_path / "d/README").write_text("x")
    inputs = list_inputs(data_config(tmp_path, {"kind": "folder", "name": "s", "path": str(tmp_path / "d")}).sources[0])
    assert [file.name for file in inputs.files] == ["ct/a.jpg"]
    assert inputs.skipped == {"hidden": 2, ".txt file": 1, "no extension file": 1}


def test_dicom_without_an_ending_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "d/ct"
    folder.mkdir(parents=True)
    names = ["IM000001", "1.2.840.10008.7", "DICOMDIR", ".hidden", "scan.bak"]
    for name in names:
        (folder / name).write_bytes(dicom_bytes(dicom_dataset(np.zeros((4, 4), np.uint16))))
    (folder / "LICENSE").write_text("x" * 200)
    (folder / "short").write_text("DIC")
    (folder / "dangling").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe")  # opening it would wait for ever
    source = data_config(tmp_path, {"kind": "folder", "name": "s", "path": str(tmp_path / "d")}).sources[0]
    inputs = list_inputs(source)
    assert [file.name for file in inputs.files] == ["ct/1.2.840.10008.7", "ct/IM000001"]
    (folder / ".hidden").unlink()
    assert find_images([str(tmp_path / "d")])[0] == [str(tmp_path / "d" / file.name) for file in inputs.files]
    assert inputs.skipped == {"hidden": 1, "DICOMDIR": 1, ".bak file": 1, "no extension file": 4}


def test_groups_from_file_names(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["ct/p1_a.jpg", "ct/p1_b.jpg", "mri/p2_a.jpg", "mri/other.jpg"])
    cases, bad = read("folder", tmp_path / "d", group_pattern="^(p[0-9]+)_")
    assert [case.group for case in cases] == ["p1", "p1", "p2"]
    assert [os.path.basename(row.file) for row in bad] == ["other.jpg"]


@pytest.mark.parametrize(("pattern", "complaint"), [("p[0-9", "no regular expression"), ("p[0-9]+", "has no bracket")])
def test_unusable_group_pattern(tmp_path: Path, pattern: str, complaint: str) -> None:
    write_images(tmp_path / "d", ["ct/p1.jpg"])
    with pytest.raises(ConfigError, match=complaint):
        read("folder", tmp_path / "d", group_pattern=pattern)


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_images(tmp_path, ["elsewhere/a.jpg", "d/mri/b.jpg"])
    (tmp_path / "d/ct").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "d/mri/up").symlink_to(tmp_path / "d")
    cases, _ = read("folder", tmp_path / "d")
    assert [case.labels[0] for case in cases] == ["ct", "mri"]


def test_file_name_that_is_no_utf8_is_a_bad_row(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["ct/a.jpg"])
    os.link(tmp_path / "d/ct/a.jpg", os.fsencode(tmp_path / "d/ct") + b"/\xff.jpg")
    cases, bad = read("folder", tmp_path / "d")
    assert len(cases) == 1
    assert "UTF-8" in bad[0].reason
    str(bad[0]).encode()


@pytest.mark.parametrize(
    ("kind", "complaint"), [("folder", "the folder .* does not exist"), ("csv", "the file .* does not exist"),
                            ("parquet", "the file .* does not exist"), ("jsonl", "the file .* does not exist")]
)  # fmt: skip
def test_missing_source(tmp_path: Path, kind: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        read(kind, tmp_path / "nowhere")


def test_empty_sources(tmp_path: Path) -> None:
    (tmp_path / "d/ct").mkdir(parents=True)
    (tmp_path / "d/ct/a.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds no image \(1 x \.txt file skipped\)"):
        read("folder", tmp_path / "d")
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(DataError, match="is empty"):
        read("jsonl", tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="holds no rows"):
        read("jsonl", tmp_path / "b.jsonl")
    (tmp_path / "c.csv").write_text("image,label\n")
    with pytest.raises(DataError, match="holds no rows"):
        read("csv", tmp_path / "c.csv")


def test_second_row_of_an_id_is_bad(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "x"}, {"id": "b", "text": "y"}, {"id": "a", "text": "z"}]
    cases, bad = read("jsonl", write_jsonl(tmp_path / "a.jsonl", rows))
    assert [case.text for case in cases] == ["x", "y"]
    assert [(row.line, row.reason) for row in bad] == [(3, "the id 'a' was given before, in line 1")]
