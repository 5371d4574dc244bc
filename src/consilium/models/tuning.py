"""How a tower learns: what is set up before a training, and is no part of a bundle."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from consilium.core.errors import ConfigError
from consilium.models.config import TextConfig, VisionConfig
from consilium.models.lora import add_lora
from consilium.models.weights import BlockTower


def tune(tower: BlockTower, config: VisionConfig | TextConfig, *, key: str) -> None:
    """Set up what the config of a tower asks for: adapters, patch dropout, gradient checkpointing.

    ``key`` is the place of the config. What the tower cannot do is a ConfigError.
    """
    if config.lora is not None:
        add_lora(tower, config.lora, key=f"{key}.lora", base=config.name)
    if isinstance(config, VisionConfig) and config.patch_dropout:
        _drop_patches(tower.model, config.patch_dropout, key=f"{key}.patch_dropout")
    if config.gradient_checkpointing:
        _checkpoint_gradients(tower.model, key=f"{key}.gradient_checkpointing")
    tower.model.train(tower.model.training)  # what was put in comes in training mode


_BEFORE_PATCHES = {  # tokens before the patches in vision transformers of transformers with learned positions
    "clip_vision_model": 1, "chinese_clip_vision_model": 1, "siglip_vision_model": 0, "vit": 1, "dinov2": 1,
}  # fmt: skip


def _without_patches(drop: nn.Module, module: nn.Module, _: Any, tokens_BTF: Tensor) -> Tensor:
    drop.train(module.training)
    left_BTF: Tensor = drop(tokens_BTF)
    return left_BTF


def _drop_patches(model: Any, rate: float, *, key: str) -> None:
    """Let a vision transformer read each image without a share of its patches while it learns.

    timm's transformers have a place for it, ``patch_drop``; those with rotary positions need to know what stays. Of
    those of transformers the embeddings hand on fewer patches, whose positions are added by then.
    """
    from timm.layers.patch_dropout import PatchDropout, PatchDropoutWithIndices

    prefix = getattr(model, "num_prefix_tokens", None)
    if prefix is not None and hasattr(model, "patch_drop"):
        kind = PatchDropoutWithIndices if model.patch_drop is None else PatchDropout
        model.patch_drop = kind(rate, num_prefix_tokens=prefix)
    elif (before := _BEFORE_PATCHES.get(getattr(getattr(model, "config", None), "model_type", ""))) is not None:
        embeddings = next(part for name, part in model.named_modules() if name.rpartition(".")[2] == "embeddings")
        embeddings.register_forward_hook(partial(_without_patches, PatchDropout(rate, num_prefix_tokens=before)))
    else:
        raise ConfigError(
            f"{key} is {rate}, but this tower ({type(model).__name__}) is not known to read patches one by one, so "
            "that some can be left out. Set it to 0, or take a plain vision transformer (vit_b_16)."
        )


def _checkpoint_gradients(model: Any, *, key: str) -> None:
    """Let a model keep the inputs of its blocks alone, and compute the rest again when gradients need it."""
    name = type(model).__name__
    if any(isinstance(part, _BatchNorm) for part in model.modules()):
        raise ConfigError(
            f"{key}: this tower ({name}) has BatchNorm, whose statistics would count every batch twice. Leave it out, "
            "or take a tower without BatchNorm (convnext_tiny, vit_b_16)."
        )
    try:
        if hasattr(model, "set_grad_checkpointing"):  # timm
            model.set_grad_checkpointing(True)
        else:  # transformers, of which the first versions of 5 have the older name
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
    except (AssertionError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{key}: this tower ({name}) cannot compute its blocks again ({error}). Leave it out; a smaller "
            "data.loader.batch_size saves memory too."
        ) from error
