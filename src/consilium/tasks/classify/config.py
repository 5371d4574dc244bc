"""The ``task`` section of classify; imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from consilium.core.config import Config
from consilium.core.contracts import Needs
from consilium.core.errors import DataError
from consilium.core.labels import LabelTree, paths_of
from consilium.core.section import TaskSection
from consilium.data.config import Deviation, Mean
from consilium.evaluation.config import AnswersConfig
from consilium.evaluation.probes.config import PLACE, with_place
from consilium.losses.config import ClassificationLossConfig, CrossEntropyConfig
from consilium.models.config import LinearHeadConfig, MLPHeadConfig, VisionConfig


class NodeStatistics(Config):
    """The mean and deviation with which one network of a cascade sees images."""

    mean: Mean = Field(description="Per channel, of pixels in [0, 1].")
    std: Deviation = Field(description="Per channel, of pixels in [0, 1].")


class TreeConfig(Config):
    """How labels with dots are learned.

    ``flat``: every label is a class of its own. ``joint``: one network with a softmax among siblings at every node.
    ``cascade``: one network, a flat run of its own, for every inner node with several children.
    """

    head: Literal["flat", "joint", "cascade"] = Field(default="flat", description="flat, joint or cascade.")
    nodes: list[str] | dict[str, Any] | None = Field(
        default=None,
        description="The labels, as dot paths or as a mapping of names to subtrees; null: those of the training cases. "
        "Of one level, the list is also the order of grades, from the lowest to the highest.",
    )
    statistics: dict[str, NodeStatistics] = Field(
        default={},
        description="cascade: mean and std by inner node (root: the top), as `consilium data stats --per-node` prints "
        "them; a node without goes by data.image.statistics.",
    )

    @property
    def nested(self) -> bool:
        """Whether dots in labels make levels."""
        return self.head != "flat"

    @field_validator("nodes")
    @classmethod
    def _nodes_make_a_tree(cls, nodes: list[str] | dict[str, Any] | None) -> list[str] | dict[str, Any] | None:
        try:
            leaves = None if nodes is None else LabelTree(paths_of(nodes), nested=True).leaves
        except DataError as error:
            raise ValueError(str(error).rstrip(".")) from error
        if leaves is not None and len(leaves) < 2:
            raise ValueError(f"{len(leaves)} label(s) without others below came; a classifier needs at least two")
        return nodes

    @model_validator(mode="after")
    def _statistics_have_a_network(self) -> TreeConfig:
        if self.statistics and self.head != "cascade":
            raise ValueError(
                f"statistics are those of the networks of a cascade, but head is {self.head}, which has one; set "
                "data.image.mean and std, or head: cascade"
            )
        return self

    @property
    def order(self) -> tuple[str, ...]:
        """The labels from the lowest to the highest, where they are given and have one level; else none."""
        names = paths_of(self.nodes or [])
        return () if any("." in name for name in names) else tuple(names)

    def labels(self) -> LabelTree | None:
        """The labels that are given, None where the training cases give them. A flat head knows the leaves alone."""
        if self.nodes is None:
            return None
        tree = LabelTree(paths_of(self.nodes), nested=True)
        return tree if self.nested else LabelTree(tree.leaves)


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


class ClassifyConfig(TaskSection):
    """Images into classes: one label a case, or any number with ``multi_label``."""

    kind: Literal["classify"] = Field(default="classify", description="What is learned.")
    multi_label: bool = Field(default=False, description="A case has any number of labels; false: exactly one.")
    tree: TreeConfig = TreeConfig()
    add_to: str | None = Field(
        default=None,
        description="A bundle (folder, archive or bucket) that this training adds labels to. Its tower, head and "
        "image settings are taken over; only the scores of new labels, and of those above them, learn.",
    )
    vision: VisionConfig = VisionConfig()
    head: LinearHeadConfig | MLPHeadConfig | LogisticHeadConfig = Field(
        default=LinearHeadConfig(), discriminator="kind"
    )
    loss: ClassificationLossConfig = CrossEntropyConfig()
    answers: AnswersConfig = AnswersConfig()

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

    @property
    def gives(self) -> tuple[str, ...]:
        """The keys of an answer."""
        if self.multi_label:
            return ("labels", "probabilities")
        far = () if self.answers.distance is None else ("distance",)
        return ("label", "probability", *far, "path", "probabilities")

    @property
    def monitor(self) -> str:
        """The validation metric that chooses the best weights unless the config names one."""
        # Of many rare labels none passes the threshold for epochs, and the F1 rests at 0; a ranking moves at once.
        return "macro_auroc" if self.multi_label else "macro_f1"

    @model_validator(mode="after")
    def _one_label_in_a_tree(self) -> ClassifyConfig:
        if self.multi_label and self.tree.nested:
            raise ValueError(f"tree.head: {self.tree.head} takes one label a case; with multi_label leave it flat")
        return self

    @model_validator(mode="after")
    def _answers_have_one_label(self) -> ClassifyConfig:
        wanted = self.answers.wanted_accuracy
        if self.multi_label and wanted is not None:
            raise ValueError(
                f"answers.wanted_accuracy is {wanted}, but with multi_label nothing is left unanswered: every "
                "label is given from answers.threshold on; leave wanted_accuracy out"
            )
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
