"""Text towers of open_clip in the terms of transformers: the names of tensors, and architectures by their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from consilium.core.errors import ConfigError

_TOWER = (  # of its own text transformer, and the names of transformers
    ("token_embedding.weight", "embeddings.token_embedding.weight"),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("ln_final.", "final_layer_norm."),
)
_BLOCK = (
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("attn.out_proj.", "self_attn.out_proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
)


def under_hub_names(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of open_clip's text transformer under the names of transformers."""
    found: dict[str, Tensor] = {}
    for name, tensor in own.items():
        if name.startswith("transformer.resblocks."):
            number, _, part = name.removeprefix("transformer.resblocks.").partition(".")
            start = f"encoder.layers.{number}."
            if part.startswith("attn.in_proj_"):
                kind = part.removeprefix("attn.in_proj_")
                for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                    found[f"{start}self_attn.{letter}_proj.{kind}"] = third.contiguous()
            else:
                old, new = next(pair for pair in _BLOCK if part.startswith(pair[0]))
                found[start + part.replace(old, new)] = tensor
        elif name.startswith("text_projection."):  # a layer, which SigLIP's tower has inside
            found[name.replace("text_projection", "head")] = tensor
        else:
            for old, new in _TOWER:
                if name.startswith(old):
                    found[name.replace(old, new)] = tensor
    return found


def bert_of(tensors: Mapping[str, Tensor], *, origin: str) -> dict[str, Any]:
    """The architecture of a BERT by the shapes of its tensors; any other encoder is a ConfigError.

    Heads cannot be seen: they are 64 wide, as in every published BERT of at least that width.
    """
    try:
        words, positions = (tensors[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position"))
        types = tensors["embeddings.token_type_embeddings.weight"]
        inner = tensors["encoder.layer.0.intermediate.dense.weight"]
    except KeyError as error:
        raise ConfigError(
            f"{origin} has no tensor {error}, so it is no BERT; put the config.json of this encoder into a folder and "
            "name that as hf_model_name in open_clip_config.json."
        ) from None
    if types.shape[0] != 2:  # RoBERTa has the same names and other positions
        raise ConfigError(
            f"{origin} may be a RoBERTa, whose positions begin elsewhere; put its config.json into a folder and name "
            "that as hf_model_name in open_clip_config.json."
        )
    width = words.shape[1]
    layers = {name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")}
    return {
        "model_type": "bert",
        "vocab_size": words.shape[0],
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, width // 64),
        "intermediate_size": inner.shape[0],
        "max_position_embeddings": positions.shape[0],
    }
