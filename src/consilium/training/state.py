"""Resumable checkpoints: everything a run needs to go on as if nothing had happened."""

from __future__ import annotations

import random
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from consilium.core.contracts import Progress
from consilium.core.errors import RunFolderError, WeightsError
from consilium.core.files import atomic_file, atomic_folder
from consilium.core.task import Task
from consilium.models.lora import base_names
from consilium.models.weights import load_state, load_strict, save_state

MODEL, TRAINER = "model.safetensors", "trainer.pt"
FROZEN, START = "frozen.safetensors", "start.safetensors"  # beside the checkpoints


def random_state() -> dict[str, Any]:
    """The state of every random generator that training may touch."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(numbers), gauss],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Undo everything random that happened since ``random_state``."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


def save_frozen(folder: Path, task: Task) -> None:
    """Write what never learns once, beside the checkpoints of ``folder``, which then leave it out.

    That is encoders that stay frozen, and towers with adapters but for these.
    """
    frozen, base = [encoder.module for encoder in task.encoders().values()], base_names(task)
    prefixes = tuple(f"{name}." for name, part in task.named_modules() if any(part is own for own in frozen))
    own = task.state_dict()
    state = {name: tensor for name, tensor in own.items() if name.startswith(prefixes) or name in base}
    if state and not (folder / FROZEN).is_file():
        with atomic_file(folder / FROZEN) as temporary:
            save_state(state, temporary)


def restore_frozen(folder: Path, task: Task) -> bool:
    """Give a task the frozen encoders that its run began with; whether it was built with others.

    A weights file may have changed since then, and another machine may resize position embeddings a little differently.
    """
    if not (folder / FROZEN).is_file():
        return False
    own = task.state_dict()
    try:
        saved = load_state(folder / FROZEN)
        same = all(name in own and torch.equal(tensor, own[name].cpu()) for name, tensor in saved.items())
        load_strict(task, {**own, **saved}, origin=str(folder / FROZEN))
    except WeightsError as error:
        raise RunFolderError(
            f"the run cannot be resumed, since its frozen weights cannot be used: {error} Start a new run."
        ) from error
    return not same


def save_start(folder: Path, task: Task) -> None:
    """Write what the run begins with, but for what ``save_frozen`` wrote, beside the checkpoints of ``folder``."""
    with atomic_file(folder / START) as temporary:
        save_state(changing(task, folder / START), temporary)


def saved_start(folder: Path, task: Task) -> dict[str, Tensor]:
    """All weights that the run of ``folder`` began with."""
    try:
        return {**task.state_dict(), **load_state(folder / START)}
    except WeightsError as error:
        raise RunFolderError(f"what the run began with cannot be had: {error} Start a new run.") from error


def saved_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint, or of the best step, with the frozen ones that lie beside its folder."""
    beside = folder.parent / FROZEN
    return {**(load_state(beside) if beside.is_file() else {}), **load_state(folder / MODEL)}


def save_weights(folder: Path, module: nn.Module) -> None:
    """Write a folder with the weights only; an older one stays until the new one is whole."""
    with atomic_folder(folder) as temporary:
        save_state(changing(module, folder), temporary / MODEL)


def changing(module: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The weights of a module without those that ``save_frozen`` wrote beside ``folder``, which never change."""
    beside = folder.parent / FROZEN
    left_out: set[str] = set()
    if beside.is_file():
        with safe_open(beside, framework="pt") as file:
            left_out = set(file.keys())
    return {name: tensor for name, tensor in module.state_dict().items() if name not in left_out}


def weights_folder(folder: Path, step: int) -> Path:
    """Where the weights that were the best at ``step`` are."""
    return folder / f"best-{step:08d}"


def remove_weights(folder: Path, *, keep: int | None) -> None:
    """Remove the best weights of earlier steps that no checkpoint needs; ``keep`` is the step of the best so far.

    A checkpoint needs the last ones that were saved up to its own step.
    """
    saved = {int(path.name.removeprefix("best-")): path for path in folder.glob("best-*")}
    needed = {keep}
    for checkpoint in checkpoints(folder):
        step = int(checkpoint.name.removeprefix("step-"))
        needed.add(max((number for number in saved if number <= step), default=None))
    for step, path in saved.items():
        if step not in needed:
            shutil.rmtree(path)


def save_checkpoint(folder: Path, *, module: Task, trainer: dict[str, Any], progress: Progress, keep_last: int) -> Path:
    """Write ``folder/step-N`` whole or not at all, then remove the oldest beyond ``keep_last``."""
    target = folder / f"step-{progress.step:08d}"
    with atomic_folder(target) as temporary:
        save_state(changing(module, target), temporary / MODEL)
        try:
            torch.save({**trainer, "found": module.found(), "progress": asdict(progress)}, temporary / TRAINER)
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(str(error)) from error
    for old in checkpoints(folder)[:-keep_last]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Complete resumable checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / TRAINER).is_file())


def load_checkpoint(path: Path, *, module: Task) -> tuple[dict[str, Any], Progress]:
    """Put the weights of a checkpoint into ``module``; returns its trainer state and progress."""
    try:
        module.load_state_dict(saved_weights(path))
        trainer = torch.load(path / TRAINER, map_location="cpu", weights_only=True)
        module.take_found(trainer.pop("found", {}))
        return trainer, Progress(**trainer.pop("progress"))
    except Exception as error:
        raise RunFolderError(
            f"checkpoint {path} cannot be resumed: {error}. Remove this folder to resume from the one before it, "
            "or start a new run."
        ) from error
