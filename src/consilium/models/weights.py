"""Weights of a module: read from files, load strictly, count, freeze."""

from __future__ import annotations

import argparse
import datetime
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from consilium.core.errors import ConfigError, WeightsError
from consilium.models.config import FreezeConfig
from consilium.models.parts import fit_table

ADAPTER = ".lora_"  # in the names of the parameters of adapters, which are peft's
_SHOWN = 5  # keys that an error message names
# Settings that trainings save beside their weights. They hold values and run no code; torch itself refuses them.
_PLAIN: list[Any] = [
    argparse.Namespace, type(Path()), datetime.datetime, datetime.timedelta, np.dtype, type(np.dtype(bool)),
    type(np.dtype(np.int64)), type(np.dtype(np.float32)), type(np.dtype(np.float64)),
    (np.float64().__reduce__()[0], "numpy._core.multiarray.scalar"),
    (np.float64().__reduce__()[0], "numpy.core.multiarray.scalar"),  # its name before numpy 2
]  # fmt: skip


class StandIn:
    """Stands for a Python object of a file whose code is not run; it keeps nothing of it."""

    def __new__(cls, *_: object, **__: object) -> Self:
        """Take whatever the object was made of."""
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Forget it."""


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors in a ``.safetensors`` file, or of a torch file at its top or under ``state_dict`` or ``model``.

    The prefixes that distributed training and ``torch.compile`` put before every name are taken off. Numbers and
    other plain values beside the tensors are left out.
    """
    return load_checkpoint(path)[0]


def load_checkpoint(path: Path, *, ignored: Collection[str] = ()) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors that ``load_state`` gives, and the names of what lies beside them in the file.

    Objects of the ``ignored`` classes, by their full names, are left out; nothing of these is imported or run.
    """
    found, beside = _read(path, ignored), []
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            beside += [str(other) for other in found if other != key]
            found = found[key]
    state = _tensors(found)
    beside += [str(key) for key in (found if isinstance(found, dict) else ()) if str(key) not in state]
    if not state:
        raise WeightsError(
            f"weights file {path} holds {_describe(found)}; expected a state_dict: tensors by name, at the top or "
            f"under `state_dict` or `model`."
        )
    for prefix in ("module.", "_orig_mod.", "module."):  # the two wrappers, in either order
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state, beside


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a weights file; a name says where it is: ``state_dict.model.conv1.weight``."""
    return _all_tensors(_read(path))


