"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from consilium.core.contracts import ParameterGroup
from consilium.core.errors import ConfigError
from consilium.training.config import (
    AdamConfig,
    CosineConfig,
    OptimizerConfig,
    PlateauConfig,
    ScheduleConfig,
    StepConfig,
)


def build_optimizer(config: OptimizerConfig, *, groups: Sequence[ParameterGroup]) -> Optimizer:
    """One optimizer; tower and head have their own rates, biases and norms no weight decay."""
    rates = {"tower": config.learning_rate, "head": config.head_learning_rate or config.learning_rate}
    parts = []
    for group in groups:
        for decays in (True, False):
            # Vectors (biases, norm scales) are not decayed: doing so only shrinks activations.
            parameters = [p for p in group.parameters if (p.ndim > 1) == decays]
            if parameters:
                decay = config.weight_decay if decays else 0.0
                parts.append({"params": parameters, "lr": rates[group.name], "weight_decay": decay, "name": group.name})
    if isinstance(config, AdamConfig):
        kind = AdamW if config.kind == "adamw" else Adam
        return kind(parts, betas=config.betas, eps=config.eps)
    return SGD(parts, momentum=config.momentum, nesterov=config.nesterov)


def warmup_steps(config: ScheduleConfig, *, total_steps: int) -> int:
    """Warm-up in optimizer steps; a warm-up as long as the training is a ConfigError."""
    steps = round(config.warmup * total_steps) if config.warmup < 1 else round(config.warmup)
    if steps >= total_steps and config.warmup > 0 and total_steps > 0 and steps > 0:
        raise ConfigError(
            f"schedule.warmup is {steps} steps but the whole training has only {total_steps}, so the learning rate "
            "would "
            "never reach its value. Shorten the warm-up (a value below 1 is a fraction of the training) or train "
            "longer."
        )
    return steps


class Schedule:
    """The learning rate of every optimizer step: a factor on each group's own rate."""

    def __init__(
        self,
        config: ScheduleConfig,
        *,
        optimizer: Optimizer,
        total_steps: int,
        steps_per_epoch: int,
    ) -> None:
        self._config = config
        self._total = total_steps
        self._warmup = warmup_steps(config, total_steps=total_steps)
        self._steps_per_epoch = max(steps_per_epoch, 1)
        self._plateau_factor = 1.0
        self._rests = 0  # validations without a gain since the last one, or since the rate was lowered
        self._scheduler = LambdaLR(optimizer, self.factor)

    def factor(self, step: int) -> float:
        """The factor on the rates for optimizer step ``step`` (the first is 0)."""
        if step < self._warmup:
            return (step + 1) / (self._warmup + 1)
        config = self._config
        if isinstance(config, CosineConfig):
            progress = (step - self._warmup) / max(self._total - 1 - self._warmup, 1)
            return config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        if isinstance(config, StepConfig):
            return float(config.factor ** (step // (config.every_epochs * self._steps_per_epoch)))
        return self._plateau_factor

    def step(self) -> None:
        """After every optimizer step."""
        self._scheduler.step()

    def on_evaluation(self, *, gained: bool) -> None:
        """After every validation: a plateau schedule may lower the rate."""
        config = self._config
        self._rests = 0 if gained else self._rests + 1
        if isinstance(config, PlateauConfig) and self._rests > config.patience:
            self._rests = 0
            self._plateau_factor = max(self._plateau_factor * config.factor, config.floor)
            # The rate of the next step was set before this validation.
            for group, rate in zip(self._scheduler.optimizer.param_groups, self._scheduler.base_lrs, strict=True):
                group["lr"] = rate * self.factor(self._scheduler.last_epoch)

    def rates(self) -> dict[str, float]:
        """The current learning rate by group name."""
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
