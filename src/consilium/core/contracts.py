"""What both sides of a border share.

Axes in names: B case in a batch, N case in a set, V view, C channel, H height, W width, F feature, K class, T token,
M metadata column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Needs:
    """Which fields of a case a task reads; cases without what they must have are left out and counted."""

    image: Literal["must", "may"] = "must"
    text: Literal["must", "may", "no"] = "no"
    mask: Literal["must", "may", "no"] = "no"
    label: Literal["one", "many", "may", "no"] = "no"  # many: any number, none too
    nested: bool = False  # labels are paths: a case also has the labels above its own
    meta: tuple[str, ...] = ()  # metadata columns that the task reads
    vectors: str | None = None  # a file of vectors by the id of a case, which are read in the place of its texts
    views: tuple[str, ...] = ()  # of which a case has at least one, and each at most once; (): whatever it has


@dataclass(frozen=True)
class Column:
    """One field of the cases in a batch: tensors whose first axis is the case."""

    def each(self, change: Callable[[Any], Tensor]) -> Self:
        """The same column with every tensor changed: sent to a device, or some of the cases taken."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(self, **{name: change(value) for name, value in found.items() if value is not None})


@dataclass(frozen=True)
class Views(Column):
    """Images: pixels, or the features that a frozen encoder made of them.

    ``pixels_BVCHW`` is uint8 in [0, 255] from the loader and normalised float after the device transform.
    ``there_BV`` is False where a case has fewer views than the one with most in the batch.
    """

    there_BV: Tensor
    pixels_BVCHW: Tensor | None = None
    features_BVF: Tensor | None = None

    @property
    def pixels(self) -> Tensor:
        """The pixels of images that are not features yet."""
        if self.pixels_BVCHW is None:
            raise ValueError("these images are cached features; there are no pixels")
        return self.pixels_BVCHW


@dataclass(frozen=True)
class Texts(Column):
    """One text of each case as token ids, or as features; ``there_B`` is False where a case has none.

    Equal texts, and they alone, have equal numbers in ``same_B``. ``own_BK`` numbers all texts that might have been
    drawn of each case, -1 where it has fewer than others; None: each case has one.
    """

    there_B: Tensor
    same_B: Tensor
    tokens_BT: Tensor | None = None
    attention_BT: Tensor | None = None
    features_BF: Tensor | None = None
    own_BK: Tensor | None = None


@dataclass(frozen=True)
class Captions(Column):
    """All texts of each case, up to K: what ``Texts`` has of one. Equal texts, and they alone, have equal numbers."""

    there_BK: Tensor
    same_BK: Tensor
    tokens_BKT: Tensor | None = None
    attention_BKT: Tensor | None = None
    features_BKF: Tensor | None = None

    def each_text(self) -> Texts:
        """The texts that are there, case by case, as [N]."""
        chosen = self.each(lambda tensor: tensor[self.there_BK])
        return Texts(chosen.there_BK, chosen.same_BK, chosen.tokens_BKT, chosen.attention_BKT, chosen.features_BKF)


@dataclass(frozen=True)
class Masks(Column):
    """The class of every pixel, uint8; 255 is not judged."""

    there_B: Tensor
    classes_BHW: Tensor


@dataclass(frozen=True)
class Meta(Column):
    """Metadata: numbers standardised, categories as indices; ``there_BM`` is False where a value is missing."""

    there_BM: Tensor
    values_BM: Tensor


@dataclass(frozen=True)
class Design(Column):
    """What a task that is solved in one step knows of its rows: what each counts, in all 1, as ``weights_B``.

    Rows of equal ``units_B`` belong together: where some are left out to choose settings, all of them are. Those are
    then judged of which ``judged_B`` is true: images as they are, not changed copies of them.
    """

    weights_B: Tensor
    units_B: Tensor
    judged_B: Tensor


@dataclass(frozen=True)
class Batch:
    """Cases on their way through a task: an optional column for every field of a case.

    ``rows_B`` are row numbers of the case table; ``draws_B`` number the draws of a whole training, and key everything
    random about a case. ``counts`` are of this batch over all processes: ``cases``, and those with ``text`` or
    ``mask``. ``share`` is the weight of this process's mean loss in the mean over processes. ``targets_B`` [B, ...] is
    what the family's study made of the labels. A training sees one text of a case, in ``texts``; a task that is asked
    sees all of them, in ``captions``.
    """

    rows_B: Tensor
    draws_B: Tensor
    counts: Mapping[str, int] = field(default_factory=dict)
    share: float = 1.0
    images: Views | None = None
    texts: Texts | None = None
    captions: Captions | None = None
    masks: Masks | None = None
    meta: Meta | None = None
    design: Design | None = None
    targets_B: Tensor | None = None

    def __len__(self) -> int:
        return int(self.rows_B.shape[0])

    @property
    def views(self) -> Views:
        """The images of a task that cannot do without."""
        if self.images is None:
            raise ValueError("this batch has no images")
        return self.images

    def to(self, device: Any) -> Batch:
        """The same batch on ``device``; ``rows_B`` and ``draws_B`` stay where they are."""
        return self._each(lambda tensor: tensor.to(device=device, non_blocking=True))

    def take(self, cases_B: Tensor) -> Batch:
        """Some cases of the batch, by their places in it or by a mask; ``counts`` and ``share`` stay."""
        chosen = cases_B.cpu()
        taken = self._each(lambda tensor: tensor[cases_B.to(tensor.device)])
        return replace(taken, rows_B=self.rows_B[chosen], draws_B=self.draws_B[chosen])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        columns = {item.name: getattr(self, item.name) for item in fields(self)}
        changed: dict[str, Any] = {
            name: column.each(change) for name, column in columns.items() if isinstance(column, Column)
        }
        if self.targets_B is not None:
            changed["targets_B"] = change(self.targets_B)
        return replace(self, **changed)


