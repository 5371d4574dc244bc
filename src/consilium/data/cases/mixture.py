"""Which training row comes when: a pure function of (seed, epoch), known before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from consilium.core.errors import ConfigError, DataError
from consilium.data.cases.batching import Arrangement
from consilium.data.cases.cases import Cases, Studied
from consilium.data.cases.origins import sources_of
from consilium.data.config import DataConfig

MAX_SLOTS = 1e9  # an epoch is drawn before it starts and held in memory


@dataclass(frozen=True)
class Pool:
    """Rows that are drawn together, shuffled, each once before any comes again."""

    name: str
    rows: np.ndarray  # int64 row numbers of the case table
    weight: float


@dataclass(frozen=True)
class MixtureRow:
    """What one source (or value of ``source_column``) gives to a training."""

    source: str
    rows: int
    weight: float  # share of the draws that the config asks for
    draws: int  # realised, over the whole training
    share: float  # realised share of the draws
    seen: int  # different rows drawn at least once
    coverage: float  # seen / rows


class Mixture:
    """The order of training rows.

    Every slot draws a pool with probability weight / sum of weights; inside a pool the rows come in
    a fresh random order every epoch and every pass. ``first_exhausted`` ends an epoch with the last
    row of the pool that runs out first, ``all_exhausted`` when every pool has been used up (smaller
    ones start over), ``steps`` after a fixed number of slots. Pools that are drawn class-balanced
    start over too; an epoch then has as many slots as there are rows.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        *,
        stop: str,
        slots: int | None,
        seed: int,
        arrangement: Arrangement | None = None,
    ) -> None:
        """``arrangement``: the rules of batches, for which what an epoch draws is put into another order."""
        empty = [pool.name for pool in pools if not len(pool.rows)]
        if empty or not pools:
            raise DataError(
                f"no training rows in: {', '.join(empty) or 'any source'}. Check the split fractions and the "
                "filters, or take the source out of data.sources."
            )
        self.pools = list(pools)
        self.stop = stop
        self.slots = slots
        self.seed = seed
        self.arrangement = arrangement
        weights = np.array([pool.weight for pool in pools], dtype=np.float64)
        self.probabilities = weights / weights.sum()
        self._sizes = np.array([len(pool.rows) for pool in pools])
        needed = self._sizes / self.probabilities  # slots until a pool is used up, on average
        if stop == "all_exhausted" and slots is None and needed.max() > MAX_SLOTS:
            name = self.pools[int(needed.argmax())].name
            raise ConfigError(
                f"data.mixture.stop is all_exhausted, but with its weight source '{name}' would be used up only after "
                f"about {needed.max():.0e} draws. Raise its weight, or set stop: first_exhausted or steps."
            )
        self.epoch = lru_cache(maxsize=2)(self._epoch)
        self._lengths: dict[int, int] = {}
        self._sizes_of: dict[int, list[int]] = {}

    def chances(self, cases: int) -> np.ndarray:
        """The chance of each of so many rows of the case table to be the next that is drawn, [N]."""
        chance_N = np.zeros(cases)
        for pool, probability in zip(self.pools, self.probabilities, strict=True):
            chance_N[pool.rows] += probability / len(pool.rows)
        return chance_N

    def length(self, epoch: int) -> int:
        """How many rows the epoch draws."""
        if epoch not in self._lengths:
            self._lengths[epoch] = len(self._pool_sequence(epoch))
        return self._lengths[epoch]

    def sizes(self, epoch: int, *, size: int, drop_last: bool) -> list[int]:
        """The sizes of the batches of an epoch, in order; ``size`` is that of a whole one."""
        if epoch not in self._sizes_of:
            if self.arrangement is not None:
                found = self.arrangement.sizes(self._drawn(epoch))
            else:
                whole, rest = divmod(self.length(epoch), size)
                found = [size] * whole + ([] if drop_last or not rest else [rest])
            self._sizes_of[epoch] = found
        return self._sizes_of[epoch]

    def _epoch(self, epoch: int) -> np.ndarray:
        """Row numbers [slots] of an epoch, in the order of its batches."""
        rows = self._drawn(epoch)
        if self.arrangement is None:
            return rows
        return self.arrangement.arranged(rows, random=np.random.default_rng([self.seed, epoch, 2]))

    def _drawn(self, epoch: int) -> np.ndarray:
        """Row numbers [slots] of an epoch, in the order in which they are drawn."""
        sequence = self._pool_sequence(epoch)
        rows = np.empty(len(sequence), dtype=np.int64)
        for number, pool in enumerate(self.pools):
            places = np.flatnonzero(sequence == number)
            passes = -(-len(places) // len(pool.rows))
            orders = [
                np.random.default_rng([self.seed, epoch, 1, number, turn]).permutation(pool.rows)
                for turn in range(passes)
            ]
            if orders:
                rows[places] = np.concatenate(orders)[: len(places)]
        return rows

    def _pool_sequence(self, epoch: int) -> np.ndarray:
        """Pool numbers [slots] of an epoch."""
        random = np.random.default_rng([self.seed, epoch, 0])
        total = int(self._sizes.sum())
        if self.slots is not None:
            return random.choice(len(self.pools), size=self.slots, p=self.probabilities)
        if len(self.pools) == 1:
            return np.zeros(total, dtype=np.int64)
        sequence = np.empty(0, dtype=np.int64)
        while True:
            more = random.choice(len(self.pools), size=max(total, len(sequence)), p=self.probabilities)
            sequence = np.concatenate([sequence, more])
            # The slot (counted from 1) with which each pool gives its last row; none: not yet.
            ends = [places[size - 1] + 1 if len(places) >= size else None for places, size in self._places(sequence)]
            reached = [end for end in ends if end is not None]
            if self.stop == "first_exhausted" and reached:
                return sequence[: min(reached)]
            if len(reached) == len(self.pools):
                return sequence[: max(reached)]

    def _places(self, sequence: np.ndarray) -> list[tuple[np.ndarray, int]]:
        return [(np.flatnonzero(sequence == number), int(size)) for number, size in enumerate(self._sizes)]


class Whole(Mixture):
    """All training rows once, in one batch, for a task that is solved in one step.

    Nothing is drawn: what a row would have for a chance, in ``chances``, is what it counts.
    """

    def length(self, epoch: int) -> int:
        """All of them."""
        return int(self._sizes.sum())

    def sizes(self, epoch: int, *, size: int, drop_last: bool) -> list[int]:
        """One batch of all rows."""
        return [self.length(epoch)]

    def _drawn(self, epoch: int) -> np.ndarray:
        return np.sort(np.concatenate([pool.rows for pool in self.pools]))


def build_mixture(studied: Studied[Any], *, config: DataConfig, seed: int) -> Mixture:
    """The mixture of the training rows of studied cases; with ``units_N`` all of them in one batch.

    Without weights all sources form one pool. ``class_balanced`` splits every pool by class (the strata of the study;
    without any it is a ConfigError) and draws the classes of a pool equally; ``source_balanced`` splits these by source
    and draws the sources of a class equally.
    """
    cases, sampling = studied.cases, config.mixture.sampling
    rows = cases.rows["train"]
    if all(source.weight is None for source in config.sources):
        pools = [Pool("all", rows, 1.0)]
    else:
        names = np.array(cases.table.sources, dtype=object)[rows]
        # Where cases are divided anew a source may be tested whole, and it may have nothing below a node of the tree;
        # else one that has nothing to draw is an error.
        may_lack = config.split.anew or config.filters.node is not None
        drawn = [source for source in config.sources if source.name in names or not may_lack]
        pools = [Pool(source.name, rows[names == source.name], source.weight or 0.0) for source in drawn]
    steps = config.mixture.steps
    slots = None if steps is None else steps * config.loader.batch_size
    if sampling != "shuffle":
        slots = slots or len(rows)
        if studied.strata_N is None:
            raise ConfigError(
                f"data.mixture.sampling is {sampling}, but this task has no classes to balance; set it to shuffle, and "
                "give sources a weight."
            )
        pools = [part for pool in pools for part in _divided(pool, studied.strata_N)]
    if sampling == "source_balanced":
        names = sources_of(cases.table, config.mixture.source_column)
        pools = [part for pool in pools for part in _divided(pool, names)]
    if studied.units_N is not None:
        return Whole(pools, stop="all_exhausted", slots=len(rows), seed=seed)
    arrangement = _arrangement(cases, config)
    return Mixture(pools, stop=config.mixture.stop, slots=slots, seed=seed, arrangement=arrangement)


def _arrangement(cases: Cases, config: DataConfig) -> Arrangement | None:
    """The rules of batches that the config asks for."""
    mixture, loader = config.mixture, config.loader
    if not (mixture.one_source or mixture.groups_apart):
        return None
    return Arrangement(
        size=loader.batch_size,
        drop_last=loader.drop_last,
        sources_N=sources_of(cases.table, mixture.source_column) if mixture.one_source else None,
        groups_N=np.array(cases.table.groups, dtype=object) if mixture.groups_apart else None,
    )


def _divided(pool: Pool, value_of_row: np.ndarray) -> list[Pool]:
    """A pool for each value that its rows have, drawn equally."""
    values = value_of_row[pool.rows]
    present = np.unique(values)
    return [Pool(f"{pool.name}/{k}", pool.rows[values == k], pool.weight / len(present)) for k in present] or [pool]


def mixture_table(mixture: Mixture, cases: Cases, *, column: str, epochs: Iterable[np.ndarray]) -> list[MixtureRow]:
    """Expected and realised draws of every source over a whole training; ``epochs`` are the rows of each.

    ``column`` tells the sources apart: ``source``, or a metadata column.
    """
    rows, names = cases.rows["train"], sources_of(cases.table, column)
    draws = np.zeros(len(names), dtype=np.int64)
    for epoch in epochs:
        draws += np.bincount(epoch, minlength=len(draws))
    expected = mixture.chances(len(names))
    table = []
    for source in dict.fromkeys(names[rows].tolist()):
        own = rows[names[rows] == source]
        drawn, seen = int(draws[own].sum()), int((draws[own] > 0).sum())
        share = drawn / max(int(draws.sum()), 1)
        table.append(MixtureRow(source, len(own), float(expected[own].sum()), drawn, share, seen, seen / len(own)))
    return table


def coverage_warnings(table: Sequence[MixtureRow], *, whole_batches: bool = False) -> list[str]:
    """What to say when most of the data, or most of one source, is never seen.

    ``whole_batches``: of each source only batches that it fills are trained on.
    """
    rows, seen = sum(row.rows for row in table), sum(row.seen for row in table)
    unfilled = "It never fills a batch: lower data.loader.batch_size, or set data.loader.drop_last: false."
    advice = "Raise its weight or max_epochs, or set data.mixture.stop: all_exhausted."
    warnings = [
        f"source '{row.source}': only {row.coverage:.0%} of its {row.rows} training rows are ever seen. "
        f"{unfilled if whole_batches and not row.seen else advice}"
        for row in table
        if row.coverage < 0.5
    ]
    if seen < 0.5 * rows:
        warnings.insert(0, f"the whole training sees only {seen} of {rows} training rows ({seen / rows:.0%}).")
    return warnings
