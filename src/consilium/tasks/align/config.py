"""The ``task`` section of align; imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from consilium.core.config import Config
from consilium.core.contracts import Needs
from consilium.core.section import TaskSection
from consilium.losses.config import ContrastiveConfig, DistillationConfig, SoftmaxContrastiveConfig
from consilium.models.config import (
    LicenseOfWeights,
    LinearProjectionConfig,
    ProjectionConfig,
    TextConfig,
    VisionConfig,
)


class ModelConfig(Config):
    """A whole pretrained model: both towers, projections, temperature, tokenizer and image statistics."""

    name: str = Field(
        description="A folder here or in a bucket, ORG/NAME on the hub, or a model of open_clip as MODEL/TAG: a CLIP "
        "of open_clip (BiomedCLIP too), or a CLIP, SigLIP, Chinese-CLIP or vision-text dual encoder of transformers."
    )
    pretrained: str | None = Field(
        default=None, description="A weights file in place of that of the folder or tag; of open_clip's models only."
    )
    license: LicenseOfWeights = None


class ViewsConfig(Config):
    """Named views of a case, as the eyes of a patient (RET-CLIP, Du et al., 2024, arXiv:2405.14137).

    One image tower sees all of them. Each view has an image map, a text head, a loss and a temperature of its own, and
    so has the case, whose map takes all views side by side. A case that lacks a view trains what it has.
    """

    names: list[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]] = Field(
        default=["left", "right"], min_length=2, description="The views, as the sources call them (columns.image)."
    )
    loss: Literal["sum", "mean"] = Field(default="sum", description="Of the losses of the views and of the case.")
    monocular: bool = Field(
        default=False,
        description="One picture a case, whatever its name: one image projection, one such text head, one loss.",
    )

    @model_validator(mode="after")
    def _different(self) -> ViewsConfig:
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"names are {', '.join(self.names)}; give each view a name of its own")
        if taken := sorted(set(self.names) & {"case", "exchanged", "tower"}):
            raise ValueError(f"a view cannot be called {' or '.join(taken)}, which means something else")
        usual = type(self).model_fields
        if self.monocular and (self.names, self.loss) != (usual["names"].default, usual["loss"].default):
            raise ValueError("monocular has one picture and one loss; leave names and loss out")
        return self


def _named(given: object) -> object:
    return {"name": given} if isinstance(given, str) else given


class AlignConfig(TaskSection):
    """Captioned images into one space with their captions, as in CLIP."""

    kind: Literal["align"] = Field(description="What is learned.")
    model: Annotated[ModelConfig | None, BeforeValidator(_named, json_schema_input_type=ModelConfig | str | None)] = (
        Field(
            default=None,
            description="A whole pretrained model, by its name alone or with `pretrained` or `license`. Of vision "
            "and text only how they learn is then given (freeze, drop_path, context_length).",
        )
    )
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    views: ViewsConfig | None = Field(
        default=None,
        description="Named views of a case, with losses of their own; null: of several the features are averaged.",
    )
    projection: ProjectionConfig = LinearProjectionConfig()
    embedding_size: int = Field(default=512, ge=1, description="Numbers of an embedding.")
    chunk: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default=None,
        description="Images, and texts, that a tower computes at a time: the same batch, loss and gradient in the "
        "memory of this many cases, for about a third more time. null: the whole batch; auto: as many as fit into free "
        "memory. trainer.accumulate does not enlarge a contrastive batch; this makes room for one.",
    )
    loss: Annotated[ContrastiveConfig, Field(discriminator="kind")] = SoftmaxContrastiveConfig()

    feature_distillation: DistillationConfig | None = Field(
        default=None,
        description="Hold on to the features that pretrained towers gave at the start; null: they may forget.",
    )

    @property
    def needs(self) -> Needs:
        """Images and their texts."""
        return Needs(image="must", text="must", views=self.view_names)

    @property
    def view_names(self) -> tuple[str, ...]:
        """The views that are told apart; () where all are alike."""
        return () if self.views is None or self.views.monocular else tuple(self.views.names)

    @property
    def groups(self) -> tuple[str, ...]:
        """The towers, the projections of both, and the temperature."""
        return ("image", "text", "projection", "temperature")

    @property
    def pretrained_groups(self) -> tuple[str, ...]:
        """The towers that do not start from nothing; all of a whole pretrained model."""
        if self.model is not None:
            return self.groups
        towers = {"image": self.vision.pretrained, "text": self.text.pretrained}
        return tuple(name for name, pretrained in towers.items() if pretrained is not False)

    @property
    def monitor(self) -> str:
        """The mean of the six recalls: of images and of texts among the first 1, 5 and 10."""
        return "mean_recall"

    @property
    def borrows(self) -> tuple[str, ...]:
        """The bundles whose towers are taken or learned from."""
        own = () if self.model is not None else (self.vision, self.text)
        towers = tuple(tower.name for tower in own if tower.kind == "bundle")
        return towers if self.teacher is None else (*towers, self.teacher)

    @property
    def teacher(self) -> str | None:
        """The bundle whose features are learned."""
        return None if self.feature_distillation is None else self.feature_distillation.teacher

    @property
    def towers(self) -> dict[str, str]:
        """The whole model, or the image and the text tower."""
        if self.model is not None:
            return {"Model": self.model.name}
        return {"Image tower": self.vision.name, "Text tower": self.text.name}

    @property
    def holds_start(self) -> bool:
        """With a distance to the start in the loss."""
        return self.feature_distillation is not None

    @property
    def saves_memory(self) -> str:
        """A smaller batch, accumulated or not, would be another task."""
        chunk = f"a smaller task.chunk (now {self.chunk})"
        if self.chunk is None or self.chunk == "auto":
            chunk = "task.chunk: auto" if self.chunk is None else "task.chunk to a number below the one in the log"
        return (
            f"Set {chunk}: the same batch, loss and gradient in less memory. A smaller data.loader.batch_size is "
            "another, easier task, with fewer negatives, and trainer.accumulate (now {accumulate}) does not give them "
            "back. Or choose a smaller data.image.size, task.text.context_length or tower."
        )

    @property
    def gives(self) -> tuple[str, ...]:
        """What an answer may hold: of what was asked about."""
        spaces = ("", *(f"{name}_" for name in self.view_names))
        return tuple(f"{space}{side}_embedding" for space in spaces for side in ("image", "text"))

    @model_validator(mode="after")
    def _texts_have_a_tower(self) -> AlignConfig:
        if self.text.kind == "vectors":
            raise ValueError("text.kind is vectors, which is for task.kind: fuse; name an encoder")
        return self

    @model_validator(mode="after")
    def _one_says_what_the_towers_are(self) -> AlignConfig:
        if self.model is None:
            return self
        given: list[tuple[str, Any, Any]] = [("projection", self.projection, LinearProjectionConfig())]
        for side, own, usual in (("vision", self.vision, VisionConfig()), ("text", self.text, TextConfig())):
            given += [
                (f"{side}.{key}", getattr(own, key), getattr(usual, key))
                for key in ("kind", "name", "pretrained", "license", "pooling")
            ]
        if different := [key for key, own, usual in given if own != usual]:
            raise ValueError(
                f"model names both towers and what lies between them, so that {', '.join(different)} cannot be given "
                "as well; leave these out, or leave model out"
            )
        return self
