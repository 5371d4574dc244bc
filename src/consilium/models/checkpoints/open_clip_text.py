"""The architecture of a text tower of open_clip by the name of its encoder, or by the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from consilium.core.errors import ConfigError
from consilium.models.encoders import HubEncoder, architecture_of
from consilium.models.hub import ModelFolder


def encoder_named(name: str, *, place: ModelFolder) -> dict[str, Any]:
    """The architecture of the encoder with this name on the hub, or in this folder.

    ``place`` is that of the whole model. An encoder that has a decoder beside it is a ConfigError.
    """
    encoder = HubEncoder(name, place=place)
    if encoder.any_config.is_encoder_decoder:
        raise ConfigError(
            f"{place.key} '{place.name}' has the reading half of a model that writes texts ({name}, of type "
            f"{encoder.any_config.model_type}); Consilium does not read this architecture."
        )
    return architecture_of(encoder.config)


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
    layers = [int(name.split(".")[2]) for name in tensors if name.startswith("encoder.layer.")]
    return {
        "model_type": "bert",
        "vocab_size": words.shape[0],
        "hidden_size": width,
        "num_hidden_layers": 1 + max(layers),
        "num_attention_heads": max(1, width // 64),
        "intermediate_size": inner.shape[0],
        "max_position_embeddings": positions.shape[0],
    }
