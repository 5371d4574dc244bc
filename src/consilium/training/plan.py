"""When things happen in a training, in optimizer steps, all known before the first one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from consilium.core.durations import parts_of
from consilium.training.config import TrainerConfig


@dataclass(frozen=True)
class Plan:
    """``steps`` of every epoch, ``batches`` of it that are trained on before ``max_steps``, and after which optimizer
    steps (counted from 1) to validate and to save; ``log_every`` so many of them there is a line of the log."""

    steps: tuple[int, ...]
    batches: tuple[int, ...]
    total_steps: int
    validate_after: frozenset[int]
    save_after: frozenset[int]
    log_every: int


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
        log_every=max(steps_in(config.log_every, total_steps=total, steps_per_epoch=steps[0]), 1),
    )


def steps_in(duration: float | str, *, total_steps: int, steps_per_epoch: int) -> int:
    """A duration in optimizer steps: without a unit steps, below 1 a fraction of the whole training."""
    number, unit = parts_of(duration)
    if unit == "%" or (unit is None and number < 1):
        return round((number / 100 if unit else number) * total_steps)
    return round(number * steps_per_epoch) if unit == "epochs" else round(number)


def _every(interval: float | str, *, steps: Sequence[int], total: int) -> frozenset[int]:
    """Steps at multiples of an interval, which is one of epochs where it has no unit."""
    number, unit = parts_of(interval)
    if unit in ("epochs", None):
        return _every_epochs(number, steps=steps, total=total)
    length = number if unit == "steps" else max(number / 100 * total, 1)
    return frozenset({total, *(round(times * length) for times in range(1, int(total / length + 1e-9) + 1))} - {0})


def _every_epochs(epochs: float, *, steps: Sequence[int], total: int) -> frozenset[int]:
    """Steps at multiples of ``epochs``; epochs may differ in length, so a fraction is one of its own epoch."""
    before = [0, *accumulate(steps)]
    marks = {total}
    for number in range(1, int(len(steps) / epochs + 1e-9) + 1):
        # Rounded so that 3 x 0.1 is the same moment as 0.3.
        whole, fraction = divmod(round(number * epochs, 9), 1)
        inside = round(fraction * steps[int(whole)]) if int(whole) < len(steps) else 0
        marks.add(before[int(whole)] + inside)
    return frozenset(mark for mark in marks if 0 < mark <= total)
