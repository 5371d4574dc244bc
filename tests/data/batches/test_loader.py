"""What really arrives: the same cases, draws and pixels, whatever the number of workers and processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from consilium.core.contracts import Batch
from consilium.data.batches.config import AugmentationConfig
from consilium.data.batches.loader import Loader, training_requests
from consilium.data.batches.readers import DrawnTexts, ImageReader, Readers, TextReader
from consilium.data.batches.rows import Items
from consilium.data.batches.transforms import DeviceTransform
from consilium.data.cases.mixture import Mixture, Pool
from consilium.data.config import ImageConfig, LoaderConfig
from tests.data.samples import image_bytes

ROWS, SEED = 23, 5
IMAGE = ImageConfig(size=(16, 12))
AUGMENTATION = AugmentationConfig(crop_scale=(0.3, 1.0), horizontal_flip_prob=0.5, hue_jitter=0.2, rotation_degrees=20)


def cases() -> Items:
    """Cases of one or two images."""
    return Items(
        [
            [image_bytes(10 * row + view, size=(20 + row, 30), format="JPEG") for view in range(1 + row % 2)]
            for row in range(ROWS)
        ]
    )


@dataclass(frozen=True)
class Padded:
    tokens_BT: Tensor
    attention_BT: Tensor


class Captions:
    """Cases of one to three texts, whose token is their length; a coder in one."""

    def __len__(self) -> int:
        return ROWS

    def drawn(self, row: int) -> list[str]:
        return ["x" * (3 * row + number + 1) for number in range(1 + row % 3)]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[len(text)] for text in texts]

    def pad(self, ids: Sequence[Sequence[int]]) -> Padded:
        tokens_BT = torch.tensor(ids)
        return Padded(tokens_BT, torch.ones_like(tokens_BT))


def readers() -> Readers:
    return Readers(
        images=ImageReader(cases(), image=IMAGE, augmentation=AUGMENTATION, seed=SEED),
        texts=TextReader(DrawnTexts(Captions(), seed=SEED), Captions()),
    )


@dataclass(frozen=True)
class Arrived:
    """One case as a task gets it; ``raw`` is what the worker sent, ``ready`` what the device made of it."""

    row: int
    target: int
    text: int
    raw: bytes
    ready: Tensor


def mixture() -> Mixture:
    pools = [Pool("a", np.arange(9), 3.0), Pool("b", np.arange(9, ROWS), 2.0)]
    return Mixture(pools, stop="all_exhausted", slots=None, seed=SEED)


def config(workers: int, *, drop_last: bool = False) -> LoaderConfig:
    return LoaderConfig(batch_size=5, workers=workers, prefetch_factor=2, drop_last=drop_last)


class Setup:
    """The loaders of all processes of one training."""

    def __init__(self, workers: int, processes: int) -> None:
        self.config, self.processes = config(workers), processes
        targets = np.arange(ROWS) * 7
        self.loaders = [Loader(readers(), targets=targets, config=self.config, seed=SEED) for _ in range(processes)]

    def batches(self, epoch: int, start: int = 0) -> list[dict[int, Arrived]]:
        """Global batches from ``start`` on: what arrives anywhere, by its draw number."""
        parts = [list(self._process(number, epoch, start)) for number in range(self.processes)]
        assert len({len(part) for part in parts}) == 1  # no process waits for another
        result = []
        for shares in zip(*parts, strict=True):
            real = [batch for batch in shares if batch.share > 0]
            whole = {draw: case for batch in real for draw, case in arrived(batch)}
            assert sum(map(len, real)) == len(whole) == shares[0].counts["cases"]  # nothing twice
            assert sum(batch.share for batch in shares) == pytest.approx(self.processes)
            assert all(batch.share == pytest.approx(len(batch) * self.processes / len(whole)) for batch in real)
            result.append(whole)
        return result

    def _process(self, number: int, epoch: int, start: int) -> Iterator[Batch]:
        requests = training_requests(
            mixture(), epoch=epoch, config=self.config, process=number, processes=self.processes
        )
        for loaded in self.loaders[number].load(requests[start:]):
            assert loaded.batch is not None
            assert not loaded.errors
            yield loaded.batch


def arrived(batch: Batch) -> Iterator[tuple[int, Arrived]]:
    assert batch.targets_B is not None
    assert batch.texts is not None
    assert batch.texts.tokens_BT is not None
    assert batch.texts.own_BK is not None
    assert torch.equal(batch.texts.own_BK[:, 0], batch.texts.same_B)
    transform = DeviceTransform(IMAGE, augmentation=AUGMENTATION, seed=SEED)
    ready = transform(batch, train=True).views.pixels
    for place, (row, draw) in enumerate(zip(batch.rows_B.tolist(), batch.draws_B.tolist(), strict=True)):
        seen = batch.views.there_BV[place]
        raw = batch.views.pixels[place, seen].contiguous().numpy().tobytes()
        text = int(batch.texts.tokens_BT[place, 0])
        yield draw, Arrived(row, int(batch.targets_B[place]), text, raw, ready[place, seen])


def assert_same_batches(found: list[dict[int, Arrived]], expected: list[dict[int, Arrived]]) -> None:
    assert [sorted(batch) for batch in found] == [sorted(batch) for batch in expected]
    for one, other in zip(found, expected, strict=True):
        for draw, case in one.items():
            assert (case.row, case.target, case.text) == (other[draw].row, other[draw].target, other[draw].text)
            assert case.raw == other[draw].raw
            assert torch.equal(case.ready, other[draw].ready)


@pytest.fixture(scope="module")
def expected() -> list[list[dict[int, Arrived]]]:
    """Two epochs with one process that decodes for itself."""
    alone = Setup(0, 1)
    return [alone.batches(epoch) for epoch in (0, 1)]


@pytest.fixture(scope="module", params=list(product((0, 1, 4), (1, 2))), ids=lambda p: f"{p[0]} workers x {p[1]}")
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    made = Setup(*request.param)
    yield made
    made.loaders.clear()  # ends the workers now; torch waits for each of them where garbage collection does it


def test_the_sample_is_worth_it(expected: list[list[dict[int, Arrived]]]) -> None:
    first, second = expected
    assert len(first[-1]) < 5 or len(second[-1]) < 5  # a short last batch
    cases = [case for batch in first for case in batch.values()]
    again = [one for one in cases if sum(other.row == one.row for other in cases) > 1]
    assert again  # a small source started over ...
    assert len({case.raw for case in cases}) == len(cases)  # ... and its images were cut anew
    assert not {case.raw for case in cases} & {case.raw for batch in second for case in batch.values()}
    assert any(len({one.text for one in cases if one.row == case.row}) > 1 for case in again)  # another of its texts


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_same_arrives_for_any_number_of_workers_and_processes(
    setup: Setup, expected: list[list[dict[int, Arrived]]]
) -> None:
    for epoch in (0, 1):
        assert_same_batches(setup.batches(epoch), expected[epoch])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@given(data=st.data())
@settings(max_examples=8)
def test_the_rest_arrives_after_a_stop_at_any_batch(
    setup: Setup, expected: list[list[dict[int, Arrived]]], data: st.DataObject
) -> None:
    epoch = data.draw(st.sampled_from([1, 0]))
    start = data.draw(st.integers(0, len(expected[epoch])))
    assert_same_batches(setup.batches(epoch, start), expected[epoch][start:])


@given(st.integers(0, 3), st.integers(0, 40), st.integers(1, 7), st.integers(1, 7), st.booleans())
def test_what_is_left_does_not_depend_on_who_asks(
    epoch: int, start: int, before: int, after: int, drop_last: bool
) -> None:
    """The batches before a stop, with some number of processes, and those after it, with another, are the epoch."""
    drawn = mixture().epoch(epoch).tolist()
    batches = [drawn[first : first + 5] for first in range(0, len(drawn), 5)]
    if drop_last and len(batches[-1]) < 5:
        batches.pop()
    start = min(start, len(batches))

    def global_batches(processes: int) -> list[list[int]]:
        parts = [
            training_requests(
                mixture(), epoch=epoch, config=config(0, drop_last=drop_last), process=number, processes=processes
            )
            for number in range(processes)
        ]
        result = []
        for shares in zip(*parts, strict=True):
            pairs = [p for s in shares if s.share > 0 for p in zip(s.draws, s.rows, strict=True)]
            assert [draw - (epoch << 32) for draw, _ in sorted(pairs)] == list(
                range(len(result) * 5, len(result) * 5 + len(pairs))
            )
            result.append([row for _, row in sorted(pairs)])
        return result

    assert global_batches(before)[:start] + global_batches(after)[start:] == batches
