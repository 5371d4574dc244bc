"""Heads of views that lie beside a converted checkpoint: what of them belongs where.

Axes in names: V view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from consilium.models.hub import HEADS, ModelFolder
from consilium.models.weights import load_state


@dataclass(frozen=True)
class Heads:
    """The tensors of RET-CLIP's heads, under its own names."""

    tensors: Mapping[str, Tensor]

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with ``prefix``, without it."""
        return {name.removeprefix(prefix): own for name, own in self.tensors.items() if name.startswith(prefix)}


def read_heads(name: str, *, key: str = "task.model") -> Heads:
    """The heads beside the weights of a converted model; a folder without them is a WeightsError."""
    return Heads(load_state(ModelFolder(name, key, "").weights() / HEADS))
