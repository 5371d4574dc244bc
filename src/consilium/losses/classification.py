"""Classification losses: cross entropy and focal, for one label a case or any number.

Axes in names: B case, K class.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from consilium.core.config import nearest
from consilium.core.errors import ConfigError, DataError
from consilium.core.labels import LabelTree
from consilium.losses.config import ClassificationLossConfig, ClassWeights, FocalConfig


class ClassificationLoss(nn.Module):
    """Cross entropy that can down-weight easy cases (focal), smooth targets and weigh classes.

    ``logits_BK`` are raw scores of any float type; everything inside is float32, whatever autocast
    says. The result is a scalar in nats.

    One label a case: ``targets`` is int64 [B] with ids in [0, K). The loss of a case is softmax cross
    entropy with ``label_smoothing`` spread evenly over the K classes, times ``(1 - p) ** gamma`` where p
    is the probability of the true class. ``weights_K`` multiplies the term of each class.

    The result is the mean over the cases, not over their weights as in ``torch.nn.CrossEntropyLoss``: a
    case then counts the same in whatever batch it comes, so that accumulated batches and several
    processes have the gradient of one large batch. ``build_loss`` scales the weights to a mean of 1
    over the training cases, which gives torch's value for all of them together.

    Multi-label: ``targets`` is float [B, K] in {0, 1}. The loss of an element is binary cross entropy
    with the target moved towards 0.5 by ``label_smoothing``, times ``(1 - p) ** gamma`` where p is the
    probability of what the target says. ``weights_K`` multiplies the positive term of each class (torch's
    ``pos_weight``), and the mean divides by B x K.

    A nested label tree: ``targets`` are ids of nodes, and the loss of a case is the sum of the softmax cross entropies
    among siblings along the path to its node, each with ``label_smoothing`` and ``gamma`` of its own. A label that
    stops at an inner node says nothing of the levels below. Without these extras it is -log of the probability of the
    path (the conditional softmax of WordTree: Redmon and Farhadi, 2017, arXiv:1612.08242).

    ``gamma`` 0 is plain cross entropy. Focal loss: Lin et al., Focal Loss for Dense Object Detection,
    2017, arXiv:1708.02002 (its alpha is the class weight here). Label smoothing: Szegedy et al., 2016,
    arXiv:1512.00567.
    """

    weights_K: Tensor | None
    steps_KG: Tensor | None

    def __init__(
        self,
        *,
        multi_label: bool,
        gamma: float = 0.0,
        label_smoothing: float = 0.0,
        weights_K: Tensor | None = None,
        labels: LabelTree | None = None,
    ) -> None:
        """``labels`` gives the groups of siblings; None: all classes are siblings."""
        super().__init__()
        self.multi_label = multi_label
        self.gamma = gamma
        self.label_smoothing = label_smoothing
        # Not saved: they belong to a run and its data, so weights to start from must neither bring nor need them.
        self.register_buffer("weights_K", weights_K, persistent=False)
        self.groups = labels.siblings if labels is not None and labels.nested else ()
        steps_KG = torch.from_numpy(labels.steps_MG) if labels is not None and labels.nested else None
        self.register_buffer("steps_KG", steps_KG, persistent=False)

    def forward(self, logits_BK: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch."""
        logits_BK = logits_BK.float()
        return self._binary(logits_BK, targets.float()) if self.multi_label else self._softmax(logits_BK, targets)

    def _softmax(self, logits_BK: Tensor, targets_B: Tensor) -> Tensor:
        if self.steps_KG is None:
            return self._cross_entropy(logits_BK, targets_B, self.weights_K).mean()
        steps_BG, losses_B = self.steps_KG[targets_B], logits_BK.new_zeros(len(logits_BK))
        for number, group in enumerate(self.groups):
            weights = None if self.weights_K is None else self.weights_K[list(group.ids)]
            own_B = self._cross_entropy(logits_BK[:, list(group.ids)], steps_BG[:, number].clamp_min(0), weights)
            losses_B = losses_B + own_B * (steps_BG[:, number] >= 0)
        return losses_B.mean()

    def _cross_entropy(self, logits_BK: Tensor, targets_B: Tensor, weights_K: Tensor | None) -> Tensor:
        losses_B = functional.cross_entropy(
            logits_BK, targets_B, weight=weights_K, label_smoothing=self.label_smoothing, reduction="none"
        )
        if self.gamma > 0:
            log_p_B = -functional.cross_entropy(logits_BK, targets_B, reduction="none")
            losses_B = losses_B * self._focal_factor(log_p_B)
        return losses_B

    def _binary(self, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        smoothed_BK = targets_BK * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        losses_BK = functional.binary_cross_entropy_with_logits(
            logits_BK, smoothed_BK, pos_weight=self.weights_K, reduction="none"
        )
        if self.gamma > 0:
            log_p_BK = -functional.binary_cross_entropy_with_logits(logits_BK, targets_BK, reduction="none")
            losses_BK = losses_BK * self._focal_factor(log_p_BK)
        return losses_BK.mean()

    def _focal_factor(self, log_p: Tensor) -> Tensor:
        # 1 - p is taken from log p, which stays exact near p = 1; the floor keeps the slope of a root finite there.
        return (-torch.expm1(log_p)).clamp_min(1e-12) ** self.gamma


def build_loss(
    config: ClassificationLossConfig,
    *,
    labels: LabelTree,
    multi_label: bool,
    class_counts: Sequence[int],
    cases: int,
) -> ClassificationLoss:
    """The loss that ``config`` describes.

    ``class_counts`` are training cases per class in the order of ``labels`` (of a node: at it or below), ``cases`` all
    training cases; of a multi-label task one case counts for several classes. Weights act among siblings. A given
    weight for an unknown label, or a label without one, is a ConfigError. Balanced, a class without a training case
    keeps the weight 1; multi-label that, or one with nothing but, is a DataError.
    """
    if len(class_counts) != len(labels):
        raise DataError(f"{len(class_counts)} class counts came for {len(labels)} labels; give one for each label.")
    weights = _class_weights(
        config.class_weights,
        labels=labels,
        multi_label=multi_label,
        counts=class_counts,
        cases=cases,
    )
    return ClassificationLoss(
        multi_label=multi_label,
        gamma=config.gamma if isinstance(config, FocalConfig) else 0.0,
        label_smoothing=config.label_smoothing,
        weights_K=None if weights is None else torch.tensor(weights, dtype=torch.float32),
        labels=labels,
    )


def _class_weights(
    given: ClassWeights, *, labels: LabelTree, multi_label: bool, counts: Sequence[int], cases: int
) -> list[float] | None:
    if given == "none":
        return None
    if given == "balanced":
        return _balanced(labels=labels, multi_label=multi_label, counts=counts, cases=cases)
    assert isinstance(given, dict)
    for name in given:
        if name not in labels.names:
            raise ConfigError(f"class_weights: '{name}' is not a label{nearest(name, labels.names)}")
    missing = [name for name in labels.names if name not in given]
    if missing:
        raise ConfigError(f"class_weights: no weight for {', '.join(missing)}; give every label one (1.0: unchanged).")
    weights = [given[name] for name in labels.names]
    if multi_label:
        return weights
    for group in labels.siblings:  # a mean of 1 over the cases that are judged among these siblings
        own = sum(counts[node] for node in group.ids)
        mean = sum(weights[node] * counts[node] for node in group.ids) / own if own else 1.0
        for node in group.ids:
            weights[node] /= mean
    return weights


def _balanced(*, labels: LabelTree, multi_label: bool, counts: Sequence[int], cases: int) -> list[float]:
    if multi_label:
        return _positive_weights(labels=labels, counts=counts, cases=cases)
    weights = [1.0] * len(labels)
    for group in labels.siblings:
        present = [node for node in group.ids if counts[node]]
        own = sum(counts[node] for node in present)
        for node in present:
            weights[node] = own / (len(present) * counts[node])
    return weights


def _positive_weights(*, labels: LabelTree, counts: Sequence[int], cases: int) -> list[float]:
    for name, count in zip(labels.names, counts, strict=True):
        if count == 0 or count >= cases:
            has = "no training case" if count == 0 else "no training case without it"
            raise DataError(
                f"class_weights: balanced cannot weigh '{name}': it has {has}. "
                f"Add some, remove the label, or give class_weights by label."
            )
    return [(cases - count) / count for count in counts]
