"""Which rows of an epoch stand together in a batch: any, those of one source, or each group at most once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from consilium.core.errors import ConfigError


@dataclass(frozen=True)
class Arrangement:
    """Batches of ``size`` rows that keep rules; ``sources_N`` and ``groups_N`` name the source and group of each row.

    With ``sources_N`` all rows of a batch are of one source, with ``groups_N`` no two are of one group; None: any may
    stand together. Every row that an epoch draws is in one of its batches. Of each source (without ``sources_N``: of
    all rows) one batch may be short; the short ones come last, and ``drop_last`` leaves them out.
    """

    size: int
    drop_last: bool
    sources_N: np.ndarray | None = None
    groups_N: np.ndarray | None = None

    def sizes(self, rows: np.ndarray) -> list[int]:
        """The sizes of the batches of these rows; groups that cannot be kept apart are a ConfigError."""
        parts = self._by_source(rows)
        if self.groups_N is not None:
            for part in parts:
                self._check(part)
        short = [] if self.drop_last else [len(part) % self.size for part in parts]
        return [self.size] * sum(len(part) // self.size for part in parts) + [rest for rest in short if rest]

    def arranged(self, rows: np.ndarray, *, random: np.random.Generator) -> np.ndarray:
        """The rows, batch after batch; sources take turns at random."""
        whole, short = [], []
        for part in self._by_source(rows):
            if self.groups_N is not None:
                self._check(part)
                part = part[apart(self._groups[1][part], size=self.size)]
            cut = len(part) - len(part) % self.size
            whole.append(part[:cut].reshape(-1, self.size))
            short.append(part[cut:])
        batches = np.concatenate(whole)
        if self.sources_N is not None:
            batches = random.permutation(batches)
        return np.concatenate([batches.ravel(), *short])

    @cached_property
    def _groups(self) -> tuple[np.ndarray, np.ndarray]:
        """The names of all groups, and the number of each row's."""
        assert self.groups_N is not None
        return np.unique(self.groups_N, return_inverse=True)

    @cached_property
    def _sources(self) -> tuple[np.ndarray, np.ndarray]:
        assert self.sources_N is not None
        return np.unique(self.sources_N, return_inverse=True)

    def _by_source(self, rows: np.ndarray) -> list[np.ndarray]:
        if self.sources_N is None:
            return [rows]
        number_N = self._sources[1][rows]
        return [rows[number_N == number] for number in np.unique(number_N)]

    def _check(self, rows: np.ndarray) -> None:
        """Refuse rows of which a group comes more often than there are batches."""
        whole, rest = divmod(len(rows), self.size)
        counts_G = np.bincount(self._groups[1][rows])
        most = int(counts_G.max())
        if most <= whole or (most == whole + 1 and (counts_G == most).sum() <= rest):
            return
        where = "" if self.sources_N is None else f" of source '{self.sources_N[rows[0]]}'"
        fits = len(rows) // most
        smaller = f"Set data.loader.batch_size to at most {fits}, leave out" if fits > 1 else "Leave out"
        raise ConfigError(
            f"data.mixture.groups_apart: the group '{self._groups[0][counts_G.argmax()]}' is drawn {most} times in an "
            f"epoch, whose {len(rows)} draws{where} make {whole + (rest > 0)} batches of {self.size}, and may be once "
            f"in each. {smaller} cases of large groups, or set data.mixture.groups_apart: false."
        )


def apart(groups_N: Sequence[int] | np.ndarray, *, size: int) -> np.ndarray:
    """An order [N] of rows in which no batch of ``size`` has a group twice; the last batch may be short.

    Rows keep their order, but for those that give way: where their group is in the batch already, or where another
    group has as many rows left as there are batches. There is such an order, and it is found, where no group has more
    rows than there are batches, and no more groups have as many as that than the last batch holds.
    """
    # From the last batch to the first: with the short one filled, the others are all alike.
    _, group_N, counts_G = np.unique(np.asarray(groups_N)[::-1], return_inverse=True, return_counts=True)
    places = np.split(np.argsort(group_N, kind="stable"), np.cumsum(counts_G)[:-1])
    filling = _Filling(group_N.tolist(), counts_G.tolist())
    whole, rest = divmod(len(group_N), size)
    chosen = filling.batch(rest, batches=whole + 1)
    chosen += [group for batches in range(whole, 0, -1) for group in filling.batch(size, batches=batches)]
    waiting = [iter(own.tolist()) for own in places]
    order = np.array([next(waiting[group]) for group in chosen], dtype=np.int64)
    order = len(group_N) - 1 - order[::-1]
    for start in range(0, len(order), size):
        order[start : start + size].sort()
    return order


class _Filling:
    """The groups of rows in their order, from which batches are filled."""

    def __init__(self, groups: Sequence[int], left: Sequence[int]) -> None:
        """``left`` is how many rows each group has."""
        self._order, self._left = iter(groups), list(left)
        self._with: dict[int, dict[int, None]] = {}  # groups by how many rows they have left
        for group, count in enumerate(left):
            self._with.setdefault(count, {})[group] = None
        self._waiting: Counter[int] = Counter()  # rows that were passed over
        self._ahead: Counter[int] = Counter()  # rows that were taken before their turn

    def batch(self, size: int, *, batches: int) -> list[int]:
        """The groups of the next batch, each once, where so many ``batches`` are to be filled with this one."""
        chosen: dict[int, None] = {}
        for group in [*self._with.get(batches, ())][:size]:
            if self._waiting[group]:
                self._waiting[group] -= 1
            else:
                self._ahead[group] += 1
            self._take(group, chosen)
        self._waiting = +self._waiting
        for group in [group for group in self._waiting if group not in chosen][: size - len(chosen)]:
            self._waiting[group] -= 1
            self._take(group, chosen)
        while len(chosen) < size:
            group = next(self._order)
            if self._ahead[group]:
                self._ahead[group] -= 1
            elif group in chosen:
                self._waiting[group] += 1
            else:
                self._take(group, chosen)
        return [*chosen]

    def _take(self, group: int, chosen: dict[int, None]) -> None:
        chosen[group] = None
        count = self._left[group]
        del self._with[count][group]
        self._left[group] = count - 1
        self._with.setdefault(count - 1, {})[group] = None
