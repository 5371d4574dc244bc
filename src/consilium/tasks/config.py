"""Config of tasks; imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from consilium.core.config import Config
from consilium.losses.config import ClassificationLossConfig, CrossEntropyConfig
from consilium.models.config import HeadConfig, LinearHeadConfig, VisionConfig


class ClassifyConfig(Config):
    """Images into classes: one label a case, or any number with ``multi_label``."""

    kind: Literal["classify"] = Field(default="classify", description="What is learned.")
    multi_label: bool = Field(default=False, description="A case has any number of labels; false: exactly one.")
    vision: VisionConfig = VisionConfig()
    head: HeadConfig = LinearHeadConfig()
    loss: ClassificationLossConfig = CrossEntropyConfig()


TaskConfig = ClassifyConfig
