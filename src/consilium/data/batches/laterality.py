"""Views of a case by their names: where they are, and left and right, which a mirror exchanges.

Axes in names: B case in a batch, N case of a table, V view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from consilium.data.store.store import CaseTable

LEFT, RIGHT = "left", "right"


@dataclass(frozen=True)
class NamedViews:
    """The views of cases in the order of ``names``, None where a case has none of a name."""

    table: CaseTable
    names: tuple[str, ...]

    def images(self, row: int) -> list[str | bytes | None]:
        """The views of a row; a case has at most one of a name."""
        own = dict(zip(self.table.view_names(row), self.table.images(row), strict=True))
        return [own.get(name) for name in self.names]


def places_of(table: CaseTable, names: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where among its own views each case has the last of each name, int64 [N, V], -1: nowhere; and how many [N, V]."""
    rows, own = table.view_column("name")
    first_N = np.searchsorted(rows, np.arange(len(table)))
    names_of_views = np.array(own, dtype=object)
    places_NV = np.full((len(table), len(names)), -1, dtype=np.int64)
    counts_NV = np.zeros_like(places_NV)
    for view, name in enumerate(names):
        found = np.flatnonzero(names_of_views == name)
        counts_NV[:, view] = np.bincount(rows[found], minlength=len(table))
        places_NV[rows[found], view] = found - first_N[rows[found]]
    return places_NV, counts_NV


def sides_of(table: CaseTable, names: tuple[str, ...] = ()) -> npt.NDArray[np.int64]:
    """Where on the axis V the views called left and right of each case are, [N, 2]; -1 where it has not one of each.

    With ``names`` the axis has a place for each of them in every case, be there an image or not.
    """
    if {LEFT, RIGHT} <= set(names):
        return np.tile([names.index(LEFT), names.index(RIGHT)], (len(table), 1))
    sides_N2, counts_N2 = places_of(table, (LEFT, RIGHT))
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
