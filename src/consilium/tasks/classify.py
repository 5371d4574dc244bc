"""The classify task: images of a case into a path of the label tree, or into any number of classes.

Axes in names: B case in a batch, N image, V view, C channel, H height, W width, F feature, K class (node of the tree).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from consilium.core.contracts import Batch, ParameterGroup, StepOutput
from consilium.core.labels import LabelTree
from consilium.losses.classification import build_loss
from consilium.models.heads import build_head, grown_head
from consilium.models.vision import VisionTower, build_vision
from consilium.models.weights import freeze_tower, keep_frozen_in_eval
from consilium.tasks.answering import Answering
from consilium.tasks.config import ClassifyConfig


class Classify(Answering):
    """A vision tower and a head; several views of a case are averaged as features."""

    def __init__(
        self, config: ClassifyConfig, *, labels: LabelTree, tower: VisionTower, head: nn.Module, loss: nn.Module
    ) -> None:
        super().__init__(labels, multi_label=config.multi_label)
        self.config = config
        self.tower = tower
        self.head = head
        self.loss = loss
        self.set_epoch(0)

    def view_features(self, batch: Batch) -> Tensor:
        """Features [N, F] of all views there are, case by case: those that the batch brings, or the tower's."""
        if batch.features_BVF is not None:
            return batch.features_BVF[batch.view_mask_BV]
        # Only real views pass the tower: padding would shift batch statistics.
        single = batch.view_mask_BV.shape[1] == 1
        features_NF: Tensor = self.tower(batch.images_BVCHW[:, 0] if single else batch.images_BVCHW[batch.view_mask_BV])
        return features_NF

    def logits(self, batch: Batch) -> Tensor:
        """Scores [B, K] before softmax (single label) or sigmoid (multi-label)."""
        mask_BV, features_BF = batch.view_mask_BV, self.view_features(batch)
        if mask_BV.shape[1] > 1:
            case_N = mask_BV.nonzero()[:, 0]
            sums_BF = features_BF.new_zeros(len(mask_BV), features_BF.shape[1]).index_add_(0, case_N, features_BF)
            features_BF = sums_BF / mask_BV.sum(1, keepdim=True).to(sums_BF.dtype)
        logits_BK: Tensor = self.head(features_BF)
        return logits_BK

    def forward(self, batch: Batch) -> StepOutput:
        """Same as ``step``, so that distributed wrappers see the training computation."""
        return self.step(batch)

    def step(self, batch: Batch) -> StepOutput:
        """The training loss of a batch."""
        logits_BK = self.logits(batch)
        loss = self.loss(logits_BK, batch.targets)
        return StepOutput(loss=loss)

    def parameter_groups(self) -> list[ParameterGroup]:
        """The tower's and the head's parameters."""
        return [
            ParameterGroup("tower", list(self.tower.parameters())),
            ParameterGroup("head", list(self.head.parameters())),
        ]

    def set_epoch(self, epoch: int) -> None:
        """Freeze what the config says for this epoch."""
        freeze_tower(self.tower, self.config.vision.freeze, epoch=epoch)
        self.train(self.training)

    def train(self, mode: bool = True) -> Classify:
        """As ``nn.Module.train``, but frozen parts stay in evaluation mode."""
        super().train(mode)
        if mode:
            keep_frozen_in_eval(self)
        return self


def build_classify(
    config: ClassifyConfig,
    *,
    labels: LabelTree,
    image_size: tuple[int, int],
    class_counts: Sequence[int],
    training_cases: int,
    weights: bool = True,
) -> Classify:
    """The task of a config; ``weights=False`` skips pretrained weights (a bundle brings its own).

    ``class_counts`` and ``training_cases`` are those of train; class weights may need them.
    """
    tower = build_vision(config.vision, image_size=image_size, weights=weights)
    head = build_head(config.head, in_features=tower.num_features, classes=len(labels))
    loss = build_loss(
        config.loss, labels=labels, multi_label=config.multi_label, class_counts=class_counts, cases=training_cases
    )
    return Classify(config, labels=labels, tower=tower, head=head, loss=loss)


def growing(labels: LabelTree, *, known: int) -> list[int]:
    """The nodes that learn when those from number ``known`` on are new: they, and the nodes above them."""
    return [node for node in range(len(labels)) if labels.ancestry_MM[known:, node].any()]


def grown_classify(
    old: Classify, *, config: ClassifyConfig, labels: LabelTree, class_counts: Sequence[int], training_cases: int
) -> Classify:
    """A trained task with further labels, which come after its own in ``labels``; only ``growing`` scores learn.

    It takes over the modules of ``old``, which is not to be used any more, and its calibration: the thresholds, and
    the temperature of every group of siblings that ``old`` tells apart.
    """
    loss = build_loss(config.loss, labels=labels, multi_label=False, class_counts=class_counts, cases=training_cases)
    head = grown_head(old.head, classes=len(labels), learning=growing(labels, known=len(old.labels)))
    grown = Classify(config, labels=labels, tower=old.tower, head=head, loss=loss)
    told_apart = [old.labels.name_of(group.parent) for group in old.labels.choices]
    temperatures = {name: old.calibration.temperatures.get(name, 1.0) for name in told_apart}
    grown.calibrate(old.calibration.model_copy(update={"temperatures": temperatures}))
    return grown
