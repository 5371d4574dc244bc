"""A trial step before step one: how long it takes, how much memory, and what stops it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from consilium.core.contracts import Batch
from consilium.core.errors import ConfigError, MemoryExhaustedError
from consilium.core.task import LAST_EPOCH, Task
from consilium.models.lora import refuse_unused_adapters
from consilium.models.weights import adapters
from consilium.training.precision import auto_precision
from consilium.training.state import random_state, set_random_state

CPU_CASES = 16  # a trial on a processor uses at most so many images of the batch


@dataclass(frozen=True)
class Trial:
    """What a dry run found; ``memory_bytes`` is the device's peak, None where it cannot be told."""

    precision: str
    seconds_per_batch: float
    memory_bytes: int | None
    cases: int


def dry_run(
    task: Task,
    batch: Batch,
    *,
    transform: Callable[[Batch], Batch],
    device: torch.device,
    precision: str,
    fewest: int,
) -> Trial:
    """Train and predict on one batch, then put everything back as it was.

    ``precision`` auto becomes that of this device and model. ``fewest`` are the cases of the smallest batch to come;
    one that BatchNorm cannot learn from is a ConfigError.
    """
    precision = auto_precision(device, task) if precision == "auto" else precision
    slow = device.type == "cpu" and batch.images is not None and batch.images.pixels_BVCHW is not None
    cases = min(len(batch), CPU_CASES) if slow else len(batch)
    batch = _head(batch, cases).to(device)
    # Without an optimizer no parameter changes; statistics of batches do.
    buffers, random = {name: buffer.clone() for name, buffer in task.named_buffers()}, random_state()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        task.train()
        if fewest == 1:
            _try_single(task, transform(_head(batch, 1)), only=cases == 1)
        if adapters(task):
            _try_adapters(task, transform(batch))
        # The best of a few: a neighbour's load then does not count. The first warms up.
        seconds = min([_step(task, transform(batch), device=device, precision=precision) for _ in range(3)][1:])
        task.eval()
        task.predict(transform(_judged(batch)))
    finally:
        task.zero_grad(set_to_none=True)
        for name, buffer in task.named_buffers():
            buffer.copy_(buffers[name])
        set_random_state(random)
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Trial(precision, seconds * batch.counts["cases"] / cases, memory, cases)


def _step(task: Task, batch: Batch, *, device: torch.device, precision: str) -> float:
    """Seconds of a training step without the optimizer."""
    start = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = task.step(batch).loss
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    task.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def _try_single(task: Task, batch: Batch, *, only: bool) -> None:
    """One case alone; ``only`` where no batch has more."""
    task.set_epoch(LAST_EPOCH)  # what a frozen warm-up holds in evaluation mode learns by then
    try:
        # On large images torch takes the statistics of a single case; they are not those that validation uses.
        if only and any(isinstance(part, _BatchNorm) and part.training for part in task.modules()):
            raise ConfigError(
                "every batch of the training has a single case (for each process), and BatchNorm in the tower cannot "
                "learn from one. Set data.loader.batch_size to 2 or more for each process (trainer.accumulate does not "
                "help), take a tower without BatchNorm (convnext_tiny, vit_b_16), or freeze it: "
                "task.vision.freeze.kind: tower."
            )
        task.step(batch)
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):  # torch has no error of its own
            raise
        raise ConfigError(
            "a batch of the training has a single case (for each process), and BatchNorm in the tower cannot learn "
            "from one. Set data.loader.drop_last: true, or another data.loader.batch_size."
        ) from error
    finally:
        task.set_epoch(0)


def _try_adapters(task: Task, batch: Batch) -> None:
    """A step in which every adapter must learn."""
    task.set_epoch(10**9)  # the warm-up is over
    try:
        task.step(batch).loss.backward()  # type: ignore[no-untyped-call]
        refuse_unused_adapters(task)
    finally:
        task.zero_grad(set_to_none=True)
        task.set_epoch(0)


def _judged(batch: Batch) -> Batch:
    """The batch as in judging, where nothing is in bf16."""
    images = batch.images
    if images is None or images.features_BVF is None:
        return batch
    return replace(batch, images=replace(images, features_BVF=images.features_BVF.float()))


def _head(batch: Batch, cases: int) -> Batch:
    return batch.take(torch.arange(cases))


@contextlib.contextmanager
def memory_advice(device: torch.device, *, batch_size: int, image_size: tuple[int, int], advice: str) -> Iterator[None]:
    """Turns running out of memory into an error that says what to change, with the figures it is based on."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        height, width = image_size
        raise MemoryExhaustedError(
            f"{device} ran out of memory with batches of {batch_size} images of {height} x {width}: {error}. {advice}"
        ) from error
