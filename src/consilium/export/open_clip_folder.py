"""A folder as open_clip has it on a hub: its config, weights under its names, and the tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from consilium.core.errors import MissingExtraError
from consilium.core.files import write_json
from consilium.data.config import ImageConfig
from consilium.export.checks import Probe, same
from consilium.export.forms import POOLERS, is_native, is_quick, text_act, text_kind
from consilium.export.preprocessing import for_open_clip
from consilium.export.tokens import save_tokenizer
from consilium.models.checkpoints.names import OPEN_CLIP, TIMM_CLIP
from consilium.models.encoders import quiet
from consilium.models.trained import DualEncoder, Layers
from consilium.models.weights import save_state

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
Part = tuple[dict[str, Any], dict[str, Tensor]]  # of a config, and tensors


def write_open_clip(model: DualEncoder, folder: Path, *, image: ImageConfig, place: str) -> None:
    """Write the model; ``place`` is where open_clip will find the config of a text tower of transformers."""
    vision, tensors = _native_image(model) if is_native(model) else _timm_image(model)
    native_text = text_kind(model) in ("clip_text_model", "siglip_text_model")
    text, own = _native_text(model) if native_text else _hub_text(model, folder, place)
    plain = is_native(model) and text_kind(model) == "clip_text_model" and "proj_bias" not in text
    tensors |= {name if plain else f"text.{name}": value for name, value in own.items()}
    tensors["logit_scale"] = torch.tensor(model.log_scale)
    config: dict[str, Any] = {
        "embed_dim": model.width,
        "vision_cfg": {"image_size": _size(image), **vision},
        "text_cfg": {"context_length": model.tokenizer.context_length, "hf_tokenizer_name": place, **text},
        **({} if plain else {"custom_text": True}),
    }
    if _quick(model):
        config["quick_gelu"] = True
    if model.bias is not None:
        config["init_logit_bias"] = model.bias
        tensors["logit_bias"] = torch.tensor(model.bias)
    save_state(tensors, folder / WEIGHTS)
    save_tokenizer(model.tokenizer, folder, masked=not model.text.reads_padding)
    write_json(folder / CONFIG, {"model_cfg": config, "preprocess_cfg": for_open_clip(image)})


def move(folder: Path, place: str) -> None:
    """Say in the config that the folder will be at another place."""
    described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    text = described["model_cfg"]["text_cfg"]
    text.update({key: place for key in ("hf_tokenizer_name", "hf_model_name") if key in text})
    write_json(folder / CONFIG, described)


def check_open_clip(model: DualEncoder, folder: Path, *, image: ImageConfig) -> str:
    """Load the folder with open_clip alone, and its tokenizer too."""
    try:
        import open_clip
    except ImportError as error:
        raise MissingExtraError("export --to open_clip", "clip") from error
    with quiet():
        loaded, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    loaded.eval()
    probe = Probe.of(image.size, model.tokenizer)
    assert probe.texts is not None
    tokens_BT = probe.texts.tokens_BT
    missing = model.tokenizer.context_length - tokens_BT.shape[1]
    full_BT = functional.pad(tokens_BT, (0, missing), value=model.tokenizer.pad_id)
    theirs = {
        "image": lambda: loaded.encode_image(probe.images_BCHW),
        "text": lambda: loaded.encode_text(full_BT),
    }
    return same(probe.embedded(model), theirs, by="open_clip.create_model_from_pretrained")


def _quick(model: DualEncoder) -> bool:
    texts = text_kind(model) in ("clip_text_model", "siglip_text_model")
    return (is_native(model) and is_quick(model.vision)) or (texts and text_act(model) == "quick_gelu")


def _size(image: ImageConfig) -> int | list[int]:
    return image.size[0] if image.size[0] == image.size[1] else list(image.size)


def _native_image(model: DualEncoder) -> Part:
    """A transformer of open_clip's own."""
    own = model.vision.model
    hub = TIMM_CLIP.to_hub(own.state_dict()) if model.vision.library == "timm" else dict(own.state_dict())
    state = OPEN_CLIP.from_hub({name: value for name, value in hub.items() if not name.endswith("position_ids")})
    width, grid = state["conv1.weight"].shape[0], state["conv1.weight"].shape[-1]
    state["class_embedding"] = state["class_embedding"].reshape(width)
    state["positional_embedding"] = state["positional_embedding"].reshape(-1, width)
    layers = {name.split(".")[2] for name in state if name.startswith("transformer.")}
    heads = own.blocks[0].attn.num_heads if model.vision.library == "timm" else own.config.num_attention_heads
    inner = state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
    eps = own.norm.eps if model.vision.library == "timm" else own.config.layer_norm_eps
    config = {
        "layers": len(layers),
        "width": width,
        "head_width": width // heads,
        "patch_size": grid,
        "mlp_ratio": inner / width,
        **({} if eps == 1e-5 else {"norm_kwargs": {"eps": eps}}),
    }
    state["proj"] = Layers.of(model.image_projection).linear[0].weight.detach().T
    return config, {f"visual.{name}": value for name, value in state.items()}


