"""The Predictor, through which everything else uses a bundle."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from consilium.bundle import load_member
from consilium.core.config import build
from consilium.core.contracts import Batch, Prediction, TextCoder, Views
from consilium.core.devices import choose_device
from consilium.core.errors import ConfigError, ConsiliumError, ImageError
from consilium.core.evaluation import Outputs
from consilium.core.section import Knowledge
from consilium.core.task import Task
from consilium.data.batches.laterality import NamedViews
from consilium.data.batches.loader import Loaded, Loader, evaluation_requests
from consilium.data.batches.looks import looks
from consilium.data.batches.readers import (
    CaptionReader,
    ImageReader,
    Images,
    MetaReader,
    Reader,
    Readers,
    TextsAndMetas,
    numbered,
)
from consilium.data.batches.rows import Item, Items, is_one_item
from consilium.data.batches.transforms import DeviceTransform
from consilium.data.cases.cases import Studied
from consilium.data.cases.mentions import Mentions, WithoutMentions
from consilium.data.config import ImageConfig, LoaderConfig
from consilium.data.store.store import CaseTable
from consilium.evaluation.config import AveragingConfig
from consilium.manifest import Manifest, local_bundle, read_manifest

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True)
class Arrays:
    """Evidence over rows: ``by_name`` [N, ...] of those that could be read; ``unread`` the others, and why."""

    by_name: dict[str, np.ndarray]
    unread: dict[int, str]


class Predictor:
    """A task ready to answer: decoding, normalisation and model exactly as in training's evaluation."""

    def __init__(
        self,
        task: Task,
        knowledge: Knowledge,
        *,
        image: ImageConfig,
        loader: LoaderConfig,
        device: torch.device,
        manifest: Manifest | None = None,
        looks: AveragingConfig | None = None,
        cached: Readers | None = None,
    ) -> None:
        """``cached`` reads features for the rows of a training, whose images or texts are then not read."""
        self.task = task
        self.knowledge = knowledge
        self.image = image
        self.loader = loader
        self.device = device
        self.manifest = manifest
        self.looks = looks or AveragingConfig()
        self._cached = cached or Readers()
        self._transform = DeviceTransform(image, augmentation=None, seed=0)
        self._mentions = Mentions(knowledge.mentions) if knowledge.mentions else None

    def __repr__(self) -> str:
        name = "" if self.manifest is None else f" '{self.manifest.name}'"
        height, width = self.image.size
        return f"<Predictor{name}: {self.task.about()}, images of {height} x {width} pixels, on {self.device}>"

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "auto",
        batch_size: int = 32,
        workers: int | None = None,
    ) -> Predictor:
        """The predictor of a bundle (a folder, here or in a bucket, or an archive); a damaged one is a BundleError."""
        own = {"batch_size": batch_size, "workers": "auto" if workers is None else workers}
        loader = build(LoaderConfig, own, origin="the arguments")
        folder = local_bundle(folder)
        manifest = read_manifest(folder)
        chosen = choose_device(device)
        member = load_member(folder, manifest)
        member.task.to(chosen).to(memory_format=torch.channels_last)
        member.task.eval()
        return cls(
            member.task,
            member.knowledge,
            image=manifest.image,
            loader=loader,
            device=chosen,
            manifest=manifest,
            looks=manifest.looks,
        )

    @property
    def once(self) -> Predictor:
        """The same task, which reads each image and sees it once, whatever the predictor does else."""
        return Predictor(self.task, self.knowledge, image=self.image, loader=self.loader, device=self.device)

    @property
    def views(self) -> tuple[str, ...]:
        """The names of the views of a case that it tells apart; (): it takes them as they come."""
        return self.task.views

    @property
    def meta_columns(self) -> tuple[str, ...]:
        """The metadata columns that it reads."""
        coder = self.task.meta_coder()
        return () if coder is None else coder.names

    @property
    def reads_text(self) -> bool:
        """Whether it reads texts."""
        return self.task.text_coder() is not None

    def check_metadata(self, metadata: Mapping[str, str]) -> None:
        """A value that cannot be read is a DataError."""
        if (coder := self.task.meta_coder()) is not None:
            coder.encode(metadata)

    def take_vectors(self, place: str, ids: Sequence[str]) -> Container[str]:
        """Let a task that reads vectors in the place of texts look those of a file up; the ids that it has.

        A file without a vector of any of ``ids`` is a DataError, a task that reads none a ConfigError.
        """
        from consilium.core.vectors import read_vectors
        from consilium.models.vectors import VectorCoder

        coder = self.task.text_coder()
        if not isinstance(coder, VectorCoder):
            reads = "no texts" if coder is None else "texts themselves"
            raise ConfigError(f"--vectors is {place}, but this bundle reads {reads}; leave it out.")
        found = read_vectors(place)
        found.refuse_strangers(ids)
        coder.take(found)
        return found.rows

    def columns(self) -> list[str]:
        """The columns of a table of answers, beside those of the case and of an error; [] where none fits a table."""
        return self.task.columns(looks=self.looks.looks)

    def row(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A record as a row of that table."""
        return self.task.row(record)

    def vectors(self) -> dict[str, int]:
        """The vectors that a record may hold, and their lengths; {} where it holds none."""
        return self.task.vectors()

    def predict(self, images: Iterable[Item] | Item) -> list[dict[str, Any]]:
        """A record for every item, in order: its answer, or ``{"image": ..., "error": ...}``.

        An item is a path, the bytes of an image file, a Pillow image, an array [H, W] or [H, W, 3] (RGB) of uint8 or
        uint16, or a list or tuple of these: the views of one case. A ``Query`` has such an image, a text, metadata, or
        some of them; ``unseen`` in its record are values of metadata that no training case had.
        """
        whole = is_one_item(images) or isinstance(images, Sequence)
        return list(self.stream(images if whole else list(images)))  # type: ignore[arg-type]

    def stream(self, items: Iterable[Item] | Item) -> Iterator[dict[str, Any]]:
        """As ``predict``, one record at a time, so that any number of images fits; a generator is read as it goes."""
        if is_one_item(items):
            yield from self._records([items])  # type: ignore[list-item]
        elif isinstance(items, Sequence):
            yield from self._records(items)  # type: ignore[arg-type]
        else:
            following = iter(items)  # type: ignore[arg-type]
            while part := list(islice(following, self.loader.eval_batch_size or self.loader.batch_size)):
                yield from self._records(part)

    def _records(self, items: Sequence[Item]) -> Iterator[dict[str, Any]]:
        coder = self.task.meta_coder()
        source = Items(items, names=self.views, columns=self.meta_columns)
        for row, answer in self._answers(source, range(len(items)), here=source.in_memory()):
            key = source.key(row)
            if isinstance(answer, ConsiliumError):
                yield {**key, "error": str(answer)}
                continue
            unseen = {} if coder is None else coder.unseen(source.metadata(row))
            yield {**key, **answer, **({"unseen": unseen} if unseen else {})}

    def _answers(
        self, source: Items, rows: Sequence[int], *, here: bool
    ) -> Iterator[tuple[int, dict[str, Any] | ConsiliumError]]:
        for loaded, prediction in self._run(source, rows, texts=source, here=here, ask=self._predict, once=False):
            found: dict[int, dict[str, Any] | ConsiliumError] = dict(loaded.errors)
            if loaded.batch is not None and prediction is not None:
                records = self.task.records(prediction)
                found.update(zip(loaded.batch.rows_B.tolist(), records, strict=True))
            yield from sorted(found.items())

    def _run(
        self,
        source: Images,
        rows: Sequence[int],
        *,
        texts: TextsAndMetas | None,
        ask: Callable[[Batch], AnswerT],
        once: bool,
        here: bool = False,
    ) -> Iterator[tuple[Loaded, AnswerT | None]]:
        """Batches and what ``ask`` says of them, which sees each image ``once``; ``here``: read in this process."""
        looks = AveragingConfig() if once else self.looks
        cached = self._cached.images if looks.looks == 1 else None  # of the whole images alone
        config = self.loader
        if here or cached is not None or len(rows) <= (config.eval_batch_size or config.batch_size):
            config = config.model_copy(update={"workers": 0})  # starting a process costs more than it saves
        coder = self.task.text_coder()
        images = cached or ImageReader(source, image=self.image, required=coder is None, zooms=looks.zooms)
        loader = Loader(self._readers(images, coder, texts), config=config)
        for loaded in loader.load(evaluation_requests(rows, config=config)):
            answer = None
            if loaded.batch is not None:
                batch = self._transform(loaded.batch.to(self.device), train=False)
                loaded, answer = replace(loaded, batch=batch), ask(batch)
            yield loaded, answer

    def _readers(self, images: Reader[Any, Views], coder: TextCoder | None, texts: TextsAndMetas | None) -> Readers:
        """A task that reads texts may be asked about an image, a text, metadata, or several of them."""
        if coder is None or texts is None:
            return Readers(images=images)
        captions, meta = self._cached.captions, self.task.meta_coder()
        if captions is None:
            read = texts if self._mentions is None else WithoutMentions(texts, self._mentions)
            numbers = numbered(map(read.captions, range(len(texts)))) if isinstance(texts, CaseTable) else None
            captions = CaptionReader(read, coder, numbers=numbers)
        return Readers(images=images, captions=captions, meta=None if meta is None else MetaReader(texts, meta))

    def _predict(self, batch: Batch) -> Prediction:
        """The task's prediction over all looks at the images."""
        if self.looks.looks == 1:
            return self.task.predict(batch)
        config = self.looks
        seen = looks(batch.views, mirror=config.mirror, crops=config.crops, zooms=config.zooms)
        return self.task.combine([(look, self.task.predict(replace(batch, images=own))) for look, own in seen])

    def _evidence(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        return self.task.evidence(self._predict(batch), batch)

    def arrays(
        self,
        source: Images,
        rows: np.ndarray,
        *,
        texts: TextsAndMetas | None = None,
        ask: Callable[[Batch], Mapping[str, torch.Tensor]] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Arrays:
        """The task's evidence over ``rows``; cases whose image cannot be read are left out, unless all are.

        ``ask`` takes the place of the evidence; each image is then seen once.
        """
        found: dict[str, np.ndarray] = {}  # of all rows at once: many small arrays would scatter over the memory
        filled = 0
        unread: dict[int, str] = {}
        was_training = self.task.training
        self.task.eval()
        done = 0
        found_of = self._run(source, rows.tolist(), texts=texts, ask=ask or self._evidence, once=ask is not None)
        for loaded, answer in found_of:
            for row, error in loaded.errors:
                if not isinstance(error, ImageError) or len(unread) + 1 == len(rows):
                    raise error  # an extra that is not installed, or a disk that is not there
                unread[row] = str(error)
            if loaded.batch is not None and answer is not None:
                for name, tensor in answer.items():
                    own = tensor.cpu().numpy()
                    if name not in found:
                        found[name] = np.empty((len(rows), *own.shape[1:]), dtype=own.dtype)
                    found[name][filled : filled + len(own)] = own
                filled += len(loaded.batch)
            done += len(loaded.errors) + (0 if loaded.batch is None else len(loaded.batch))
            if progress is not None:
                progress(done, len(rows))
        self.task.train(was_training)
        return Arrays({name: array[:filled] for name, array in found.items()}, unread)


def case_outputs(
    predictor: Predictor,
    studied: Studied[Any],
    split: str,
    *,
    ask: Callable[[Batch], Mapping[str, torch.Tensor]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Outputs:
    """The predictor's outputs over one split of studied cases, ready for an evaluator; ``ask`` is of images alone."""
    cases = studied.cases
    texts, names = cases.table if ask is None else None, predictor.task.views
    source = NamedViews(cases.table, names) if names else cases.table
    found = predictor.arrays(source, cases.rows[split], texts=texts, ask=ask, progress=progress)
    unread = {cases.table.ids[row]: reason for row, reason in found.unread.items()}
    rows = cases.without(unread).rows[split]
    table = cases.table.select(rows)
    return Outputs(
        arrays=found.by_name,
        targets=None if studied.targets is None else studied.targets[rows],
        ids=list(table.ids),
        groups=list(table.groups),
        columns=table.columns(),
        unread=unread,
        labels=list(table.labels),
    )
