"""The mixture keeps its promises for every seed, weight and size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.core.errors import ConfigError, DataError
from consilium.data.config import DataConfig, LoaderConfig
from consilium.data.loader import batch_count, training_requests
from consilium.data.mixture import Mixture, Pool, build_mixture, coverage_warnings, mixture_table

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def pools(sizes: list[int], weights: list[float] | None = None) -> list[Pool]:
    starts = np.cumsum([0, *sizes])
    return [
        Pool(str(number), np.arange(starts[number], starts[number + 1]), (weights or [1.0] * len(sizes))[number])
        for number in range(len(sizes))
    ]


@given(SIZES, st.integers(0, 1000), st.integers(0, 5), st.sampled_from(["first_exhausted", "all_exhausted"]))
def test_an_epoch_is_a_pure_function_and_never_repeats_too_early(
    sizes: list[int], seed: int, epoch: int, stop: str
) -> None:
    mixture = Mixture(pools(sizes), stop=stop, slots=None, seed=seed)
    rows = mixture.epoch(epoch)
    again = Mixture(pools(sizes), stop=stop, slots=None, seed=seed)
    again.epoch(epoch + 1)  # asking for another epoch first changes nothing
    assert np.array_equal(rows, again.epoch(epoch))
    assert mixture.length(epoch) == len(rows)
    for pool in mixture.pools:
        drawn = [row for row in rows.tolist() if row in set(pool.rows.tolist())]
        for start in range(0, len(drawn), len(pool.rows)):  # each pass through a pool is free of repetition
            part = drawn[start : start + len(pool.rows)]
            assert len(set(part)) == len(part)
    counts = [int(np.isin(rows, pool.rows).sum()) for pool in mixture.pools]
    if stop == "first_exhausted":
        assert all(count <= len(pool.rows) for count, pool in zip(counts, mixture.pools, strict=True))
        assert any(count == len(pool.rows) for count, pool in zip(counts, mixture.pools, strict=True))
    else:
        assert set(rows.tolist()) == set(range(sum(sizes)))


def test_shares_follow_the_weights_within_binomial_bounds() -> None:
    weights = [1.0, 2.0, 5.0]
    mixture = Mixture(pools([50, 50, 50], weights), stop="steps", slots=20_000, seed=3)
    rows = mixture.epoch(0)
    for number, weight in enumerate(weights):
        share = weight / 8
        deviation = (share * (1 - share) / 20_000) ** 0.5
        assert abs((rows // 50 == number).mean() - share) < 4 * deviation


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


@dataclass
class _Cases:
    """As much of LabelledCases as the mixture reads."""

    table: _Table
    rows: dict[str, np.ndarray]
    classes: np.ndarray

    def balancing_class(self) -> np.ndarray:
        return self.classes


def cases(sources: list[str], classes: list[int]) -> _Cases:
    return _Cases(_Table(sources), {"train": np.arange(len(sources))}, np.array(classes))


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


def test_most_data_unseen_is_said() -> None:
    # Equal weights, very different sizes: the small source ends the epoch, most of the large one is never seen.
    data = cases(["big"] * 5000 + ["small"] * 20, [0] * 5020)
    settings = config(["big", "small"], [1.0, 1.0])
    mixture = build_mixture(data, config=settings, seed=0)  # type: ignore[arg-type]
    table = mixture_table(mixture, data, sources=settings.sources, epochs=3)  # type: ignore[arg-type]
    by_name = {row.source: row for row in table}
    assert by_name["big"].coverage < 0.05
    assert by_name["small"].coverage > 0.9
    assert sum(row.draws for row in table) == sum(mixture.length(epoch) for epoch in range(3))
    warnings = coverage_warnings(table)
    assert any("whole training sees only" in warning for warning in warnings)
    assert any("source 'big'" in warning for warning in warnings)


@given(st.integers(1, 70), st.integers(1, 16), st.booleans(), st.integers(1, 4))
def test_processes_share_the_same_global_batches(rows: int, batch_size: int, drop_last: bool, processes: int) -> None:
    mixture = Mixture(pools([rows]), stop="first_exhausted", slots=None, seed=0)
    loader = LoaderConfig(batch_size=batch_size, drop_last=drop_last)
    if drop_last and rows < batch_size:
        with pytest.raises(ConfigError, match=f"at most {rows}"):
            batch_count(rows, config=loader)
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
        assert all(share.global_cases == len(request.rows) for share in shares)
