"""What is odd in images and how they are read all the same is counted, kept with the store and said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consilium.core.files import write_json
from consilium.data.store.prepare import prepare
from tests.data.medical_samples import dicom_bytes, dicom_dataset
from tests.data.samples import data_config


@pytest.mark.parametrize("images", ["reference", "embed"])
def test_notes_are_folded_counted_and_kept(tmp_path: Path, images: str) -> None:
    folder = tmp_path / "scans"
    for number in range(5):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        dataset = dicom_dataset(np.arange(12, dtype=np.uint16).reshape(3, 4), WindowCenter=40 + number, WindowWidth=0)
        (folder / "ab"[number % 2] / f"{number}.dcm").write_bytes(dicom_bytes(dataset))
    pages = [Image.new("L", (4, 3), page) for page in range(3)]
    pages[0].save(folder / "a" / "pages.tif", save_all=True, append_images=pages[1:])
    config = data_config(tmp_path, {"kind": "folder", "name": "scans", "path": str(folder)}, store={"images": images})
    prepared = prepare(config)
    assert prepared.created
    for found in (prepared, prepare(config)):
        window, frames = found.notes()
        assert window.startswith(
            "scans: 5 rows: its WindowCenter '40.0' and WindowWidth '0.0' are no window and are left out"
        )
        assert window.endswith("0.dcm)")
        assert frames.startswith("scans: 1 row: it holds 3 frames, of which the first is read (first: ")
    assert not prepare(config).created


def test_a_store_without_notes_has_none(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        Image.new("L", (4, 3), 7).save(tmp_path / "images" / label / "0.png")
    config = data_config(tmp_path, {"kind": "folder", "name": "s", "path": str(tmp_path / "images")})
    prepared = prepare(config)
    assert not prepared.store.manifest.notes
    path = prepared.store.path / "store.json"
    manifest = json.loads(path.read_text())
    del manifest["notes"]
    write_json(path, manifest)
    assert not prepare(config).created
