"""Tables of tiny coloured images, for trainings whose labels the tests choose."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tests.conftest import coloured_image

Row = dict[str, str]


def coloured_rows(root: Path, labels: Sequence[str], counts: Mapping[str, int]) -> list[Row]:
    """So many images of each label in each split, a colour for each label; written into ``root``."""
    rng = np.random.default_rng(0)
    rows = []
    for split, count in counts.items():
        for number, label in enumerate(labels):
            for image in range(count):
                path = root / f"{split}-{label}-{image}.png"
                coloured_image(label=number, labels=len(labels), size=(32, 32), rng=rng).save(path)
                rows.append({"image": str(path), "label": label, "split": split, "is_gt": "true"})
    return rows


def write_table(folder: Path, rows: Sequence[Row]) -> str:
    """The override that reads these rows; each folder holds one table, which is not written again for nothing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    folder.mkdir(exist_ok=True)
    table = folder / "table.csv"
    if not table.exists() or table.read_text(encoding="utf-8") != text.getvalue():
        table.write_text(text.getvalue(), encoding="utf-8")
    return f"data.sources={json.dumps([{'kind': 'csv', 'name': 'table', 'path': str(table)}])}"