@dataclass
class StepOutput:
    """The loss of a batch (a scalar, mean over its cases) and named detached parts of it.

    ``table`` is what a task that is solved in one step says of its solution, row by row.
    """

    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    table: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Prediction:
    """What a task says about cases: float32 tensors whose first axis is the case, by names of the family's."""

    arrays: Mapping[str, Tensor]


class PaddedTexts(Protocol):
    """Texts of a batch as int64 [B, T]: token ids, and 1 where a token belongs to the text, 0 where it is padding."""

    @property
    def tokens_BT(self) -> Tensor:
        """The token ids."""
        ...

    @property
    def attention_BT(self) -> Tensor:
        """Which of them count."""
        ...


class TextCoder(Protocol):
    """Makes tokens of texts; it is sent to other processes."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text."""
        ...

    def pad(self, ids: Sequence[Sequence[int]]) -> PaddedTexts:
        """Encoded texts side by side, filled up to the longest."""
        ...


class MetaCoder(Protocol):
    """Makes numbers of metadata; it is sent to other processes."""

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that it reads, in the order of the axis M."""
        ...

    def encode(self, case: Mapping[str, str]) -> tuple[list[float], list[bool]]:
        """The value of each column of a case, and whether it has one."""
        ...

    def unseen(self, case: Mapping[str, str]) -> dict[str, str]:
        """The values of a case that no training case had, by column."""
        ...


@dataclass(frozen=True)
class ImageInput:
    """The mean and standard deviation of each channel, in [0, 1], that an image tower was made for.

    ``pretrained``: its weights were trained on such images.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pretrained: bool


@dataclass(frozen=True)
class Look:
    """One way to look at an image (test-time augmentation).

    Mirrored; its centre with the share ``centre`` of both sides, enlarged; its centre with the share ``zoom`` of the
    area, cut from the file at the resolution of the file.
    """

    mirrored: bool = False
    centre: float = 1.0
    zoom: float = 1.0


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that ``optimizer.groups`` knows by ``name``.

    ``depths`` gives for each parameter how many layers of the group lie above its own; None where there are no layers.
    """

    name: str
    parameters: list[nn.Parameter]
    depths: Callable[[], list[int]] | None = None


class Encoder(Protocol):
    """A part of a task that makes the same of the same field every time; its outputs may be kept."""

    @property
    def module(self) -> nn.Module:
        """The part, of which nothing changes in a training."""
        ...

    @property
    def width(self) -> int:
        """Features of each image or text."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides the features beside the image or text: weights hash, names, versions."""
        ...

    def encode(self, batch: Batch) -> Tensor:
        """Features [N, F] of the images or texts that are there, case by case."""
        ...


@dataclass
class Progress:
    """Where a training stands; the loop owns it, hooks read it."""

    step: int = 0  # optimizer steps done
    epoch: int = 0  # epoch being trained, first is 0
    batch: int = 0  # batches of this epoch that reached the optimizer
    epochs: float = 0.0  # how much of the epochs is done
    samples: int = 0  # cases seen, over all processes
    seconds: float = 0.0  # in optimizer steps and waiting for their data, over all starts
    total_steps: int = 0
    best_metric: float | None = None
    best_tie_breaker: float | None = None  # of the validation at best_step
    best_step: int | None = None
    lowest_tie_breaker: float | None = None  # so far
    evaluations_without_improvement: int = 0
    stop_reason: str | None = None
    loss_sum: float = 0.0  # loss x cases since the last line of the log, which starts it anew
    loss_cases: int = 0
    validation_due: bool = False  # a signal came while the weights of this step were validated
    solution: list[dict[str, Any]] = field(default_factory=list)  # the table of a task that is solved in one step


@dataclass(frozen=True)
class StepLog:
    """Figures of one optimizer step, for hooks; seconds are wall-clock on this process."""

    loss: float
    parts: Mapping[str, float]
    learning_rates: Mapping[str, float]
    gradient_norm: float | None
    data_seconds: float
    step_seconds: float
    cases: int


class Hook(Protocol):
    """Something that happens beside the loop; an exception in a hook stops the run."""

    def on_step(self, progress: Progress, log: StepLog) -> None:
        """After every optimizer step."""
        ...

    def on_evaluation(self, progress: Progress, metrics: Mapping[str, float | None]) -> None:
        """After every validation."""
        ...

    def on_end(self, progress: Progress) -> None:
        """After the last step, also when the run stops early."""
        ...
