"""What both sides of a border share.

Axes in names: B case in a batch, N case in a set, V view, C channel, H height, W width, F feature, K class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from consilium.core.reporter import counted, figures

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn


@dataclass
class Batch:
    """Cases on their way through a task.

    ``images_BVCHW`` is uint8 in [0, 255] from the loader and normalised float after the device
    transform. ``view_mask_BV`` is False where a case has fewer views than the longest in the batch.
    ``features_BVF`` is what a frozen tower made of the views before; the images then have no pixels [B, V, 3, 0, 0].
    ``targets`` is int64 [B] (single label) or float32 [B, K] (multi-label), None when unknown.
    ``rows_B`` are row numbers of the case table; ``draws_B`` number the draws of a whole training,
    and key everything random about a case. ``global_cases`` counts the cases of this batch over all
    processes; ``share`` is the weight of this process's mean loss in the mean over processes.
    """

    images_BVCHW: Tensor
    view_mask_BV: Tensor
    rows_B: Tensor
    draws_B: Tensor
    targets: Tensor | None = None
    features_BVF: Tensor | None = None
    global_cases: int = 0
    share: float = 1.0

    def __len__(self) -> int:
        return int(self.rows_B.shape[0])

    def to(self, device: Any) -> Batch:
        """The same batch on ``device``."""
        move = {"device": device, "non_blocking": True}
        return replace(
            self,
            images_BVCHW=self.images_BVCHW.to(**move),
            view_mask_BV=self.view_mask_BV.to(**move),
            targets=None if self.targets is None else self.targets.to(**move),
            features_BVF=None if self.features_BVF is None else self.features_BVF.to(**move),
        )


@dataclass
class StepOutput:
    """The loss of a batch (a scalar, mean over its cases) and named detached parts of it."""

    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Prediction:
    """What a task says about cases: named arrays whose first axis is the case, float32.

    ``classify`` gives ``logits`` and ``probabilities`` [B, K], and of one label a case ``conditionals`` [B, K]: the
    probability of a node among its siblings, whose product along a path is the path's in ``probabilities``.
    """

    arrays: dict[str, Tensor]


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate: ``name`` is ``tower`` or ``head``."""

    name: str
    parameters: list[nn.Parameter]


class Task(Protocol):
    """A trainable whole, also an ``nn.Module``: model + loss + what a prediction means."""

    def step(self, batch: Batch) -> StepOutput:
        """The training loss of a batch whose images are normalised."""
        ...

    def predict(self, batch: Batch) -> Prediction:
        """The prediction for a batch whose images are normalised; in evaluation mode it changes no state."""
        ...

    def combine(self, looks: Sequence[Prediction]) -> Prediction:
        """What several looks at the same cases (mirrored, enlarged) say together."""
        ...

    def records(self, prediction: Prediction) -> list[dict[str, Any]]:
        """A JSON-able dictionary for every case of a prediction."""
        ...

    def parameter_groups(self) -> list[ParameterGroup]:
        """All parameters, frozen ones too, each in exactly one group."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Freeze and unfreeze what the config says for this epoch (first epoch: 0)."""
        ...


@dataclass(frozen=True)
class Outputs:
    """A task's predictions over a whole set, with what is needed to judge them.

    ``arrays`` hold [N, ...] float arrays, ``targets`` int64 [N] or float32 [N, K]. ``groups`` names the
    bootstrap unit of each case (patient); ``columns`` maps a column name (``source``, and every
    metadata column) to N strings, '' where a case has none.
    """

    arrays: dict[str, np.ndarray]
    targets: np.ndarray
    ids: list[str]
    groups: list[str]
    columns: dict[str, list[str]]
    unread: dict[str, str] = field(default_factory=dict)  # ids left out, since an image cannot be read, and why

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in self.arrays.items())
        return f"<Outputs of {counted(len(self.ids), 'case')}: {shapes}>"


@dataclass(frozen=True)
class Interval:
    """A figure with its bootstrap interval; low and high are None when it was not computed."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What an evaluator found.

    ``metrics`` are plain figures by name (``accuracy``, ``macro_f1`` ...), ``intervals`` the headline
    ones with bootstrap intervals, ``tables`` rows of dictionaries by name (``per_class``, ``per_source``,
    ``confusion`` ...), ready for JSON, CSV and the report. Undefined figures are None, never NaN.
    """

    split: str
    cases: int
    metrics: dict[str, float | None]
    intervals: dict[str, Interval] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    groups: int | None = None  # bootstrap units (patients) among the cases

    def __repr__(self) -> str:
        return f"<Evaluation of {self.split}: {counted(self.cases, 'case')}, {figures(self.metrics)}>"

    @property
    def unread(self) -> int:
        """Cases of the split that are not judged, since an image of theirs cannot be read; the table names them."""
        return len(self.tables.get("unread", ()))


class Evaluator(Protocol):
    """Judges a task's outputs over a set."""

    @property
    def metric_names(self) -> Sequence[str]:
        """The names of the figures that ``quick`` gives."""
        ...

    def quick(self, outputs: Outputs) -> dict[str, float | None]:
        """The plain figures only: what validation in training needs."""
        ...

    def evaluate(self, outputs: Outputs, *, split: str) -> Evaluation:
        """Everything: figures, intervals, tables."""
        ...

    def higher_is_better(self, metric: str) -> bool:
        """The direction of a metric; an unknown name is a ConfigError that lists the known ones."""
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
