"""The last look at files that leave: what it finds, what it lets pass, and what it says that it cannot see."""

from __future__ import annotations

import json
from pathlib import Path

import pydicom
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.uid import ExplicitVRLittleEndian

from consilium.core.errors import ConfigError
from consilium.data.guards.identifying import identifying, read_names


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("scanned on 2019-03-04", "a date"),
        ("geboren am 4.3.1951", "a date"),
        ("seen 3/14/2021 again", "a date"),
        ("StudyDate 20190304", "a date"),
        ("on 4 March 2019", "a date"),
        ("(0010,0020) LO", "a DICOM tag of a person or a study"),
        ("PatientBirthDate", "a DICOM tag of a person or a study"),
        ("1.2.840.113619.2.55.3.604688119", "a DICOM tag of a person or a study"),
        ("MEIER^ANNA", "a name as DICOM writes it"),
        ("as discussed with Dr. Meier", "a name"),
        ("Patient: Anna", "a name"),
        ("anna.meier@example.org", "an address of a mailbox"),
        ("record 48113097", "a number as long as that of a record"),
        ('"/home/anna/runs/a"', "a path of a machine"),
        (r"C:\Users\anna\runs", "a path of a machine"),
        ("meier_left_eye.png", "the name of an image file"),
        ("scan-17.nii.gz", "the name of an image file"),
    ],
)
def test_what_is_found_in_a_text(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    assert what in [finding.what for finding in identifying(tmp_path)]


@pytest.mark.parametrize(
    "text",
    [
        '{"mean": [0.48145466, 0.4578275], "eps": 1e-05, "version": "5.24.0", "vocab_size": 49408}',
        "Left pleural effusion, grade 3 of 4; 372 688 parameters, 12.3 to 50.0",
        "Data fingerprint 9cff82e49ac11df8; vit_base_patch16_224; image.onnx; https://arxiv.org/abs/2103.00020",
        "Not a medical device; not for a decision about a patient. Patients differ.",
    ],
)
def test_what_says_nothing_of_a_person_passes(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    assert identifying(tmp_path) == []


def test_a_finding_says_where_how_often_and_what(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.json").write_text('["2019-03-04", "2019-03-05"]', encoding="utf-8")
    assert [str(finding) for finding in identifying(tmp_path)] == ["deep/a.json: a date (2 times): 2019-03-04"]


def test_names_of_a_list_are_found_in_a_vocabulary_that_was_learned(tmp_path: Path) -> None:
    words = {"[PAD]": 0, "effusion": 1, "meier": 2, "##meierhof": 3, "48113097": 4}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": words}}), encoding="utf-8")
    (tmp_path / "names.txt").write_text("Meier\n\nHuber\n", encoding="utf-8")
    names = read_names(tmp_path / "names.txt")
    (tmp_path / "names.txt").unlink()
    assert identifying(tmp_path, names=names) == []
    found = identifying(tmp_path, names=names, learned_vocabulary=True)
    assert [(finding.what, finding.example) for finding in found] == [
        ("a name of the list", "meier"),
        ("a number as long as that of a record", "48113097"),
    ]
    with pytest.raises(ConfigError, match="a name a line"):
        read_names(tmp_path / "none.txt")


def test_headers_of_pictures(tmp_path: Path) -> None:
    notes = PngInfo()
    notes.add_text("Comment", "Patient: Anna, 2019-03-04")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=notes)
    exif = Image.Exif()
    exif[0x010E] = "MEIER^ANNA"
    Image.new("RGB", (4, 4)).save(tmp_path / "b.jpg", exif=exif)
    Image.new("RGB", (4, 4)).save(tmp_path / "c.png")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = "1.2.3"
    fields = pydicom.Dataset()
    fields.file_meta, fields.PatientName, fields.StudyDate = meta, "Meier^Anna", "20190304"
    fields.save_as(tmp_path / "scan", enforce_file_format=True)
    found = [(finding.file, finding.what) for finding in identifying(tmp_path)]
    assert ("a.png", "a date") in found
    assert ("a.png", "a name") in found
    assert ("b.jpg", "a name as DICOM writes it") in found
    assert ("scan", "a DICOM tag of a person or a study") in found
    assert "c.png" not in [file for file, _ in found]
