"""Leaks: the same patient, file or picture on several sides of a split, and taking all but one side out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from consilium.core.reporter import counted, some
from consilium.data.case import SPLITS
from consilium.data.store.store import CaseTable

Kind = Literal["group", "group_across_sources", "file", "near_duplicate"]
KEPT_FIRST = ("test", "val", "train")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Leak:
    """The same thing in several splits.

    ``kind``: ``group`` (within a source), ``group_across_sources`` (may be two patients of one name), ``file`` (the
    same bytes) or ``near_duplicate`` (almost the same picture). ``key`` is the group, the start of the file's sha256,
    or the first case. ``rows`` are the rows of the table that was searched, with their ``ids``.
    """

    kind: Kind
    key: str
    splits: tuple[str, ...]
    ids: tuple[str, ...]
    rows: tuple[int, ...]
    message: str


def find_leaks(table: CaseTable, *, near_duplicates: Sequence[tuple[int, int]] = ()) -> list[Leak]:
    """What is in more than one of train, val and test; the unlabelled split is no side.

    Purpose: a figure measured on what training has seen says nothing. Found are groups of one source, groups of one
    name in several sources, files with the same bytes, and the clusters that the pairs of rows ``near_duplicates``
    join (a ~ b and b ~ c are one cluster). Cost: one pass over groups and file hashes.
    """
    splits = table.splits
    by_source = zip(table.sources, table.groups, strict=True)
    found = [
        _leak(table, "group", group, rows, what=f"group '{group}'", advice="put it on one side.")
        for (_, group), rows in _on_several_sides(table, enumerate(by_source))
    ]
    for group, rows in _on_several_sides(table, enumerate(table.groups)):
        sources = sorted({table.sources[row] for row in rows})
        if len(sources) > 1:
            through = f" through the sources {', '.join(sources)}"
            advice = "put it on one side, or rename the groups if these are not the same patient."
            found.append(
                _leak(
                    table, "group_across_sources", group, rows, what=f"group '{group}'", through=through, advice=advice
                )
            )
    found += [
        _leak(table, "file", digest[:12], rows, what="the same file", advice="keep one of them.")
        for digest, rows in _on_several_sides(table, table.file_hashes())
    ]
    crossing = [
        (a, b)
        for a, b in near_duplicates
        if len({splits[a], splits[b]} - {"unlabelled"}) > 1
        and (table.sources[a], table.groups[a]) != (table.sources[b], table.groups[b])  # else the group is told
    ]
    advice = "keep one of them, or give them one group."
    found += [
        _leak(table, "near_duplicate", table.ids[rows[0]], rows, what="almost the same image", advice=advice)
        for rows in clusters(crossing)
    ]
    return found


def one_split(table: CaseTable, leaks: Sequence[Leak]) -> list[str]:
    """A message where every test case has its image in validation, too: the split that chooses also judges."""
    test = {row for row, split in enumerate(table.splits) if split == "test"}
    shared = {
        row for leak in leaks if leak.kind in ("file", "near_duplicate") and "val" in leak.splits for row in leak.rows
    }
    if not test or not test <= shared:
        return []
    cases = "the one test case" if len(test) == 1 else f"each of the {len(test):,} test cases"
    return [
        f"they are one: {cases} is in val, too. Validation chooses the weights, so that the test figures are too "
        "good. Give no source split: val; validation is then taken from train, by group."
    ]


def _on_several_sides(table: CaseTable, pairs: Iterable[tuple[int, Key]]) -> list[tuple[Key, list[int]]]:
    """The keys, of (row, key), whose rows are in several of train, val and test, and these rows."""
    splits = table.splits
    judged = [(row, key) for row, key in pairs if splits[row] != "unlabelled"]
    first: dict[Key, str] = {}
    rows: dict[Key, list[int]] = {key: [] for row, key in judged if first.setdefault(key, splits[row]) != splits[row]}
    for row, key in judged:
        if key in rows:
            rows[key].append(row)
    return list(rows.items())


def _leak(
    table: CaseTable, kind: Kind, key: str, rows: Sequence[int], *, what: str, through: str = "", advice: str
) -> Leak:
    rows = sorted(set(rows))
    found = {table.splits[row] for row in rows}
    splits = tuple(split for split in SPLITS if split in found)
    ids = tuple(table.ids[row] for row in rows)
    message = f"{what} is in {' and '.join(splits)}{through} (cases {some(ids, 3)}); {advice}"
    return Leak(kind, key, splits, ids, tuple(rows), message)


def clusters(links: Iterable[Sequence[int]]) -> list[list[int]]:
    """The rows that links join, directly or through others: each cluster sorted, in the order of their first rows."""
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        while parent.setdefault(row, row) != row:
            parent[row] = row = parent[parent[row]]
        return row

    for link in links:
        for row in link:
            parent[max(root(row), root(link[0]))] = min(root(row), root(link[0]))
    members: dict[int, list[int]] = defaultdict(list)
    for row in sorted(parent):
        members[root(row)].append(row)
    return list(members.values())


@dataclass(frozen=True)
class Dropped:
    """Which rows stay, bool [N], and what a person is told of the others."""

    keep: np.ndarray
    notes: list[str]


def drop_leaks(table: CaseTable, leaks: Sequence[Leak]) -> Dropped:
    """Leave what leaks on one side alone: in test if any of it is there, else in val.

    Leaks that share a case are one cluster, so that afterwards none is left. Test never loses a case. A group of one
    name in several sources stays as it is: patients '1' of two hospitals are rarely one person.
    """
    keep = np.ones(len(table), dtype=bool)
    for rows in clusters(leak.rows for leak in leaks if leak.kind != "group_across_sources"):
        stays = min((table.splits[row] for row in rows), key=KEPT_FIRST.index)
        keep[[row for row in rows if table.splits[row] != stays]] = False
    gone = Counter((table.splits[row], "|".join(table.labels[row]) or "(none)") for row in np.flatnonzero(~keep))
    if not gone:
        return Dropped(keep, [])
    told = [f"{split} {label} ({count})" for (split, label), count in sorted(gone.items())]
    what = f"{counted(gone.total(), 'case')} that {'leaks' if gone.total() == 1 else 'leak'}"
    return Dropped(keep, [f"data.on_leak: drop takes out {what}: {some(told, 8)}."])
