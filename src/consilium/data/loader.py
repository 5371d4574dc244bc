"""Batches from a case table: workers decode and crop in uint8, everything else happens on the device."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from consilium.core.contracts import Batch
from consilium.core.errors import ConfigError, ConsiliumError, DataError, ImageError, MissingExtraError
from consilium.data.acquisition import recompressed
from consilium.data.config import AugmentationConfig, ImageConfig, LoaderConfig
from consilium.data.images import load_view, probe, read_bytes
from consilium.data.mixture import Mixture
from consilium.data.transforms import sample_box, sample_quality

NO_DRAW = -1  # the draw number of an image that nothing random happens to
GRACE = 10  # seconds that a worker goes on after SIGTERM
EPOCH_SHIFT = 32  # draw number = epoch << 32 | slot


class Images(Protocol):
    """Anything with rows of images: the case table, or a list of paths."""

    def images(self, row: int) -> Sequence[str | bytes]:
        """Paths or encoded bytes of the views of a row."""
        ...


@dataclass(frozen=True)
class Request:
    """One global batch's part for this process."""

    rows: list[int]
    draws: list[int]
    global_cases: int
    share: float


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


class Batches(Protocol):
    """What turns requests into batches."""

    def load(self, requests: Sequence[Request]) -> Iterator[Loaded]:
        """One Loaded per request, in order."""
        ...


class _Decoder(Dataset[Any]):
    """Turns a Request into uint8 views; runs in the workers."""

    def __init__(
        self,
        table: Images,
        *,
        targets: np.ndarray | None,
        image: ImageConfig,
        augmentation: AugmentationConfig,
        seed: int,
    ) -> None:
        self.table, self.targets, self.image, self.augmentation, self.seed = table, targets, image, augmentation, seed

    def __getitem__(self, request: Request) -> Loaded:
        rows, draws, cases, errors = [], [], [], []
        for row, draw in zip(request.rows, request.draws, strict=True):
            try:
                views = [self._view(image, draw, number) for number, image in enumerate(self.table.images(row))]
                if not views:
                    raise ImageError(f"case {row} has no image; this task needs one per case.")
            except (ImageError, MissingExtraError) as error:
                errors.append((row, error))
                continue
            rows.append(row)
            draws.append(draw)
            cases.append(views)
        if not cases:
            return Loaded(None, errors)
        height, width = self.image.size
        images_BVHWC = np.zeros((len(cases), max(map(len, cases)), height, width, 3), dtype=np.uint8)
        mask_BV = np.zeros(images_BVHWC.shape[:2], dtype=bool)
        for number, views in enumerate(cases):
            images_BVHWC[number, : len(views)] = views
            mask_BV[number, : len(views)] = True
        batch = Batch(
            images_BVCHW=torch.from_numpy(images_BVHWC).permute(0, 1, 4, 2, 3),
            view_mask_BV=torch.from_numpy(mask_BV),
            rows_B=torch.tensor(rows),
            draws_B=torch.tensor(draws),
            targets=None if self.targets is None else torch.from_numpy(self.targets[rows]),
            global_cases=request.global_cases,
            share=request.share,
        )
        return Loaded(batch, errors)

    def _view(self, image: str | bytes, draw: int, view: int) -> np.ndarray:
        name = image if isinstance(image, str) else "embedded image"
        data = read_bytes(image)
        box = None
        if draw != NO_DRAW and self.augmentation.crop_scale is not None:
            info = probe(data, name=name, max_pixels=self.image.max_pixels)
            box = sample_box(
                draw, seed=self.seed, view=view, augmentation=self.augmentation, width=info.width, height=info.height
            )
        pixels_HWC = load_view(data, name=name, image=self.image, box=box)
        if draw == NO_DRAW:
            return pixels_HWC
        quality = sample_quality(draw, seed=self.seed, view=view, augmentation=self.augmentation)
        return pixels_HWC if quality is None else recompressed(pixels_HWC, quality=quality)


class _Requests:
    """The sampler: an exchangeable list, so that workers outlive an epoch."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)


class Loader:
    """Decoded batches for lists of requests; its workers live as long as it does."""

    def __init__(
        self,
        table: Images,
        *,
        targets: np.ndarray | None,
        image: ImageConfig,
        augmentation: AugmentationConfig,
        config: LoaderConfig,
        seed: int = 0,
    ) -> None:
        workers = worker_count(config)
        self._sampler = _Requests()
        self._loader = DataLoader(
            _Decoder(table, targets=targets, image=image, augmentation=augmentation, seed=seed),
            batch_size=None,
            sampler=self._sampler,
            num_workers=workers,
            prefetch_factor=config.prefetch_factor if workers else None,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            # The order is fixed by the requests; torch's own generator must not move with the number of loaders.
            generator=torch.Generator().manual_seed(seed),
            worker_init_fn=_start_worker,
        )

    def load(self, requests: Sequence[Request]) -> Iterator[Loaded]:
        """One Loaded per request, in order."""
        self._sampler.requests = list(requests)
        yield from self._loader


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C and a cluster's SIGTERM reach every process of the group, and the main one still needs the batch that this
    # worker is on to end its step and save. It says itself when it is done; only SIGTERM may also come from its exit.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))


def worker_count(config: LoaderConfig) -> int:
    """The number of decoding processes; auto leaves one core to the training."""
    if config.workers != "auto":
        return config.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores - 1, 8)


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
    requests = []
    for number in range(batch_count(len(rows), config=config)):
        span = slice(number * config.batch_size, (number + 1) * config.batch_size)
        cases = len(rows[span])
        own_rows, own_draws = rows[span][process::processes], draws[span][process::processes]
        share = len(own_rows) * processes / cases
        if not len(own_rows):
            own_rows, own_draws = rows[span][:1], draws[span][:1]
        requests.append(Request(own_rows.tolist(), own_draws.tolist(), cases, share))
    return requests


def batch_count(rows: int, *, config: LoaderConfig) -> int:
    """Batches in an epoch of ``rows`` rows; none at all is a ConfigError."""
    count = rows // config.batch_size if config.drop_last else -(-rows // config.batch_size)
    if not count:
        raise ConfigError(
            f"data.loader.batch_size is {config.batch_size}, an epoch has only {rows} rows and drop_last is true, so "
            f"no batch would ever be trained on. Set batch_size to at most {rows}, or drop_last: false."
        )
    return count


def fewest_cases(rows: int, *, config: LoaderConfig, processes: int) -> int:
    """The cases that a process gets of the smallest batch in an epoch of ``rows`` rows."""
    last = rows % config.batch_size
    return max((config.batch_size if config.drop_last or not last else last) // processes, 1)


def evaluation_requests(rows: Sequence[int] | np.ndarray, *, config: LoaderConfig) -> list[Request]:
    """All ``rows`` in order, nothing random."""
    size = config.eval_batch_size or config.batch_size
    numbers = np.asarray(rows, dtype=np.int64).tolist()
    parts = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    return [Request(part, [NO_DRAW] * len(part), len(part), 1.0) for part in parts]
