"""The mixture keeps its promises for every seed, weight and size."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilium.core.errors import ConfigError, DataError
from consilium.data.batches.loader import batch_sizes, trained_rows, training_requests
from consilium.data.cases.mixture import (
    Mixture,
    MixtureRow,
    Pool,
    Whole,
    build_mixture,
    coverage_warnings,
    mixture_table,
)
from consilium.data.config import DataConfig, LoaderConfig

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def pools(sizes: list[int], weights: list[float] | None = None) -> list[Pool]:
    starts = np.cumsum([0, *sizes])
    return [
        Pool(str(number), np.arange(starts[number], starts[number + 1]), (weights or [1.0] * len(sizes))[number])
        for number in range(len(sizes))
    ]


@st.composite
def recipes(draw: st.DrawFn) -> tuple[list[int], list[float], str, int | None]:
    """Sizes, weights, the stop rule and the slots of an epoch."""
    sizes = draw(SIZES)
    weights = draw(st.lists(st.floats(0.05, 20), min_size=len(sizes), max_size=len(sizes)))
    stop = draw(st.sampled_from(["first_exhausted", "all_exhausted", "steps"]))
    return sizes, weights, stop, draw(st.integers(1, 200)) if stop == "steps" else None


def assert_passes_without_repetition(rows: list[int], pool: Pool) -> int:
    """Every row of the pool comes once before any comes again; returns how often the pool was drawn."""
    own = set(pool.rows.tolist())
    drawn = [row for row in rows if row in own]
    for start in range(0, len(drawn), len(own)):
        part = drawn[start : start + len(own)]
        assert len(set(part)) == len(part)
    return len(drawn)


@given(recipes(), st.integers(0, 1000), st.integers(0, 5))
def test_an_epoch_is_a_pure_function_and_ends_and_repeats_by_its_rule(
    recipe: tuple[list[int], list[float], str, int | None], seed: int, epoch: int
) -> None:
    sizes, weights, stop, slots = recipe
    mixture = Mixture(pools(sizes, weights), stop=stop, slots=slots, seed=seed)
    length = mixture.length(epoch)  # before the epoch was ever drawn
    rows = mixture.epoch(epoch).tolist()
    again = Mixture(pools(sizes, weights), stop=stop, slots=slots, seed=seed)
    again.epoch(epoch + 1)  # asking for another epoch first changes nothing
    assert again.epoch(epoch).tolist() == rows
    assert mixture.length(epoch) == length == len(rows)
    counts = [assert_passes_without_repetition(rows, pool) for pool in mixture.pools]
    assert sum(counts) == len(rows)
    spent = [count >= size for count, size in zip(counts, sizes, strict=True)]
    last = next(number for number, pool in enumerate(mixture.pools) if rows[-1] in pool.rows)
    if stop == "first_exhausted":
        assert len(set(rows)) == len(rows)
        assert [number for number, done in enumerate(spent) if done] == [last]
    elif stop == "all_exhausted":
        assert all(spent)
        assert counts[last] == sizes[last]  # one row earlier this one was not used up
    else:
        assert len(rows) == slots


@given(
    st.lists(st.floats(0.2, 5), min_size=2, max_size=6),
    st.sampled_from(["first_exhausted", "all_exhausted", "steps"]),
    st.integers(0, 1000),
)
@settings(max_examples=25)
def test_shares_follow_the_weights_within_binomial_bounds(weights: list[float], stop: str, seed: int) -> None:
    sizes = [1500] * len(weights)
    mixture = Mixture(pools(sizes, weights), stop=stop, slots=6000 if stop == "steps" else None, seed=seed)
    pool_of = mixture.epoch(0) // 1500
    for number, weight in enumerate(weights):
        share = weight / sum(weights)
        deviation = (share * (1 - share) * len(pool_of)) ** 0.5
        assert abs((pool_of == number).sum() - share * len(pool_of)) < 6 * deviation + 2


def test_a_source_that_would_hardly_ever_be_used_up_is_named() -> None:
    with pytest.raises(ConfigError, match=r"source '1' would be used up only after about 4e\+10 draws"):
        Mixture(pools([10, 40], [1, 1e-9]), stop="all_exhausted", slots=None, seed=0)


def test_epochs_and_seeds_differ() -> None:
    one = Mixture(pools([64]), stop="first_exhausted", slots=None, seed=0)
    other = Mixture(pools([64]), stop="first_exhausted", slots=None, seed=1)
    assert not np.array_equal(one.epoch(0), one.epoch(1))
    assert not np.array_equal(one.epoch(0), other.epoch(0))


def test_a_source_without_training_rows_is_named() -> None:
    with pytest.raises(DataError, match="no training rows in: b"):
        Mixture([Pool("a", np.arange(3), 1), Pool("b", np.arange(0), 1)], stop="first_exhausted", slots=None, seed=0)


@dataclass
class _Table:
    sources: list[str]
    metas: dict[str, list[str]] = field(default_factory=dict)

    def columns(self) -> dict[str, list[str]]:
        return {"source": self.sources, **self.metas}


@dataclass
class _Cases:
    """As much of studied cases as the mixture reads."""

    table: _Table
    rows: dict[str, np.ndarray]
    strata_N: np.ndarray
    units_N: np.ndarray | None = None

    @property
    def cases(self) -> _Cases:
        return self


def cases(sources: list[str], classes: list[int], **metas: list[str]) -> _Cases:
    return _Cases(_Table(sources, metas), {"train": np.arange(len(sources))}, np.array(classes))


def config(names: list[str], weights: list[float | None], **mixture: object) -> DataConfig:
    sources = [
        {"kind": "folder", "name": name, "path": "x", "weight": weight}
        for name, weight in zip(names, weights, strict=True)
    ]
    return DataConfig.model_validate({"sources": sources, "mixture": mixture, "loader": {"batch_size": 4}})


def test_without_weights_every_row_comes_once() -> None:
    data = cases(["a"] * 30 + ["b"] * 3, [0] * 33)
    mixture = build_mixture(data, config=config(["a", "b"], [None, None]), seed=0)  # type: ignore[arg-type]
    assert sorted(mixture.epoch(0).tolist()) == list(range(33))


def test_class_balanced_draws_classes_equally_and_uses_every_row_of_a_rare_class() -> None:
    data = cases(["a"] * 1000, [0] * 980 + [1] * 20)
    mixture = build_mixture(data, config=config(["a"], [None], sampling="class_balanced"), seed=0)  # type: ignore[arg-type]
    rows = mixture.epoch(0)
    assert len(rows) == 1000
    assert 0.45 < (rows >= 980).mean() < 0.55
    assert set(range(980, 1000)) <= set(rows.tolist())


@given(st.lists(st.integers(0, 3), min_size=4, max_size=80), st.integers(0, 1000), st.integers(1, 9) | st.none())
def test_class_balanced_draws_every_class_of_a_source_alike(kinds: list[int], seed: int, steps: int | None) -> None:
    names, classes = [f"s{kind % 2}" for kind in kinds], [kind // 2 for kind in kinds]
    weights = {"s0": 3.0, "s1": 1.0}
    present = sorted(set(names))
    stop = {} if steps is None else {"stop": "steps", "steps": steps}
    settings = config(present, [weights[name] for name in present], sampling="class_balanced", **stop)
    mixture = build_mixture(cases(names, classes), config=settings, seed=seed)  # type: ignore[arg-type]
    rows = mixture.epoch(3).tolist()
    assert len(rows) == mixture.length(3) == (len(kinds) if steps is None else 4 * steps)
    assert sum(assert_passes_without_repetition(rows, pool) for pool in mixture.pools) == len(rows)
    for pool, probability in zip(mixture.pools, mixture.probabilities, strict=True):
        ((name, _),) = {(names[row], classes[row]) for row in pool.rows.tolist()}
        own_classes = len({k for own, k in zip(names, classes, strict=True) if own == name})
        assert probability == pytest.approx(weights[name] / sum(weights[n] for n in present) / own_classes)


def test_source_balanced_draws_classes_equally_and_their_sources() -> None:
    # Class 0 has two sources of very different sizes, class 1 a single one.
    data = cases(["big"] * 900 + ["small"] * 20 + ["small"] * 80, [0] * 920 + [1] * 80)
    settings = config(["big", "small"], [None, None], sampling="source_balanced")
    mixture = build_mixture(data, config=settings, seed=0)  # type: ignore[arg-type]
    rows = mixture.epoch(0)
    assert len(rows) == mixture.length(0) == 1000
    shares = [((rows >= low) & (rows < high)).mean() for low, high in ((0, 900), (900, 920), (920, 1000))]
    assert shares == pytest.approx([0.25, 0.25, 0.5], abs=0.05)
    assert set(range(900, 920)) <= set(rows.tolist())
    table = coverage_of(data, settings, epochs=1, seed=0)
    assert [(row.source, row.weight) for row in table] == [("big", 0.25), ("small", 0.75)]
    assert [row.draws for row in table] == [(rows < 900).sum(), (rows >= 900).sum()]


@given(st.lists(st.integers(0, 8), min_size=1, max_size=80), st.integers(0, 1000), st.integers(1, 9) | st.none())
def test_source_balanced_draws_every_source_of_a_class_alike(kinds: list[int], seed: int, steps: int | None) -> None:
    names, classes = [f"s{kind % 3}" for kind in kinds], [kind // 3 for kind in kinds]
    stop = {} if steps is None else {"stop": "steps", "steps": steps}
    # Where one table holds several sources, a column of it tells them apart.
    settings = config(["table"], [None], sampling="source_balanced", source_column="dataset", **stop)
    data = cases(["table"] * len(kinds), classes, dataset=names)
    mixture = build_mixture(data, config=settings, seed=seed)  # type: ignore[arg-type]
    rows = mixture.epoch(3).tolist()
    assert len(rows) == mixture.length(3) == (len(kinds) if steps is None else 4 * steps)
    assert sum(assert_passes_without_repetition(rows, pool) for pool in mixture.pools) == len(rows)
    assert len(mixture.pools) == len(set(kinds))
    expected = dict.fromkeys(names, 0.0)
    for pool, probability in zip(mixture.pools, mixture.probabilities, strict=True):
        ((name, own_class),) = {(names[row], classes[row]) for row in pool.rows.tolist()}
        sources_of_class = len({own for own, k in zip(names, classes, strict=True) if k == own_class})
        assert probability == pytest.approx(1 / len(set(classes)) / sources_of_class)
        expected[name] += probability
    table = coverage_of(data, settings, epochs=1, seed=seed)
    assert {row.source: row.weight for row in table} == pytest.approx(expected)


def test_source_balanced_refuses_weights_and_columns_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="source_balanced draws sources equally, the weights of sources say otherwise"):
        config(["a", "b"], [1.0, 2.0], sampling="source_balanced")
    data = cases(["a"] * 4, [0, 0, 1, 1], dataset=["x", "y", "x", ""])
    settings = config(["a"], [None], sampling="source_balanced", source_column="datset")
    with pytest.raises(ConfigError, match="source_column is 'datset'; did you mean `dataset`"):
        build_mixture(data, config=settings, seed=0)  # type: ignore[arg-type]


def test_the_table_tells_the_weights_of_classes_that_are_balanced() -> None:
    data = cases(["a"] * 90 + ["b"] * 10, [0] * 90 + [1] * 10)
    table = coverage_of(data, config(["a", "b"], [None, None], sampling="class_balanced"), epochs=1, seed=0)
    assert [row.weight for row in table] == pytest.approx([0.5, 0.5])


# -- Coverage -----------------------------------------------------------------------------------------------------


def simulated_coverage(sizes: list[int], weights: list[float], *, epochs: int, seed: int) -> list[float]:
    """The share of every source that some epoch draws until the first source is used up, drawn card by card."""
    chance = random.Random(seed)
    seen: list[set[int]] = [set() for _ in sizes]
    for _ in range(epochs):
        decks = [chance.sample(range(size), size) for size in sizes]
        while all(decks):
            (source,) = chance.choices(range(len(sizes)), weights)
            seen[source].add(decks[source].pop())
    return [len(own) / size for own, size in zip(seen, sizes, strict=True)]


SIX = [40, 80, 160, 320, 640, 1280]


def coverage_of(data: _Cases, settings: DataConfig, *, epochs: int, seed: int) -> list[MixtureRow]:
    """The table of a training over whole epochs."""
    mixture = build_mixture(data, config=settings, seed=seed)  # type: ignore[arg-type]
    batches = [len(batch_sizes(mixture, epoch=epoch, config=settings.loader)) for epoch in range(epochs)]
    rows = trained_rows(mixture, batches=batches, config=settings.loader)
    return mixture_table(mixture, data, column=settings.mixture.source_column, epochs=rows)  # type: ignore[arg-type]


@pytest.mark.parametrize(("weights", "most"), [([float(size) for size in SIX], True), ([1.0] * 6, False)])
def test_coverage_is_that_of_a_simulation_and_is_said(weights: list[float], most: bool) -> None:
    names = [f"source-{size}" for size in SIX]
    data = cases([name for name, size in zip(names, SIX, strict=True) for _ in range(size)], [0] * sum(SIX))
    settings = config(names, list(weights))
    table = coverage_of(data, settings, epochs=2, seed=0)
    mixture = build_mixture(data, config=settings, seed=0)  # type: ignore[arg-type]
    # Exactly what the batches of both epochs bring ...
    rows = [
        row
        for epoch in (0, 1)
        for one in training_requests(mixture, epoch=epoch, config=settings.loader)
        for row in one.rows
    ]
    for line in table:
        own = [row for row in rows if data.table.sources[row] == line.source]
        assert (line.draws, line.seen) == (len(own), len(set(own)))
        assert line.share == pytest.approx(len(own) / len(rows))
        assert line.coverage == pytest.approx(len(set(own)) / line.rows)
    # ... which is, on average over seeds, what other dice give.
    told = np.array(
        [[line.coverage for line in coverage_of(data, settings, epochs=2, seed=seed)] for seed in range(40)]
    )
    simulated = np.array([simulated_coverage(SIX, weights, epochs=2, seed=seed) for seed in range(40)])
    error = np.sqrt((told.var(0) + simulated.var(0)) / 40)
    assert (np.abs(told.mean(0) - simulated.mean(0)) < 5 * error + 1e-9).all(), (told.mean(0), simulated.mean(0))
    assert np.allclose([line.coverage for line in table], told[0])
    whole = sum(line.seen for line in table) / sum(SIX)
    warnings = coverage_warnings(table)
    if most:
        assert whole > 0.9
        assert not warnings
    else:
        assert whole < 0.25
        assert f"only {sum(line.seen for line in table)} of {sum(SIX)} training rows ({whole:.0%})" in warnings[0]
        assert [warning.split("'")[1] for warning in warnings[1:]] == [
            line.source for line in table if line.coverage < 0.5
        ]
        assert all(line.coverage < 0.5 for line in table[2:])


@given(SIZES, st.integers(0, 1000), st.booleans())
def test_the_whole_is_every_row_once_in_one_batch_with_its_chance_to_be_drawn(
    sizes: list[int], seed: int, drop_last: bool
) -> None:
    weights = [float(number + 1) for number in range(len(sizes))]
    whole = Whole(pools(sizes, weights), stop="all_exhausted", slots=sum(sizes), seed=seed)
    config = LoaderConfig(batch_size=3, drop_last=drop_last)
    (request,) = training_requests(whole, epoch=0, config=config)
    assert request.rows == list(range(sum(sizes)))
    assert request.first(2).rows == request.rows[:2]
    chances = whole.chances(sum(sizes) + 4)
    assert not chances[sum(sizes) :].any()
    for pool in whole.pools:
        np.testing.assert_allclose(chances[pool.rows], pool.weight / sum(weights) / len(pool.rows))


def test_most_data_unseen_is_said() -> None:
    # Equal weights, very different sizes: the small source ends the epoch, most of the large one is never seen.
    data = cases(["big"] * 5000 + ["small"] * 20, [0] * 5020)
    settings = config(["big", "small"], [1.0, 1.0])
    mixture = build_mixture(data, config=settings, seed=0)  # type: ignore[arg-type]
    table = coverage_of(data, settings, epochs=3, seed=0)
    by_name = {row.source: row for row in table}
    assert by_name["big"].coverage < 0.05
    assert by_name["small"].coverage > 0.9
    assert sum(row.draws for row in table) == sum(mixture.length(epoch) for epoch in range(3))
    warnings = coverage_warnings(table)
    assert any("whole training sees only" in warning for warning in warnings)
    assert any("source 'big'" in warning for warning in warnings)


def test_a_source_that_fills_no_batch_of_its_own_is_said() -> None:
    data = cases(["big"] * 12 + ["small"] * 3, [0] * 15)
    settings = config(["big", "small"], [None, None], one_source=True)
    settings = settings.model_copy(update={"loader": LoaderConfig(batch_size=4, drop_last=True)})
    (warning,) = coverage_warnings(coverage_of(data, settings, epochs=2, seed=0), whole_batches=True)
    assert warning.startswith("source 'small': only 0% of its 3 training rows are ever seen. It never fills a batch")


@given(st.integers(1, 70), st.integers(1, 16), st.booleans(), st.integers(1, 4))
def test_processes_share_the_same_global_batches(rows: int, batch_size: int, drop_last: bool, processes: int) -> None:
    mixture = Mixture(pools([rows]), stop="first_exhausted", slots=None, seed=0)
    loader = LoaderConfig(batch_size=batch_size, drop_last=drop_last)
    if drop_last and rows < batch_size:
        with pytest.raises(ConfigError, match=f"at most {rows}"):
            batch_sizes(mixture, epoch=1, config=loader)
        return
    whole = training_requests(mixture, epoch=1, config=loader)
    parts = [
        training_requests(mixture, epoch=1, config=loader, process=number, processes=processes)
        for number in range(processes)
    ]
    for number, request in enumerate(whole):
        shares = [part[number] for part in parts]
        real = [share for share in shares if share.share > 0]
        assert sorted(row for share in real for row in share.rows) == sorted(request.rows)
        assert sum(share.share for share in shares) == pytest.approx(processes)
        assert all(share.rows for share in shares)
        assert all(share.counts["cases"] == len(request.rows) for share in shares)
