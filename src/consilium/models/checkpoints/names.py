"""The names that open_clip, timm and transformers have for the tensors of the same networks: tables for both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Names:
    """The beginnings of names in a library, each beside that of transformers.

    ``layers`` come before the number of a layer, ``block`` after it. ``fused`` is one tensor of the library that stands
    for the three of query, key and value.
    """

    tower: Pairs
    layers: tuple[str, str]
    block: Pairs
    fused: tuple[str, tuple[str, str, str]]

    def to_hub(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under the names of transformers, without those that the table does not know."""
        found: dict[str, Tensor] = {}
        fused, thirds = self.fused
        for name, tensor in own.items():
            if not name.startswith(self.layers[0]):
                for mine, theirs in self.tower:
                    if name.startswith(mine):
                        found[theirs + name.removeprefix(mine)] = tensor
                continue
            number, _, part = name.removeprefix(self.layers[0]).partition(".")
            start = f"{self.layers[1]}{number}."
            if part.startswith(fused):
                for third, own_third in zip(thirds, tensor.chunk(3), strict=True):
                    found[start + third + part.removeprefix(fused)] = own_third.contiguous()
            else:
                mine, theirs = next(pair for pair in self.block if part.startswith(pair[0]))
                found[start + theirs + part.removeprefix(mine)] = tensor
        return found

    def from_hub(self, hub: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of transformers under the names of the library; one that the table does not know is a KeyError."""
        found: dict[str, Tensor] = {}
        fused, (query, key, value) = self.fused
        for name, tensor in hub.items():
            if not name.startswith(self.layers[1]):
                mine, theirs = _first(self.tower, name)
                found[mine + name.removeprefix(theirs)] = tensor
                continue
            number, _, part = name.removeprefix(self.layers[1]).partition(".")
            start, old = f"{self.layers[0]}{number}.", f"{self.layers[1]}{number}."
            if part.startswith(query):
                kind = part.removeprefix(query)
                parts = [hub[old + third + kind] for third in (query, key, value)]
                found[start + fused + kind] = torch.cat(parts)
            elif not part.startswith((key, value)):
                mine, theirs = _first(self.block, part)
                found[start + mine + part.removeprefix(theirs)] = tensor
        return found


def _first(pairs: Pairs, name: str) -> tuple[str, str]:
    for pair in pairs:
        if name.startswith(pair[1]):
            return pair
    raise KeyError(name)


_QKV = ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj.")

OPEN_CLIP = Names(  # its own transformers, of images and of texts, beside those of CLIP and SigLIP
    tower=(
        ("token_embedding.weight", "embeddings.token_embedding.weight"),
        ("positional_embedding", "embeddings.position_embedding.weight"),
        ("class_embedding", "embeddings.class_embedding"),
        ("conv1.", "embeddings.patch_embedding."),
        ("ln_pre.", "pre_layrnorm."),
        ("ln_post.", "post_layernorm."),
        ("ln_final.", "final_layer_norm."),
        ("text_projection.", "head."),  # a layer, which SigLIP's text tower has inside
    ),
    layers=("transformer.resblocks.", "encoder.layers."),
    block=(
        ("ln_1.", "layer_norm1."),
        ("ln_2.", "layer_norm2."),
        ("attn.out_proj.", "self_attn.out_proj."),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
    ),
    fused=("attn.in_proj_", _QKV),
)
TIMM_CLIP = Names(  # vision transformers of CLIP in timm
    tower=(
        ("cls_token", "embeddings.class_embedding"),
        ("pos_embed", "embeddings.position_embedding.weight"),
        ("patch_embed.proj.", "embeddings.patch_embedding."),
        ("norm_pre.", "pre_layrnorm."),
        ("norm.", "post_layernorm."),
    ),
    layers=("blocks.", "encoder.layers."),
    block=(
        ("norm1.", "layer_norm1."),
        ("norm2.", "layer_norm2."),
        ("attn.proj.", "self_attn.out_proj."),
        ("mlp.", "mlp."),
    ),
    fused=("attn.qkv.", _QKV),
)
TIMM_VIT = Names(  # plain vision transformers in timm
    tower=(
        ("cls_token", "embeddings.cls_token"),
        ("pos_embed", "embeddings.position_embeddings"),
        ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
        ("norm.", "layernorm."),
    ),
    layers=("blocks.", "encoder.layer."),
    block=(
        ("norm1.", "layernorm_before."),
        ("norm2.", "layernorm_after."),
        ("attn.proj.", "attention.output.dense."),
        ("mlp.fc1.", "intermediate.dense."),
        ("mlp.fc2.", "output.dense."),
    ),
    fused=("attn.qkv.", ("attention.attention.query.", "attention.attention.key.", "attention.attention.value.")),
)
