"""Which split a case is in: explicit ones win, a stable hash of the group decides the rest."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from consilium.core.errors import DataError
from consilium.core.labels import with_ancestors
from consilium.core.reporter import some
from consilium.data.case import looks_missing
from consilium.data.config import SplitConfig

if TYPE_CHECKING:
    from consilium.data.store.store import CaseTable


@dataclass(frozen=True)
class SplitRule:
    """What decides the splits of one source; made by ``split_rule``.

    ``given_by_group`` is only filled where some rows of a source have a split and others have none:
    those follow their group, so that no patient ends on two sides. ``moved`` are groups that stand in where the hash
    leaves a class without a case in a split (``fill_splits``).
    """

    val_from_train: bool = False
    given_by_group: Mapping[str, str] = field(default_factory=dict)
    moved: Mapping[str, str] = field(default_factory=dict)

    def choices(self, group: str, given: str | None) -> tuple[str, ...]:
        """The splits that the hash chooses from; the only one where the data decides."""
        given = given or self.given_by_group.get(group)
        if given is None:
            return ("train", "val", "test")
        return ("train", "val") if given == "train" and self.val_from_train else (given,)


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


@lru_cache(maxsize=2**16)  # it is asked for each row of a group, before and after the groups are divided
def position(group: str, *, seed: int) -> float:
    """Where a group falls in [0, 1); depends on nothing but the group and the seed."""
    digest = hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def assign_split(group: str, given: str | None, *, rule: SplitRule, config: SplitConfig) -> str:
    """The split of one row."""
    choices = rule.choices(group, given)
    if len(choices) == 1:
        return choices[0]
    return rule.moved.get(group) or _by_hash(group, choices, config)


def _by_hash(group: str, choices: tuple[str, ...], config: SplitConfig) -> str:
    place = position(group, seed=config.seed)
    if place < config.val:
        return "val"
    return "test" if "test" in choices and place < config.val + config.test else "train"


def _ranges(choices: tuple[str, ...], config: SplitConfig) -> dict[str, tuple[float, float]]:
    """The positions of each split, [from, to)."""
    test = config.val + config.test if "test" in choices else config.val
    return {"val": (0.0, config.val), "test": (config.val, test), "train": (test, 1.0)}


class _Rows(NamedTuple):
    """What rows of one group have in common; ``origin`` is what the column that tells sources apart says."""

    source: str
    split: str | None
    labels: tuple[str, ...]
    origin: str


class GroupSurvey:
    """The groups of all sources with the labels that they have, before they are divided."""

    def __init__(self) -> None:
        self.groups: dict[str, tuple[_Rows, ...]] = {}
        self._known: dict[_Rows, _Rows] = {}  # millions of groups share a few

    def add(self, group: str, *, source: str, split: str | None, labels: tuple[str, ...], origin: str = "") -> None:
        """Take a row with a true label; ``origin`` matters with ``keep_sources_in`` alone."""
        found = _Rows(source, split, labels, origin)
        rows = self._known.setdefault(found, found)
        before = self.groups.get(group, ())
        if rows not in before:
            self.groups[group] = (*before, rows)


_Cell = tuple[str, str]  # an origin and a label


class _Group(NamedTuple):
    """A group, the split that it has by the data or the hash, and those it may be in."""

    name: str
    split: str
    choices: tuple[str, ...]
    labels: tuple[str, ...]
    cells: tuple[_Cell, ...]


class _Counts:
    """Groups of each label in each split, and of each cell in train."""

    def __init__(self, groups: Iterable[_Group]) -> None:
        self.labels: dict[str, Counter[str]] = defaultdict(Counter)
        self.trained: Counter[_Cell] = Counter()
        for group in groups:
            self._count(group, group.split, 1)

    def move(self, group: _Group, split: str) -> None:
        """Put a group into another split."""
        self._count(group, group.split, -1)
        self._count(group, split, 1)

    def can_spare(self, group: _Group, *, cells: bool) -> bool:
        """Whether its split keeps all its labels without it, and with ``cells`` train its cells."""
        keeps = all(self.labels[label][group.split] > 1 for label in group.labels)
        return keeps and not (cells and group.split == "train" and any(self.trained[cell] < 2 for cell in group.cells))

    def _count(self, group: _Group, split: str, step: int) -> None:
        for label in group.labels:
            self.labels[label][split] += step
        if split == "train":
            self.trained.update(dict.fromkeys(group.cells, step))


def fill_splits(survey: GroupSurvey, *, rules: Mapping[str, SplitRule], config: SplitConfig) -> dict[str, str]:
    """The groups that the hash does not place, and where they go: those that ``config`` has moved.

    ``keep_sources_in: train``: of every class and source some group trains. Where the hash leaves train without one,
    the group moves there whose position is nearest to that of train.

    ``every_class``: every class has a case in every split. A class counts that has at least as many groups as there
    are splits to choose from (three; two where test is given and validation is taken from train). Where the hash leaves
    a split without one of its groups, the nearest group moves there, unless that would leave its own split without one
    of its classes, or train without what ``keep_sources_in`` keeps there. The smallest classes come first.

    So only groups of classes, or sources, with such a gap ever move. New data moves such a group back, or another
    instead of it, when it brings a group that the hash puts there, or a nearer one; all other groups stay where they
    are.
    """
    groups = _placed(survey, rules, config)
    moved: dict[str, str] = {}
    if config.keep_sources_in is not None:
        moved = _kept_in_train(groups, config)
        groups = [group._replace(split="train") if group.name in moved else group for group in groups]
    return moved | (_filled(groups, config) if config.every_class else {})


def _kept_in_train(groups: list[_Group], config: SplitConfig) -> dict[str, str]:
    counts = _Counts(groups)
    members: dict[_Cell, list[_Group]] = defaultdict(list)
    for group in groups:
        for cell in group.cells if "train" in group.choices else ():
            members[cell].append(group)
    moved: dict[str, str] = {}
    for cell in sorted(members):
        if not counts.trained[cell]:
            nearest = min(members[cell], key=lambda group: (_distance(group, "train", config), group.name))
            counts.move(nearest, "train")
            moved[nearest.name] = "train"
    return moved


def _filled(groups: list[_Group], config: SplitConfig) -> dict[str, str]:
    wanted = [split for split, share in (("test", config.test), ("val", config.val), ("train", 1.0)) if share]
    counts = _Counts(groups)
    choices: dict[str, set[str]] = defaultdict(set)
    for group in groups:
        for label in group.labels if len(group.choices) > 1 else ():
            choices[label].update(group.choices)
    size = {label: sum(own[split] for split in ("train", "val", "test")) for label, own in counts.labels.items()}
    gaps = {
        label: missing
        for label, own in choices.items()
        if (missing := [split for split in wanted if split in own and not counts.labels[label][split]])
        and size[label] >= len(own.intersection(wanted))
    }
    members: dict[str, list[_Group]] = defaultdict(list)
    for group in groups if gaps else ():
        for label in group.labels:
            if label in gaps and len(group.choices) > 1:
                members[label].append(group)
    moved: dict[str, str] = {}
    for label in sorted(gaps, key=lambda label: (size[label], label)):
        for split in gaps[label]:
            free = [
                group
                for group in members[label]
                if split in group.choices
                and group.name not in moved
                and counts.can_spare(group, cells=config.keep_sources_in is not None)
            ]
            if counts.labels[label][split] or not free:  # a group of several labels may have filled it
                continue
            nearest = min(free, key=lambda group: (_distance(group, split, config), group.name))
            counts.move(nearest, split)
            moved[nearest.name] = split
    return moved


def _placed(survey: GroupSurvey, rules: Mapping[str, SplitRule], config: SplitConfig) -> list[_Group]:
    """Every group where the data, or else the hash, puts it; one choice where it cannot move."""
    known: dict[tuple[_Rows, ...], tuple[set[tuple[str, ...]], tuple[str, ...], tuple[_Cell, ...]]] = {}
    follows = any(rule.given_by_group for rule in rules.values())  # then rows that are alike are not placed alike
    groups = []
    for name, rows in survey.groups.items():
        if follows or rows not in known:
            ways = {rules[found.source].choices(name, found.split) for found in rows}
            cells = dict.fromkeys((found.origin, label) for found in rows for label in found.labels)
            known[rows] = ways, tuple(dict.fromkeys(label for _, label in cells)), tuple(cells)
        ways, labels, own = known[rows]
        choices = min(ways, key=lambda way: (len(way), way))
        split = choices[0] if len(choices) == 1 else _by_hash(name, choices, config)
        groups.append(_Group(name, split, choices if len(ways) == 1 else (split,), labels, own))
    return groups


def _distance(group: _Group, split: str, config: SplitConfig) -> float:
    """How far a group is from a split: test takes from the low end of train, val from the high end, around 1 to 0."""
    low, high = _ranges(group.choices, config)[split]
    place = position(group.name, seed=config.seed)
    if split == "val":
        return 1.0 - place
    if split == "test":
        return low - place if place < low else place - high
    return min(low - place, place)


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
    warnings += missing_values(set().union(*counts.values()))
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


def missing_values(labels: Iterable[str]) -> list[str]:
    """A warning of labels that look like what tables write where there is none."""
    empty = sorted(label for label in set(labels) if looks_missing(label.rpartition(".")[2]))
    if not empty:
        return []
    return [
        f"labels that look like a missing value: {_some(empty)}. Each is a class now: leave those cells empty, or "
        "name the classes wanted in data.filters.labels."
    ]


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
