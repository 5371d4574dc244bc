"""What is odd about the views of the cases of a training, before any model is built.

Axes in names: N case of a table, V view.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from consilium.core.errors import DataError
from consilium.core.reporter import counted
from consilium.data.batches.laterality import places_of
from consilium.data.cases.cases import SPLITS, Cases
from consilium.tasks.align.config import AlignConfig


def refuse_missing_views(cases: Cases, section: AlignConfig) -> None:
    """A split whose cases have never all of the named views, or several pictures where one is read, is a DataError."""
    if section.views is None:
        return
    if section.views.monocular:
        several = [row for rows in cases.rows.values() for row in rows.tolist() if len(cases.table.view_names(row)) > 1]
        if several:
            raise DataError(
                f"task.views.monocular reads one picture of a case, and {counted(len(several), 'case')} have several "
                f"(the first: {cases.table.ids[several[0]]}). Make each picture a case of its own, or leave monocular "
                "out to train each view and the case."
            )
        return
    for split, there_NV in _there(cases, section):
        if split != "test" and len(there_NV) and not there_NV.all(axis=1).any():
            raise DataError(
                f"no case of {split} has all views ({', '.join(section.view_names)}), so that "
                f"{'the map of the case would learn nothing' if split == 'train' else 'retrieval cannot be judged'}. "
                "Check the columns of images and the groups, or take task.views.monocular: true."
            )


def missing_views(cases: Cases, section: AlignConfig) -> list[str]:
    """How many cases of each split lack which view, and how many have views of other names, which no task reads."""
    if not section.view_names:
        return []
    owners, names = cases.table.view_column("name")
    others = sorted({str(name) for name in names} - set(section.view_names))
    with_others = {owner for owner, name in zip(owners.tolist(), names, strict=True) if str(name) in others}
    notes = []
    for split in SPLITS if others else ():
        if count := len(with_others.intersection(cases.rows[split].tolist())):
            told = (
                f"{split}: {count} of {counted(len(cases.rows[split]), 'case')} have further views, which are not read"
            )
            notes.append(f"{told} ({', '.join(others)}). task.views.names says which are.")
    for split, there_NV in _there(cases, section):
        counts = (~there_NV).sum(axis=0).tolist()
        if lacks := [f"{count} lack {name}" for name, count in zip(section.view_names, counts, strict=True) if count]:
            whole, end = int(there_NV.all(axis=1).sum()), "; each trains what it has" if split == "train" else ""
            of = counted(len(there_NV), "case")
            notes.append(f"{split}: {whole} of {of} have all views, {', '.join(lacks)}{end}.")
    return notes


def _there(cases: Cases, section: AlignConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Of each split which cases have which views, bool [N, V]."""
    places_NV, _ = places_of(cases.table, section.view_names)
    for split in SPLITS:
        yield split, places_NV[cases.rows[split]] >= 0
