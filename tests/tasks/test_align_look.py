"""What a training says of the views of its cases, before any model is built."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from consilium.tasks.align.config import AlignConfig
from consilium.tasks.align.look import missing_views

CASES = [["left", "right"], ["left", "right", "macula"], ["left"], ["right", "left", "macula", "disc"]]


class Table:
    """Views of cases by name."""

    def __len__(self) -> int:
        return len(CASES)

    def view_column(self, name: str) -> tuple[np.ndarray, list[str]]:
        """The case that each view is of, and its name."""
        owners = np.array([row for row, names in enumerate(CASES) for _ in names])
        return owners, [name for names in CASES for name in names]


def test_views_that_are_not_read_are_counted() -> None:
    cases: Any = SimpleNamespace(
        table=Table(), rows={"train": np.arange(3), "val": np.array([3]), "test": np.arange(0)}
    )
    assert missing_views(cases, AlignConfig.model_validate({"kind": "align", "views": {}})) == [
        "train: 1 of 3 cases have further views, which are not read (disc, macula). task.views.names says which are.",
        "val: 1 of 1 case have further views, which are not read (disc, macula). task.views.names says which are.",
        "train: 2 of 3 cases have all views, 1 lack right; each trains what it has.",
    ]
