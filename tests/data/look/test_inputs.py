"""What inputs are like: measured on cases whose images and texts are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consilium.core.config import build
from consilium.data.config import DataConfig, ImageConfig
from consilium.data.look import inputs
from consilium.data.look.inputs import input_statistics
from consilium.data.store.prepare import prepare
from consilium.data.store.store import CaseTable


def table(folder: Path, cases: int = 4) -> CaseTable:
    """Of every two cases one has a grey image, a text and an age, the other a red image twice as wide."""
    rows = []
    for number in range(cases):
        grey = number % 2 == 0
        pixels_HWC = np.full((20, 30 if grey else 60, 3), 51 if grey else (255, 0, 0), dtype=np.uint8)
        Image.fromarray(pixels_HWC).save(folder / f"{number}.png")
        row = {"image": f"{number}.png", "label": "a" if grey else "b"}
        rows.append({**row, **({"text": "one two three", "age": 7} if grey else {})})
    (folder / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"kind": "jsonl", "name": "cases", "path": str(folder / "cases.jsonl"), "columns": {"meta": ["age"]}}
    config = build(DataConfig, {"sources": [source], "store": {"root": str(folder / "stores")}}, origin="tests")
    return prepare(config).store.table


def test_they_are_those_of_the_cases(tmp_path: Path) -> None:
    found = input_statistics(table(tmp_path), image=ImageConfig(size=(8, 8)))
    assert found.cases == 4
    assert found.shares["image"] == 1.0
    assert (found.shares["text"], found.shares["meta.age"]) == (0.5, 0.5)
    own = {name: (spread.mean, spread.std) for name, spread in found.quantities.items()}
    assert own["width"] == (45.0, 15.0)
    assert own["height"] == (20.0, 0.0)
    assert own["words"] == (3.0, 0.0)
    assert own["brightness"] == pytest.approx((0.266667, 0.066667), abs=1e-5)
    assert own["contrast"] == (0.0, 0.0)
    assert own["colour"] == pytest.approx((2 / 9, 2 / 9), abs=1e-5)


def test_an_image_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    cases = table(tmp_path)
    (tmp_path / "1.png").write_bytes(b"no image any more")
    found = input_statistics(cases, image=ImageConfig(size=(8, 8)))
    assert found.cases == 4
    assert found.quantities["brightness"].mean == pytest.approx((0.2 + 1 / 3 + 0.2) / 3, abs=1e-5)


def test_a_sample_is_spread_over_all_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "CASES", 3)
    found = input_statistics(table(tmp_path, cases=9), image=ImageConfig(size=(8, 8)))
    assert found.cases == 3
    assert found.quantities["width"].mean == pytest.approx((30 + 60 + 30) / 3)
