"""Text encoders that read longer texts than they were made for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from consilium.core.errors import ConfigError
from consilium.models.encoders import ENCODER, LoadedEncoder, architecture_of, encoder_of

KEPT = 20  # the first positions, which nearly every text has and which are trained best, stay as they are


def position_table(model: nn.Module) -> tuple[str, nn.Embedding, int] | None:
    """The learned positions of an encoder: name, table, and its rows before the first position; None without one.

    RoBERTa's positions begin after its padding id.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith(("position_embeddings", "position_embedding")):
            return name, module, 0 if module.padding_idx is None else module.padding_idx + 1
    return None


def lengthened(loaded: LoadedEncoder, *, tokens: int, name: str, kind: str = ENCODER) -> LoadedEncoder:
    """The encoder with positions for ``tokens``, of which those after the first 20 are interpolated.

    As in Long-CLIP (Zhang et al., 2024, arXiv:2403.15378). An encoder that has enough stays as it is; one whose
    positions are no table, such as rotary ones, is a ConfigError that calls it ``name``.
    """
    model: Any = loaded.model
    if (found := position_table(model)) is None:
        raise ConfigError(
            f"task.text.interpolate_positions is true, but {name} (a {model.config.model_type}) has no table of "
            "positions that could be interpolated; leave it out."
        )
    place, table, before = found
    if table.num_embeddings - before >= tokens:
        return loaded
    positions_PF = table.weight.detach()
    table_PF = torch.cat((positions_PF[:before], _interpolated(positions_PF[before:], tokens)))
    longer = encoder_of({**architecture_of(model.config), "max_position_embeddings": len(table_PF)}, kind)
    own = {**model.state_dict(), f"{place}.weight": table_PF}
    missing = longer.load_state_dict(own, strict=False).missing_keys
    return replace(loaded, model=longer, missing=loaded.missing | set(missing))


def _interpolated(positions_PF: Tensor, count: int) -> Tensor:
    """As many positions, the first ones as they are; P position, F feature."""
    kept = min(KEPT, len(positions_PF) // 2)
    rest_1FP = positions_PF[kept:].T[None]
    stretched_1FP = functional.interpolate(rest_1FP, size=count - kept, mode="linear", align_corners=True)
    return torch.cat((positions_PF[:kept], stretched_1FP[0].T))
