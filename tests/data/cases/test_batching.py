"""Batches keep their rules, lose no draw, and are the same for any number of processes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.core.errors import ConfigError
from consilium.data.batches.loader import batch_sizes, training_requests
from consilium.data.cases.batching import Arrangement, apart
from consilium.data.cases.mixture import Mixture, Pool, build_mixture
from consilium.data.config import LoaderConfig
from tests.data.cases.test_mixture import config
from tests.data.samples import case_table

GROUPS = st.lists(st.integers(0, 7), min_size=1, max_size=50)


def can_be_apart(groups: list[int], size: int) -> bool:
    """Whether there are batches with no group twice: the theorem of Gale and Ryser on degrees of bipartite graphs."""
    whole, rest = divmod(len(groups), size)
    batches = [size] * whole + [rest] * (rest > 0)
    counts = Counter(groups).values()
    return all(sum(batches[:k]) <= sum(min(count, k) for count in counts) for k in range(1, len(batches) + 1))


@given(GROUPS, st.integers(1, 9))
def test_groups_are_apart_wherever_they_can_be(groups: list[int], size: int) -> None:
    names = np.array([f"p{group}" for group in groups])
    arrangement = Arrangement(size=size, drop_last=False, groups_N=names)
    rows = np.arange(len(groups))
    if not can_be_apart(groups, size):
        with pytest.raises(ConfigError, match=r"groups_apart: the group 'p\d' is drawn \d+ times in an epoch, whose"):
            arrangement.sizes(rows)
        fits = len(groups) // max(Counter(groups).values())
        arrangement = Arrangement(size=fits, drop_last=False, groups_N=names)  # what the error says
    else:
        fits = size
    order = arrangement.arranged(rows, random=np.random.default_rng(0))
    assert sorted(order) == rows.tolist()
    for start in range(0, len(order), fits):
        batch = [groups[row] for row in order[start : start + fits]]
        assert len(set(batch)) == len(batch)
    for group in set(groups):  # rows of a group keep their order, so that all come before any comes again
        own = [row for row in order if groups[row] == group]
        assert own == sorted(own)


def test_rows_that_need_not_wait_keep_their_order() -> None:
    assert apart(np.arange(11), size=4).tolist() == list(range(11))
    assert apart([0, 1, 1, 2, 3, 4, 5], size=3).tolist() == [0, 1, 3, 2, 4, 5, 6]
    assert 4 in apart([0, 1, 2, 3, 4, 4], size=3)[:3], "two batches, and two rows of the last group"


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[Mixture, list[str], list[str], LoaderConfig]:
    """A mixture over sources with groups of their own, which are small enough to keep apart."""
    sizes = draw(st.lists(st.integers(4, 30), min_size=1, max_size=4))
    names = [f"s{number}" for number, size in enumerate(sizes) for _ in range(size)]
    groups = [f"{name}/{row // draw(st.sampled_from([1, 1, 2]))}" for row, name in enumerate(names)]
    starts = np.cumsum([0, *sizes])
    pools = [Pool(f"s{n}", np.arange(starts[n], starts[n + 1]), draw(st.floats(0.3, 3))) for n in range(len(sizes))]
    loader = LoaderConfig(batch_size=draw(st.integers(1, 9)), drop_last=draw(st.booleans()))
    one_source, groups_apart = draw(st.sampled_from([(True, False), (False, True), (True, True)]))
    arrangement = Arrangement(
        size=loader.batch_size,
        drop_last=loader.drop_last,
        sources_N=np.array(names, dtype=object) if one_source else None,
        groups_N=np.array(groups, dtype=object) if groups_apart else None,
    )
    stop = draw(st.sampled_from(["first_exhausted", "all_exhausted"]))
    seed = draw(st.integers(0, 99))
    mixture = Mixture(pools, stop=stop, slots=None, seed=seed, arrangement=arrangement)
    plain = Mixture(pools, stop=stop, slots=None, seed=seed)
    assert Counter(plain.epoch(1).tolist()) == Counter(_epoch(mixture))
    return mixture, names, groups, loader


def _epoch(mixture: Mixture) -> list[int]:
    """The rows of an epoch; where the rule cannot be kept, without it."""
    try:
        return list(mixture.epoch(1))
    except ConfigError:
        mixture.arrangement = None
        mixture.epoch.cache_clear()
        return list(mixture.epoch(1))


@given(mixtures(), st.integers(1, 4))
def test_no_draw_is_lost_and_processes_share_the_same_batches(
    made: tuple[Mixture, list[str], list[str], LoaderConfig], processes: int
) -> None:
    mixture, names, groups, loader = made
    rows, rule = mixture.epoch(1).tolist(), mixture.arrangement
    if loader.drop_last and not mixture.sizes(1, size=loader.batch_size, drop_last=True):
        with pytest.raises(ConfigError, match="no batch would ever be trained on"):
            batch_sizes(mixture, epoch=1, config=loader)
        return
    whole = training_requests(mixture, epoch=1, config=loader)
    assert [row for request in whole for row in request.rows] == rows[: sum(len(request.rows) for request in whole)]
    assert [draw - (1 << 32) for request in whole for draw in request.draws] == list(
        range(sum(len(request.rows) for request in whole))
    )
    for request in whole:
        assert rule is None or rule.sources_N is None or len({names[row] for row in request.rows}) == 1
        assert rule is None or rule.groups_N is None or len({groups[row] for row in request.rows}) == len(request.rows)
        assert len(request.rows) == loader.batch_size or not loader.drop_last
    left = Counter(names[row] for row in rows[sum(len(request.rows) for request in whole) :])
    assert (sum(left.values()) == 0) != loader.drop_last or not left
    assert all(count < loader.batch_size for count in left.values())
    parts = [
        training_requests(mixture, epoch=1, config=loader, process=number, processes=processes)
        for number in range(processes)
    ]
    for number, request in enumerate(whole):
        shares = [part[number] for part in parts if part[number].share > 0]
        assert sorted(pair for share in shares for pair in zip(share.draws, share.rows, strict=True)) == list(
            zip(request.draws, request.rows, strict=True)
        )


def test_sources_take_turns_and_short_batches_come_last() -> None:
    names = np.repeat(["a", "b"], [40, 23])
    arrangement = Arrangement(size=4, drop_last=False, sources_N=names)
    rows = np.random.default_rng(0).permutation(63)
    assert arrangement.sizes(rows) == [4] * 15 + [3]
    one, other = (arrangement.arranged(rows, random=np.random.default_rng(seed)) for seed in (0, 1))
    turns = "".join(names[one[::4]])
    assert turns[:-1] not in ("a" * 10 + "b" * 5, "b" * 5 + "a" * 10)
    assert turns[-1] == "b"
    assert sorted(one) == sorted(other)
    assert one.tolist() != other.tolist()


def test_the_config_names_the_column_of_sources_and_the_groups() -> None:
    rows = [{"source": "ab"[n % 2], "group": f"g{n // 3}", "label": "x"} for n in range(24)]
    table = case_table(rows)

    class Studied:
        def __init__(self) -> None:
            self.cases, self.table, self.rows = self, table, {"train": np.arange(24)}
            self.strata_N = self.units_N = None

    for keys in ({"one_source": True}, {"groups_apart": True}, {"one_source": True, "groups_apart": True}):
        mixture = build_mixture(Studied(), config=config(["a", "b"], [None, None], **keys), seed=0)  # type: ignore[arg-type]
        for start in range(0, 24, 4):
            batch = mixture.epoch(0)[start : start + 4]
            assert "one_source" not in keys or len({table.sources[row] for row in batch}) == 1
            assert "groups_apart" not in keys or len({table.groups[row] for row in batch}) == 4
    assert build_mixture(Studied(), config=config(["a", "b"], [None, None]), seed=0).arrangement is None  # type: ignore[arg-type]
