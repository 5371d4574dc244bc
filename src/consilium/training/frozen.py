"""Frozen means cached: what a frozen tower makes of what nothing changes is computed once and kept.

Axes in names: N image or text, F feature.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import Accelerator

from consilium.core.contracts import Batch, Encoder, TextCoder, Texts, Views
from consilium.core.errors import ConsiliumError, DataError, ImageError, WeightsError
from consilium.core.files import fingerprint
from consilium.core.reporter import Reporter
from consilium.data.batches.config import AugmentationConfig, CopiesConfig
from consilium.data.batches.copies import copy_draw
from consilium.data.batches.features import CachedFeatures, Contents, FeatureCache, texts_of
from consilium.data.batches.loader import Loader, evaluation_requests, unusable
from consilium.data.batches.readers import NO_DRAW, DrawnTexts, ImageReader, Readers, TextReader
from consilium.data.batches.rows import SingleTexts, SingleViews
from consilium.data.batches.transforms import DeviceTransform
from consilium.data.config import DataConfig, ImageConfig, StoreConfig
from consilium.data.store.store import CaseTable
from consilium.training.hooks import RunLog
from consilium.training.processes import from_all, on_main

VERSION = 1
SAVE_EVERY = 30.0  # seconds of computing that a kill may cost


@dataclass(frozen=True)
class Field(ABC):
    """A field of the cases of a table whose features are kept: what its contents are, and how they are read.

    ``seed`` is that of what is random about them.
    """

    name: ClassVar[str]
    table: CaseTable
    contents: Contents
    seed: int = field(default=0, kw_only=True)

    @property
    @abstractmethod
    def told(self) -> str:
        """What the log calls their features."""

    @property
    def changes(self) -> AugmentationConfig | None:
        """What happens to these contents at random."""
        return None

    @property
    @abstractmethod
    def about(self) -> dict[str, Any]:
        """All that decides the features, beside the content and the encoder."""

    @abstractmethod
    def single(self, numbers: Sequence[int]) -> Readers:
        """Readers of these contents, one by one."""

    def draws(self, numbers: Sequence[int]) -> list[int]:
        """The draws that decide what is random about these contents."""
        return [NO_DRAW] * len(numbers)

    @abstractmethod
    def blank(self) -> Batch:
        """A batch of one content that is nothing."""


@dataclass(frozen=True)
class ImageField(Field):
    """The images of a case table; ``image`` and ``store`` say how they are read."""

    name = "images"
    image: ImageConfig
    store: StoreConfig

    @property
    def told(self) -> str:
        """Features are of images where nothing else is said."""
        return "features"

    @property
    def about(self) -> dict[str, Any]:
        """Size and normalisation, and what the store does to images."""
        return {
            "image": self.image.model_dump(mode="json", exclude={"statistics", "max_pixels"}),
            "store": self.store.model_dump(mode="json", include={"images", "resize"}),
        }

    def single(self, numbers: Sequence[int]) -> Readers:
        """Single views."""
        views = SingleViews(self.table, *self.contents.places(numbers))
        return Readers(images=ImageReader(views, image=self.image, augmentation=self.changes, seed=self.seed))

    def blank(self) -> Batch:
        """A black image."""
        none_1 = torch.zeros(1, dtype=torch.int64)
        images = Views(torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, 3, *self.image.size))
        return Batch(none_1, none_1, images=images)


@dataclass(frozen=True)
class CopyField(ImageField):
    """Copies of the images of a case table, changed at random: each a function of its image's content and ``seed``."""

    name = "copies"
    copies: CopiesConfig

    @property
    def told(self) -> str:
        """How many there are of each."""
        many = f"{self.copies.number} changed copies" if self.copies.number > 1 else "a changed copy"
        return f"features of {many} of each image"

    @property
    def changes(self) -> AugmentationConfig:
        """What happens to a copy."""
        return self.copies.changes

    @property
    def about(self) -> dict[str, Any]:
        """As of the images, and what happens to copies, but not how many there are."""
        return {**super().about, "changes": self.changes.model_dump(mode="json", exclude_none=True), "seed": self.seed}

    def draws(self, numbers: Sequence[int]) -> list[int]:
        """Of what each copy is known by."""
        return [copy_draw(self.contents.digests[number]) for number in numbers]


