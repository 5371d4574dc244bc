"""The cause behind many bad rows, and the key that mends it."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from consilium.core.errors import BadRowsError, DataError
from consilium.data.store.prepare import prepare
from tests.data.samples import data_config, write_images


def said(folder: Path, header: str, rows: list[str], **keys: Any) -> str:
    (folder / "a.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    with pytest.raises(BadRowsError) as caught:
        prepare(data_config(folder, {"kind": "csv", "name": "s", "path": str(folder / "a.csv"), **keys}))
    return str(caught.value)


def test_ids_that_repeat_may_be_patients(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{number}.png" for number in range(8)])
    text = said(
        tmp_path, "patient,image", [f"p{number // 2},{number}.png" for number in range(8)], columns={"id": "patient"}
    )
    assert "4 rows: the id 'p0', 'p1', 'p2' or others was given before, in line 2 to 8 - first: " in text
    assert "Set columns.id: null, and columns.group: patient if it is the patient." in text


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        (
            "01234",
            "holds numbers, which may be folds. Set columns.split: null, and data.split divides the cases (data.spl",
        ),
        (["fold_1", "fold_2"], "holds numbers, which may be folds"),
        (["a", "b"], "where the column 'split' is no split, set columns.split: null"),
    ],
)
def test_splits_that_are_none(tmp_path: Path, values: list[str], hint: str) -> None:
    write_images(tmp_path, [f"{number}.png" for number in range(len(values))])
    assert hint in said(tmp_path, "image,split", [f"{number}.png,{value}" for number, value in enumerate(values)])


def test_where_images_were_looked_for_and_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, work, images = tmp_path / "tables", tmp_path / "work", tmp_path / "images"
    for folder in (tables, work):
        folder.mkdir()
    write_images(images, ["scans/1.png", "scans/2.png"])
    rows = ["scans/1.png", "scans/2.png"]
    text = said(tables, "image", rows)
    assert f"relative paths are looked for in {tables}, which is the folder of the table; if they start from" in text
    assert f"Source 's': {images}/scans/1.png exists; set image_root: {images}." in text
    assert f"Source 's': {images}/scans/1.png exists; set image_root: {images}." in said(
        tables, "image", rows, image_root=str(tmp_path)
    )
    text = said(tables, "image", rows, image_root=str(images / "scans"))
    assert f"looked for in {images}/scans, which is its image_root" in text
    assert f"{images}/scans/1.png exists; set image_root: {images}." in text
    write_images(work, ["scans/1.png"])
    monkeypatch.chdir(work)
    assert f"Source 's': {work}/scans/1.png exists; set image_root: {work}." in said(tables, "image", rows)


def test_a_folder_that_is_named_twice(tmp_path: Path) -> None:
    write_images(tmp_path / "data/other", ["1.png"])
    text = said(tmp_path, "image", ["images/1.png"], image_root=str(tmp_path / "data/other"))
    assert "other/1.png exists, without the 'images' that its path begins with" in text


@pytest.mark.parametrize(
    ("there", "named", "hint"),
    [
        ("a1.png", "a1", 'set image_template: "{{}}.png"'),
        ("A1.PNG", "a1.png", "the row names 'a1.png', but {} has 'A1.PNG'; write them alike"),
        ("a1.jpg", "a1.png", "the row names 'a1.png', but {} has 'a1.jpg'; write them alike"),
        (unicodedata.normalize("NFD", "é1.png"), "é1.png", "with its accents in another Unicode form"),
    ],
)
def test_names_that_differ_a_little(tmp_path: Path, there: str, named: str, hint: str) -> None:
    write_images(tmp_path, [there])
    assert hint.format(tmp_path) in said(tmp_path, "image", [named])


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder, but kind csv reads a file"):
        prepare(data_config(tmp_path, {"kind": "csv", "name": "s", "path": str(tmp_path)}))
