"""How far features have come from those that a training began with.

Axes in names: B case of this process, N case of the whole batch, F feature.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from consilium.losses.config import DistillationConfig
from consilium.losses.gathering import gathered, sizes_of


class FeatureDistillation(nn.Module):
    """The distance between features [B, F] and those of the start, a scalar: the mean over cases, 0 at the beginning.

    ``mse`` is the mean squared difference of features, ``cosine`` 1 less the cosine of the angle between the two.
    ``similarity_matrix`` leaves features free to turn together: it is the mean squared difference between the cosines
    of a case with all cases of the batch and those at the start, over all processes, as ``ContrastiveLoss`` gathers
    them (``repeated`` as there). All is float32.

    Li and Hoiem, Learning without Forgetting, 2016, arXiv:1606.09282, keep to the outputs of the start; Mukhoti et al.,
    Fine-tuning Can Cripple Your Foundation Model, 2023, arXiv:2308.13320, to its features; Park et al., Relational
    Knowledge Distillation, 2019, arXiv:1904.05068, and Tung and Mori, Similarity-Preserving Knowledge Distillation,
    2019, arXiv:1907.09682, to the relations among cases.
    """

    def __init__(self, config: DistillationConfig) -> None:
        super().__init__()
        self.kind = config.kind

    def forward(self, features_BF: Tensor, start_BF: Tensor, *, repeated: bool = False) -> Tensor:
        """The mean distance of this process's cases."""
        with torch.autocast(features_BF.device.type, enabled=False):
            features_BF, start_BF = features_BF.float(), start_BF.float()
            if self.kind == "mse":
                return functional.mse_loss(features_BF, start_BF)
            if self.kind == "cosine":
                return (1 - functional.cosine_similarity(features_BF, start_BF)).mean()
            own = 0 if repeated else len(features_BF)
            sizes = sizes_of(own, device=features_BF.device)
            similarities_BN = _similarities(features_BF, sizes=sizes, own=own)
            return functional.mse_loss(similarities_BN, _similarities(start_BF, sizes=sizes, own=own))


def _similarities(features_BF: Tensor, *, sizes: list[int], own: int) -> Tensor:
    """The cosines of this process's cases with all of the batch, [B, N]."""
    directions_BF = functional.normalize(features_BF, dim=1)
    return directions_BF @ gathered(directions_BF[:own], sizes).T
