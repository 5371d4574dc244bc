"""Batches of cases, read in worker processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from consilium.core.contracts import Batch
from consilium.core.errors import ConfigError, ConsiliumError, DataError, ImageError, MissingExtraError
from consilium.data.batches import workers
from consilium.data.batches.readers import NO_DRAW, Readers, tensors
from consilium.data.cases.mixture import Mixture
from consilium.data.config import LoaderConfig

EPOCH_SHIFT = 32  # draw number = epoch << 32 | slot


@dataclass(frozen=True)
class Request:
    """One global batch's part for this process; ``counts`` are of the whole."""

    rows: list[int]
    draws: list[int]
    counts: Mapping[str, int]
    share: float

    def first(self, cases: int) -> Request:
        """The first so many of its cases."""
        return (
            self if cases >= len(self.rows) else Request(self.rows[:cases], self.draws[:cases], {"cases": cases}, 1.0)
        )


@dataclass(frozen=True)
class Loaded:
    """A batch, and what kept images of it from being read (their rows are not in the batch)."""

    batch: Batch | None
    errors: Sequence[tuple[int, ConsiliumError]]

    def whole(self, case_id: Callable[[int], str]) -> Batch:
        """The batch of a training, which leaves no image out; ``case_id`` names a row that cannot be read."""
        if self.errors or self.batch is None:
            row, error = self.errors[0]
            raise unusable(case_id(row), str(error))
        return self.batch


def unusable(case: str, reason: str) -> DataError:
    """The error of a training case whose image cannot be read."""
    return DataError(
        f"case {case} cannot be used in training: {reason} Its image changed since the data was prepared, or was not "
        "decoded then (data.store.check_images: header). Put the image back and give the same command with --resume; "
        "without it, begin a new run."
    )


@dataclass(frozen=True)
class _Read:
    """What a worker sends; ``columns`` hold arrays, which become tensors where they arrive."""

    request: Request
    errors: Sequence[tuple[int, ConsiliumError]]
    rows: Sequence[int] = ()
    draws: Sequence[int] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    targets: np.ndarray | None = None

    def loaded(self) -> Loaded:
        if not self.rows:
            return Loaded(None, self.errors)
        columns: dict[str, Any] = {name: tensors(column) for name, column in self.columns.items()}
        batch = Batch(
            rows_B=torch.from_numpy(np.array(self.rows, dtype=np.int64)),  # a tenth of what torch takes for a list
            draws_B=torch.from_numpy(np.array(self.draws, dtype=np.int64)),
            counts=self.request.counts,
            share=self.request.share,
            targets_B=None if self.targets is None else torch.as_tensor(self.targets),
            **columns,
        )
        return Loaded(batch, self.errors)


class _Cases(Dataset[Any]):
    """Reads the cases of a Request; runs in the workers, which may share their memory if ``share`` is true."""

    def __init__(self, readers: Readers, *, targets: np.ndarray | None) -> None:
        self.readers, self.targets = readers, targets
        self.share = False

    def __getitem__(self, request: Request) -> _Read:
        kept, cases, errors = self._read(request)
        if not kept:
            return _Read(request, errors)
        columns = {
            name: reader.collate(raws, shared=self.share)
            for (name, reader), raws in zip(self.readers, cases, strict=True)
        }
        rows, draws = (list(numbers) for numbers in zip(*kept, strict=True))
        targets = None if self.targets is None else self.targets[rows]
        return _Read(request, errors, rows, draws, columns, targets)

    def _read(
        self, request: Request
    ) -> tuple[list[tuple[int, int]], list[list[Any]], list[tuple[int, ConsiliumError]]]:
        """Row and draw of the cases that can be read, what each reader read of them, and the errors of the others."""
        readers, asked = [reader for _, reader in self.readers], list(zip(request.rows, request.draws, strict=True))
        if all(reader.at_once for reader in readers):
            return asked, [asked for _ in readers], []
        kept, cases = [], []
        errors: list[tuple[int, ConsiliumError]] = []
        for case in asked:
            try:
                cases.append([reader.read(*case) for reader in readers])
                kept.append(case)
            except (ImageError, MissingExtraError) as error:
                errors.append((case[0], error))
        return kept, [list(raws) for raws in zip(*cases, strict=True)], errors


class _Requests:
    """The sampler: an exchangeable list, so that workers outlive an epoch."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)


class _Quiet(DataLoader[Any]):
    """Torch's loader without its warning of more workers than cores, which a training says once in its own words."""

    def check_worker_number_rationality(self) -> None:
        """Say nothing."""


