"""The config root, and ``train`` and ``evaluate``: the one place where sections meet."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from consilium.core.config import Config, apply_overrides, build, read_tree, to_yaml
from consilium.core.errors import ConsiliumError, DataError, InterruptedRunError, MemoryExhaustedError
from consilium.core.reporter import Reporter, Silent, format_table
from consilium.data.config import DataConfig, ImageConfig
from consilium.evaluation.config import EvaluationConfig, ReportConfig
from consilium.tasks.config import TaskConfig
from consilium.training.config import (
    AdamConfig,
    CosineConfig,
    OptimizerConfig,
    OutputConfig,
    ScheduleConfig,
    TrainerConfig,
)

if TYPE_CHECKING:
    import torch

    from consilium.bundle import Predictor
    from consilium.core.contracts import Batch, Evaluation
    from consilium.data.dataset import LabelledCases
    from consilium.data.mixture import Mixture
    from consilium.data.store import Store
    from consilium.evaluation.classification import ClassificationEvaluator
    from consilium.tasks.classify import Classify
    from consilium.training.plan import Plan


class Experiment(Config):
    """One experiment: what is learned, from what, how, and where it goes."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9_.-]+$")
    seed: int = Field(default=0, ge=0, lt=2**31)
    task: TaskConfig
    data: DataConfig
    optimizer: OptimizerConfig = AdamConfig(kind="adamw")
    schedule: ScheduleConfig = CosineConfig(warmup=0.05)
    trainer: TrainerConfig = TrainerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    report: ReportConfig = ReportConfig()
    output: OutputConfig = OutputConfig()

    @classmethod
    def load(cls, path: str | Path, *, overrides: Sequence[str] = ()) -> Experiment:
        """The experiment in a YAML file, with dotted overrides; problems are one ConfigError."""
        tree = apply_overrides(read_tree(Path(path)), overrides)
        return build(cls, tree, origin=str(path))


@dataclass(frozen=True)
class RunResult:
    """One finished run: its bundle folder and the figures of every split."""

    folder: Path
    metrics: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class TrainResult:
    """A finished training: ``folder`` is the bundle, or holds one bundle per seed when there are several runs."""

    folder: Path
    runs: list[RunResult]

    @property
    def bundle(self) -> Path:
        """The (first) bundle."""
        return self.runs[0].folder
