"""What a training reads: batches of images and texts, or of the features that a frozen tower made of them once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import numpy as np
from accelerate import Accelerator

from consilium.core.contracts import Batch
from consilium.core.reporter import Reporter
from consilium.core.task import Task
from consilium.data.batches.features import (
    CachedCaptionReader,
    CachedFeatures,
    CachedImageReader,
    CachedTextReader,
    Contents,
)
from consilium.data.batches.loader import Loader, trained_rows, training_requests
from consilium.data.batches.readers import DrawnTexts, ImageReader, Readers, TextReader, numbered
from consilium.data.cases.cases import Cases
from consilium.data.cases.mixture import Mixture
from consilium.data.config import DataConfig, ImageConfig
from consilium.training.config import TrainerConfig
from consilium.training.frozen import Field, FrozenFeatures, ImageField, TextField
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
        cases: Cases,
        *,
        targets: np.ndarray | None,
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
        self.cases, self.targets, self.image = cases, targets, image
        self.config, self.mixture = config, mixture
        self.plan, self.seed, self.accelerator, self.log = plan, seed, accelerator, log
        self.coder = task.text_coder()
        fields: dict[str, Field] = {}
        for name in task.encoders():
            if not _cacheable(name, config, trainer, log):
                continue
            if name == "images":
                contents = Contents.images(cases.table)
                fields[name] = ImageField(cases.table, contents, image=image, store=config.store)
            elif self.coder is not None:
                fields[name] = TextField(cases.table, Contents.texts(cases.table), self.coder)
        self.frozen = {
            name: FrozenFeatures(
                task.encoders()[name],
                field,
                image=image,
                config=config,
                precision="bf16" if trainer.precision == "bf16" else "fp32",
                accelerator=accelerator,
                log=log,
                reporter=reporter,
            )
            for name, field in fields.items()
        }

    def precision(self, asked: str) -> str:
        """The precision to try: where all is cached, ``auto`` is fp32, since hardly anything is left to compute."""
        read = {"images"} if self.coder is None else {"images", "texts"}
        return self.frozen["images"].precision if read <= self.frozen.keys() else asked

    def first(self) -> Batch:
        """The first batch, for a trial; says what the rest of the features will take."""
        for frozen in self.frozen.values():
            frozen.fill(self.mixture.epoch(0)[: self.config.loader.batch_size], precision=frozen.precision)
            self._tell(frozen)
        return next(self.batches(0, 0))

    def fill(self) -> None:
        """Compute the features that are still missing for training, validation and judging."""
        for frozen in self.frozen.values():
            for precision, rows in self._needs(frozen).items():
                frozen.fill(rows, precision=precision)
            frozen.refuse_unread(self._drawn())

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from number ``start`` on."""
        requests = training_requests(
            self.mixture,
            epoch=epoch,
            config=self.config.loader,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        for loaded in self._training.load(requests[start:]):
            yield loaded.whole(lambda row: self.cases.table.ids[row])

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
            images=None if images is None else CachedImageReader(images),
            captions=None if texts is None else CachedCaptionReader(texts, table, numbers=numbers),
        )

    @cached_property
    def _training(self) -> Loader:
        config, table = self.config.loader, self.cases.table
        cached = {name: self._cached(name, frozen.precision) for name, frozen in self.frozen.items()}
        if (images := cached.get("images")) is not None:  # what is there already needs no processes
            config = config.model_copy(update={"workers": 0})
            readers = Readers(images=CachedImageReader(images))
        else:
            augmentation = self.config.augmentation
            readers = Readers(images=ImageReader(table, image=self.image, augmentation=augmentation, seed=self.seed))
        if self.coder is not None:
            drawn, texts = DrawnTexts(table, seed=self.seed), cached.get("texts")
            reader = TextReader(drawn, self.coder) if texts is None else CachedTextReader(texts, drawn)
            readers = replace(readers, texts=reader)
        return Loader(readers, targets=self.targets, config=config, seed=self.seed, note=self.log.line)

    def _cached(self, name: str, precision: str) -> CachedFeatures | None:
        """The features of a field that is cached."""
        return self.frozen[name].cached(precision=precision) if name in self.frozen else None

    def _needs(self, frozen: FrozenFeatures) -> dict[str, np.ndarray]:
        """The rows whose features are read, by precision."""
        drawn, judged = self._drawn(), np.concatenate([self.cases.rows[split] for split in ("val", "test")])
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
            of = "features" if frozen.field.name == "images" else "features of the texts"
            self.log.line(f"{of} of {len(rows)} cases are cached in {frozen.folder(precision)}: {left}")


def _cacheable(field: str, config: DataConfig, trainer: TrainerConfig, log: RunLog) -> bool:
    """Whether a frozen encoder gives the same features for a content throughout; says why it does not."""
    names = config.augmentation.names if field == "images" else []
    if not trainer.cache_features:
        log.line("features of the frozen tower are not cached: trainer.cache_features is false")
    elif names:
        log.line(
            f"note: the tower is frozen, but data.augmentation ({', '.join(names)}) changes its images, so that it "
            "runs in every epoch; without augmentation its features are computed once and the head trains in seconds."
        )
    return trainer.cache_features and not names
