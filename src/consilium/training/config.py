"""Config of optimization and of the run; imports no torch."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from consilium.core.config import Config, LocalFolder
from consilium.core.durations import Epochs, FromStart, Interval, StepInterval, Steps

Rate = Annotated[float, Field(gt=0.0)]
Decay = Annotated[float, Field(ge=0.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]
Floor = Annotated[float, Field(ge=0.0, le=1.0)]
OptimizerKind = Literal["adamw", "adam", "sgd"]
ADAM_KEYS, SGD_KEYS = ("betas", "eps"), ("momentum", "nesterov")


class GroupConfig(Config):
    """What one group of parameters has for itself; null: what the section around it, or the schedule, says.

    ``layer_decay`` keeps the lower layers of a pretrained tower closer to what they have learned: the rate of a layer
    is that of the group times ``layer_decay`` for each layer above it (discriminative fine-tuning, Howard and Ruder,
    arXiv:1801.06146; as a power of the depth in ELECTRA, arXiv:2003.10555, and BEiT, arXiv:2106.08254).
    """

    kind: OptimizerKind | None = Field(default=None, description="adamw, adam or sgd.")
    learning_rate: Rate | None = Field(default=None, description="Of the group; of its top layer with layer_decay.")
    weight_decay: Decay | None = Field(default=None, description="Not applied to biases and norms.")
    betas: tuple[float, float] | None = Field(default=None, description="adamw, adam: as of the whole optimizer.")
    eps: Rate | None = Field(default=None, description="adamw, adam: keeps the denominator from 0.")
    momentum: Momentum | None = Field(default=None, description="sgd: memory of the gradient.")
    nesterov: bool | None = Field(default=None, description="sgd: look ahead along the momentum.")
    floor: Floor | None = Field(default=None, description="Of the schedule: last rate as a fraction of the first.")
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        default=None, description="Multiplies the rate once for each layer above; null: all layers have one rate."
    )


class OptimizerBase(Config):
    """What every optimizer has."""

    kind: OptimizerKind
    learning_rate: Rate = Field(default=1e-3, description="Of every group that has no rate of its own.")
    weight_decay: Decay = Field(default=0.01, description="Not applied to biases and norms.")
    groups: dict[str, GroupConfig] = Field(
        default={}, description="What groups of parameters have for themselves, by name; classify has tower and head."
    )

    @property
    def floors(self) -> dict[str, float]:
        """The floors that groups have for themselves."""
        return {name: group.floor for name, group in self.groups.items() if group.floor is not None}

    @model_validator(mode="after")
    def _groups_have_keys_of_their_kind(self) -> OptimizerBase:
        for name, group in self.groups.items():
            kind = group.kind or self.kind
            for key in ADAM_KEYS if kind == "sgd" else SGD_KEYS:
                if getattr(group, key) is not None:
                    raise ValueError(f"groups.{name}.{key} is given, but the optimizer of {name}, {kind}, has no {key}")
            try:
                of_group(self, name)
            except ValidationError as error:
                raise ValueError(f"groups.{name}: {error.errors()[0]['ctx']['error']}") from None
        return self


class AdamConfig(OptimizerBase):
    """Adam (weight decay added to the gradient) or AdamW (decoupled)."""

    kind: Literal["adamw", "adam"]
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="Memory of gradient and squared gradient.")
    eps: Rate = Field(default=1e-8, description="Keeps the denominator from 0.")


class SGDConfig(OptimizerBase):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"]
    momentum: Momentum = Field(default=0.9, description="Memory of the gradient.")
    nesterov: bool = Field(default=False, description="Look ahead along the momentum.")

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> SGDConfig:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov looks ahead along the momentum, which is 0; give it one or leave nesterov out")
        return self


OptimizerConfig = Annotated[AdamConfig | SGDConfig, Field(discriminator="kind")]


def of_group(config: OptimizerBase, name: str) -> AdamConfig | SGDConfig:
    """The optimizer as a group of parameters has it: its own keys before those of the whole."""
    own = config.groups.get(name, GroupConfig())
    kind = own.kind or config.kind
    model: type[AdamConfig | SGDConfig] = SGDConfig if kind == "sgd" else AdamConfig
    shared = {key: getattr(config, key) for key in model.model_fields if key in type(config).model_fields}
    stated = {key: value for key, value in own if value is not None and key in model.model_fields}
    return model(**{**shared, **stated, "kind": kind, "groups": {}})


class ScheduleBase(Config):
    """Warm-up, linear from 0: steps (1 or more) or a fraction of all steps (below 1), or with a unit."""

    warmup: FromStart = Field(
        default=0.0,
        description="Steps (1 or more), a fraction of all steps (below 1), or text: 500 steps, 2 epochs, 5 %.",
    )


class ConstantConfig(ScheduleBase):
    """The rate stays."""

    kind: Literal["constant"] = "constant"


class CosineConfig(ScheduleBase):
    """Half a cosine from the rate to ``floor`` (SGDR without restarts, arXiv:1608.03983)."""

    kind: Literal["cosine"] = "cosine"
    floor: Floor = Field(default=0.0, description="Last rate as a fraction of the first.")


class LinearConfig(ScheduleBase):
    """A straight line from the rate to ``floor``."""

    kind: Literal["linear"] = "linear"
    floor: Floor = Field(default=0.0, description="Last rate as a fraction of the first.")


class StepConfig(ScheduleBase):
    """The rate times ``factor`` every ``every_epochs`` epochs."""

    kind: Literal["step"] = "step"
    every_epochs: Epochs = Field(default=10, description="Epochs from one reduction to the next.")
    factor: float = Field(default=0.1, gt=0.0, lt=1.0, description="What a reduction multiplies the rate by.")


class PlateauConfig(ScheduleBase):
    """The rate times ``factor`` when neither the monitored metric nor log_loss gained for ``patience`` evaluations."""

    kind: Literal["plateau"] = "plateau"
    patience: int = Field(default=3, ge=0, description="Validations without a gain that are borne.")
    factor: float = Field(default=0.1, gt=0.0, lt=1.0, description="What a reduction multiplies the rate by.")
    floor: Floor = Field(default=0.0, description="Lowest rate as a fraction of the first.")


ScheduleConfig = Annotated[
    ConstantConfig | CosineConfig | LinearConfig | StepConfig | PlateauConfig, Field(discriminator="kind")
]


class EmaConfig(Config):
    """An exponential moving average of the weights (Polyak and Juditsky, Acceleration of Stochastic Approximation by
    Averaging, 1992; its decay as in Mean Teacher, arXiv:1703.01780)."""

    decay: float = Field(
        gt=0.0,
        lt=1.0,
        description="What a step keeps of the average; 0.99 forgets half in 69 steps, 0.999 in 693.",
    )

    @property
    def half_life(self) -> float:
        """After how many steps half of the average is forgotten."""
        return math.log(0.5) / math.log(self.decay)


class WandbConfig(Config):
    """Where a run goes at Weights & Biases."""

    project: str | None = Field(default=None, min_length=1, description="null: the experiment's `name`.")
    entity: str | None = Field(default=None, min_length=1, description="A user or team; null: your default one.")


class TrainerConfig(Config):
    """How long, how precisely, and what is kept."""

    max_epochs: Epochs = Field(default=10, description="Epochs; data.mixture says what one is.")
    max_steps: Steps | None = Field(default=None, description="Stop after this many optimizer steps.")
    accumulate: int = Field(default=1, ge=1, description="Batches per optimizer step.")
    clip_norm: float | None = Field(default=None, gt=0.0, description="Largest norm of the gradient; null: any.")
    ema: EmaConfig | None = Field(
        default=None,
        description="Validate, choose and keep a moving average of the weights; null: the weights themselves.",
    )
    wise_ft: Share | Annotated[list[Share], Field(min_length=1)] | None = Field(
        default=None,
        description="Keep alpha of what was learned and 1 - alpha of the weights that the training began with; of a "
        "list of alphas the one that is best on validation. null: what was learned (1).",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto: bf16 where device and model make it faster."
    )
    compile: bool = Field(default=False, description="Compile the model: a slow first step, then perhaps faster.")
    deterministic: bool = Field(default=False, description="Deterministic kernels: slower, bit for bit repeatable.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="auto: cuda, else mps, else cpu.")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of this process; null: torch's default.")
    validate_every: Interval = Field(
        default=1.0, description="Epochs (below 1: a fraction) between validations, or text: 500 steps, 10 %."
    )
    monitor: str | None = Field(
        default=None,
        description="Validation metric that chooses the best weights; log_loss decides where it ties. null or auto: "
        "the task's own, of classify macro_f1, and macro_auroc with task.multi_label.",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Stop after this many validations without a gain of the monitored metric or of log_loss.",
    )
    save_every: Interval = Field(
        default=1.0,
        description="Epochs (below 1: a fraction) between resumable checkpoints, or text: 500 steps, 10 % of the whole "
        "training.",
    )
    keep_last: int = Field(default=1, ge=1, description="Resumable checkpoints kept.")
    log_every: StepInterval = Field(default=10, description="Steps between lines of the log, or text: 1 epoch, 2 %.")
    cache_features: bool = Field(
        default=True,
        description="Compute once, and keep, what a frozen tower makes of images without augmentation, or of copies.",
    )
    init_from: str | None = Field(
        default=None, description="A bundle or weights file to start from, here or in a bucket."
    )
    num_runs: int = Field(default=1, ge=1, description="Runs with seeds seed, seed + 1, ...; mean and deviation.")
    wandb: bool | WandbConfig = Field(
        default=False,
        description="Also log to Weights & Biases (extra: wandb); true: into a project of the experiment's name.",
    )

    @field_validator("monitor")
    @classmethod
    def _auto_is_null(cls, monitor: str | None) -> str | None:
        return None if monitor == "auto" else monitor

    @property
    def alphas(self) -> list[float]:
        """The shares of what was learned to choose among, in ascending order; []: all of it is kept."""
        given = self.wise_ft if isinstance(self.wise_ft, list) else [self.wise_ft]
        return sorted({alpha for alpha in given if alpha is not None})

    @property
    def tracked(self) -> WandbConfig | None:
        """Where a run goes at Weights & Biases; None: nowhere."""
        if isinstance(self.wandb, WandbConfig):
            return self.wandb
        return WandbConfig() if self.wandb else None


class OutputConfig(Config):
    """Where a run goes: ``{root}/{name}/{variation}-{time}``."""

    root: LocalFolder = Field(default="runs", description="Folder of all runs, on a disk of this machine.")
    copy_to: str | None = Field(
        default=None,
        pattern="^(gs|gcs|s3|hf)://.",
        description="A bucket, as in gs://name/runs: the finished run is copied to {copy_to}/{name}/{run} at its end.",
    )
    variation: str = Field(
        default="default", pattern=r"^[A-Za-z0-9_.-]+$", description="Tells runs of one experiment apart."
    )
    if_exists: Literal["new", "resume", "refuse", "replace"] = Field(
        default="new",
        description="A folder of this name and variation exists: start another, resume the latest unfinished one, "
        "stop with an error, or remove it when the new run has finished.",
    )