@dataclass(frozen=True)
class TextField(Field):
    """The texts of a case table; ``coder`` makes tokens of them."""

    name = "texts"
    coder: TextCoder

    @property
    def told(self) -> str:
        """Of texts."""
        return "features of the texts"

    @property
    def about(self) -> dict[str, Any]:
        """Nothing: the tokenizer belongs to the encoder."""
        return {}

    def single(self, numbers: Sequence[int]) -> Readers:
        """Single texts."""
        places = zip(*(found.tolist() for found in self.contents.places(numbers)), strict=True)
        texts = [texts_of(self.table, case)[place] for case, place in places]
        return Readers(texts=TextReader(DrawnTexts(SingleTexts(texts)), self.coder))

    def blank(self) -> Batch:
        """An empty text."""
        none_1, padded = torch.zeros(1, dtype=torch.int64), self.coder.pad(self.coder.encode([""]))
        texts = Texts(torch.ones(1, dtype=torch.bool), none_1, padded.tokens_BT, padded.attention_BT)
        return Batch(none_1, none_1, texts=texts)


@dataclass(frozen=True)
class Filled:
    """How many features of ``what`` were computed, how many were there before, and where they are."""

    what: str
    computed: int
    there: int
    folder: Path

    def __str__(self) -> str:
        return f"{self.what}: {self.computed:,} computed, {self.there:,} were there, in {self.folder}"


