"""Heads that lie beside a converted checkpoint, since no tower of it has them."""

from __future__ import annotations

from torch import Tensor

from consilium.models.hub import HEADS, ModelFolder
from consilium.models.weights import load_state


def read_heads(name: str, *, key: str = "task.model") -> dict[str, Tensor]:
    """The tensors of the heads of a converted model, as its own program names them; none are a WeightsError."""
    return load_state(ModelFolder(name, key, "").weights() / HEADS)
