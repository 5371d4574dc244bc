"""What the ``task`` sections of all families that answer with labels share; imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from consilium.core.config import Config
from consilium.core.errors import DataError
from consilium.core.labels import LabelTree, paths_of
from consilium.core.section import TaskSection
from consilium.data.config import Deviation, Mean
from consilium.evaluation.config import AnswersConfig
from consilium.losses.config import ClassificationLossConfig, CrossEntropyConfig


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


class LabelSection(TaskSection):
    """A task whose answers are labels: one of each case, or any number with ``multi_label``."""

    multi_label: bool = Field(default=False, description="A case has any number of labels; false: exactly one.")
    tree: TreeConfig = TreeConfig()
    loss: ClassificationLossConfig = CrossEntropyConfig()
    answers: AnswersConfig = AnswersConfig()

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
    def _one_label_in_a_tree(self) -> LabelSection:
        if self.multi_label and self.tree.nested:
            raise ValueError(f"tree.head: {self.tree.head} takes one label a case; with multi_label leave it flat")
        return self

    @model_validator(mode="after")
    def _answers_have_one_label(self) -> LabelSection:
        wanted = self.answers.wanted_accuracy
        if self.multi_label and wanted is not None:
            raise ValueError(
                f"answers.wanted_accuracy is {wanted}, but with multi_label nothing is left unanswered: every "
                "label is given from answers.threshold on; leave wanted_accuracy out"
            )
        return self
