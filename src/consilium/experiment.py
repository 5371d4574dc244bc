"""The config root: one experiment, as one YAML file holds it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator, model_validator

from consilium.core.config import Config, apply_overrides, build, nearest, read_tree
from consilium.core.errors import ConfigError
from consilium.core.reporter import some
from consilium.data.config import DataConfig, LoaderConfig, MixtureConfig
from consilium.evaluation.config import EvaluationConfig, ReportConfig
from consilium.evaluation.probes.config import ProbesConfig
from consilium.tasks.config import TaskConfig
from consilium.training.config import (
    AdamConfig,
    ConstantConfig,
    CosineConfig,
    OptimizerConfig,
    OutputConfig,
    ScheduleConfig,
    TrainerConfig,
)


class Experiment(Config):
    """One experiment: what is learned, from what, how, and where it goes."""

    name: str = Field(
        min_length=1, pattern=r"^\.*[A-Za-z0-9_-][A-Za-z0-9_.-]*$", description="Names the folder of its runs."
    )
    zero_shot: bool = Field(
        default=False,
        description="true: nothing is trained; `consilium evaluate` judges the pretrained task.model as it came.",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Of new weights, order and augmentation.")
    task: TaskConfig
    data: DataConfig
    optimizer: OptimizerConfig = AdamConfig(kind="adamw")
    schedule: ScheduleConfig = CosineConfig(warmup=0.05)
    trainer: TrainerConfig = Field(default=TrainerConfig(), validate_default=True)
    evaluation: EvaluationConfig = EvaluationConfig()
    report: ReportConfig = ReportConfig()
    probes: ProbesConfig | None = Field(
        default=None, description="What `consilium evaluate` asks of the frozen image tower; null: nothing."
    )
    output: OutputConfig = OutputConfig()

    @field_validator("optimizer")
    @classmethod
    def _groups_are_the_tasks(cls, optimizer: OptimizerConfig, info: ValidationInfo) -> OptimizerConfig:
        known = info.data["task"].groups if "task" in info.data else optimizer.groups  # absent where it is wrong itself
        for name in optimizer.groups:
            if name not in known:
                raise ValueError(f"groups: the task has no group '{name}'{nearest(name, list(known))}")
        return optimizer

    @field_validator("schedule")
    @classmethod
    def _groups_have_a_schedule_with_floor(cls, schedule: ScheduleConfig, info: ValidationInfo) -> ScheduleConfig:
        floors = info.data["optimizer"].floors if "optimizer" in info.data else {}
        if floors and "floor" not in type(schedule).model_fields:
            raise ValueError(
                f"kind {schedule.kind} has no floor, but optimizer.groups.{next(iter(floors))}.floor is given; leave "
                "it out, or choose cosine, linear or plateau"
            )
        return schedule

    @field_validator("trainer")
    @classmethod
    def _copies_are_cached(cls, trainer: TrainerConfig, info: ValidationInfo) -> TrainerConfig:
        data = info.data.get("data")  # absent where it is wrong itself
        if data is not None and data.augmentation.copies is not None and not trainer.cache_features:
            raise ValueError(
                "cache_features is false, but data.augmentation.copies needs features that are kept; leave one out"
            )
        return trainer

    @field_validator("trainer")
    @classmethod
    def _task_chooses_the_monitor(cls, trainer: TrainerConfig, info: ValidationInfo) -> TrainerConfig:
        task = info.data.get("task")  # absent where it is wrong itself
        if trainer.monitor is not None or task is None:
            return trainer
        return trainer.model_copy(update={"monitor": task.monitor})

    @model_validator(mode="after")
    def _a_flip_keeps_the_sides(self) -> Experiment:
        """A mirrored left eye looks like a right one, so that named sides are exchanged with it, or never mirrored."""
        augmentation, looks = self.data.augmentation, self.evaluation.averaging
        if not {"left", "right"} <= set(self.task.needs.views):
            return self
        copies = augmentation.copies
        if copies is not None and copies.horizontal_flip_prob is not None:
            raise ValueError(
                "data.augmentation.copies.horizontal_flip_prob mirrors a left view into what looks like a right one, "
                "and task.views tells them apart; leave it out"
            )
        if augmentation.horizontal_flip_prob is not None and augmentation.views != "mirrored":
            raise ValueError(
                "data.augmentation.horizontal_flip_prob mirrors a left view into what looks like a right one, and "
                f"task.views tells them apart, while data.augmentation.views is {augmentation.views}: set it to "
                "mirrored, which flips both and exchanges them, or leave the flip out"
            )
        if looks.mirror:
            raise ValueError(
                "evaluation.averaging.mirror looks at mirrored views, and a mirrored left one looks like a right one, "
                "which task.views tells apart; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _vectors_lie_with_the_dataset(self) -> Experiment:
        """A bare name of a file of vectors is one of ``data.dataset``."""
        task = self.task.with_vectors_in(self.data.in_dataset("embeddings"))
        return self if task is self.task else self.model_copy(update={"task": task})

    @model_validator(mode="after")
    def _vectors_have_no_sentences(self) -> Experiment:
        if self.data.strip_label_mentions and self.task.needs.vectors is not None:
            raise ValueError(
                "data.strip_label_mentions takes sentences out of texts, and task.text.kind is vectors, which were "
                "computed of whole ones; leave it out, and compute vectors of texts without them"
            )
        return self

    @model_validator(mode="after")
    def _what_is_fitted_at_once_stays_as_it_is(self) -> Experiment:
        names, trainer = self.data.augmentation.names, self.trainer
        odd = {
            f"data.augmentation ({', '.join(names)}) changes its images in every epoch": bool(names),
            "trainer.cache_features is false, so that they are not kept": not trainer.cache_features,
            "trainer.ema averages the weights of many steps": trainer.ema is not None,
            "trainer.wise_ft averages with a beginning that it does not have": trainer.wise_ft is not None,
        }
        if self.task.solved and (found := [what for what, holds in odd.items() if holds]):
            raise ValueError(
                f"task.head is fitted once, to features of all training cases, and {'; '.join(found)}; leave that out, "
                "or choose task.head.kind: linear"
            )
        return self

    @property
    def idle(self) -> list[str]:
        """The keys that the config sets although nothing here goes by them: those of steps, where there is only one."""
        if not self.task.solved:
            return []
        sections: dict[str, tuple[Config, Config, tuple[str, ...]]] = {
            "trainer": (
                self.trainer,
                TrainerConfig(),
                ("max_epochs", "max_steps", "accumulate", "clip_norm", "patience"),
            ),
            "data.mixture": (self.data.mixture, MixtureConfig(), ("stop", "steps", "one_source", "groups_apart")),
            "data.loader": (self.data.loader, LoaderConfig(), ("drop_last",)),
        }
        own = [
            name for name in ("optimizer", "schedule") if getattr(self, name) != type(self).model_fields[name].default
        ]
        return own + [
            f"{section}.{key}"
            for section, (given, usual, keys) in sections.items()
            for key in keys
            if getattr(given, key) != getattr(usual, key)
        ]

    @property
    def monitor(self) -> str:
        """The validation metric that chooses the best weights."""
        return self.trainer.monitor or self.task.monitor

    @property
    def epochs(self) -> int:
        """The epochs of the training; a task that is solved in one step needs one."""
        return 1 if self.task.solved else self.trainer.max_epochs

    @property
    def rates(self) -> ScheduleConfig:
        """The schedule that acts; where nothing is learned step by step there is none."""
        return ConstantConfig() if self.task.solved else self.schedule

    def __repr__(self) -> str:
        sources = some([source.name for source in self.data.sources], 5)
        towers = ", ".join(self.task.towers.values())
        what = f"{self.task.kind} by {towers}" if towers else self.task.kind
        return f"<Experiment '{self.name}': {what} on {sources}, seed {self.seed}>"

    __str__ = __repr__

    @classmethod
    def load(cls, path: str | Path, *, overrides: Sequence[str] = ()) -> Experiment:
        """The experiment in a YAML file, with dotted overrides; problems are one ConfigError."""
        if not isinstance(path, str | os.PathLike):
            raise ConfigError(f"the experiment is of type {type(path).__name__}; expected the path of a YAML file.")
        if isinstance(overrides, str | Mapping):
            raise ConfigError(
                f"overrides are {overrides!r}; expected a list, as on the command line: ['trainer.max_epochs=3']."
            )
        tree = apply_overrides(read_tree(path), overrides, model=cls)
        return build(cls, tree, origin=str(path))


def check_experiment(given: object) -> None:
    """What a call from Python takes for an experiment must be one, else it is a ConfigError."""
    if not isinstance(given, Experiment):
        what = f"'{given}'" if isinstance(given, str | Path) else f"of type {type(given).__name__}"
        raise ConfigError(
            f"the experiment is {what}; expected what consilium.Experiment.load('experiment.yaml') gives."
        )
    if given.zero_shot:
        raise ConfigError(
            f"'{given.name}' says zero_shot: true, and such a model is judged as it came, never trained. Run "
            "`consilium evaluate` on this config, or leave zero_shot out to train."
        )
