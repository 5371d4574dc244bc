"""The training loop: next batch, step, backward, clip, optimizer step, hooks. It never learns which task it runs."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn
from torch.optim import Optimizer

from consilium.core.contracts import Batch, Hook, Progress, StepLog
from consilium.core.errors import InterruptedRunError, NonFiniteLossError
from consilium.core.evaluation import Outputs
from consilium.core.task import Task
from consilium.models.weights import load_strict
from consilium.training.averaging import MovingAverage
from consilium.training.config import TrainerConfig
from consilium.training.interrupts import Interruption, StoppedWaiting, interruptible
from consilium.training.monitor import Monitor
from consilium.training.optim import Schedule
from consilium.training.plan import Plan
from consilium.training.processes import anywhere, from_all, on_main
from consilium.training.state import (
    changing,
    checkpoints,
    load_checkpoint,
    random_state,
    remove_weights,
    save_checkpoint,
    save_frozen,
    save_start,
    save_weights,
    saved_start,
    saved_weights,
    set_random_state,
    weights_folder,
)

Metrics = Mapping[str, float | None]
ADVICE = "Lower optimizer.learning_rate, set trainer.clip_norm: 1.0 or trainer.precision: fp32"


@dataclass
class Training:
    """Everything ``fit`` works with.

    ``batches(epoch, start)`` yields the epoch's batches from number ``start`` on. ``transform`` augments and
    normalises on the device. ``validate`` returns the validation metrics of the task as it is.
    ``case_ids`` names rows in errors. ``average`` has the weights that are validated and kept; None: the task's own.
    ``keeps_start`` names the groups of parameters that begin with trained weights, where the run keeps its beginning
    beside the checkpoints; (): it does not. ``solving`` shows how far a task is that is solved in one step; None: it
    learns step by step.
    """

    task: Task
    batches: Callable[[int, int], Iterator[Batch]]
    transform: Callable[[Batch], Batch]
    validate: Callable[[], Metrics]
    case_ids: Callable[[Sequence[int]], list[str]]
    plan: Plan
    optimizer: Optimizer
    schedule: Schedule
    config: TrainerConfig
    accelerator: Accelerator
    precision: str
    monitor: Monitor
    checkpoints: Path
    average: MovingAverage | None = None
    keeps_start: Sequence[str] = ()
    solving: Callable[[int, int], None] | None = None
    hooks: Sequence[Hook] = field(default_factory=list)


def fit(training: Training, *, progress: Progress) -> Progress:
    """Train from ``progress`` to the end of the plan; leaves resumable checkpoints and the best weights."""
    progress.total_steps = training.plan.total_steps
    with interruptible(alone=training.accelerator.num_processes == 1) as interruption:
        try:
            _train(training, progress, interruption)
        except StoppedWaiting:
            _save(training, progress)
            raise _interrupted(training, progress, interruption) from None
    for hook in training.hooks:
        hook.on_end(progress)
    return progress


def _train(training: Training, progress: Progress, interruption: Interruption) -> None:
    task, plan, accelerator = training.task, training.plan, training.accelerator
    model: nn.Module = task
    learning: list[bool] = []
    if progress.validation_due:
        _after_step(training, progress, interruption)
    while progress.step < plan.total_steps and progress.stop_reason is None:
        task.set_epoch(progress.epoch)
        task.train()
        if learning != (now := [parameter.requires_grad for parameter in task.parameters()]):
            # DDP averages the gradients of what learns when it is built, so it is built anew when that changes.
            accelerator.free_memory()
            model = accelerator.prepare(task)
            learning = now
        stream = training.batches(progress.epoch, progress.batch)
        for window in _windows(stream, size=training.config.accumulate, interruption=interruption):
            if training.solving is not None:
                with interruption.waiting():
                    log = _solved(training, progress, window=window)
            else:
                log = _optimizer_step(training, model=model, window=window)
            if training.average is not None:
                training.average.update()
            _advance(progress, plan=plan, window=window)
            progress.seconds += log.data_seconds + log.step_seconds
            progress.loss_sum += log.loss * log.cases
            progress.loss_cases += log.cases
            for hook in training.hooks:
                hook.on_step(progress, log)
            progress.validation_due = progress.step in plan.validate_after
            if _after_step(training, progress, interruption) or progress.batch == 0:
                break


def _after_step(training: Training, progress: Progress, interruption: Interruption) -> bool:
    """Validate and save where that is due; whether the training is over."""
    plan = training.plan
    if progress.validation_due:
        _validate(training, progress, interruption)
        training.task.train()
    came = anywhere(training.accelerator, interruption.name is not None)
    stops = progress.step >= plan.total_steps or progress.stop_reason is not None or came
    if stops or progress.step in plan.save_after:
        _save(training, progress)
    if came:
        raise _interrupted(training, progress, interruption)
    return stops


def _interrupted(training: Training, progress: Progress, interruption: Interruption) -> InterruptedRunError:
    return InterruptedRunError(
        f"stopped by {interruption.name or 'a signal to another process'} after step {progress.step} of "
        f"{training.plan.total_steps}; a checkpoint is in {training.checkpoints}. Give the same command with --resume "
        "to go on exactly there."
    )


@dataclass(frozen=True)
class _Window:
    """The batches of one optimizer step, and the seconds spent waiting for them."""

    batches: list[Batch]
    seconds: float


def _windows(stream: Iterator[Batch], *, size: int, interruption: Interruption) -> Iterator[_Window]:
    while True:
        start = time.perf_counter()
        with interruption.waiting():
            batches = list(islice(stream, size))
        if not batches:
            return
        yield _Window(batches, time.perf_counter() - start)


def _optimizer_step(training: Training, *, model: nn.Module, window: _Window) -> StepLog:
    start = time.perf_counter()
    accelerator, device, optimizer = training.accelerator, training.accelerator.device, training.optimizer
    cases = sum(batch.counts["cases"] for batch in window.batches)
    loss = torch.zeros((), device=device)
    parts: dict[str, torch.Tensor] = {}
    for number, loaded in enumerate(window.batches):
        batch = training.transform(loaded.to(device))
        # The gradient of the window is that of the mean over all its cases, however its batches differ in size.
        weight = batch.share * batch.counts["cases"] / cases
        last = number == len(window.batches) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            with torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16"):
                output = model(batch)
            (output.loss * weight).backward()  # accelerator.backward is this, after looking for packages each time
        loss += output.loss.detach() * weight
        for name, part in output.parts.items():
            parts[name] = parts.get(name, torch.zeros((), device=device)) + part * weight
    mean_loss = float(accelerator.reduce(loss, reduction="mean"))
    if not math.isfinite(mean_loss):
        _refuse_loss(training, mean_loss, window)
    norm = None
    if training.config.clip_norm is not None:
        norm = float(accelerator.clip_grad_norm_(model.parameters(), training.config.clip_norm))
    rates = training.schedule.rates()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    training.schedule.step()
    return StepLog(
        loss=mean_loss,
        parts={name: float(value) for name, value in parts.items()},
        learning_rates=rates,
        gradient_norm=norm,
        data_seconds=window.seconds,
        step_seconds=time.perf_counter() - start,
        cases=cases,
    )


def _solved(training: Training, progress: Progress, *, window: _Window) -> StepLog:
    """The only step of a task that is solved at once: the main process solves it, and the others take the weights."""
    start = time.perf_counter()
    (batch,), accelerator, task, solving = window.batches, training.accelerator, training.task, training.solving
    assert solving is not None

    def solve() -> tuple[float, list[dict[str, Any]]]:
        output = task.solve(batch, progress=solving)
        return float(output.loss), output.table

    loss, progress.solution = on_main(accelerator, solve)
    broadcast([*(own.data for own in task.parameters() if own.requires_grad), *task.buffers()])
    if not math.isfinite(loss):
        _refuse_loss(training, loss, window)
    return StepLog(
        loss=loss,
        parts={},
        learning_rates={},
        gradient_norm=None,
        data_seconds=window.seconds,
        step_seconds=time.perf_counter() - start,
        cases=batch.counts["cases"],
    )


def _refuse_loss(training: Training, loss: float, window: _Window) -> None:
    rows = [int(row) for batch in window.batches for row in batch.rows_B]
    shown = ", ".join(training.case_ids(rows)[:16])
    raise NonFiniteLossError(
        f"the loss became {loss}; the optimizer did not take this step. {_last_good(training.checkpoints)} Cases of "
        f"the step: {shown}{' ...' if len(rows) > 16 else ''}. {ADVICE}, and look at these images."
    )


def _refuse_weights(training: Training, progress: Progress) -> None:
    """A checkpoint holds finite weights only: one bad step must not take the place of the last good one."""
    state = changing(training.task, weights_folder(training.checkpoints, progress.step))
    finite = torch.stack([torch.isfinite(tensor).all() for tensor in state.values()]).tolist()
    for name in (name for name, own in zip(state, finite, strict=True) if not own):
        raise NonFiniteLossError(
            f"`{name}` of the model is no longer finite after step {progress.step}; it was not saved. "
            f"{_last_good(training.checkpoints)} {ADVICE}."
        )


def refuse_non_finite(outputs: Outputs, *, folder: Path) -> None:
    """What a model that still learns says about validation cases must be numbers."""
    for name, values in outputs.arrays.items():
        bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
        if bad.any():
            raise NonFiniteLossError(
                f"the {name} of {int(bad.sum())} of {len(bad)} validation cases are no longer finite (the first: "
                f"{outputs.ids[int(bad.argmax())]}): the training has diverged. {_last_good(folder)} {ADVICE}."
            )


def _last_good(folder: Path) -> str:
    found = checkpoints(folder)
    return f"The last checkpoint, {found[-1]}, is from before." if found else "No checkpoint was written yet."


def _advance(progress: Progress, *, plan: Plan, window: _Window) -> None:
    progress.step += 1
    progress.batch += len(window.batches)
    progress.samples += sum(batch.counts["cases"] for batch in window.batches)
    before = sum(plan.steps[: progress.epoch])
    progress.epochs = progress.epoch + (progress.step - before) / plan.steps[progress.epoch]
    if progress.step == before + plan.steps[progress.epoch]:
        progress.epoch, progress.batch = progress.epoch + 1, 0


def _validate(training: Training, progress: Progress, interruption: Interruption) -> None:
    accelerator = training.accelerator
    _refuse_weights(training, progress)
    with contextlib.nullcontext() if training.average is None else training.average.in_place():
        with interruption.waiting():
            metrics = on_main(accelerator, training.validate)
        progress.validation_due = False
        gained = training.monitor.record(progress, metrics)
        if progress.best_step == progress.step:
            best = weights_folder(training.checkpoints, progress.step)
            on_main(accelerator, lambda: save_weights(best, training.task))
    training.schedule.on_evaluation(gained=gained)
    patience = training.config.patience
    if patience is not None and progress.evaluations_without_improvement >= patience:
        progress.stop_reason = training.monitor.rest(patience)
    for hook in training.hooks:
        hook.on_evaluation(progress, metrics)


def load_best(folder: Path, task: Task, *, progress: Progress) -> None:
    """Give a task the best weights so far."""
    best = weights_folder(folder, progress.best_step or 0)
    load_strict(task, saved_weights(best), origin=str(best))


def restored(training: Training) -> Progress:
    """Put a training where its last checkpoint stood; at the beginning where there is none."""
    found = checkpoints(training.checkpoints)
    if not found:
        on_main(training.accelerator, lambda: _save_beginning(training))
        return Progress()
    if training.keeps_start:  # not as it was built: the files of its weights may have changed
        load_strict(training.task, saved_start(training.checkpoints, training.task), origin=str(training.checkpoints))
        training.task.keep_start(training.keeps_start)
    state, progress = load_checkpoint(found[-1], module=training.task)
    on_main(training.accelerator, lambda: save_frozen(training.checkpoints, training.task))
    training.optimizer.load_state_dict(state["optimizer"])
    training.schedule.load_state_dict(state["schedule"])
    if training.average is not None:
        training.average.load_state_dict(state["average"])
    states = state["random"]  # one per process
    set_random_state(states[training.accelerator.process_index % len(states)])
    return progress


def _save_beginning(training: Training) -> None:
    save_frozen(training.checkpoints, training.task)
    if training.keeps_start:
        save_start(training.checkpoints, training.task)


def _save(training: Training, progress: Progress) -> None:
    _refuse_weights(training, progress)
    trainer = {
        "optimizer": training.optimizer.state_dict(),
        "schedule": training.schedule.state_dict(),
        "random": from_all(training.accelerator, random_state()),
        "average": None if training.average is None else training.average.state_dict(),
    }

    def write() -> None:
        save_checkpoint(
            training.checkpoints,
            module=training.task,
            trainer=trainer,
            progress=progress,
            keep_last=training.config.keep_last,
        )
        # Only now: until the checkpoint stood, an older one could still have needed its own best weights.
        remove_weights(training.checkpoints, keep=progress.best_step)

    on_main(training.accelerator, write)
