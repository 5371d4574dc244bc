"""Which split a case is in: explicit ones win, a stable hash of the group decides the rest."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from consilium.core.errors import DataError
from consilium.core.reporter import some
from consilium.data.case import looks_missing
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
    empty = sorted(label for label in set().union(*counts.values()) if looks_missing(label.rpartition(".")[2]))
    if empty:
        warnings.append(
            f"labels that look like a missing value: {_some(empty)}. Each is a class now: leave those cells empty, or "
            "name the classes wanted in data.filters.labels."
        )
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
    return some([f"'{name}'" for name in names], 8)
