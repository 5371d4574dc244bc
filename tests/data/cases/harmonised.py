"""A dataset as `data.dataset` names it: a harmonised table with its images, beside a root of datasets."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLUMNS = ("image_id", "dataset", "filename", "orig_filename", "label", "text_desc")
COLOURS = {"melanoma": (200, 40, 40), "nevus": (40, 180, 60)}
ORIGINS = {"derm1m": ("edu/{}.png", "youtube/{}.png"), "isic": ("ISIC_{}.png", "ISIC_{}.png")}


def rows_of(cases: int = 48) -> list[dict[str, Any]]:
    """Rows of two datasets, of which one has two parts; every third has no text."""
    rows = []
    for number in range(cases):
        dataset, label = list(ORIGINS)[number // 2 % 2], list(COLOURS)[number % 2]
        origin = ORIGINS[dataset][number // 4 % 2].format(number)
        text = "" if number % 3 == 0 else f"Seen {number} times."
        row = zip(COLUMNS, (f"c{number}", dataset, f"{number}.png", origin, label, text), strict=True)
        rows.append(dict(row))
    return rows


def write_dataset(root: Path, rows: Sequence[dict[str, Any]], *, name: str = "dataset_v1") -> Path:
    """The folder of the dataset."""
    folder = root / name
    (folder / "imgs").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for row in rows:
        pixels_HWC = np.array(COLOURS.get(row["label"], (90, 90, 90))) + random.integers(-30, 30, (32, 32, 3))
        Image.fromarray(pixels_HWC.clip(0, 255).astype(np.uint8)).save(folder / "imgs" / row["filename"])
    with open(folder / "metadata_all_harmonized.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return folder
