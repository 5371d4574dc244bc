"""Which split a case is in: explicit ones win, a stable hash of the group decides the rest."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from consilium.core.errors import DataError
from consilium.data.case import SPLITS
from consilium.data.config import SplitConfig

if TYPE_CHECKING:
    from consilium.data.store import CaseTable


@dataclass(frozen=True)
class SplitRule:
    """What decides the splits of one source; made by ``split_rule``.

    ``given_by_group`` is only filled where some rows of a source have a split and others have none:
    those follow their group, so that no patient ends on two sides.
    """

    val_from_train: bool = False
    given_by_group: Mapping[str, str] = field(default_factory=dict)


def split_rule(given: Iterable[tuple[str, str | None]]) -> SplitRule:
    """The rule for a source, from the (group, explicit split or None) of all its rows."""
    by_group: dict[str, str] = {}
    found: set[str | None] = set()
    for group, split in given:
        found.add(split)
        if split is not None:
            by_group.setdefault(group, split)
    mixed = None in found and len(found) > 1
    return SplitRule(val_from_train="train" in found and "val" not in found, given_by_group=by_group if mixed else {})


def position(group: str, *, seed: int) -> float:
    """Where a group falls in [0, 1); depends on nothing but the group and the seed."""
    digest = hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def assign_split(group: str, given: str | None, *, rule: SplitRule, config: SplitConfig) -> str:
    """The split of one row."""
    given = given or rule.given_by_group.get(group)
    if given is not None and not (given == "train" and rule.val_from_train):
        return given
    place = position(group, seed=config.seed)
    if place < config.val:
        return "val"
    if given is None and place < config.val + config.test:
        return "test"
    return "train"


@dataclass(frozen=True)
class Leak:
    """The same thing in several splits.

    ``kind``: ``group`` (within a source), ``group_across_sources`` (may be two patients of one name) or
    ``file`` (the same bytes); ``key`` is the group, or the start of the file's sha256.
    """

    kind: Literal["group", "group_across_sources", "file"]
    key: str
    splits: tuple[str, ...]
    ids: tuple[str, ...]
    message: str


def find_leaks(table: CaseTable) -> list[Leak]:
    """Groups and identical files that are in more than one of train, val and test."""
    leaks = [_group_leak(table, key, rows) for key, rows in _on_several_sides(table, enumerate(table.groups))]
    return leaks + [_file_leak(table, key, rows) for key, rows in _on_several_sides(table, table.file_hashes())]


def _on_several_sides(table: CaseTable, pairs: Iterable[tuple[int, str]]) -> list[tuple[str, list[int]]]:
    """The keys, of (row, key), whose rows are in several of train, val and test, and these rows."""
    splits = table.splits
    judged = [(row, key) for row, key in pairs if splits[row] != "unlabelled"]
    first: dict[str, str] = {}
    rows: dict[str, list[int]] = {key: [] for row, key in judged if first.setdefault(key, splits[row]) != splits[row]}
    for row, key in judged:
        if key in rows:
            rows[key].append(row)
    return list(rows.items())


def _file_leak(table: CaseTable, digest: str, rows: list[int]) -> Leak:
    splits, ids, named = _who(table, rows)
    message = f"the same file is in {' and '.join(splits)} (cases {named}); keep one of them."
    return Leak("file", digest[:12], splits, ids, message)


def _group_leak(table: CaseTable, group: str, rows: list[int]) -> Leak:
    splits, ids, named = _who(table, rows)
    where = " and ".join(splits)
    by_source: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        by_source[table.sources[row]].add(table.splits[row])
    if any(len(found) > 1 for found in by_source.values()):
        return Leak("group", group, splits, ids, f"group '{group}' is in {where} (cases {named}); put it on one side.")
    message = (
        f"group '{group}' is in {where} through the sources {', '.join(sorted(by_source))} (cases {named}); "
        "put it on one side, or rename the groups if these are not the same patient."
    )
    return Leak("group_across_sources", group, splits, ids, message)


def _who(table: CaseTable, rows: list[int]) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """The splits and ids of rows, and the first ids as a text."""
    found = {table.splits[row] for row in rows}
    ids = tuple(dict.fromkeys(table.ids[row] for row in rows))
    named = ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
    return tuple(split for split in SPLITS if split in found), ids, named


def check_splits(table: CaseTable) -> list[str]:
    """What is odd about the splits, as warnings; a table without train rows is a DataError."""
    rows = {split: table.rows(split) for split in ("train", "val", "test")}
    if not len(rows["train"]):
        found = ", ".join(sorted(set(table.splits))) or "none"
        raise DataError(
            f"no case is in the split 'train' (splits found: {found}). Name the split column or folder 'train', "
            "or leave splits out and let data.split decide."
        )
    warnings = [
        f"no case is in the split '{split}'; raise data.split.{split} or give more groups."
        for split in ("val", "test")
        if not len(rows[split])
    ]
    counts = {split: _label_counts(table, found) for split, found in rows.items()}
    for split in ("val", "test"):
        unknown = sorted(set(counts[split]) - set(counts["train"]))
        if unknown:
            warnings.append(f"labels in {split} that train never shows: {_some(unknown)}.")
        absent = sorted(set(counts["train"]) - set(counts[split]))
        if len(rows[split]) and absent:
            warnings.append(f"labels of train that {split} has no case of: {_some(absent)}.")
    rare = sorted(label for label, count in counts["train"].items() if count == 1)
    if rare:
        warnings.append(f"labels with a single training case: {_some(rare)}.")
    if counts["train"]:
        most, least = max(counts["train"].values()), min(counts["train"].values())
        if most >= 10 * least:
            warnings.append(
                f"classes are uneven: the largest has {most / least:.0f} times the cases of the smallest; "
                "consider data.mixture.sampling: class_balanced or class weights."
            )
    return warnings


def _label_counts(table: CaseTable, rows: np.ndarray) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        for label in table.labels[row]:
            counts[label] += 1
    return dict(counts)


def _some(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
