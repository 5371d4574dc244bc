"""Heads: from the features of a tower to one score per class."""

from __future__ import annotations

from torch import nn

from consilium.models.config import HeadConfig, LinearHeadConfig

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


def build_head(config: HeadConfig, *, in_features: int, classes: int) -> nn.Module:
    """The head that ``config`` describes: features [B, in_features] to logits [B, classes]."""
    if isinstance(config, LinearHeadConfig):
        return nn.Sequential(nn.Dropout(config.dropout), nn.Linear(in_features, classes))
    layers: list[nn.Module] = []
    for size in config.hidden_sizes:
        layers += [nn.Linear(in_features, size), _ACTIVATIONS[config.activation](), nn.Dropout(config.dropout)]
        in_features = size
    return nn.Sequential(*layers, nn.Linear(in_features, classes))
