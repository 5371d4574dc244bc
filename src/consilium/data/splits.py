"""Which split a case is in: explicit ones win, a stable hash of the group decides the rest."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from consilium.core.errors import DataError
from consilium.core.labels import with_ancestors
from consilium.core.reporter import some
from consilium.data.config import SplitConfig

if TYPE_CHECKING:
    from consilium.data.store import CaseTable

# What tables write into a cell that has no value.
_NO_VALUE = frozenset({"nan", "na", "n/a", "#n/a", "<na>", "nat", "null", "none", "nil"})


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


def check_splits(table: CaseTable, *, nested: bool = False) -> list[str]:
    """What is odd about the splits, as warnings; a table without train rows is a DataError.

    ``nested``: the labels are learned as a tree, in which a label above others has their cases, too.
    """
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
    counts = {split: _label_counts(table, found, nested=nested) for split, found in rows.items()}
    alone = set() if nested else _alone(counts["train"])
    for split in ("val", "test"):
        unknown = sorted(set(counts[split]) - set(counts["train"]))
        if unknown:
            warnings.append(f"labels in {split} that train never shows: {_some(unknown)}.")
        absent = sorted(set(counts["train"]) - set(counts[split]) - alone)
        if len(rows[split]) and absent:
            warnings.append(f"labels of train that {split} has no case of: {_some(absent)}.")
    empty = sorted(label for label in set().union(*counts.values()) if label.rpartition(".")[2].lower() in _NO_VALUE)
    if empty:
        warnings.append(
            f"labels that look like a missing value: {_some(empty)}. Each is a class now: leave those cells empty, or "
            "name the classes wanted in data.filters.labels."
        )
    rare = sorted(label for label, count in counts["train"].items() if count == 1 and label not in alone)
    if rare:
        warnings.append(f"labels with a single training case: {_some(rare)}.")
    if alone:
        warnings.append(
            f"labels above others that have a single training case of their own: {_some(sorted(alone))}. A flat head "
            "takes each for a class beside those below it; task.tree.head: joint takes it for their parent."
        )
    if counts["train"]:
        most, least = max(counts["train"].values()), min(counts["train"].values())
        if most >= 10 * least:
            warnings.append(
                f"classes are uneven: the largest has {most / least:.0f} times the cases of the smallest; "
                "consider data.mixture.sampling: class_balanced or class weights."
            )
    return warnings


def _label_counts(table: CaseTable, rows: np.ndarray, *, nested: bool) -> dict[str, int]:
    """Cases of every label among the rows; nested also of the labels above, which have the cases below them."""
    labels = (table.labels[row] for row in rows)
    return dict(Counter(label for own in labels for label in (with_ancestors(own) if nested else own)))


def _alone(counts: dict[str, int]) -> set[str]:
    """The labels above others that have one case of their own."""
    above = with_ancestors(label.rpartition(".")[0] for label in counts)
    return {label for label, count in counts.items() if count == 1 and label in above}


def _some(names: list[str]) -> str:
    return some([f"'{name}'" for name in names], 8)
