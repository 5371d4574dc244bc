"""The label tree: dot paths such as ``radiology.ct`` and the fixed integer id of every node."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from consilium.core.errors import DataError
from consilium.core.reporter import counted, some

ROOT = "root"  # how the node above all labels is called in configs and tables
_MOST_LEVELS = 100  # of a tree in YAML
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")


@dataclass(frozen=True)
class Siblings:
    """The children of one node, in the order of their ids; ``parent`` is None for the root's."""

    parent: int | None
    ids: tuple[int, ...]


class LabelTree:
    """The classes of a task in a fixed order: the order given is that of the integer ids.

    Flat, every label is a class of its own whatever dots it has, and all are siblings. Nested, the dots make a tree:
    every node above a label is a class too. Ids never change once saved in a bundle; new nodes come at the end.

    Axes in names: N case, M node, G group of siblings, L level (0 is below the root).
    """

    def __init__(self, names: Sequence[str], *, nested: bool = False) -> None:
        if len(set(names)) != len(names):
            raise DataError(f"labels are given twice: {sorted(x for x in set(names) if list(names).count(x) > 1)}.")
        self.names: tuple[str, ...] = tuple(names)
        self.nested = nested
        self._index = {name: number for number, name in enumerate(self.names)}
        if nested and ROOT in self._index:
            raise DataError(
                f"'{ROOT}' is what the node above all labels is called; give your label another name "
                f"(data.rename_labels: {{{ROOT}: other}})."
            )
        for name in self.names if nested else ():
            above = name.rpartition(".")[0]
            if above and above not in self._index:
                raise DataError(f"label '{name}' has no parent '{above}' among the labels of the tree; add it.")

    @classmethod
    def from_labels(cls, rows: Iterable[Sequence[str]], *, nested: bool = False) -> LabelTree:
        """The sorted labels that occur in rows of labels, and nested all nodes above them."""
        found = {label for row in rows for label in row}
        return cls(sorted(with_ancestors(found) if nested else found), nested=nested)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"<LabelTree of {counted(len(self), 'node' if self.nested else 'label')}: {some(self.names, 5)}>"

    def index(self, label: str) -> int:
        """The integer id of a label; an unknown one is a DataError."""
        try:
            return self._index[label]
        except KeyError:
            raise DataError(f"label '{label}' is unknown; the labels are: {', '.join(self.names)}.") from None

    def indices(self, rows: Sequence[Sequence[str]]) -> np.ndarray:
        """Ids [N] of rows that hold one label each; -1 where a row has none."""
        return np.array([self.index(row[0]) if row else -1 for row in rows], dtype=np.int64)

    def multi_hot(self, rows: Sequence[Sequence[str]]) -> np.ndarray:
        """Targets [N, M] in {0, 1} of rows that hold any number of labels."""
        targets_NM = np.zeros((len(rows), len(self)), dtype=np.float32)
        for row_number, row in enumerate(rows):
            targets_NM[row_number, [self.index(label) for label in row]] = 1.0
        return targets_NM

    def parent(self, node: int) -> int | None:
        """The node above, None for one below the root."""
        above = self.names[node].rpartition(".")[0] if self.nested else ""
        return self._index[above] if above else None

    def path(self, node: int) -> tuple[int, ...]:
        """The ids from the node below the root down to ``node``."""
        path, above = [node], self.parent(node)
        while above is not None:
            path.append(above)
            above = self.parent(above)
        return tuple(reversed(path))

    @cached_property
    def siblings(self) -> tuple[Siblings, ...]:
        """All groups of siblings, from the root down."""
        found: dict[int | None, list[int]] = {None: []}
        for node in sorted(range(len(self)), key=lambda node: (len(self.path(node)), node)):
            found.setdefault(self.parent(node), []).append(node)
        return tuple(Siblings(parent, tuple(sorted(ids))) for parent, ids in found.items() if ids)

    @property
    def choices(self) -> tuple[Siblings, ...]:
        """The groups among which there is something to decide: an only child has the probability of its parent."""
        return tuple(group for group in self.siblings if len(group.ids) > 1)

    @cached_property
    def leaf_ids(self) -> tuple[int, ...]:
        """The ids of the nodes without children, in their order."""
        inner = {group.parent for group in self.siblings}
        return tuple(node for node in range(len(self)) if node not in inner)

    @property
    def leaves(self) -> tuple[str, ...]:
        """The names of the nodes without children, in the order of their ids; flat: all labels."""
        return tuple(self.names[node] for node in self.leaf_ids)

    @cached_property
    def levels(self) -> int:
        """How many nodes the longest path has; flat: 1."""
        return max(len(self.path(node)) for node in range(len(self)))

    @cached_property
    def paths_ML(self) -> np.ndarray:
        """The path of every node [M, L] as ids from the top, -1 past its end."""
        paths_ML = np.full((len(self), self.levels), -1, dtype=np.int64)
        for node in range(len(self)):
            path = self.path(node)
            paths_ML[node, : len(path)] = path
        return paths_ML

    @cached_property
    def ancestry_MM(self) -> np.ndarray:
        """Whether the second node is on the path of the first, itself included, [M, M] bool."""
        return np.asarray((self.paths_ML[:, :, None] == np.arange(len(self))).any(1))

    @cached_property
    def steps_MG(self) -> np.ndarray:
        """Which child, counted from 0 among its siblings, the path of a node takes in each group; -1: it is not there.

        [M, G] int64, with the groups in the order of ``siblings``.
        """
        steps_MG = np.full((len(self), len(self.siblings)), -1, dtype=np.int64)
        for number, group in enumerate(self.siblings):
            for child, node in enumerate(group.ids):
                steps_MG[self.ancestry_MM[:, node], number] = child
        return steps_MG

    def name_of(self, node: int | None) -> str:
        """The name of a node; ``root`` for None."""
        return ROOT if node is None else self.names[node]


