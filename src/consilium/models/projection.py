"""Projections: from the features of a tower to embeddings of unit length, whose width all towers share.

Axes in names: B case in a batch, F feature, D number of an embedding.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from consilium.models.config import LinearProjectionConfig, ProjectionConfig
from consilium.models.heads import ACTIVATIONS


class Projection(nn.Module):
    """Layers, then division by the length; build it with ``build_projection``."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, features_BF: Tensor) -> Tensor:
        """Embeddings [B, D], float32 and of length 1, of features of any float type."""
        return functional.normalize(self.layers(features_BF).float(), dim=1)


def build_projection(config: ProjectionConfig, *, in_features: int, width: int) -> Projection:
    """The projection that ``config`` describes: features [B, in_features] to embeddings [B, width]."""
    if isinstance(config, LinearProjectionConfig):
        return Projection(nn.Linear(in_features, width, bias=config.bias))
    hidden = config.hidden_size or (in_features + width) // 2
    return Projection(
        nn.Sequential(
            nn.Linear(in_features, hidden, bias=config.bias),
            ACTIVATIONS[config.activation](),
            nn.Dropout(config.dropout),
            nn.Linear(hidden, width, bias=config.bias),
        )
    )
