"""The classify task: images of a case into a path of the label tree, or into any number of classes.

Axes in names: B case in a batch, N image, V view, C channel, H height, W width, F feature, K class (node of the tree).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from consilium.core.contracts import Batch, Encoder, ImageInput, ParameterGroup, Prediction, StepOutput
from consilium.core.labels import LabelTree
from consilium.losses.classification import build_loss
from consilium.models.checkpoints.pretrained import ImageSource
from consilium.models.config import LinearHeadConfig
from consilium.models.distance import FeatureDistance
from consilium.models.heads import build_head, grown_head
from consilium.models.tuning import tune
from consilium.models.vision import ImageEncoder, VisionTower, build_vision, mean_of_views
from consilium.models.weights import freeze_tower, train_unfrozen
from consilium.tasks.answers.answering import Answering
from consilium.tasks.answers.targets import LabelKnowledge
from consilium.tasks.classify.config import ClassifyConfig, LogisticHeadConfig
from consilium.tasks.classify.logistic import fit_siblings
from consilium.tasks.classify.nodes import growing
from consilium.tasks.classify.zero_shot import PriorHead, with_prior


class Classify(Answering):
    """A vision tower and a head; several views of a case are averaged as features."""

    def __init__(
        self, config: ClassifyConfig, *, labels: LabelTree, tower: VisionTower, head: nn.Module, loss: nn.Module
    ) -> None:
        super().__init__(labels, multi_label=config.multi_label, threshold=config.answers.threshold)
        self.config = config
        self.tower = tower
        self.head = head
        self.loss = loss
        self.distance: FeatureDistance | None = None  # of features to the training cases, where it was asked for
        self.licenses = tower.licenses
        self.said: list[str] = []  # by what built it
        self.set_epoch(0)

    def view_features(self, batch: Batch) -> Tensor:
        """Features [N, F] of all views there are, case by case: those that the batch brings, or the tower's."""
        images = batch.views
        single = images.there_BV.shape[1] == 1
        if images.features_BVF is not None:
            return images.features_BVF[:, 0] if single else images.features_BVF[images.there_BV]
        # Only real views pass the tower: padding would shift batch statistics.
        features_NF: Tensor = self.tower(images.pixels[:, 0] if single else images.pixels[images.there_BV])
        return features_NF

    def features(self, batch: Batch) -> Tensor:
        """Features [B, F] of cases as the head sees them: the mean of those of their views."""
        there_BV, features_NF = batch.views.there_BV, self.view_features(batch)
        return features_NF if there_BV.shape[1] == 1 else mean_of_views(features_NF, there_BV)

    def logits(self, batch: Batch) -> Tensor:
        """Scores [B, K] before softmax (single label) or sigmoid (multi-label)."""
        logits_BK: Tensor = self.head(self.features(batch))
        return logits_BK

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        """As of every such task, and with distances where they are measured."""
        features_BF = self.features(batch)
        prediction = self.prediction(self.head(features_BF).float())
        if self.distance is None:
            return prediction
        return Prediction({**prediction.arrays, "distances": self.distance(features_BF)})

    def step(self, batch: Batch) -> StepOutput:
        """The training loss of a batch."""
        logits_BK = self.logits(batch)
        loss = self.loss(logits_BK, batch.targets_B)
        return StepOutput(loss=loss)

    def solve(self, batch: Batch, *, progress: Callable[[int, int], None]) -> StepOutput:
        """Fit the head to all training cases."""
        assert isinstance(self.config.head, LogisticHeadConfig)
        assert batch.design is not None
        assert batch.targets_B is not None
        features_BF, design, head = self.features(batch).float(), batch.design, self.head
        linear = head.linear if isinstance(head, PriorHead) else head
        columns = batch.targets_B, design.weights_B, design.units_B
        found = fit_siblings(
            features_BF.cpu().double().numpy(),
            *(column.cpu().numpy() for column in columns),
            judged_T=design.judged_B.cpu().numpy(),
            prior_TK=self._prior(features_BF),
            labels=self.labels,
            leave_out=self.config.head.leave_out,
            progress=progress,
        )
        weight_KF, bias_K = linear.parameters()
        with torch.no_grad():
            weight_KF.copy_(torch.from_numpy(found.weight_KF))
            bias_K.copy_(torch.from_numpy(found.bias_K))
            if isinstance(head, PriorHead):
                head.trust_K.copy_(torch.from_numpy(found.trust_K))
        return StepOutput(loss=torch.tensor(found.loss), table=found.table)

    def _prior(self, features_BF: Tensor) -> np.ndarray | None:
        """The scores of zero-shot [B, K], where the head has them as its prior."""
        if not isinstance(self.head, PriorHead):
            return None
        with torch.no_grad():
            prior_BK = self.head.prior(features_BF.to(self.head.scale.device))
        return np.asarray(prior_BK.double().cpu().numpy())

    def parameter_groups(self) -> list[ParameterGroup]:
        """The tower's and the head's parameters."""
        return [
            ParameterGroup("tower", list(self.tower.parameters()), depths=self.tower.depths),
            ParameterGroup("head", list(self.head.parameters())),
        ]

    def image_input(self) -> ImageInput:
        """What the tower was made for."""
        expected = self.tower.pretrained_input
        return ImageInput(expected.mean, expected.std, pretrained=self.config.vision.pretrained is not False)

    def notes(self) -> list[str]:
        """What is odd about the file of the tower's weights."""
        own = [f"task.vision.pretrained: {self.tower.weights_note}"] if self.tower.weights_note else []
        return [*own, *self.said]

    def encoders(self) -> Mapping[str, Encoder]:
        """The tower, where it stays frozen."""
        vision = self.config.vision
        frozen = vision.freeze.kind == "tower"
        return {"images": ImageEncoder(self.tower, vision, self.view_features)} if frozen else {}

    @property
    def revisits_train(self) -> bool:
        """Distances are measured to the training cases."""
        return self.config.answers.distance is not None

    def set_epoch(self, epoch: int) -> None:
        """Freeze what the config says for this epoch."""
        freeze_tower(self.tower, self.config.vision.freeze, epoch=epoch)
        self.train(self.training)

    def train(self, mode: bool = True) -> Classify:
        """As ``nn.Module.train``, but frozen parts stay in evaluation mode."""
        if not mode:
            return super().train(False)
        train_unfrozen(self)
        return self


