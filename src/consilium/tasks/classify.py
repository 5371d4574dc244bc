"""The classify task: images of a case into a path of the label tree, or into any number of classes.

Axes in names: B case in a batch, N image, V view, C channel, H height, W width, F feature, K class (node of the tree).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from consilium.core.answers import UNKNOWN, Calibration, answer
from consilium.core.contracts import Batch, ParameterGroup, Prediction, StepOutput
from consilium.core.labels import LabelTree
from consilium.losses.classification import build_loss
from consilium.models.heads import build_head
from consilium.models.vision import VisionTower, build_vision
from consilium.models.weights import freeze_tower, keep_frozen_in_eval
from consilium.tasks.config import ClassifyConfig


class Classify(nn.Module):
    """A vision tower and a head; several views of a case are averaged as features."""

    temperatures_K: Tensor

    def __init__(
        self, config: ClassifyConfig, *, labels: LabelTree, tower: VisionTower, head: nn.Module, loss: nn.Module
    ) -> None:
        super().__init__()
        self.config = config
        self.labels = labels
        self.tower = tower
        self.head = head
        self.loss = loss
        self.calibration = Calibration()
        # Not saved: it belongs to the bundle's manifest.
        self.register_buffer("temperatures_K", torch.ones(len(labels)), persistent=False)
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

    def calibrate(self, calibration: Calibration) -> None:
        """Give probabilities and answers as validation taught."""
        self.calibration = calibration
        temperatures = [
            calibration.temperatures.get(self.labels.name_of(self.labels.parent(node)), 1.0)
            for node in range(len(self.labels))
        ]
        self.temperatures_K = torch.tensor(temperatures, device=self.temperatures_K.device)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        """``logits``, ``conditionals`` (of one label a case: among siblings) and ``probabilities``, all [B, K]."""
        return self.prediction(self.logits(batch).float())

    def combine(self, looks: Sequence[Prediction]) -> Prediction:
        """What several looks at the same cases say together: the mean of their probabilities among siblings."""
        if self.config.multi_label:
            return Prediction({n: torch.stack([look.arrays[n] for look in looks]).mean(0) for n in looks[0].arrays})
        log_shares_SBK = torch.stack([self._log_shares(look.arrays["logits"]) for look in looks])
        return self.prediction(log_shares_SBK.logsumexp(0) - math.log(len(looks)))

    def prediction(self, logits_BK: Tensor) -> Prediction:
        """What scores [B, K] say, by the calibration."""
        if self.config.multi_label:
            return Prediction({"logits": logits_BK, "probabilities": logits_BK.sigmoid()})
        log_shares_BK = self._log_shares(logits_BK / self.temperatures_K)
        paths_KK = torch.from_numpy(self.labels.ancestry_MM).to(log_shares_BK)
        arrays = {"conditionals": log_shares_BK.exp(), "probabilities": (log_shares_BK @ paths_KK.T).exp()}
        return Prediction({"logits": logits_BK, **arrays})

    def _log_shares(self, logits_BK: Tensor) -> Tensor:
        """Log of the softmax among siblings."""
        log_shares_BK = torch.empty_like(logits_BK)
        for group in self.labels.siblings:
            ids = list(group.ids)
            log_shares_BK[:, ids] = logits_BK[:, ids].log_softmax(1)
        return log_shares_BK

    def records(self, prediction: Prediction, *, threshold: float = 0.5) -> list[dict[str, Any]]:
        """Per case ``label`` (a node or "unknown"), its ``probability``, the likeliest ``path`` and ``probabilities``.

        The path goes down to a leaf whatever the answer is. Multi-label: ``labels`` from ``threshold`` on, and
        ``probabilities``.
        """
        probabilities_BK = prediction.arrays["probabilities"].cpu().numpy()
        rows = [[round(value, 6) for value in row] for row in probabilities_BK.tolist()]
        named = [dict(zip(self.labels.names, row, strict=True)) for row in rows]
        if self.config.multi_label:
            return [
                {"labels": [label for label, p in own.items() if p >= threshold], "probabilities": own} for own in named
            ]
        answers = answer(probabilities_BK, labels=self.labels, thresholds=self.calibration.thresholds)
        records = []
        for own, path, node in zip(named, answers.paths_NL.tolist(), answers.nodes_N.tolist(), strict=True):
            label = UNKNOWN if node < 0 else self.labels.names[node]
            way = [self.labels.names[step] for step in path if step >= 0]
            steps = [{"label": name, "probability": own[name]} for name in way]
            records.append({"label": label, "probability": own.get(label), "path": steps, "probabilities": own})
        return records

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
