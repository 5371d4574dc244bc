"""Config of tasks; imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from consilium.core.config import Config
from consilium.core.errors import DataError
from consilium.core.labels import LabelTree, paths_of
from consilium.losses.config import ClassificationLossConfig, CrossEntropyConfig
from consilium.models.config import HeadConfig, LinearHeadConfig, VisionConfig


class TreeConfig(Config):
    """How labels with dots are learned.

    ``flat``: every label is a class of its own. ``joint``: one network with a softmax among siblings at every node.
    ``cascade``: one network for every inner node.
    """

    head: Literal["flat", "joint", "cascade"] = Field(default="flat", description="flat, joint or cascade.")
    nodes: list[str] | dict[str, Any] | None = Field(
        default=None,
        description="The labels, as dot paths or as a mapping of names to subtrees; null: those of the training cases.",
    )

    @property
    def nested(self) -> bool:
        """Whether dots in labels make levels."""
        return self.head != "flat"

    @model_validator(mode="after")
    def _nodes_make_a_tree(self) -> TreeConfig:
        try:
            labels = self.labels()
        except DataError as error:
            raise ValueError(str(error).rstrip(".")) from error
        if labels is not None and len(labels) < 2:
            raise ValueError(f"nodes name {len(labels)} label(s); a classifier needs at least two")
        return self

    def labels(self) -> LabelTree | None:
        """The labels that are given, None where the training cases give them. A flat head knows the leaves alone."""
        if self.nodes is None:
            return None
        tree = LabelTree(paths_of(self.nodes), nested=True)
        return tree if self.nested else LabelTree(tree.leaves)


class ClassifyConfig(Config):
    """Images into classes: one label a case, or any number with ``multi_label``."""

    kind: Literal["classify"] = Field(default="classify", description="What is learned.")
    multi_label: bool = Field(default=False, description="A case has any number of labels; false: exactly one.")
    tree: TreeConfig = TreeConfig()
    vision: VisionConfig = VisionConfig()
    head: HeadConfig = LinearHeadConfig()
    loss: ClassificationLossConfig = CrossEntropyConfig()

    @model_validator(mode="after")
    def _one_label_in_a_tree(self) -> ClassifyConfig:
        if self.multi_label and self.tree.nested:
            raise ValueError(f"tree.head: {self.tree.head} takes one label a case; with multi_label leave it flat")
        return self


TaskConfig = ClassifyConfig
