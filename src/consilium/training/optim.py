"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from consilium.core.contracts import ParameterGroup
from consilium.core.errors import ConfigError
from consilium.training.config import (
    ADAM_KEYS,
    SGD_KEYS,
    CosineConfig,
    LinearConfig,
    OptimizerConfig,
    PlateauConfig,
    ScheduleConfig,
    StepConfig,
    of_group,
)
from consilium.training.plan import steps_in


def _sgd(groups: list[dict[str, Any]]) -> Optimizer:
    optimizer = SGD(groups, fused=True)
    optimizer.register_step_pre_hook(_begin_momentum)
    return optimizer


def _begin_momentum(optimizer: Optimizer, *_: object) -> None:
    """Give parameters that learn for the first time the momentum 0, from which they step as without any.

    The fused SGD of torch expects a momentum of all parameters of a group or of none, but blocks may begin in turn.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


# Fused is one pass over each parameter, on a processor in a third of the time. There torch takes for granted that a
# gradient lies in memory as its parameter does: autograd sees to it, for channels_last, too.
_KINDS: dict[str, Callable[[list[dict[str, Any]]], Optimizer]] = {
    "adamw": partial(AdamW, fused=True),
    "adam": partial(Adam, fused=True),
    "sgd": _sgd,
}


class SeveralOptimizers(Optimizer):
    """Optimizers of different kinds as one: each has groups of its own, and all of them step and are saved together."""

    def __init__(self, optimizers: Mapping[str, Optimizer]) -> None:
        self._optimizers = dict(optimizers)
        super().__init__(self._groups(), {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of each."""
        for optimizer in self._optimizers.values():
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of each, by its kind."""
        return {kind: optimizer.state_dict() for kind, optimizer in self._optimizers.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of each."""
        for kind, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state_dict[kind])
        self.param_groups = self._groups()  # loading has made new ones

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers.values() for group in optimizer.param_groups]


def build_optimizer(config: OptimizerConfig, *, groups: Sequence[ParameterGroup]) -> Optimizer:
    """One optimizer; every group of parameters has its own settings, biases and norms no weight decay."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        own = of_group(config, group.name)
        settings = own.model_dump(include={*ADAM_KEYS, *SGD_KEYS})
        for parameters, factor in _layers(config, group):
            rate = {"lr": own.learning_rate * factor, "name": group.name}
            for decays in (True, False):
                # Vectors (biases, norm scales) are not decayed: doing so only shrinks activations.
                chosen = [parameter for parameter in parameters if (parameter.ndim > 1) == decays]
                if chosen:
                    decay = own.weight_decay if decays else 0.0
                    parts.setdefault(own.kind, []).append({"params": chosen, "weight_decay": decay, **rate, **settings})
    optimizers = {kind: _KINDS[kind](own) for kind, own in parts.items()}
    return next(iter(optimizers.values())) if len(optimizers) == 1 else SeveralOptimizers(optimizers)


def _layers(config: OptimizerConfig, group: ParameterGroup) -> list[tuple[list[nn.Parameter], float]]:
    """The layers of a group from the lowest up, each with the factor on its rate; one layer without ``layer_decay``."""
    decay = config.groups[group.name].layer_decay if group.name in config.groups else None
    if decay is None:
        return [(group.parameters, 1.0)]
    if group.depths is None:
        raise ConfigError(
            f"optimizer.groups.{group.name}.layer_decay is {decay}, but {group.name} has no layers; leave it out."
        )
    layers: dict[int, list[nn.Parameter]] = {}
    for parameter, depth in zip(group.parameters, group.depths(), strict=True):
        layers.setdefault(depth, []).append(parameter)
    return [(layers[depth], decay**depth) for depth in sorted(layers, reverse=True)]


def warmup_steps(config: ScheduleConfig, *, total_steps: int, steps_per_epoch: int) -> int:
    """Warm-up in optimizer steps; a warm-up as long as the training is a ConfigError."""
    steps = steps_in(config.warmup, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    if steps >= total_steps and total_steps > 0 and steps > 0:
        raise ConfigError(
            f"schedule.warmup is {steps} steps but the whole training has only {total_steps}, so the learning rate "
            "would never reach its value. Shorten the warm-up (5 % is a share of the training) or train longer."
        )
    return steps


class Schedule:
    """The learning rate of every optimizer step: a factor on each group's own rate.

    ``floors`` are those of groups, by name, that have another than the schedule's.
    """

    def __init__(
        self,
        config: ScheduleConfig,
        *,
        optimizer: Optimizer,
        total_steps: int,
        steps_per_epoch: int,
        floors: Mapping[str, float],
    ) -> None:
        self._config = config
        self._total = total_steps
        self._warmup = warmup_steps(config, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
        self._steps_per_epoch = max(steps_per_epoch, 1)
        self._plateau_factor = 1.0
        self._rests = 0  # validations without a gain since the last one, or since the rate was lowered
        own_floor = config.floor if isinstance(config, CosineConfig | LinearConfig | PlateauConfig) else 0.0
        names = [group["name"] for group in optimizer.param_groups]
        self._factors: list[Callable[[int], float]] = [
            partial(self._factor, floor=floors.get(name, own_floor)) for name in names
        ]
        self._scheduler = LambdaLR(optimizer, self._factors)

    def _factor(self, step: int, floor: float) -> float:
        """The factor on the rates of a group for optimizer step ``step`` (the first is 0)."""
        if step < self._warmup:
            return (step + 1) / (self._warmup + 1)
        config = self._config
        if isinstance(config, CosineConfig | LinearConfig):
            progress = min((step - self._warmup) / max(self._total - 1 - self._warmup, 1), 1.0)
            rest = 1 - progress if isinstance(config, LinearConfig) else 0.5 * (1 + math.cos(math.pi * progress))
            return floor + (1 - floor) * rest
        if isinstance(config, StepConfig):
            return float(config.factor ** (step // (config.every_epochs * self._steps_per_epoch)))
        return max(self._plateau_factor, floor)

    def step(self) -> None:
        """After every optimizer step."""
        self._scheduler.step()

    def on_evaluation(self, *, gained: bool) -> None:
        """After every validation: a plateau schedule may lower the rate."""
        config = self._config
        self._rests = 0 if gained else self._rests + 1
        if isinstance(config, PlateauConfig) and self._rests > config.patience:
            self._rests = 0
            self._plateau_factor *= config.factor
            # The rate of the next step was set before this validation.
            groups = self._scheduler.optimizer.param_groups
            for group, rate, factor in zip(groups, self._scheduler.base_lrs, self._factors, strict=True):
                group["lr"] = rate * factor(self._scheduler.last_epoch)

    def rates(self) -> dict[str, float]:
        """The current learning rate by group name; of a group with layers that of the top one."""
        return {group["name"]: float(group["lr"]) for group in self._scheduler.optimizer.param_groups}

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint needs."""
        scheduler = {key: value for key, value in self._scheduler.state_dict().items() if key != "lr_lambdas"}
        return {"scheduler": scheduler, "plateau_factor": self._plateau_factor, "rests": self._rests}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take up where a checkpoint stood."""
        self._scheduler.load_state_dict({**state["scheduler"], "lr_lambdas": [None] * len(self._scheduler.lr_lambdas)})  # type: ignore[dict-item]
        self._plateau_factor = float(state["plateau_factor"])  # type: ignore[arg-type]
        earlier: Any = state.get("tracker")  # an earlier version kept torch's plateau rule, or None
        rests: Any = state.get("rests", 0) if earlier is None else earlier["num_bad_epochs"]
        self._rests = int(rests)
