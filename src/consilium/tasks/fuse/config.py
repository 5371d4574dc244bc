"""The ``task`` section of fuse; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from consilium.core.config import Config
from consilium.core.contracts import Needs
from consilium.core.durations import NoOrMoreEpochs
from consilium.core.vectors import vectors_place
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

Modality = Literal["image", "text", "metadata"]
Chance = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]


class MetadataConfig(Config):
    """Metadata columns as a third modality: numbers such as an age, categories such as a site.

    Of a column the training cases give the mean and the deviation, or the categories; any other category counts as one
    more. A case may lack single columns; one that lacks all of them lacks the modality.
    """

    columns: list[Annotated[str, Field(min_length=1)]] = Field(
        min_length=1, description="Metadata columns of the sources that are read. None may give the label away."
    )
    kinds: dict[str, Literal["number", "category"]] = Field(
        default={},
        description="number or category, by column; of the others the training cases say: number where all values are.",
    )
    column_width: int = Field(default=16, ge=1, description="Numbers that stand for each column.")
    projection: HeadConfig = Field(
        default=LinearHeadConfig(), description="From the numbers of all columns to `width` numbers."
    )

    @model_validator(mode="after")
    def _kinds_are_of_columns(self) -> MetadataConfig:
        if twice := [name for name in self.columns if self.columns.count(name) > 1]:
            raise ValueError(f"columns has '{twice[0]}' twice; name each once")
        if unknown := [name for name in self.kinds if name not in self.columns]:
            raise ValueError(f"kinds names '{unknown[0]}', which is none of the columns ({', '.join(self.columns)})")
        return self


class MaskingConfig(Config):
    """Modalities that a training takes away from cases, so that the model learns to do without.

    A case keeps at least one of those that it has: of what is left of it every combination is as likely as the
    chances say, given that one remains. Validation and test are never masked at random. ``withheld`` takes them away
    for the whole training, as from a clinic that never had them: it is for measuring what they were worth.
    """

    complete: Modality | Annotated[list[Modality], Field(min_length=1)] | None = Field(
        default=None, description="A modality, or a list of some, never looked at, neither in training nor afterwards."
    )
    image: Chance = Field(default=0.0, description="Chance that a training case is seen without its image.")
    text: Chance = Field(default=0.0, description="Chance that a training case is seen without its text.")
    metadata: Chance = Field(default=0.0, description="Chance that a training case is seen without its metadata.")
    withheld: dict[str, Chance] = Field(
        default={}, description="Share of the training cases that lack a modality from the first epoch to the last."
    )
    ramp_epochs: NoOrMoreEpochs = Field(
        default=0, description="Epochs in which the chances grow evenly from 0; 0: they hold from the start."
    )

    @property
    def left_out(self) -> tuple[str, ...]:
        """The modalities that are never looked at."""
        return (self.complete,) if isinstance(self.complete, str) else tuple(self.complete or ())

    def chances(self, modalities: Sequence[str]) -> list[float]:
        """Of each modality the chance that it is taken away."""
        return [getattr(self, name) for name in modalities]

    def shares(self, modalities: Sequence[str]) -> list[float]:
        """Of each modality the share of the training cases from which it is withheld."""
        return [self.withheld.get(name, 0.0) for name in modalities]

    def check(self, modalities: Sequence[str]) -> None:
        """Masking that leaves nothing of a case, or takes away what is left out anyway, is a ValueError."""
        left = [name for name in modalities if name not in self.left_out]
        masked = [name for name in modalities if getattr(self, name) or self.withheld.get(name)]
        if not left:
            raise ValueError(f"masking.complete leaves out {_listed(modalities)}, so that nothing remains of any case")
        if self.left_out and masked and len(left) == 1:
            raise ValueError(
                f"masking.complete is {', '.join(self.left_out)}, so that one modality is left, and nothing of it can "
                f"be masked at random; leave out masking.{masked[0]}"
            )
        if unused := [name for name in masked if name in self.left_out]:
            raise ValueError(f"masking.complete is {', '.join(self.left_out)}; leave out masking.{unused[0]}")
        if unknown := [name for name in self.withheld if name not in modalities]:
            raise ValueError(f"masking.withheld names {unknown[0]}, but the modalities are {_listed(modalities)}")
        if any(all(chance == 1.0 for chance in own) for own in (self.chances(left), self.shares(left))):
            raise ValueError(
                f"masking takes away {_listed(left)} with a chance of 1 each, so that nothing would remain of a case; "
                "lower one of them"
            )


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


class AuxiliaryConfig(Config):
    """Losses of a head for each modality by itself, over the cases that have it; they are for training alone."""

    image: Weight = Field(default=0.0, description="What the loss of the image alone counts beside that of all.")
    text: Weight = Field(default=0.0, description="What the loss of the text alone counts beside that of all.")
    metadata: Weight = Field(default=0.0, description="What the loss of the metadata alone counts beside that of all.")
    fade_epochs: NoOrMoreEpochs = Field(
        default=0, description="Epochs in which the weights fall evenly to 0; 0: they stay."
    )

    @property
    def weights(self) -> dict[str, float]:
        """By modality, where there is a loss."""
        given = {"image": self.image, "text": self.text, "metadata": self.metadata}
        return {name: weight for name, weight in given.items() if weight}


class FuseConfig(LabelSection):
    """Images with texts, and metadata where columns are named, into classes; each of them may be missing."""

    kind: Literal["fuse"] = Field(description="What is learned.")
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    metadata: MetadataConfig | None = Field(default=None, description="A third modality; null: image and text alone.")
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
    def modalities(self) -> tuple[str, ...]:
        """What is fused, in the order of the axis M."""
        return ("image", "text") if self.metadata is None else ("image", "text", "metadata")

    @property
    def needs(self) -> Needs:
        """Labels, and of image and text at least one."""
        label: Literal["one", "many"] = "many" if self.multi_label else "one"
        columns = () if self.metadata is None else tuple(self.metadata.columns)
        vectors = self.text.name if self.text.kind == "vectors" else None
        return Needs(image="may", text="may", label=label, nested=self.tree.nested, meta=columns, vectors=vectors)

    @property
    def reads(self) -> tuple[str, ...]:
        """The modalities."""
        return self.modalities

    @property
    def groups(self) -> tuple[str, ...]:
        """The towers, the projections, and the fusion with all heads."""
        text = () if self.text.kind == "vectors" else ("text",)
        return ("image", *text, "projection", "fusion")

    @property
    def pretrained_groups(self) -> tuple[str, ...]:
        """The towers that do not start from nothing."""
        towers = {"image": self.vision.pretrained, "text": self.text.pretrained}
        return tuple(name for name, pretrained in towers.items() if pretrained is not False and name in self.groups)

    @property
    def borrows(self) -> tuple[str, ...]:
        """The bundles whose towers are taken."""
        return tuple(dict.fromkeys(own.name for own in (self.vision, self.text) if own.kind == "bundle"))

    @property
    def towers(self) -> dict[str, str]:
        """The image and the text tower, or the file of vectors, and the columns of metadata."""
        columns = {} if self.metadata is None else {"Metadata": ", ".join(self.metadata.columns)}
        text = "Vectors of texts" if self.text.kind == "vectors" else "Text tower"
        return {"Image tower": self.vision.name, text: self.text.name, **columns}

    def with_vectors_in(self, folder: str | None) -> Self:
        """The section where a file of vectors with a bare name lies in ``folder``."""
        if self.text.kind != "vectors" or (place := vectors_place(self.text.name, folder=folder)) == self.text.name:
            return self
        return self.model_copy(update={"text": self.text.model_copy(update={"name": place})})

    @property
    def gives(self) -> tuple[str, ...]:
        """The keys of an answer."""
        return (*super().gives, "modalities", "counted", "without")

    @model_validator(mode="after")
    def _modalities_are_there(self) -> FuseConfig:
        asked = {*self.masking.left_out, *self.auxiliary.weights, *(["metadata"] if self.masking.metadata else [])}
        if self.metadata is None and "metadata" in asked:
            raise ValueError(
                "masking or auxiliary names metadata, but task.metadata is not set; name columns in "
                "task.metadata.columns, or leave it out there"
            )
        self.masking.check(self.modalities)
        return self

    @model_validator(mode="after")
    def _one_network(self) -> FuseConfig:
        if self.tree.head == "cascade":
            raise ValueError("tree.head is cascade, which is for images alone; take flat or joint")
        if self.answers.distance is not None:
            raise ValueError("answers.distance is for images alone (task.kind: classify); leave it out")
        if isinstance(self.fusion, AttentionConfig) and self.width % self.fusion.heads:
            raise ValueError(f"fusion.heads is {self.fusion.heads}, which does not divide width ({self.width})")
        return self
