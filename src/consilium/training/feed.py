"""What a training reads: batches of images, or of the features that a frozen tower made of them once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from accelerate import Accelerator

from consilium.core.contracts import Batch
from consilium.core.reporter import Reporter
from consilium.core.task import Task
from consilium.data.cases import Cases
from consilium.data.config import DataConfig, ImageConfig
from consilium.data.features import CachedReader
from consilium.data.loader import Loader, training_requests
from consilium.data.mixture import Mixture
from consilium.data.readers import ImageReader, Readers, TextReader, numbered
from consilium.training.config import TrainerConfig
from consilium.training.frozen import FrozenFeatures
from consilium.training.hooks import RunLog
from consilium.training.plan import Plan


class Feed:
    """The batches of one training, for this process.

    Where the tower stays frozen and no augmentation is on, they hold cached features: the batches, their order and
    what is learned are the same.
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
        coder = task.text_coder()
        self.texts = None if coder is None else TextReader(cases.table, coder, numbers=numbered(cases.table.texts))
        self.frozen: FrozenFeatures | None = None
        encoder = task.encoders().get("images")
        if encoder is not None and _cacheable(config, trainer, log):
            precision = "bf16" if trainer.precision == "bf16" else "fp32"
            self.frozen = FrozenFeatures(
                encoder, cases.table, image=image, config=config, precision=precision, accelerator=accelerator, log=log,
                reporter=reporter,
            )  # fmt: skip

    def precision(self, asked: str) -> str:
        """The precision to try: with cached features ``auto`` is fp32, since hardly anything is left to compute."""
        return asked if self.frozen is None else self.frozen.precision

    def first(self) -> Batch:
        """The first batch, for a trial; says what the rest of the features will take."""
        if self.frozen is not None:
            self.frozen.fill(self.mixture.epoch(0)[: self.config.loader.batch_size], precision=self.frozen.precision)
            self._tell(self.frozen)
        return next(self.batches(0, 0))

    def fill(self) -> None:
        """Compute the features that are still missing for training, validation and judging."""
        if self.frozen is not None:
            for precision, rows in self._needs(self.frozen).items():
                self.frozen.fill(rows, precision=precision)
            self.frozen.refuse_unread(self._drawn())

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
    def judged(self) -> CachedReader | None:
        """Reads the features of cases that are judged; None: their images are read."""
        return None if self.frozen is None else self.frozen.reader(precision="fp32")

    @cached_property
    def _training(self) -> Loader:
        config, images = self.config.loader, self._images()
        if self.frozen is not None:  # what is there already needs no processes
            config = config.model_copy(update={"workers": 0})
        readers = Readers(images=images, texts=self.texts)
        return Loader(readers, targets=self.targets, config=config, seed=self.seed, note=self.log.line)

    def _images(self) -> CachedReader | ImageReader:
        if self.frozen is not None:
            return self.frozen.reader(precision=self.frozen.precision)
        return ImageReader(self.cases.table, image=self.image, augmentation=self.config.augmentation, seed=self.seed)

    def _needs(self, frozen: FrozenFeatures) -> dict[str, np.ndarray]:
        """The rows whose features are read, by precision."""
        drawn, judged = self._drawn(), np.concatenate([self.cases.rows[split] for split in ("val", "test")])
        if frozen.precision == "fp32":
            return {"fp32": np.union1d(drawn, judged)}
        return {frozen.precision: drawn, "fp32": np.unique(judged)}

    def _drawn(self) -> np.ndarray:
        """The rows that the training draws."""
        size = self.config.loader.batch_size
        own = [self.mixture.epoch(epoch)[: count * size] for epoch, count in enumerate(self.plan.batches)]
        return np.unique(np.concatenate(own))

    def _tell(self, frozen: FrozenFeatures) -> None:
        for precision, rows in self._needs(frozen).items():
            missing = len(frozen.missing(rows, precision=precision))
            rate = frozen.images_a_second
            takes = f", about {missing / rate / 60:.1f} min" if rate is not None else ""
            left = f"{missing} images are still to be computed{takes}" if missing else "all are there"
            self.log.line(f"features of {len(rows)} cases are cached in {frozen.folder(precision)}: {left}")


def _cacheable(config: DataConfig, trainer: TrainerConfig, log: RunLog) -> bool:
    """Whether a frozen encoder gives the same features for an image throughout; says why it does not."""
    if not trainer.cache_features:
        log.line("features of the frozen tower are not cached: trainer.cache_features is false")
    elif names := config.augmentation.names:
        log.line(
            f"note: the tower is frozen, but data.augmentation ({', '.join(names)}) changes its images, so that it "
            "runs in every epoch; without augmentation its features are computed once and the head trains in seconds."
        )
    return trainer.cache_features and not config.augmentation.names