def _read(path: Path, ignored: Collection[str] = ()) -> Any:
    """What a file of weights holds.

    Nothing is ever unpickled that could run code: such a file is a WeightsError, as is a missing or damaged one.
    """
    if path.is_dir():
        raise WeightsError(f"{path} is a folder; give a .safetensors or .pt file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([*_PLAIN, *((StandIn, name) for name in ignored)]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"weights file {path} does not exist; give a .safetensors or .pt file.") from None
    except Exception as error:  # a damaged or malicious file can provoke any error in its reader
        unsafe = _unsafe_names(path)
        if unsafe and set(unsafe) <= set(ignored):
            raise WeightsError(
                f"weights file {path} is refused: {_some(unsafe)} is used in it in a way that cannot be left out. Save "
                "the state_dict alone, best as .safetensors."
            ) from error
        if unsafe := [name for name in unsafe if name not in ignored]:
            raise WeightsError(
                f"weights file {path} is refused: beside tensors it holds Python objects ({_some(unsafe)}), which "
                f"could run code when read. Save the state_dict alone, best as .safetensors{_left_out(unsafe)}."
            ) from error
        raise WeightsError(
            f"weights file {path} is damaged or not a weights file ({type(error).__name__}); expected .safetensors or "
            f"a torch file that holds a state_dict and no other Python objects. Copy or save it again."
        ) from error


def _tensors(found: Any) -> dict[str, Tensor]:
    """The tensors right in a mapping."""
    if not isinstance(found, dict):
        return {}
    return {str(key): value for key, value in found.items() if isinstance(value, Tensor)}


def _all_tensors(found: Any) -> dict[str, Tensor]:
    """The tensors in a mapping and in the mappings in it."""
    inner = found.items() if isinstance(found, dict) else ()
    deeper = {f"{key}.{name}": tensor for key, value in inner for name, tensor in _all_tensors(value).items()}
    return {**_tensors(found), **deeper}


def save_state(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, on the CPU and without shared storage; a failure is an OSError."""
    # safetensors refuses tensors that share memory, and has an error of its own for a full disk.
    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    try:
        save_file(own, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def weights_hash(module: nn.Module) -> str:
    """The SHA-256 of all parameters and buffers of a module, with their names and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _unsafe_names(path: Path) -> list[str]:
    try:
        with torch.serialization.safe_globals(_PLAIN):
            return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, OSError):  # not in torch's own container
        return []


def _left_out(unsafe: Sequence[str]) -> str:
    """How to do without the objects of a file, in words; a whole module is nothing without its own."""
    if any(name.startswith("torch.nn.") for name in unsafe):
        return ": it is a whole module, so do it in the program that saved it, torch.save(model.state_dict(), FILE)"
    ignored = " ".join(f"--ignore {name}" for name in unsafe)
    return f"; settings of a training are left out by `consilium models convert FILE --out FOLDER {ignored}`"


def _describe(found: Any) -> str:
    if not found:
        return "nothing"
    if not isinstance(found, dict):
        return f"a {type(found).__name__}"
    other = [f"`{key}` ({type(value).__name__})" for key, value in found.items() if not isinstance(value, Tensor)]
    return f"other things than tensors: {', '.join(other[:_SHOWN])}"


def load_strict(module: nn.Module, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Load ``state`` into ``module``; a key too many, too few or of another shape is a WeightsError.

    Nothing is changed when it fails.
    """
    own = module.state_dict()
    if state.keys() != own.keys() or any(state[key].shape != tensor.shape for key, tensor in own.items()):
        raise WeightsError(
            f"the weights in {origin} do not fit the model. Check that name and options of the model are those that "
            f"the weights were trained with.{fit_table(state, own)}"
        )
    module.load_state_dict(dict(state))


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (" ..." if len(keys) > _SHOWN else "")


@dataclass(frozen=True)
class PartCount:
    """How many parameters a part of a model has, and how many of them learn."""

    name: str
    total: int
    trainable: int


def parameter_counts(module: nn.Module) -> list[PartCount]:
    """The parameters of every direct child of ``module`` that has some."""
    counts = []
    for name, child in module.named_children():
        parameters = list(child.parameters())
        total = sum(parameter.numel() for parameter in parameters)
        if total:
            counts.append(PartCount(name, total, sum(p.numel() for p in parameters if p.requires_grad)))
    return counts


def train_unfrozen(module: nn.Module) -> None:
    """As ``module.train()``, but a part whose parameters are all frozen comes to rest in eval mode.

    Such a part neither moves its BatchNorm statistics nor drops units.
    """
    learns = [parameter.requires_grad for parameter in module.parameters()]
    if learns and not any(learns):
        if module.training:
            module.eval()
        return
    module.training = True
    for part in module.children():
        train_unfrozen(part)


def batch_statistics(module: nn.Module) -> list[str]:
    """The names of layers that mix the rows of a batch as the module stands: BatchNorm in training mode."""
    return [
        name
        for name, part in module.named_modules()
        if part.training and (isinstance(part, _BatchNorm) or "running_var" in dict(part.named_buffers(recurse=False)))
    ]


class BlockTower(Protocol):
    """A tower that knows its blocks, from input to output."""

    model: Any

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters by name."""
        ...

    def blocks(self) -> list[list[nn.Parameter]]:
        """All parameters in blocks, from input to output."""
        ...


def adapters(module: nn.Module | BlockTower) -> dict[str, nn.Parameter]:
    """The parameters of adapters, by name; none in a plain model."""
    return {name: parameter for name, parameter in module.named_parameters() if ADAPTER in name}


def freeze_tower(tower: BlockTower, config: FreezeConfig, *, epoch: int) -> None:
    """Set which parameters of ``tower`` learn in ``epoch`` (the first is 0); beside adapters nothing does."""
    trained, learning, every = epoch - config.warmup_epochs, adapters(tower), config.unfreeze_every
    whole = trained >= 0 and config.kind == "none" and every is None
    for name, parameter in tower.named_parameters():
        parameter.requires_grad_(whole and (name in learning or not learning))
    if config.kind == "tower" or (config.kind == "none" and every is None):
        return
    blocks = tower.blocks()
    most = config.blocks or len(blocks)
    if most > len(blocks):
        raise ConfigError(f"freeze.blocks is {most}, but the tower has {len(blocks)} blocks; give at most that many.")
    begun = most if every is None else min(most, 1 + trained // every)
    for block in blocks[len(blocks) - begun :] if trained >= 0 else ():
        for parameter in block:
            parameter.requires_grad_(True)