def _timm_image(model: DualEncoder) -> Part:
    """A model of timm by its name."""
    layers, embed = Layers.of(model.image_projection), model.width
    linear, biases = layers.linear, layers.biases
    state = {f"visual.trunk.{name}": value for name, value in model.vision.model.state_dict().items()}
    config: dict[str, Any] = {
        "timm_model_name": model.layout.name,
        "timm_model_pretrained": False,
        "timm_pool": model.layout.options.get("global_pool", ""),
        "timm_proj": ("none", "linear", "mlp")[len(linear)],
        "timm_proj_bias": bool(linear) and biases[-1] is not None,
    }
    if len(linear) == 1:
        state |= {f"visual.head.proj.{name}": value for name, value in linear[0].state_dict().items()}
    elif linear:
        first, last = linear
        inner = 2 * embed - first.out_features
        bias = first.weight.new_zeros(first.out_features) if biases[0] is None else biases[0]
        state["visual.head.mlp.fc1.weight"] = functional.pad(first.weight.detach(), (0, 0, 0, inner))
        state["visual.head.mlp.fc1.bias"] = functional.pad(bias.detach(), (0, inner))
        state["visual.head.mlp.fc2.weight"] = functional.pad(last.weight.detach(), (0, inner))
        state |= {} if biases[1] is None else {"visual.head.mlp.fc2.bias": biases[1].detach()}
    return config, state


def _native_text(model: DualEncoder) -> Part:
    """A text transformer of open_clip's own, as CLIP or SigLIP have it."""
    options, siglip = model.text.model.config, text_kind(model) == "siglip_text_model"
    hub = {name: value for name, value in model.text.model.state_dict().items() if not name.endswith("position_ids")}
    state = OPEN_CLIP.from_hub(hub)
    config: dict[str, Any] = {
        "context_length": options.max_position_embeddings,
        "vocab_size": options.vocab_size,
        "width": options.hidden_size,
        "heads": options.num_attention_heads,
        "layers": options.num_hidden_layers,
        "mlp_ratio": options.intermediate_size / options.hidden_size,
    }
    if options.layer_norm_eps != 1e-5:
        config["norm_kwargs"] = {"eps": options.layer_norm_eps}
    if text_act(model) == "gelu_pytorch_tanh":
        config["act_kwargs"] = {"approximate": "tanh"}
    if siglip:
        config |= {"no_causal_mask": True, "pool_type": "argmax" if model.text.pooling == "eot" else "last"}
        if model.text.pooling == "pooler":
            return {**config, "proj_bias": True}, state
        state = {name: value for name, value in state.items() if not name.startswith("text_projection.")}
    elif options.eos_token_id == 2:
        config["pool_type"] = "argmax"
    else:
        config |= {"pool_type": "eos", "eos_id": options.eos_token_id}
    projection = Layers.of(model.text_projection)
    if not projection.linear:
        return {**config, "proj_type": "none"}, state
    (layer,) = projection.linear
    if projection.is_clip:
        return config, {**state, "text_projection": layer.weight.detach().T}
    layers = {f"text_projection.{name}": value for name, value in layer.state_dict().items()}
    return {**config, "proj_bias": True}, {**state, **layers}


def _hub_text(model: DualEncoder, folder: Path, place: str) -> Part:
    """An encoder of transformers, whose config lies in the folder too."""
    linear = Layers.of(model.text_projection).linear
    own = {**model.text.architecture, "pad_token_id": model.tokenizer.pad_id}
    if own["model_type"] == "chinese_clip_text_model":  # a BERT by another name
        own["model_type"] = "bert"
    write_json(folder / "config.json", own)
    state = {f"transformer.{name}": value for name, value in model.text.model.state_dict().items()}
    if len(linear) == 1:
        state["proj.weight"] = linear[0].weight.detach()
    else:
        first, last = linear
        inner = (first.in_features + last.out_features) // 2 - first.out_features
        state["proj.0.weight"] = functional.pad(first.weight.detach(), (0, 0, 0, inner))
        state["proj.2.weight"] = functional.pad(last.weight.detach(), (0, inner))
    config = {
        "hf_model_name": place,
        "hf_model_pretrained": False,
        "hf_pooler_type": POOLERS[model.text.pooling],
        "hf_proj_type": "linear" if len(linear) == 1 else "mlp",
    }
    return config, state
