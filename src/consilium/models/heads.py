"""Heads: from the features of a tower to one score per class.

Axes in names: B case in a batch, F feature, K class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from consilium.models.config import HeadConfig, LinearHeadConfig

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
_TENSORS = ("weight", "bias")  # of a linear layer


def build_head(config: HeadConfig, *, in_features: int, classes: int) -> nn.Module:
    """The head that ``config`` describes: features [B, in_features] to logits [B, classes]."""
    if isinstance(config, LinearHeadConfig):
        return nn.Sequential(nn.Dropout(config.dropout), nn.Linear(in_features, classes))
    layers: list[nn.Module] = []
    for size in config.hidden_sizes:
        normalised = [nn.BatchNorm1d(size)] if config.batch_norm else []
        layers += [nn.Linear(in_features, size), *normalised]
        layers += [ACTIVATIONS[config.activation](), nn.Dropout(config.dropout)]
        in_features = size
    return nn.Sequential(*layers, nn.Linear(in_features, classes))


class GrownLinear(nn.Module):
    """A linear layer of whose outputs only some learn. Saved and loaded it is one ``nn.Linear``."""

    order: Tensor

    def __init__(self, whole: nn.Linear, *, learning: Sequence[int]) -> None:
        super().__init__()
        fixed = [row for row in range(whole.out_features) if row not in set(learning)]
        for name in _TENSORS:
            rows = getattr(whole, name).detach()
            self.register_parameter(f"fixed_{name}", nn.Parameter(rows[fixed], requires_grad=False))
            self.register_parameter(f"learning_{name}", nn.Parameter(rows[list(learning)]))
        self.outputs = [*fixed, *learning]  # as their parameters lie here
        self.register_buffer("order", torch.tensor(self.outputs).argsort(), persistent=False)  # where each output lies
        self.register_state_dict_post_hook(_join)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_part)  # type: ignore[no-untyped-call]

    def forward(self, features_BF: Tensor) -> Tensor:
        """Scores [B, K]."""
        weight_KF, bias_K = (
            torch.cat((getattr(self, f"fixed_{name}"), getattr(self, f"learning_{name}")))[self.order]
            for name in _TENSORS
        )
        return nn.functional.linear(features_BF, weight_KF, bias_K)


def _join(module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    assert isinstance(module, GrownLinear)
    for name in _TENSORS:
        parts = [state.pop(f"{prefix}{part}_{name}") for part in ("fixed", "learning")]
        state[prefix + name] = torch.cat(parts)[module.order]


def _part(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    assert isinstance(module, GrownLinear)
    for name in _TENSORS:
        rows, fixed = state.pop(prefix + name)[module.outputs], len(getattr(module, f"fixed_{name}"))
        state[f"{prefix}fixed_{name}"], state[f"{prefix}learning_{name}"] = rows[:fixed], rows[fixed:]


def grown_head(head: nn.Module, *, classes: int, learning: Sequence[int]) -> nn.Module:
    """A built head with so many classes in all, those it has first and new ones from 0; ``learning`` ones learn."""
    *before, last = head.requires_grad_(False).children()
    assert isinstance(last, nn.Linear)
    whole = nn.Linear(last.in_features, classes)
    with torch.no_grad():
        for name in _TENSORS:
            rows = getattr(whole, name)
            rows.zero_()[: last.out_features] = getattr(last, name)
    return nn.Sequential(*before, GrownLinear(whole, learning=learning))
