"""The base of all that is trained: a model, its loss, and what its predictions mean."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from consilium.core.contracts import (
    Batch,
    Encoder,
    ImageInput,
    Look,
    MetaCoder,
    ParameterGroup,
    Prediction,
    StepOutput,
    TextCoder,
)
from consilium.core.licenses import License

LAST_EPOCH = 10**9  # after every warm-up: ``set_epoch`` with it lets learn whatever learns in the end


class Task(nn.Module, ABC):
    """A trainable whole; the images of its batches are normalised.

    ``licenses`` are those of all weights that it started from; () where all were random. ``views`` are the names of the
    views of a case in the order of the axis V; (): it takes them as they come.
    """

    licenses: tuple[License, ...] = ()
    views: tuple[str, ...] = ()

    @abstractmethod
    def step(self, batch: Batch) -> StepOutput:
        """The training loss of a batch, a mean over its cases. It may gather over processes."""

    def solve(self, batch: Batch, *, progress: Callable[[int, int], None]) -> StepOutput:
        """Find the weights for a batch of all training cases, with a ``design``, where the section is ``solved``."""
        raise NotImplementedError

    @abstractmethod
    def predict(self, batch: Batch) -> Prediction:
        """The prediction for a batch; in evaluation mode it changes no state.

        It never gathers: validation and judging run on the main process alone.
        """

    @abstractmethod
    def combine(self, looks: Sequence[tuple[Look, Prediction]]) -> Prediction:
        """What several looks at the same cases say together."""

    @abstractmethod
    def records(self, prediction: Prediction) -> list[dict[str, Any]]:
        """A JSON-able dictionary for every case of a prediction."""

    @abstractmethod
    def parameter_groups(self) -> list[ParameterGroup]:
        """All parameters, frozen ones too, each in exactly one group."""

    def evidence(self, prediction: Prediction, batch: Batch) -> Mapping[str, Tensor]:
        """What is kept of a prediction to judge it: small tensors by name, whose first axis is the case."""
        return prediction.arrays

    def probed(self, batch: Batch) -> Mapping[str, Tensor]:
        """What probes read of images: ``tower`` [B, F], features of the image tower, and ``embedding`` [B, D].

        ``scale`` [B] is 1 / temperature. {}: the task has no space that texts share, and cannot be probed.
        """
        return {}

    def about(self) -> str:
        """What the task answers, in a few words."""
        return type(self).__name__

    def columns(self, *, looks: int = 1) -> list[str]:
        """The columns of a table of answers, beside those of the case and of an error; [] where none fits a table.

        ``looks``: how often the task sees each image.
        """
        return []

    def row(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A record as a row of that table."""
        return {}

    def vectors(self) -> dict[str, int]:
        """The vectors that a record may hold, and their lengths; {} where it holds none."""
        return {}

    def terms(self) -> Sequence[str]:
        """The names of the terms of which a record gives weights as ``text_terms``; () where it gives none."""
        return ()

    def text_coder(self) -> TextCoder | None:
        """What makes tokens of the texts that the task reads; None: it reads none."""
        return None

    def meta_coder(self) -> MetaCoder | None:
        """What makes numbers of the metadata that the task reads; None: it reads none."""
        return None

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than the task reads, so that their end is left out."""
        return 0

    def unknown_share(self, texts: Sequence[str]) -> float:
        """Which share of the words of texts, in tokens, the task does not know."""
        return 0.0

    @property
    def revisits_train(self) -> bool:
        """Whether it looks at the training cases once more when it has learned."""
        return False

    def image_input(self) -> ImageInput | None:
        """The images that the image tower was made for; None: there is no such tower."""
        return None

    def notes(self) -> list[str]:
        """What a person should know of what was built, such as weights that did not fit."""
        return []

    def inherit(self, others: Iterable[Task]) -> None:
        """Take over the licences of tasks that this one is built from."""
        self.licenses = tuple(dict.fromkeys(license for task in (self, *others) for license in task.licenses))

    def set_epoch(self, epoch: int) -> None:
        """Freeze and unfreeze what the config says for this epoch (first epoch: 0)."""

    def found(self) -> dict[str, int]:
        """What ``auto`` of some keys became on this machine, by key; a run goes on with it when it is resumed."""
        return {}

    def take_found(self, found: Mapping[str, int]) -> None:
        """Go on with what ``found`` said in an earlier start of the run."""

    def keep_start(self, groups: Sequence[str]) -> str:
        """Keep a copy of what the training begins with, where the task compares itself with it; what to say of that.

        ``groups`` of parameters begin with trained weights; a copy that is there already is made anew.
        """
        return ""

    def encoders(self) -> Mapping[str, Encoder]:
        """The frozen parts by the column that they encode (``images``, ``texts``); {} where nothing stays frozen."""
        return {}

    def forward(self, batch: Batch) -> StepOutput:
        """Same as ``step``, so that distributed wrappers see the training computation."""
        return self.step(batch)


@contextlib.contextmanager
def at_the_end(task: Task) -> Iterator[None]:
    """Within it a task trains as after every warm-up, so that whatever learns in the end does; then as in epoch 0."""
    training = task.training
    task.set_epoch(LAST_EPOCH)
    task.train()
    try:
        yield
    finally:
        task.set_epoch(0)
        task.train(training)
