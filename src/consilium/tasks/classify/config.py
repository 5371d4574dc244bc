"""The ``task`` section of classify; imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from consilium.core.config import Config
from consilium.core.contracts import Needs
from consilium.evaluation.probes.config import PLACE, with_place
from consilium.losses.config import CrossEntropyConfig
from consilium.models.config import LinearHeadConfig, MLPHeadConfig, VisionConfig
from consilium.tasks.answers.config import LabelSection


class NamesConfig(Config):
    """What the classes are called, for the text tower of the model that the image tower is of (zero-shot)."""

    templates: list[str] = Field(
        default=[PLACE], min_length=1, description="Texts with {label} in them, into each of which every name is put."
    )
    names: dict[str, Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]] = Field(
        default={},
        description="Names of labels: {radiology.ct: [CT scan, computed tomography]}; another label is called by the "
        "last part of its dot path.",
    )

    _label_has_a_place = field_validator("templates")(with_place)


class LogisticHeadConfig(Config):
    """One linear layer that is fitted to the features of all training cases at once: a logistic regression.

    L-BFGS finds it on standardised features, whatever the seed. Of seven strengths of its penalty the one is taken that
    has the least log loss on training cases that its fit did not see.
    """

    kind: Literal["logistic"]
    leave_out: str = Field(
        default="group",
        min_length=1,
        description="What is left out as a whole to choose the strength: group (patient), source, or a metadata "
        "column.",
    )
    zero_shot: NamesConfig | None = Field(
        default=None,
        description="Begin with what the text tower of the same model says of the classes, as far as left-out cases "
        "trust it; null: do not. For an image tower of open_clip or of a whole model of Hugging Face.",
    )


class ClassifyConfig(LabelSection):
    """Images into classes: one label a case, or any number with ``multi_label``."""

    kind: Literal["classify"] = Field(default="classify", description="What is learned.")
    add_to: str | None = Field(
        default=None,
        description="A bundle (folder, archive or bucket) that this training adds labels to. Its tower, head and "
        "image settings are taken over; only the scores of new labels, and of those above them, learn.",
    )
    vision: VisionConfig = VisionConfig()
    head: LinearHeadConfig | MLPHeadConfig | LogisticHeadConfig = Field(
        default=LinearHeadConfig(), discriminator="kind"
    )

    @property
    def needs(self) -> Needs:
        """Images and labels."""
        return Needs(label="many" if self.multi_label else "one", nested=self.tree.nested)

    @property
    def groups(self) -> tuple[str, ...]:
        """The tower's and the head's parameters."""
        return ("tower", "head")

    @property
    def pretrained_groups(self) -> tuple[str, ...]:
        """The tower, unless it starts from nothing."""
        return () if self.vision.pretrained is False else ("tower",)

    @property
    def staged(self) -> bool:
        """A cascade has a network for every inner node."""
        return self.tree.head == "cascade"

    @property
    def solved(self) -> bool:
        """A logistic head is fitted to all cases at once."""
        return self.head.kind == "logistic"

    @property
    def origin(self) -> str | None:
        """The router that labels are added to."""
        return self.add_to

    @property
    def borrows(self) -> tuple[str, ...]:
        """The bundle whose image tower is taken."""
        return (self.vision.name,) if self.vision.kind == "bundle" else ()

    @property
    def towers(self) -> dict[str, str]:
        """The image tower."""
        return {"Tower": self.vision.name}

    @model_validator(mode="after")
    def _distances_have_one_network(self) -> ClassifyConfig:
        if self.answers.distance is not None and (self.multi_label or self.staged):
            what = "multi_label" if self.multi_label else "tree.head: cascade"
            raise ValueError(
                f"answers.distance measures how far the features of one network lie from those of the training cases "
                f"of one label a case, and does not go with {what}; leave distance out"
            )
        return self

    @model_validator(mode="after")
    def _a_logistic_head_is_fitted_alone(self) -> ClassifyConfig:
        if not isinstance(self.head, LogisticHeadConfig):
            return self
        odd = {
            "multi_label is true: it fits one label a case": self.multi_label,
            "tree.head is cascade: with joint it fits a regression at every node": self.tree.head == "cascade",
            "add_to is given: new labels are learned step by step, by a head of kind linear": self.add_to is not None,
            f"vision.freeze.kind is {self.vision.freeze.kind}: it needs a tower that stays (kind: tower)": (
                self.vision.freeze.kind != "tower"
            ),
            "loss is no plain cross entropy: to weigh classes set data.mixture.sampling": (
                self.loss != CrossEntropyConfig()
            ),
        }
        odd |= self._without_words(self.head)
        if found := [what for what, holds in odd.items() if holds]:
            raise ValueError(f"head.kind is logistic, and {'; '.join(found)}")
        return self

    def _without_words(self, head: LogisticHeadConfig) -> dict[str, bool]:
        """What leaves zero-shot without a text tower, and whether it is so."""
        asked, vision = head.zero_shot is not None, self.vision
        return {
            f"vision.kind is {vision.kind}, which has no text tower for head.zero_shot (open_clip and hf have)": (
                asked and vision.kind not in ("open_clip", "hf")
            ),
            "vision.pretrained is false: head.zero_shot needs what the model has learned": (
                asked and vision.pretrained is False
            ),
            f"vision.pooling is {vision.pooling}: head.zero_shot reads the model's own (default)": (
                asked and vision.pooling != "default"
            ),
        }

    @model_validator(mode="after")
    def _one_head_grows(self) -> ClassifyConfig:
        if self.add_to is not None and (self.multi_label or self.tree.head == "cascade"):
            what = "multi_label" if self.multi_label else "tree.head: cascade"
            raise ValueError(f"add_to takes a flat or joint router of one label a case, not {what}; train it anew")
        return self
