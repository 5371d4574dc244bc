"""The ``task`` section of align; imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from consilium.core.contracts import Needs
from consilium.core.section import TaskSection
from consilium.losses.config import ContrastiveConfig, SoftmaxContrastiveConfig
from consilium.models.config import LinearProjectionConfig, ProjectionConfig, TextConfig, VisionConfig


class AlignConfig(TaskSection):
    """Captioned images into one space with their captions, as in CLIP."""

    kind: Literal["align"] = Field(description="What is learned.")
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    projection: ProjectionConfig = LinearProjectionConfig()
    embedding_size: int = Field(default=512, ge=1, description="Numbers of an embedding.")
    loss: Annotated[ContrastiveConfig, Field(discriminator="kind")] = SoftmaxContrastiveConfig()

    @property
    def needs(self) -> Needs:
        """Images and their texts."""
        return Needs(image="must", text="must")

    @property
    def groups(self) -> tuple[str, ...]:
        """The towers, the projections of both, and the temperature."""
        return ("image", "text", "projection", "temperature")

    @property
    def monitor(self) -> str:
        """The mean of the six recalls: of images and of texts among the first 1, 5 and 10."""
        return "mean_recall"

    @property
    def towers(self) -> dict[str, str]:
        """The image and the text tower."""
        return {"Image tower": self.vision.name, "Text tower": self.text.name}

    @property
    def gives(self) -> tuple[str, ...]:
        """What an answer may hold: of what was asked about."""
        return ("image_embedding", "text_embedding")
