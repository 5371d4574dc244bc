"""When things happen in a training, in optimizer steps, all known before the first one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from consilium.training.config import TrainerConfig


@dataclass(frozen=True)
class Plan:
    """``steps`` of every epoch, ``batches`` of it that are trained on before ``max_steps``, and after which optimizer
    steps (counted from 1) to validate and to save."""

    steps: tuple[int, ...]
    batches: tuple[int, ...]
    total_steps: int
    validate_after: frozenset[int]
    save_after: frozenset[int]


def make_plan(batches: Sequence[int], *, config: TrainerConfig) -> Plan:
    """The plan of a training with ``batches`` per epoch; the last step always validates and saves."""
    steps = tuple(math.ceil(count / config.accumulate) for count in batches)
    total = min(sum(steps), config.max_steps or sum(steps))
    before = [0, *accumulate(steps)]
    trained = [
        min(count, max(total - done, 0) * config.accumulate) for count, done in zip(batches, before[:-1], strict=True)
    ]
    return Plan(
        steps=steps,
        batches=tuple(trained),
        total_steps=total,
        validate_after=_every(config.validate_every, steps=steps, total=total),
        save_after=_every(config.save_every, steps=steps, total=total),
    )


def _every(epochs: float, *, steps: Sequence[int], total: int) -> frozenset[int]:
    """Steps at multiples of ``epochs``; epochs may differ in length, so a fraction is one of its own epoch."""
    before = [0, *accumulate(steps)]
    marks = {total}
    for number in range(1, int(len(steps) / epochs + 1e-9) + 1):
        # Rounded so that 3 x 0.1 is the same moment as 0.3.
        whole, fraction = divmod(round(number * epochs, 9), 1)
        inside = round(fraction * steps[int(whole)]) if int(whole) < len(steps) else 0
        marks.add(before[int(whole)] + inside)
    return frozenset(mark for mark in marks if 0 < mark <= total)