def reading_order(labels: Iterable[str]) -> list[str]:
    """Labels as a table lists them: whole numbers by their value, and behind them the others as they came."""
    return sorted(labels, key=lambda label: (not _is_number(label), int(label) if _is_number(label) else 0))


def class_order(labels: Sequence[str], *, given: Sequence[str] = ()) -> tuple[str, ...] | None:
    """The classes from the lowest to the highest, None where nobody said which that is.

    ``given``, the labels in the order that somebody wrote down, counts where it has all of them. Else whole numbers, if
    each label is another one, are in the order of their values. An alphabetical order says nothing.
    """
    if set(labels) <= set(given):
        return tuple(label for label in given if label in labels)
    if all(_is_number(label) for label in labels) and len({int(label) for label in labels}) == len(labels):
        return tuple(reading_order(labels))
    return None


def _is_number(label: str) -> bool:
    """Whether a label is a whole number."""
    return _WHOLE_NUMBER.fullmatch(label) is not None


def indented(name: str) -> str:
    """A node in a line of a drawn tree: ``root``, or the last part of a dot path, two spaces in for each level."""
    *above, last = name.split(".")
    return ROOT if name == ROOT else "  " * (1 + len(above)) + last


def with_ancestors(labels: Iterable[str]) -> set[str]:
    """The labels and all nodes above them."""
    return {step for label in labels for step in _steps(label)}


def _steps(path: str) -> list[str]:
    """The paths from the top down to this one."""
    parts = path.split(".")
    return [".".join(parts[: depth + 1]) for depth in range(len(parts))]


def paths_of(nodes: Sequence[Any] | Mapping[str, Any]) -> list[str]:
    """The dot paths of a tree in YAML, parents before children: a list of paths, or a mapping of names to subtrees.

    A subtree is a list, a mapping, or null for a leaf. Nodes that are left out above others are filled in. What is no
    tree, or names a node twice, is a ValueError.
    """
    given = Counter(_given(nodes, above=""))
    if twice := [path for path, count in given.items() if count > 1]:
        raise ValueError(f"given twice: {', '.join(twice)}; name each node once")
    return list(dict.fromkeys(step for path in given for step in _steps(path)))


def _given(nodes: Sequence[Any] | Mapping[str, Any], *, above: str) -> Iterator[str]:
    """The paths that are named, in their order."""
    for name, below in nodes.items() if isinstance(nodes, Mapping) else ((name, None) for name in nodes):
        if not isinstance(name, str):
            where = f"the list below '{above}'" if above else "the list"
            raise ValueError(
                f"in {where} stands {name!r}; expected names (numbers in quotes). For levels below some of them make "
                "it a mapping, with null for each leaf"
            )
        path = f"{above}.{name}" if above else name
        if not all(part.strip() for part in path.split(".")):
            raise ValueError(f"'{path}' has an empty part; a dot separates levels, as in a.b")
        if path.count(".") >= _MOST_LEVELS:
            raise ValueError(f"'{path[:40]}...' is below {_MOST_LEVELS} others; a tree has at most so many levels")
        if below is not None and not isinstance(below, Mapping | list | tuple):
            raise ValueError(f"below '{path}' stands {below!r}; expected a list, a mapping or null")
        yield path
        yield from _given(below or [], above=path)
