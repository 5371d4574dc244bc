"""Labelled squares of a colour, for what judges an expert on labels."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from tests.tasks.test_align_contract import COLOURS


def write_squares(
    folder: Path,
    probes: dict[str, Any] | None,
    *,
    splits: Sequence[str] = ("train", "train", "test"),
    labels: Sequence[str] = tuple(COLOURS),
    **columns: Callable[[str], str],
) -> Path:
    """Squares with labels and further columns by their colour; the YAML file of their data, with ``probes``."""
    random, rows = np.random.default_rng(1), []
    for number in range(48):
        name = list(COLOURS)[number % len(labels)]
        pixels = np.array(COLOURS[name]) + random.integers(-30, 30, (32, 32, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        split = splits[number // len(labels) % len(splits)]
        own = {key: of(name) for key, of in columns.items()}
        rows.append(
            {"id": str(number), "image": f"{number}.png", "label": labels[number % len(labels)], "split": split, **own}
        )
    with (folder / "squares.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    source = {"kind": "csv", "name": "squares", "path": str(folder / "squares.csv")}
    tree: dict[str, Any] = {"data": {"sources": [source], "store": {"root": str(folder / "stores")}}}
    if probes is not None:
        tree["probes"] = probes
    (folder / "squares.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder / "squares.yaml"