class Loader:
    """Batches for lists of requests, read by one reader for each column; its workers live as long as it does.

    ``note`` receives a line where surroundings make it work in another way than asked.
    """

    def __init__(
        self,
        readers: Readers,
        *,
        config: LoaderConfig,
        targets: np.ndarray | None = None,
        seed: int = 0,
        note: Callable[[str], None] | None = None,
    ) -> None:
        """``targets`` [N, ...] has a row for every row that is asked for."""
        self._cases = _Cases(readers, targets=targets)
        self._config, self._seed, self._note = config, seed, note or (lambda _: None)
        self._sampler = _Requests()
        self._loader: DataLoader[Any] | None = None

    def load(self, requests: Sequence[Request]) -> Iterator[Loaded]:
        """One Loaded per request, in order; a worker that dies is a MemoryExhaustedError."""
        self._sampler.requests = list(requests)
        with workers.deaths_explained():
            for read in self._started():
                yield read.loaded()

    def _started(self) -> Iterator[_Read]:
        """The batches of the sampler's requests; the first call starts the workers."""
        if self._loader is None:
            count = workers.worker_count(self._config)
            if count:
                self._choose_transport(count)
            self._loader = self._build(count)
        if not self._loader.num_workers:
            return iter(self._loader)
        try:
            multiprocessing.Lock()  # fails where there is no room for locks, before anything is half made
            with workers.starting():
                return iter(self._loader)
        except OSError as error:  # no room or no permission for locks and pipes
            self._note(f"note: no process could be started to decode images ({error}); they are decoded in this one.")
            self._cases.share = False
            self._loader = self._build(0)
            return iter(self._loader)

    def _choose_transport(self, count: int) -> None:
        """Batches wait in shared memory if all of them fit there, else in the workers, and come through a pipe."""
        workers.warm_up()
        cases = max((len(request.rows) for request in self._sampler.requests), default=0)
        waiting = count * self._config.prefetch_factor + 2  # one is used, one is on its way
        reason = workers.why_not_shared(waiting * cases * sum(reader.nbytes for _, reader in self._cases.readers))
        self._cases.share = reason is None
        if reason is not None:
            self._note(
                f"note: {reason}; batches come through pipes instead, which is a little slower. Lower "
                "data.loader.workers, prefetch_factor or batch_size, or give the run more (containers: --shm-size)."
            )

    def _build(self, count: int) -> DataLoader[Any]:
        return _Quiet(
            self._cases,
            batch_size=None,
            sampler=self._sampler,
            num_workers=count,
            prefetch_factor=self._config.prefetch_factor if count else None,
            persistent_workers=count > 0,
            pin_memory=torch.cuda.is_available(),
            # The order is fixed by the requests; torch's own generator must not move with the number of loaders.
            generator=torch.Generator().manual_seed(self._seed),
            worker_init_fn=workers.WorkerStart(),
            multiprocessing_context=workers.start_method() if count else None,
        )


def training_requests(
    mixture: Mixture, *, epoch: int, config: LoaderConfig, process: int = 0, processes: int = 1
) -> list[Request]:
    """This process's part of every global batch of an epoch.

    Global batches do not depend on the number of processes. ``share`` makes the mean over processes
    of (share x mean loss) equal the mean over the global batch; a process that gets nothing of a
    short last batch repeats one row with share 0.
    """
    rows = mixture.epoch(epoch)
    draws = (epoch << EPOCH_SHIFT) + np.arange(len(rows), dtype=np.int64)
    requests, start = [], 0
    for cases in batch_sizes(mixture, epoch=epoch, config=config):
        span, start = slice(start, start + cases), start + cases
        own_rows, own_draws = rows[span][process::processes], draws[span][process::processes]
        share = len(own_rows) * processes / cases
        if not len(own_rows):
            own_rows, own_draws = rows[span][:1], draws[span][:1]
        requests.append(Request(own_rows.tolist(), own_draws.tolist(), {"cases": cases}, share))
    return requests


def batch_sizes(mixture: Mixture, *, epoch: int, config: LoaderConfig) -> list[int]:
    """The cases of every global batch of an epoch, in order; no batch at all is a ConfigError."""
    sizes = mixture.sizes(epoch, size=config.batch_size, drop_last=config.drop_last)
    if not sizes:
        rows = mixture.length(epoch)
        of_one = ", of which no source fills a batch," if rows >= config.batch_size else ""
        most = " lower" if of_one else f" to at most {rows}"
        raise ConfigError(
            f"data.loader.batch_size is {config.batch_size}, an epoch has only {rows} rows{of_one} and drop_last is "
            f"true, so no batch would ever be trained on. Set batch_size{most}, or drop_last: false."
        )
    return sizes


def trained_rows(mixture: Mixture, *, batches: Sequence[int], config: LoaderConfig) -> Iterator[np.ndarray]:
    """The rows of the first so many ``batches`` of every epoch."""
    for epoch, count in enumerate(batches):
        if count:
            yield mixture.epoch(epoch)[: sum(batch_sizes(mixture, epoch=epoch, config=config)[:count])]


def evaluation_requests(rows: Sequence[int] | np.ndarray, *, config: LoaderConfig) -> list[Request]:
    """All ``rows`` in order, nothing random."""
    size = config.eval_batch_size or config.batch_size
    numbers = np.asarray(rows, dtype=np.int64).tolist()
    parts = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    return [Request(part, [NO_DRAW] * len(part), {"cases": len(part)}, 1.0) for part in parts]