def build_classify(
    config: ClassifyConfig,
    knowledge: LabelKnowledge,
    *,
    image_size: tuple[int, int],
    weights: bool = True,
    source: ImageSource | None = None,
) -> Classify:
    """The task of a config, calibrated; ``weights=False`` is for a bundle, which brings its own and does not learn.

    ``source`` is an image tower from elsewhere.
    """
    labels = knowledge.tree
    layout = None if weights else knowledge.tower
    tower = build_vision(config.vision, image_size=image_size, weights=weights, layout=layout, source=source)
    if weights:
        tune(tower, config.vision, key="task.vision")
    section = config.head
    plain = LinearHeadConfig() if isinstance(section, LogisticHeadConfig) else section
    head = build_head(plain, in_features=tower.num_features, classes=len(labels))
    if isinstance(section, LogisticHeadConfig) and section.zero_shot is not None:
        embedding = None if weights else knowledge.embedding
        head = with_prior(head, section.zero_shot, config.vision, labels, embedding)
    task = Classify(config, labels=labels, tower=tower, head=head, loss=_loss(config, knowledge))
    task.calibrate(knowledge.calibration)
    if not weights and knowledge.calibration.distances:
        task.distance = FeatureDistance(labels, features=tower.num_features)
    return task


def _loss(config: ClassifyConfig, knowledge: LabelKnowledge) -> nn.Module:
    return build_loss(
        config.loss,
        labels=knowledge.tree,
        multi_label=config.multi_label,
        class_counts=knowledge.class_counts,
        cases=knowledge.training_cases,
    )


def grown_classify(old: Classify, config: ClassifyConfig, knowledge: LabelKnowledge) -> Classify:
    """A trained task with further labels, which come after its own; only ``growing`` scores learn.

    It takes over the modules of ``old``, which is not to be used any more, and its calibration: the thresholds, and
    the temperature of every group of siblings that ``old`` tells apart. Distances to its classes stay as well.
    """
    labels = knowledge.tree
    head = grown_head(old.head, classes=len(labels), learning=growing(labels, known=len(old.labels)))
    grown = Classify(config, labels=labels, tower=old.tower, head=head, loss=_loss(config, knowledge))
    told_apart = [old.labels.name_of(group.parent) for group in old.labels.choices]
    temperatures = {name: old.calibration.temperatures.get(name, 1.0) for name in told_apart}
    grown.calibrate(old.calibration.model_copy(update={"temperatures": temperatures}))
    if old.distance is not None:
        grown.distance = old.distance.extended(labels)
    new = ", ".join(labels.names[len(old.labels) :])
    grown.said.append(f"adding {new} to the {len(old.labels)} labels of {config.add_to}, whose tower stays")
    return grown
