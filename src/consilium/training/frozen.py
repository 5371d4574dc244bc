"""Frozen means cached: what a frozen tower makes of images that nothing changes is computed once and kept."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from consilium.core.contracts import Batch, Encoder, Views
from consilium.core.errors import ConsiliumError, DataError, ImageError
from consilium.core.files import fingerprint
from consilium.core.reporter import Reporter
from consilium.data.config import DataConfig, ImageConfig
from consilium.data.features import CachedReader, CachedViews, FeatureCache
from consilium.data.loader import Loader, evaluation_requests, unusable
from consilium.data.readers import ImageReader, Readers
from consilium.data.rows import SingleViews
from consilium.data.store import CaseTable
from consilium.data.transforms import DeviceTransform
from consilium.training.hooks import RunLog
from consilium.training.processes import from_all, on_main

VERSION = 1
SAVE_EVERY = 30.0  # seconds of computing that a kill may cost


class FrozenFeatures:
    """The features of all images that a training reads, by the frozen encoder that computes them.

    They are kept in ``{store.root}/features-{key}``, where the key is of all that decides them but the image itself:
    the encoder's weights, the size and normalisation of images, the precision. An image is known by the SHA-256 of its
    file, so other labels, splits, mixtures, heads, seeds and a store that has grown find what is there. Training
    reads features in its own ``precision``; validation and judging are never in bf16, as with images.
    """

    def __init__(
        self,
        encoder: Encoder,
        table: CaseTable,
        *,
        image: ImageConfig,
        config: DataConfig,
        precision: str,
        accelerator: Accelerator,
        log: RunLog,
        reporter: Reporter,
    ) -> None:
        self.encoder, self.table, self.image, self.config = encoder, table, image, config
        self.precision, self.accelerator, self.log, self.reporter = precision, accelerator, log, reporter
        self.views = CachedViews(table)
        self._about = {
            "version": VERSION,
            **encoder.identity,
            "image": image.model_dump(mode="json", exclude={"statistics", "max_pixels"}),
            "store": config.store.model_dump(mode="json", include={"images", "resize"}),
            "device": accelerator.device.type,
        }
        self._caches = {name: self._cache(name) for name in {precision, "fp32"}}
        self.unread: dict[bytes, str] = {}  # images that have no features, since they cannot be read, and why
        self.images_a_second: float | None = None

    def _cache(self, precision: str) -> FeatureCache:
        root = Path(self.config.store.root).expanduser().absolute()
        key = fingerprint([self._about, precision])
        return FeatureCache(root / f"features-{key}", width=self.encoder.width)

    def reader(self, *, precision: str) -> CachedReader:
        """Reads features as the encoder gives them in ``precision``; ``fill`` it first."""
        dtype = torch.float32
        if precision == "bf16":  # what is normalised last comes out as float32 all the same
            none_1 = torch.zeros(1, dtype=torch.int64)
            there_11 = torch.ones(1, 1, dtype=torch.bool)
            blank = Views(there_11, torch.zeros(1, 1, 3, *self.image.size)).each(self._here)
            dtype = self._encoded(Batch(none_1, none_1, images=blank), precision).dtype
        return CachedReader(self._caches[precision], self.views, dtype=dtype, unread=self.unread)

    def missing(self, rows: np.ndarray, *, precision: str) -> list[int]:
        """One view of every image of these cases that has no features yet."""
        cache = self._caches[precision]
        cache.refresh()
        found = {self.views.digests[view]: view for view in self.views.of(rows.tolist())}
        return sorted(view for digest, view in found.items() if digest not in cache)

    def folder(self, precision: str) -> Path:
        """Where the features are."""
        return self._caches[precision].folder

    def fill(self, rows: np.ndarray, *, precision: str) -> None:
        """Compute what is missing for these cases; the processes of a training share the work.

        An image that cannot be read gets no features; it is in ``unread``.
        """
        accelerator, cache = self.accelerator, self._caches[precision]
        if not on_main(accelerator, lambda: bool(self.missing(rows, precision=precision))):
            cache.refresh()
            return
        with contextlib.ExitStack() as held:

            def begin() -> list[int]:
                held.enter_context(cache.lock(about={**self._about, "precision": precision}, waiting=self._wait))
                return self.missing(rows, precision=precision)

            missing, start = on_main(accelerator, begin), time.perf_counter()
            problem, unread = None, {}
            try:
                unread = self._compute(missing[accelerator.process_index :: accelerator.num_processes], precision)
            except ConsiliumError as error:
                problem = error
            others = [found for found in from_all(accelerator, None if problem is None else str(problem)) if found]
            for found in from_all(accelerator, unread):
                self.unread |= found
        if problem is not None:
            raise problem
        if others:
            raise DataError(others[0])
        cache.refresh()
        if missing:
            self.images_a_second = len(missing) / (time.perf_counter() - start)

    def refuse_unread(self, rows: np.ndarray) -> None:
        """One of these cases without features is a DataError: a training leaves no case out."""
        for view in self.views.of(rows.tolist()) if self.unread else []:
            if reason := self.unread.get(self.views.digests[view]):
                raise unusable(self.table.ids[int(self.views.rows[view])], reason)

    def _wait(self) -> None:
        self.log.line("another training computes features of the same tower; waiting for it")

    def _compute(self, views: Sequence[int], precision: str) -> dict[bytes, str]:
        """Run images through the tower and append what it gives to this process's shard.

        Returns the images that cannot be read, and why.
        """
        cache, config = self._caches[precision], self.config.loader
        cases = self.views.rows[list(views)]
        source = SingleViews(self.table, cases, np.array(views) - np.array(self.views.starts)[cases])
        requests = evaluation_requests(range(len(views)), config=config)
        if len(requests) <= 1:
            config = config.model_copy(update={"workers": 0})  # starting a process costs more than it saves
        loader = Loader(Readers(images=ImageReader(source, image=self.image)), config=config, note=self.log.line)
        transform = DeviceTransform(self.image, augmentation=None, seed=0)
        unread: dict[bytes, str] = {}
        waiting: list[tuple[list[bytes], np.ndarray]] = []
        done, saved = 0, time.monotonic()

        def save() -> None:
            if waiting:
                digests = [digest for own, _ in waiting for digest in own]
                cache.append(digests, np.concatenate([own for _, own in waiting]), shard=self.accelerator.process_index)
                waiting.clear()

        try:
            for loaded in loader.load(requests):
                for number, error in loaded.errors:
                    if not isinstance(error, ImageError):
                        raise error
                    unread[self.views.digests[views[number]]] = str(error)
                if loaded.batch is not None:
                    batch = transform(loaded.batch.to(self.accelerator.device), train=False)
                    features_NF = self._encoded(batch, precision)
                    digests = [self.views.digests[views[number]] for number in batch.rows_B.tolist()]
                    waiting.append((digests, features_NF.float().cpu().numpy()))
                done += len(loaded.errors) + (0 if loaded.batch is None else len(loaded.batch))
                self.reporter.progress("features", done, len(views))
                if time.monotonic() - saved > SAVE_EVERY:
                    save()
                    saved = time.monotonic()
        finally:
            save()
        return unread

    def _here(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.accelerator.device)

    def _encoded(self, batch: Batch, precision: str) -> torch.Tensor:
        device = self.accelerator.device
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return self.encoder.encode(batch)
