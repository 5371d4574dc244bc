"""Left and right views of a case, which a mirror exchanges.

Axes in names: B case in a batch, N case of a table, V view.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from consilium.data.store.store import CaseTable

LEFT, RIGHT = "left", "right"


def sides_of(table: CaseTable) -> npt.NDArray[np.int64]:
    """Where on the axis V the views called left and right of each case are, [N, 2]; -1 where it has not one of each."""
    rows, names = table.view_column("name")
    first_N = np.searchsorted(rows, np.arange(len(table)))
    names_of_views, sides_N2 = np.array(names, dtype=object), np.full((len(table), 2), -1, dtype=np.int64)
    counts_N2 = np.zeros((len(table), 2), dtype=np.int64)
    for side, name in enumerate((LEFT, RIGHT)):
        found = np.flatnonzero(names_of_views == name)
        counts_N2[:, side] = np.bincount(rows[found], minlength=len(table))
        sides_N2[rows[found], side] = found - first_N[rows[found]]
    sides_N2[(counts_N2 != 1).any(axis=1)] = -1
    return sides_N2


def exchanged(sides_B2: npt.NDArray[np.int64], *, views: int, chosen_B: npt.NDArray[np.bool_]) -> Tensor:
    """Which place each place of the axis V takes its image from, int64 [B, V]: gather with it what lies on that axis.

    In the chosen cases left and right change places, both images or the only one: what is mirrored looks like the other
    side, a left eye like a right one. Cases that have not one place of each (-1) stay as they are.
    """
    cases = np.flatnonzero(chosen_B & (sides_B2 >= 0).all(axis=1))
    places_BV = np.tile(np.arange(views), (len(sides_B2), 1))
    left, right = sides_B2[cases].T
    places_BV[cases, left], places_BV[cases, right] = right, left
    return torch.from_numpy(places_BV)
