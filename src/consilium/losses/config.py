"""Config of losses; imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from consilium.core.config import Config

ClassWeights = Annotated[
    Literal["none", "balanced"] | dict[str, Annotated[float, Field(gt=0)]],
    Field(description="balanced: the rarer a class in train, the more it counts; or a number for every label."),
]
Smoothing = Annotated[
    float, Field(ge=0.0, lt=1.0, description="Share of the target spread over all classes; multi-label: moved to 0.5.")
]


class CrossEntropyConfig(Config):
    """Softmax cross entropy, or binary cross entropy per class for multi-label tasks."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: Smoothing = 0.0
    class_weights: ClassWeights = "none"


class FocalConfig(Config):
    """Focal loss (Lin et al., 2017, arXiv:1708.02002)."""

    kind: Literal["focal"] = "focal"
    gamma: float = Field(default=2.0, ge=0.0, description="How little easy cases count; 0 is cross entropy.")
    label_smoothing: Smoothing = 0.0
    class_weights: ClassWeights = "none"


ClassificationLossConfig = Annotated[CrossEntropyConfig | FocalConfig, Field(discriminator="kind")]


Positives = Annotated[
    Literal["case", "same_text", "same_label", "same_group"],
    Field(
        description="What is a right answer beside a case's own: nothing (case), cases with the same text, with the "
        "same labels, or of the same group. A case without labels has its own answer alone."
    ),
]


Temperature = Annotated[
    float | None,
    Field(
        gt=0.0,
        le=1.0,
        description="Similarities are divided by it; where it is learned, the first one. null: that of task.model, "
        "else 0.07 (softmax) or 0.1 (sigmoid).",
    ),
]


class SoftmaxContrastiveConfig(Config):
    """Symmetric softmax loss of CLIP (Radford et al., 2021, arXiv:2103.00020).

    Every pair of a batch is the others' negative, over all processes. ``trainer.accumulate`` does not make this batch
    larger: it adds up the gradients of several.
    """

    kind: Literal["softmax"] = "softmax"
    temperature: Temperature = None
    learn_temperature: bool = Field(default=True, description="false: the temperature stays as it is.")
    max_scale: float = Field(default=100.0, ge=1.0, description="1 / temperature never learns to be more.")
    positives: Positives = "same_text"

    @model_validator(mode="after")
    def _starts_within(self) -> SoftmaxContrastiveConfig:
        return _within(self)


class SigmoidContrastiveConfig(Config):
    """Sigmoid loss of SigLIP (Zhai et al., 2023, arXiv:2303.15343): is this text right for this image, yes or no.

    Every image is judged with every text of the batch, over all processes, each by itself.
    """

    kind: Literal["sigmoid"] = "sigmoid"
    temperature: Temperature = None
    learn_temperature: bool = Field(default=True, description="false: the temperature stays as it is.")
    max_scale: float = Field(default=1000.0, ge=1.0, description="1 / temperature never learns to be more.")
    bias: float | None = Field(
        default=None,
        description="Added to scaled similarities, and learned; low at first, for most pairs are wrong. null: that of "
        "task.model, else -10.",
    )
    positives: Positives = "same_text"

    @model_validator(mode="after")
    def _starts_within(self) -> SigmoidContrastiveConfig:
        return _within(self)


class DistillationConfig(Config):
    """Holding on to the features of the start, or of a teacher, while learning; see ``losses.distillation``."""

    kind: Literal["mse", "cosine", "similarity_matrix"] = Field(
        default="cosine",
        description="What stays close to the start: features, their directions, or the similarities among cases.",
    )
    weight: float = Field(default=1.0, gt=0.0, description="What the distance counts beside the loss.")
    teacher: str | None = Field(
        default=None,
        description="A bundle (folder, archive or bucket) of task.kind: align, whose towers are learned from in the "
        "place of the start: the image tower, and the text tower where both have the same tokenizer. The images are "
        "those that it takes.",
    )


ContrastiveConfig = SoftmaxContrastiveConfig | SigmoidContrastiveConfig
ContrastiveT = TypeVar("ContrastiveT", SoftmaxContrastiveConfig, SigmoidContrastiveConfig)


def _within(config: ContrastiveT) -> ContrastiveT:
    if config.temperature is not None and config.temperature * config.max_scale < 1.0:
        raise ValueError(f"temperature {config.temperature} is below 1 / max_scale, {1 / config.max_scale:g}")
    return config
