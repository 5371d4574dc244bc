"""The exponential moving average of the weights that learn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from consilium.core.task import Task, at_the_end
from consilium.training.config import EmaConfig


class MovingAverage:
    """The average of all that learns in a task: after every step ``decay`` times itself and the rest of the weights.

    The first step begins it. Buffers (the statistics of BatchNorm) are not averaged: those of the task hold.
    """

    def __init__(self, task: Task, config: EmaConfig) -> None:
        with at_the_end(task):
            self._own = nn.ParameterList([parameter for parameter in task.parameters() if parameter.requires_grad])
        self._average = AveragedModel(self._own, multi_avg_fn=get_ema_multi_avg_fn(config.decay))  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """After every optimizer step."""
        self._average.update_parameters(self._own)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the task has the averaged weights, afterwards its own again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for own, averaged in zip(self._own, self._average.parameters(), strict=True):
            own.data, averaged.data = averaged.data, own.data

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return self._average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where a checkpoint stood."""
        self._average.load_state_dict(state)


def average_warnings(config: EmaConfig | None, *, total_steps: int) -> list[str]:
    """What is wrong with an average whose half-life is longer than the training: it is mostly of its beginning."""
    if config is None or config.half_life <= total_steps:
        return []
    return [
        f"trainer.ema.decay is {config.decay}, of which half is forgotten after {config.half_life:.0f} steps, but the "
        f"training has only {total_steps}: the averaged weights, which are judged and kept, will be mostly those of "
        f"its beginning. A decay of {0.5 ** (10 / total_steps):.4f} would forget half in a tenth of the training."
    ]
