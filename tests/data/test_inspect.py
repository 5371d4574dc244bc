"""What is inside a store, in figures and as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from consilium.data.config import DataConfig
from consilium.data.inspect import Inspection, inspect
from consilium.data.prepare import prepare
from consilium.data.store import Store
from tests.data.samples import data_config, image_bytes, write_images, write_jsonl


class Sample(NamedTuple):
    store: Store
    config: DataConfig


def sample(tmp_path: Path, rows: list[dict[str, Any]], **sections: Any) -> Sample:
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    config = data_config(tmp_path, {"kind": "jsonl", "name": "s", "path": str(path)}, **sections)
    return Sample(prepare(config).store, config)


def inspected(tmp_path: Path, data: Sample) -> Inspection:
    return inspect(data.store, config=data.config, out=tmp_path / "out")


def test_findings(tmp_path: Path) -> None:
    for number, (width, height) in enumerate([(10, 40), (20, 30), (30, 20)]):
        (tmp_path / f"{number}.png").write_bytes(image_bytes(number, size=(height, width)))
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / "mask.png").write_bytes(image_bytes(9))
    data = sample(
        tmp_path,
        [
            {"id": "a", "image": "0.png", "label": "ct", "split": "train", "mask": "mask.png"},
            {"id": "b", "image": "1.png", "label": "ct", "split": "train"},
            {"id": "c", "image": "2.png", "label": ["ct", "mri"], "split": "val"},
            {"id": "d", "image": "copy.png", "label": "mri", "split": "test"},
            {"id": "e", "text": "no image", "split": "unlabelled"},
            {"id": "f", "image": "1.png", "text": "the same file twice is no duplicate", "split": "train"},
        ],
    )
    (tmp_path / "2.png").unlink()
    (tmp_path / "mask.png").unlink()
    found = inspected(tmp_path, data)
    assert (found.cases, found.images, found.bad_rows) == (6, 5, 0)
    assert {(row["split"], row["label"]): row["cases"] for row in found.counts} == {
        ("train", "ct"): 2, ("train", ""): 1, ("val", "ct"): 1, ("val", "mri"): 1, ("test", "mri"): 1,
        ("unlabelled", ""): 1,
    }  # fmt: skip
    assert [(row["label"], row["train"], row["share of train"]) for row in found.balance] == [
        ("(none)", 1, pytest.approx(1 / 3)), ("ct", 2, pytest.approx(2 / 3)), ("mri", 0, 0.0),
    ]  # fmt: skip
    (sizes,) = found.sizes
    assert (sizes["images"], sizes["smallest"], sizes["median"], sizes["largest"]) == (
        5,
        "10 x 20",
        "20 x 30",
        "30 x 40",
    )
    assert found.missing == [str(tmp_path / "2.png"), str(tmp_path / "mask.png")]
    (duplicate,) = found.duplicates
    assert duplicate.files == (str(tmp_path / "0.png"), str(tmp_path / "copy.png"))
    assert duplicate.splits == ("train", "test")
    assert [leak.kind for leak in found.findings.leaks] == ["file"]
    assert any("single training case" in warning or "never shows" in warning for warning in found.warnings)
    text = "\n".join(found.lines())
    for expected in ("6 cases, 5 images", "missing file: ", "duplicate: ", "leak: the same file", "warning: "):
        assert expected in text
    assert json.loads((tmp_path / "out/inspection.json").read_text())["findings"]["leaks"][0]["splits"] == [
        "train",
        "test",
    ]


def test_contact_sheet_shows_every_label_and_survives_unreadable_images(tmp_path: Path) -> None:
    colours = {"blue": (0, 0, 255), "red": (255, 0, 0)}
    for label, colour in colours.items():
        for number in range(3):
            Image.new("RGB", (30 + number, 30), colour).save(tmp_path / f"{label}{number}.png")
    rows = [{"image": f"{label}{number}.png", "label": label} for label in colours for number in range(3)]
    data = sample(tmp_path, rows)
    (tmp_path / "red1.png").write_text("gone bad")
    found = inspected(tmp_path, data)
    assert found.contact_sheet is not None
    sheet = np.asarray(Image.open(found.contact_sheet).convert("RGB")).astype(int)
    half = len(sheet) // 2
    is_blue = (sheet == (0, 0, 255)).all(-1)
    is_red = (sheet == (255, 0, 0)).all(-1)
    assert is_blue[:half].sum() > 2.5 * 100 * 100
    assert is_red[half:].sum() > 1.5 * 100 * 100
    assert not is_blue[half:].any()
    assert not is_red[:half].any()


def test_store_without_images_or_train(tmp_path: Path) -> None:
    found = inspected(tmp_path, sample(tmp_path, [{"text": "a", "split": "test"}]))
    assert found.contact_sheet is None
    assert not (tmp_path / "out/contact_sheet.png").exists()
    assert any("no case is in the split 'train'" in warning for warning in found.warnings)
    assert found.sizes == []


def test_embedded_images_are_never_missing(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    data = sample(tmp_path, [{"image": "a.png", "label": "x"}], store={"images": "embed"})
    (tmp_path / "a.png").unlink()
    found = inspected(tmp_path, data)
    assert found.missing == []
    assert found.contact_sheet is not None


def test_long_findings_are_cut_on_the_screen_only(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{n}.png" for n in range(15)])
    data = sample(tmp_path, [{"image": f"{n}.png"} for n in range(15)])
    for n in range(15):
        (tmp_path / f"{n}.png").unlink()
    found = inspected(tmp_path, data)
    assert len(found.missing) == 15
    lines = [line for line in found.lines() if line.startswith("missing file")]
    assert len(lines) == 11
    assert lines[-1] == "missing file: 5 more, see inspection.json"
