"""Config of losses; imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

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
