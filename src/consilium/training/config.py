"""Config of optimization and of the run; imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from consilium.core.config import Config, LocalFolder

Rate = Annotated[float, Field(gt=0.0)]


class OptimizerBase(Config):
    """What every optimizer has; ``head_learning_rate`` null means the same as the tower's."""

    learning_rate: Rate = Field(default=1e-3, description="Of the tower, and of the head unless it has its own.")
    head_learning_rate: Rate | None = Field(default=None, description="Of the head; null: as the tower's.")
    weight_decay: float = Field(default=0.01, ge=0.0, description="Not applied to biases and norms.")


class AdamConfig(OptimizerBase):
    """Adam (weight decay added to the gradient) or AdamW (decoupled)."""

    kind: Literal["adamw", "adam"]
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="Memory of gradient and squared gradient.")
    eps: float = Field(default=1e-8, gt=0.0, description="Keeps the denominator from 0.")


class SGDConfig(OptimizerBase):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"]
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0, description="Memory of the gradient.")
    nesterov: bool = Field(default=False, description="Look ahead along the momentum.")


OptimizerConfig = Annotated[AdamConfig | SGDConfig, Field(discriminator="kind")]


class ScheduleBase(Config):
    """Warm-up, linear from 0: steps (1 or more) or a fraction of all steps (below 1)."""

    warmup: float = Field(default=0.0, ge=0.0, description="Steps (1 or more), or a fraction of all steps (below 1).")


class ConstantConfig(ScheduleBase):
    """The rate stays."""

    kind: Literal["constant"] = "constant"


class CosineConfig(ScheduleBase):
    """Half a cosine from the rate to ``floor`` (SGDR without restarts, arXiv:1608.03983)."""

    kind: Literal["cosine"] = "cosine"
    floor: float = Field(default=0.0, ge=0.0, le=1.0, description="Last rate as a fraction of the first.")


class StepConfig(ScheduleBase):
    """The rate times ``factor`` every ``every_epochs`` epochs."""

    kind: Literal["step"] = "step"
    every_epochs: int = Field(default=10, ge=1, description="Epochs from one reduction to the next.")
    factor: float = Field(default=0.1, gt=0.0, lt=1.0, description="What a reduction multiplies the rate by.")


class PlateauConfig(ScheduleBase):
    """The rate times ``factor`` when neither the monitored metric nor log_loss gained for ``patience`` evaluations."""

    kind: Literal["plateau"] = "plateau"
    patience: int = Field(default=3, ge=0, description="Validations without a gain that are borne.")
    factor: float = Field(default=0.1, gt=0.0, lt=1.0, description="What a reduction multiplies the rate by.")
    floor: float = Field(default=0.0, ge=0.0, le=1.0, description="Lowest rate as a fraction of the first.")


ScheduleConfig = Annotated[ConstantConfig | CosineConfig | StepConfig | PlateauConfig, Field(discriminator="kind")]


class TrainerConfig(Config):
    """How long, how precisely, and what is kept."""

    max_epochs: int = Field(default=10, ge=1, description="Epochs; data.mixture says what one is.")
    max_steps: int | None = Field(default=None, ge=1, description="Stop after this many optimizer steps.")
    accumulate: int = Field(default=1, ge=1, description="Batches per optimizer step.")
    clip_norm: float | None = Field(default=None, gt=0.0, description="Largest norm of the gradient; null: any.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto: bf16 where device and model make it faster."
    )
    compile: bool = Field(default=False, description="Compile the model: a slow first step, then perhaps faster.")
    deterministic: bool = Field(default=False, description="Deterministic kernels: slower, bit for bit repeatable.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="auto: cuda, else mps, else cpu.")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of this process; null: torch's default.")
    validate_every: float = Field(default=1.0, gt=0.0, description="Epochs between validations; below 1: a fraction.")
    monitor: str = Field(
        default="auto",
        description="Validation metric that chooses the best weights; log_loss decides where it ties. auto: macro_f1; "
        "macro_auroc with task.multi_label.",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Stop after this many validations without a gain of the monitored metric or of log_loss.",
    )
    save_every: float = Field(
        default=1.0, gt=0.0, description="Epochs between resumable checkpoints; below 1: a fraction."
    )
    keep_last: int = Field(default=1, ge=1, description="Resumable checkpoints kept.")
    log_every: int = Field(default=10, ge=1, description="Steps between lines of the log.")
    cache_features: bool = Field(
        default=True,
        description="Compute what a frozen tower makes of images without augmentation once, and keep it.",
    )
    init_from: str | None = Field(
        default=None, description="A bundle or weights file to start from, here or in a bucket."
    )
    num_runs: int = Field(default=1, ge=1, description="Runs with seeds seed, seed + 1, ...; mean and deviation.")
    wandb: bool = Field(default=False, description="Also log to Weights & Biases (extra: wandb).")


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