class FrozenFeatures:
    """The features of all images, or all texts, that a training reads, by the frozen encoder that computes them.

    They are kept in ``{store.root}/features-{key}``, where the key is of all that decides them but the content itself:
    the encoder's weights, how the field is read, the precision. An image is known by the SHA-256 of its file, a text by
    its own, so other labels, splits, mixtures, heads, seeds and a store that has grown find what is there. Training
    reads features in its own ``precision``; validation and judging are never in bf16, as without a cache.
    """

    def __init__(
        self,
        encoder: Encoder,
        field: Field,
        *,
        image: ImageConfig,
        config: DataConfig,
        precision: str,
        accelerator: Accelerator,
        log: RunLog,
        reporter: Reporter,
    ) -> None:
        self.encoder, self.field, self.contents = encoder, field, field.contents
        self.config, self.precision, self.accelerator = config, precision, accelerator
        self.log, self.reporter = log, reporter
        self._transform = DeviceTransform(image, augmentation=field.changes, seed=field.seed)
        about = {"version": VERSION, **encoder.identity, **field.about, "device": accelerator.device.type}
        self._about = about
        self._caches = {name: self._cache(name) for name in {precision, "fp32"}}
        self.unread: dict[bytes, str] = {}  # images that have no features, since they cannot be read, and why
        self.rate: float | None = None  # contents a second

    def _cache(self, precision: str) -> FeatureCache:
        root = Path(self.config.store.root).expanduser().absolute()
        key = fingerprint([self._about, precision])
        return FeatureCache(root / f"features-{key}", width=self.encoder.width)

    def cached(self, *, precision: str) -> CachedFeatures:
        """The features as the encoder gives them in ``precision``; ``fill`` it first."""
        dtype = torch.float32
        if precision == "bf16":  # what is normalised last comes out as float32 all the same
            dtype = self._encoded(self.field.blank().to(self.accelerator.device), precision).dtype
        return CachedFeatures(self._caches[precision], self.contents, dtype=dtype, unread=self.unread)

    def missing(self, rows: np.ndarray, *, precision: str) -> list[int]:
        """One of every content of these cases that has no features yet."""
        cache = self._caches[precision]
        cache.refresh()
        found = {self.contents.digests[number]: number for number in self.contents.of(rows)}
        return sorted(number for digest, number in found.items() if digest not in cache)

    def folder(self, precision: str) -> Path:
        """Where the features are."""
        return self._caches[precision].folder

    def fill(self, rows: np.ndarray, *, precision: str) -> Filled:
        """Compute what is missing for these cases; the processes of a training share the work.

        An image that cannot be read gets no features; it is in ``unread``. Features that are no numbers are a
        WeightsError.
        """
        accelerator, cache = self.accelerator, self._caches[precision]
        different = len({self.contents.digests[number] for number in self.contents.of(rows)})
        if not on_main(accelerator, lambda: bool(self.missing(rows, precision=precision))):
            cache.refresh()
            return Filled(self.field.name, 0, different, cache.folder)
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
            self.rate = len(missing) / (time.perf_counter() - start)
        return Filled(self.field.name, len(missing), different - len(missing), cache.folder)

    def refuse_unread(self, rows: np.ndarray) -> None:
        """One of these cases without features is a DataError: a training leaves no case out."""
        for number in self.contents.of(rows) if self.unread else []:
            if reason := self.unread.get(self.contents.digests[number]):
                raise unusable(self.field.table.ids[int(self.contents.rows[number])], reason)

    def _wait(self) -> None:
        self.log.line("another training computes features of the same tower; waiting for it")

    def _compute(self, numbers: Sequence[int], precision: str) -> dict[bytes, str]:
        """Run contents through the tower and append what it gives to this process's shard.

        Returns the images that cannot be read, and why.
        """
        cache, config = self._caches[precision], self.config.loader
        draws, requests = self.field.draws(numbers), evaluation_requests(range(len(numbers)), config=config)
        requests = [replace(request, draws=[draws[row] for row in request.rows]) for request in requests]
        if len(requests) <= 1:
            config = config.model_copy(update={"workers": 0})  # starting a process costs more than it saves
        loader = Loader(self.field.single(numbers), config=config, note=self.log.line)
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
                    unread[self.contents.digests[numbers[number]]] = str(error)
                if loaded.batch is not None:
                    batch = loaded.batch.to(self.accelerator.device)
                    batch = self._transform(batch, train=self.field.changes is not None)
                    features_NF = self._encoded(batch, precision)
                    self._refuse_no_numbers(features_NF, [numbers[row] for row in batch.rows_B.tolist()], precision)
                    digests = [self.contents.digests[numbers[number]] for number in batch.rows_B.tolist()]
                    waiting.append((digests, features_NF.float().cpu().numpy()))
                done += len(loaded.errors) + (0 if loaded.batch is None else len(loaded.batch))
                self.reporter.progress("features", done, len(numbers))
                if time.monotonic() - saved > SAVE_EVERY:
                    save()
                    saved = time.monotonic()
        finally:
            save()
        return unread

    def _refuse_no_numbers(self, features_NF: torch.Tensor, numbers: Sequence[int], precision: str) -> None:
        """Nothing is kept of what a tower with damaged weights gives."""
        wrong_N = ~torch.isfinite(features_NF).all(1).cpu()
        if bool(wrong_N.any()):
            number = numbers[int(wrong_N.nonzero()[0])]
            case = self.field.table.ids[int(self.contents.rows[number])]
            raise WeightsError(
                f"the frozen tower {self.encoder.identity['tower']} gives features that are NaN or infinite in "
                f"{precision}, for {int(wrong_N.sum())} of {len(numbers)} {self.field.name} (the first: of case "
                f"{case}). "
                "Its weights are damaged, or of another precision: name others (task.vision, task.text), or set "
                "trainer.precision: fp32."
            )

    def _encoded(self, batch: Batch, precision: str) -> torch.Tensor:
        device = self.accelerator.device
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return self.encoder.encode(batch)
