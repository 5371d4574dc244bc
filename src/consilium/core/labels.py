"""The label tree: dot paths such as ``radiology.ct`` and the fixed integer of every leaf."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from consilium.core.errors import DataError


class LabelTree:
    """The classes of a task, in a fixed order; today its leaves are used flat.

    The order given is the order of the integer ids and never changes once saved in a bundle.
    """

    def __init__(self, leaves: Sequence[str]) -> None:
        if len(set(leaves)) != len(leaves):
            raise DataError(f"labels are given twice: {sorted(x for x in set(leaves) if list(leaves).count(x) > 1)}.")
        self.leaves: tuple[str, ...] = tuple(leaves)
        self._index = {leaf: number for number, leaf in enumerate(self.leaves)}

    @classmethod
    def from_labels(cls, labels: Iterable[Sequence[str]]) -> LabelTree:
        """The sorted leaves that occur in rows of labels."""
        return cls(sorted({label for row in labels for label in row}))

    def __len__(self) -> int:
        return len(self.leaves)

    def index(self, label: str) -> int:
        """The integer id of a leaf; an unknown one is a DataError."""
        try:
            return self._index[label]
        except KeyError:
            raise DataError(f"label '{label}' is unknown; the labels are: {', '.join(self.leaves)}.") from None

    def indices(self, rows: Sequence[Sequence[str]]) -> np.ndarray:
        """Class ids [N] of rows that hold one label each; -1 where a row has none."""
        return np.array([self.index(row[0]) if row else -1 for row in rows], dtype=np.int64)

    def multi_hot(self, rows: Sequence[Sequence[str]]) -> np.ndarray:
        """Targets [N, K] in {0, 1} of rows that hold any number of labels."""
        targets_NK = np.zeros((len(rows), len(self)), dtype=np.float32)
        for row_number, row in enumerate(rows):
            targets_NK[row_number, [self.index(label) for label in row]] = 1.0
        return targets_NK
