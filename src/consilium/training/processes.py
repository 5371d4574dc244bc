"""Several processes as one training (torchrun, ``accelerate launch``), or this one alone."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object

from consilium.core.devices import choose_device
from consilium.core.errors import TrainingError
from consilium.training.config import TrainerConfig

T = TypeVar("T")
# The others wait while the main process validates and judges: longer than torch's ten minutes for CUDA.
PATIENCE = datetime.timedelta(hours=2)


def build_accelerator(device: str) -> Accelerator:
    """The devices and processes of this start; under torchrun it joins the others."""
    chosen = choose_device(device)
    # Accelerate keeps the first device of a Python process; a notebook may train on another one later.
    if PartialState._shared_state and PartialState().num_processes == 1 and PartialState().device.type != chosen.type:
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=chosen.type == "cpu", kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])


def on_main(accelerator: Accelerator, compute: Callable[[], T]) -> T:
    """What ``compute`` gives on the main process, on every process; an error there stops all of them."""
    if accelerator.num_processes == 1:
        return compute()
    answer: list[T | None] = [None]
    problem: list[Exception | str | None] = [None]
    if accelerator.is_main_process:
        try:
            answer[0] = compute()
        except Exception as error:
            problem[0] = error
    told = broadcast_object_list([answer[0], None if problem[0] is None else str(problem[0])])
    if isinstance(problem[0], Exception):
        raise problem[0]
    if told[1] is not None:
        raise TrainingError(f"stopped, because the main process did: {told[1]}")
    result: T = told[0]
    return result


def anywhere(accelerator: Accelerator, flag: bool) -> bool:
    """Whether ``flag`` is true on any process; all of them must ask."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), reduction="sum") > 0)


def from_all(accelerator: Accelerator, value: T) -> list[T]:
    """The value of every process, in the order of the processes, on all of them."""
    if accelerator.num_processes == 1:
        return [value]
    values: list[T] = gather_object([value])
    return values


def configure(trainer: TrainerConfig) -> None:
    """Set torch as the config of a run asks."""
    if trainer.threads is not None:
        torch.set_num_threads(trainer.threads)
    torch.use_deterministic_algorithms(trainer.deterministic)
    torch.backends.cudnn.benchmark = not trainer.deterministic
