"""What a report shows of cases: how many there are of each kind, their texts, their pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from consilium.data.cases.cases import Cases
from consilium.data.look.thumbnails import thumbnail


def data_rows(cases: Cases) -> list[dict[str, Any]]:
    """Cases per source, split and label; without a label per source and split."""
    table = cases.table
    counts = Counter(
        (table.sources[row], split, label)
        for split, rows in cases.rows.items()
        for row in rows.tolist()
        for label in table.labels[row] or [""]
    )
    return [
        {"source": source, "split": split, **({"label": label} if label else {}), "cases": count}
        for (source, split, label), count in sorted(counts.items())
    ]


def texts(cases: Cases) -> Callable[[str, int], str | None]:
    """The texts of a case by its id and their number, from 1."""
    row_of = {name: row for row, name in enumerate(cases.table.ids)}
    return lambda case, number: next(iter(cases.table.captions(row_of[case])[number - 1 :]), None)


def thumbnails(cases: Cases, *, size: int, window: tuple[float, float] | None) -> Callable[[str], bytes | None]:
    """JPEG thumbnails by case id, made when asked for."""
    row_of = {name: row for row, name in enumerate(cases.table.ids)}

    def small(case: str) -> bytes | None:
        images = cases.table.images(row_of[case])
        return thumbnail(images[0], size=size, window=window) if images else None

    return small
