"""The ``task`` section of fuse; imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from consilium.core.config import Config
from consilium.core.contracts import Needs
from consilium.core.durations import NoOrMoreEpochs
from consilium.models.config import (
    AttentionConfig,
    FusionConfig,
    GatedConfig,
    HeadConfig,
    LinearHeadConfig,
    TextConfig,
    VisionConfig,
)
from consilium.tasks.answers.config import LabelSection

MODALITIES = ("image", "text")
Chance = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]


class MaskingConfig(Config):
    """Modalities that a training takes away from cases, so that the model learns to do without.

    A case keeps at least one of those that it has: of what is left of it every combination is as likely as the two
    chances say, given that one remains. Validation and test are never masked at random.
    """

    complete: Literal["image", "text"] | None = Field(
        default=None, description="A modality that is never looked at, neither in training nor afterwards."
    )
    image: Chance = Field(default=0.0, description="Chance that a training case is seen without its image.")
    text: Chance = Field(default=0.0, description="Chance that a training case is seen without its text.")
    ramp_epochs: NoOrMoreEpochs = Field(
        default=0, description="Epochs in which the chances grow evenly from 0; 0: they hold from the start."
    )

    @model_validator(mode="after")
    def _something_remains(self) -> MaskingConfig:
        if self.image == self.text == 1.0:
            raise ValueError("image and text are both 1, so that nothing would remain of a case; lower one of them")
        if self.complete is not None and (self.image or self.text):
            raise ValueError(
                f"complete is {self.complete}, so that one modality is left, and nothing of it can be masked at "
                "random; leave image and text out"
            )
        return self


class AuxiliaryConfig(Config):
    """Losses of a head for each modality by itself, over the cases that have it; they are for training alone."""

    image: Weight = Field(default=0.0, description="What the loss of the image alone counts beside that of both.")
    text: Weight = Field(default=0.0, description="What the loss of the text alone counts beside that of both.")
    fade_epochs: NoOrMoreEpochs = Field(
        default=0, description="Epochs in which the weights fall evenly to 0; 0: they stay."
    )

    @property
    def weights(self) -> dict[str, float]:
        """By modality, where there is a loss."""
        given = {"image": self.image, "text": self.text}
        return {name: weight for name, weight in given.items() if weight}


class FuseConfig(LabelSection):
    """Images with texts into classes, where either may be missing."""

    kind: Literal["fuse"] = Field(description="What is learned.")
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    width: int = Field(default=256, ge=1, description="Numbers that stand for each modality when they are fused.")
    image_projection: HeadConfig = Field(
        default=LinearHeadConfig(), description="From the features of the image tower to `width` numbers."
    )
    text_projection: HeadConfig = Field(
        default=LinearHeadConfig(), description="From the features of the text tower to `width` numbers."
    )
    normalize: bool = Field(default=False, description="Divide what each modality says by its length.")
    fusion: FusionConfig = GatedConfig()
    head: HeadConfig = LinearHeadConfig()
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()
    masking: MaskingConfig = MaskingConfig()

    @property
    def needs(self) -> Needs:
        """Labels, and of image and text at least one."""
        label: Literal["one", "many"] = "many" if self.multi_label else "one"
        return Needs(image="may", text="may", label=label, nested=self.tree.nested)

    @property
    def groups(self) -> tuple[str, ...]:
        """The towers, the projections, and the fusion with all heads."""
        return ("image", "text", "projection", "fusion")

    @property
    def pretrained_groups(self) -> tuple[str, ...]:
        """The towers that do not start from nothing."""
        towers = {"image": self.vision.pretrained, "text": self.text.pretrained}
        return tuple(name for name, pretrained in towers.items() if pretrained is not False)

    @property
    def borrows(self) -> tuple[str, ...]:
        """The bundles whose towers are taken."""
        return tuple(dict.fromkeys(own.name for own in (self.vision, self.text) if own.kind == "bundle"))

    @property
    def towers(self) -> dict[str, str]:
        """The image and the text tower."""
        return {"Image tower": self.vision.name, "Text tower": self.text.name}

    @property
    def gives(self) -> tuple[str, ...]:
        """The keys of an answer."""
        return (*super().gives, "modalities", "counted", "without")

    @model_validator(mode="after")
    def _one_network(self) -> FuseConfig:
        if self.tree.head == "cascade":
            raise ValueError("tree.head is cascade, which is for images alone; take flat or joint")
        if self.answers.distance is not None:
            raise ValueError("answers.distance is for images alone (task.kind: classify); leave it out")
        if isinstance(self.fusion, AttentionConfig) and self.width % self.fusion.heads:
            raise ValueError(f"fusion.heads is {self.fusion.heads}, which does not divide width ({self.width})")
        return self
