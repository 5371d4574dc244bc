"""Between the weights that a training began with and those that it learned: WiSE-FT.

Wortsman et al., Robust Fine-Tuning of Zero-Shot Models, 2022, arXiv:2109.01903.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consilium.core.contracts import Progress
from consilium.core.errors import ConfigError
from consilium.core.files import write_text
from consilium.core.reporter import format_table, some
from consilium.core.task import Task, at_the_end
from consilium.evaluation.report.page import TABLES, add_table, to_csv
from consilium.experiment import Experiment
from consilium.models.weights import adapters, batch_statistics
from consilium.session.origin import trained_groups
from consilium.training.monitor import Monitor


class Interpolation:
    """Gives a trained task (1 - alpha) * start + alpha * its own weights, with the alpha that is best on validation.

    Only parameters that start from trained weights and learn are averaged. Where there is none, or where statistics of
    batches would belong to neither end, it is a ConfigError.
    """

    def __init__(self, task: Task, experiment: Experiment, monitor: Monitor) -> None:
        self.task, self.alphas, self.monitor = task, experiment.trainer.alphas, monitor
        self.curve: list[dict[str, Any]] = []  # the figures of every alpha
        self.alpha: float | None = None  # the best
        if experiment.task.origin is not None:
            raise ConfigError(
                "trainer.wise_ft averages with the weights that the training begins with, but what "
                f"{experiment.task.origin} learned stays as it is here. Leave it out."
            )
        self._names = _names(task, trained_groups(experiment))

    def apply(self, start: Mapping[str, Tensor], *, validate: Callable[[], Mapping[str, float | None]]) -> None:
        """Try every alpha and leave the best in the task."""
        own = dict(self.task.named_parameters())
        learned = {name: own[name].detach().clone() for name in self._names}

        @torch.no_grad()
        def take(alpha: float) -> None:
            for name, tuned in learned.items():
                own[name].copy_(torch.lerp(start[name].to(tuned), tuned, alpha))

        progress = Progress()
        for progress.step, alpha in enumerate(self.alphas):
            take(alpha)
            metrics = validate()
            self.monitor.record(progress, metrics)
            self.curve.append({"alpha": alpha, **metrics})
        assert progress.best_step is not None, "record refuses figures that choose nothing"
        self.alpha = self.alphas[progress.best_step]
        take(self.alpha)

    def table(self) -> str:
        """The figure of every alpha for the screen."""
        return format_table(self._shown(), title=f"trainer.wise_ft: alpha {self.alpha:g} is the best on validation")

    def _shown(self) -> list[dict[str, Any]]:
        names = ("alpha", self.monitor.name, self.monitor.tie_breaker)
        return [{name: value for name, value in row.items() if name in names} for row in self.curve]

    def report(self, folder: Path) -> None:
        """Add the figures of every alpha to the report in a folder and to its tables."""
        write_text(folder / TABLES / "val_wise_ft.csv", to_csv(self.curve))
        text = (
            "Weights between those that the training began with (alpha 0) and those that it learned (alpha 1), judged "
            f"on validation. The bundle has those with alpha {self.alpha:g}, the best by {self.monitor.name}."
        )
        add_table(folder, title="How much of what was learned is kept", text=text, rows=self._shown())


def _names(task: Task, groups: Sequence[str]) -> list[str]:
    """The parameters of these groups that learn; what cannot be averaged is a ConfigError."""
    held = {id(own) for group in task.parameter_groups() if group.name in groups for own in group.parameters}
    with at_the_end(task):
        names = [name for name, own in task.named_parameters() if id(own) in held and own.requires_grad]
        mixing = batch_statistics(task)
    began = "trainer.wise_ft averages with the weights that the training begins with, but"
    if not groups:
        raise ConfigError(
            f"{began} here they are random. Set pretrained weights of a tower or trainer.init_from, or leave it out."
        )
    if not names:
        raise ConfigError(
            f"{began} those ({', '.join(groups)}) stay frozen, so that there is nothing to average. Let a tower learn "
            "(freeze), or leave wise_ft out."
        )
    if adapters(task):
        raise ConfigError(
            f"{began} an adapter (lora) begins with one that changes nothing: weights between the two are the adapter "
            "with a smaller lora.alpha. Set that, or leave wise_ft out."
        )
    if mixing:
        raise ConfigError(
            f"{began} the model has BatchNorm that learns ({some(mixing, 3)}), whose statistics would belong to "
            "neither end. Take a tower without BatchNorm (vit_b_16, convnext_tiny) or trainer.ema, or leave it out."
        )
    return names
