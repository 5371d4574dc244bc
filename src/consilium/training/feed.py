"""What a training reads: batches of images and texts, or of the features that a frozen tower made of them once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from consilium.core.contracts import Batch, Design, Encoder
from consilium.core.errors import ConfigError
from consilium.core.reporter import Reporter
from consilium.core.task import Task
from consilium.data.batches.copies import DrawnLooks
from consilium.data.batches.features import (
    CachedCaptionReader,
    CachedFeatures,
    CachedImageReader,
    CachedLooks,
    CachedTextReader,
    Contents,
)
from consilium.data.batches.laterality import NamedViews, places_of
from consilium.data.batches.loader import Loader, Request, trained_rows, training_requests
from consilium.data.batches.readers import DrawnTexts, ImageReader, MetaReader, Readers, TextReader, numbered
from consilium.data.cases.cases import Studied
from consilium.data.cases.mixture import Mixture, Whole
from consilium.data.config import DataConfig, ImageConfig
from consilium.training.config import TrainerConfig
from consilium.training.frozen import CopyField, Field, Filled, FrozenFeatures, ImageField, TextField
from consilium.training.hooks import RunLog
from consilium.training.plan import Plan


class Feed:
    """The batches of one training, for this process.

    Where a tower stays frozen and nothing changes what it sees, they hold cached features: the batches, their order
    and what is learned are the same.
    """

    def __init__(
        self,
        task: Task,
        studied: Studied[Any],
        *,
        image: ImageConfig,
        config: DataConfig,
        trainer: TrainerConfig,
        mixture: Mixture,
        plan: Plan,
        seed: int,
        accelerator: Accelerator,
        log: RunLog,
        reporter: Reporter,
    ) -> None:
        self.cases, self.studied, self.image = studied.cases, studied, image
        self.config, self.mixture = config, mixture
        self.plan, self.seed, self.accelerator, self.log = plan, seed, accelerator, log
        self.coder, self.meta, self.views = task.text_coder(), task.meta_coder(), task.views
        self._judged_splits = ("train", "val", "test") if task.revisits_train else ("val", "test")
        encoders = dict(task.encoders())
        if config.augmentation.copies is not None:
            encoders["copies"] = _tower_of_copies(encoders)
        self.frozen = {
            name: FrozenFeatures(
                encoder,
                field,
                image=image,
                config=config,
                precision="bf16" if trainer.precision == "bf16" else "fp32",
                accelerator=accelerator,
                log=log,
                reporter=reporter,
            )
            for name, encoder in encoders.items()
            if _cacheable(name, config, trainer, log) and (field := self._field(name)) is not None
        }

    def _field(self, name: str) -> Field | None:
        """What can be cached under this name."""
        table, store, copies = self.cases.table, self.config.store, self.config.augmentation.copies
        if name == "texts":
            return None if self.coder is None else TextField(table, Contents.texts(table), self.coder)
        contents = Contents.images(table)
        if name == "images" or copies is None:
            return ImageField(table, contents, image=self.image, store=store)
        copied = contents.copied(copies.number)
        return CopyField(table, copied, image=self.image, store=store, copies=copies, seed=self.seed)

    def precision(self, asked: str) -> str:
        """The precision to try: where all is cached, ``auto`` is fp32, since hardly anything is left to compute."""
        read = {"images"} if self.coder is None else {"images", "texts"}
        return self.frozen["images"].precision if read <= self.frozen.keys() else asked

    def first(self) -> Batch:
        """The first batch, for a trial; says what the rest of the features will take."""
        for frozen in self.frozen.values():
            frozen.fill(self.mixture.epoch(0)[: self.config.loader.batch_size], precision=frozen.precision)
            self._tell(frozen)
        return next(self._loaded([self._requests(0)[0].first(self.config.loader.batch_size)]))

    def fill(self) -> list[Filled]:
        """Compute the features that are still missing for training, validation and judging."""
        found = []
        for frozen in self.frozen.values():
            found += [frozen.fill(rows, precision=precision) for precision, rows in self._needs(frozen).items()]
            frozen.refuse_unread(self._drawn())
        return found

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from number ``start`` on."""
        yield from self._loaded(self._requests(epoch)[start:])

    def _requests(self, epoch: int) -> list[Request]:
        """What this process reads in an epoch: its part of each batch, or all of the one that a task is solved on."""
        mixture, accelerator, config = self.mixture, self.accelerator, self.config.loader
        if isinstance(mixture, Whole):
            return training_requests(mixture, epoch=epoch, config=config)
        process, processes = accelerator.process_index, accelerator.num_processes
        return training_requests(mixture, epoch=epoch, config=config, process=process, processes=processes)

    def _loaded(self, requests: Sequence[Request]) -> Iterator[Batch]:
        for loaded in self._training.load(requests):
            batch = loaded.whole(lambda row: self.cases.table.ids[row])
            yield self._whole(batch) if isinstance(self.mixture, Whole) else batch

    def _whole(self, batch: Batch) -> Batch:
        """The rows of the matrix on which a task is solved: of each case its image and all copies."""
        units_N, copies = self.studied.units_N, self.config.augmentation.copies
        assert units_N is not None
        shares_L = torch.tensor((1.0,) if copies is None else copies.shares, dtype=torch.float64)
        looks_B = torch.arange(len(shares_L)).repeat_interleave(len(batch))
        if copies is not None and self.looks is not None:
            batch = batch.take(torch.arange(len(batch)).repeat(len(shares_L)))
            batch = replace(batch, images=self.looks.of(batch.rows_B.numpy(), looks_B.numpy()))
        chances_N = torch.from_numpy(self.mixture.chances(len(self.cases.table)))
        weights_B = chances_N[batch.rows_B] * shares_L[looks_B]
        units_B = torch.from_numpy(units_N)[batch.rows_B]
        return replace(batch, design=Design(weights_B / weights_B.sum(), units_B, judged_B=looks_B == 0))

    def close(self) -> None:
        """End the processes that decode images."""
        self.__dict__.pop("_training", None)

    @cached_property
    def judged(self) -> Readers:
        """Reads the features of cases that are judged; what is not cached has no reader here."""
        images, texts = self._cached("images", "fp32"), self._cached("texts", "fp32")
        table = self.cases.table
        numbers = numbered(map(table.captions, range(len(table))))
        return Readers(
            images=None if images is None else CachedImageReader(CachedLooks(images, places_NV=self._places)),
            captions=None if texts is None else CachedCaptionReader(texts, table, numbers=numbers),
        )

    @cached_property
    def looks(self) -> CachedLooks | None:
        """The features that training reads of images and of their copies; None where the tower runs over them."""
        images = self._trained("images")
        return None if images is None else CachedLooks(images, self._trained("copies"), places_NV=self._places)

    @cached_property
    def _training(self) -> Loader:
        config, table = self.config.loader, self.cases.table
        if self.looks is not None:  # what is there already needs no processes
            config, copies = config.model_copy(update={"workers": 0}), self.config.augmentation.copies
            drawn_looks = None if copies is None else DrawnLooks(copies, seed=self.seed)
            readers = Readers(images=CachedImageReader(self.looks, drawn_looks))
        else:
            augmentation = self.config.augmentation
            source = NamedViews(table, self.views) if self.views else table
            # Cases without what a task must have were left out: what is missing here may be, beside a text.
            required = self.coder is None
            images = ImageReader(source, image=self.image, augmentation=augmentation, seed=self.seed, required=required)
            readers = Readers(images=images)
        if self.coder is not None:
            drawn, texts = DrawnTexts(table, seed=self.seed), self._trained("texts")
            reader = TextReader(drawn, self.coder) if texts is None else CachedTextReader(texts, drawn)
            readers = replace(readers, texts=reader)
        if self.meta is not None:
            readers = replace(readers, meta=MetaReader(table, self.meta))
        return Loader(readers, targets=self.studied.targets, config=config, seed=self.seed, note=self.log.line)

    @cached_property
    def _places(self) -> np.ndarray | None:
        """Where the views that the task names are in each case; None: it takes them as they come."""
        return places_of(self.cases.table, self.views)[0] if self.views else None

    def _trained(self, name: str) -> CachedFeatures | None:
        """The features of a field that is cached, in the precision of the training."""
        return self._cached(name, self.frozen[name].precision) if name in self.frozen else None

    def _cached(self, name: str, precision: str) -> CachedFeatures | None:
        """The features of a field that is cached."""
        return self.frozen[name].cached(precision=precision) if name in self.frozen else None

    def _needs(self, frozen: FrozenFeatures) -> dict[str, np.ndarray]:
        """The rows whose features are read, by precision."""
        drawn, judged = self._drawn(), np.concatenate([self.cases.rows[split] for split in self._judged_splits])
        if frozen.field.changes is not None:
            return {frozen.precision: drawn}  # nothing is judged by copies
        if frozen.precision == "fp32":
            return {"fp32": np.union1d(drawn, judged)}
        return {frozen.precision: drawn, "fp32": np.unique(judged)}

    def _drawn(self) -> np.ndarray:
        """The rows that the training draws."""
        drawn = trained_rows(self.mixture, batches=self.plan.batches, config=self.config.loader)
        return np.unique(np.concatenate([*drawn]))

    def _tell(self, frozen: FrozenFeatures) -> None:
        for precision, rows in self._needs(frozen).items():
            missing = len(frozen.missing(rows, precision=precision))
            takes = f", about {missing / frozen.rate / 60:.1f} min" if frozen.rate is not None else ""
            left = f"{missing} {frozen.field.name} are still to be computed{takes}" if missing else "all are there"
            self.log.line(f"{frozen.field.told} of {len(rows)} cases are cached in {frozen.folder(precision)}: {left}")


def _tower_of_copies(encoders: Mapping[str, Encoder]) -> Encoder:
    """The frozen tower that runs over copies; a ConfigError where it learns."""
    if "images" not in encoders:
        raise ConfigError(
            "data.augmentation.copies keeps what a frozen tower makes of changed images, and the image tower of this "
            "task learns. Set task.vision.freeze.kind: tower, or give the changes in data.augmentation itself, without "
            "number and weight."
        )
    return encoders["images"]


def _cacheable(field: str, config: DataConfig, trainer: TrainerConfig, log: RunLog) -> bool:
    """Whether a frozen encoder gives the same features for a content throughout; says why it does not."""
    names = config.augmentation.names if field == "images" else []
    if not trainer.cache_features:
        log.line("features of the frozen tower are not cached: trainer.cache_features is false")
    elif names:
        log.line(
            f"note: the tower is frozen, but data.augmentation ({', '.join(names)}) changes its images, so that it "
            "runs in every epoch. Without augmentation, or with that of data.augmentation.copies, its features are "
            "computed once and the head trains in seconds."
        )
    return trainer.cache_features and not names
