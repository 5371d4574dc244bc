"""Which form holds which model: the one place that decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import timm
from timm.layers.activations import QuickGELU
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from consilium.core.errors import ExportError
from consilium.models.trained import DualEncoder, ImageClassifier, Layers, Trained
from consilium.models.vision import VisionTower

Form = Literal["hf", "open_clip", "timm", "onnx", "safetensors"]
FORMS: tuple[Form, ...] = get_args(Form)
_OPEN_CLIP_TEXTS = {
    "bert": "a BERT",
    "chinese_clip_text_model": "that of Chinese-CLIP",
    "roberta": "a RoBERTa",
    "xlm-roberta": "an XLM-RoBERTa",
}
POOLERS = {"cls": "cls_last_hidden_state_pooler", "mean": "mean_pooler", "pooler": "cls_pooler"}  # of open_clip


class MisfitError(Exception):
    """Why a form cannot hold a model."""


IMAGE_TOWER = "image tower"


def form_of(form: Form, model: Trained, *, image_size: tuple[int, int], image_tower: bool = False) -> str:
    """The class or part of the other library that the model becomes; a form that cannot hold it is an ExportError.

    ``image_tower``: of ``hf`` that alone.
    """
    found = dict(forms_of(model, image_size=image_size))
    if image_tower and form != "hf":
        raise ExportError(f"--image-tower is for --to hf, and --to is {form}; --to timm holds an image tower, too.")
    if image_tower:
        try:
            _own_pooling(model.vision)
            _own_size(model.vision, image_size)
            return IMAGE_TOWER
        except MisfitError as misfit:
            found[form] = misfit
    held = found[form]
    if isinstance(held, str):
        return held
    others = [other for other, fits in found.items() if isinstance(fits, str)]
    alone = " Its image tower alone: --to hf --image-tower." if form == "hf" and not image_tower else ""
    raise ExportError(f"{form} cannot hold this model: {held}. What can: {', '.join(others)}.{alone}")


def forms_of(model: Trained, *, image_size: tuple[int, int]) -> Mapping[Form, str | MisfitError]:
    """For every form what the model becomes in it, or why it does not fit."""
    found: dict[Form, str | MisfitError] = {}
    for form in FORMS:
        try:
            found[form] = _DECIDES[form](model, image_size)
        except MisfitError as misfit:
            found[form] = misfit
    return found


def is_clip(tower: VisionTower) -> bool:
    """Whether an image tower is a vision transformer as CLIP has it, which three libraries have under other names."""
    model = tower.model
    if tower.library == "transformers":
        return bool(model.config.model_type in ("clip_vision_model", "chinese_clip_vision_model"))
    return (
        _is_plain(model)
        and not isinstance(model.norm_pre, nn.Identity)
        and model.patch_embed.proj.bias is None
        and _is_bare(model, nn.GELU, QuickGELU)
    )


def is_vit(tower: VisionTower) -> bool:
    """Whether an image tower is the plain vision transformer of timm, which transformers has as ViT."""
    model = tower.model
    return (
        tower.library == "timm"
        and _is_plain(model)
        and isinstance(model.norm_pre, nn.Identity)
        and model.patch_embed.proj.bias is not None
        and _is_bare(model, nn.GELU)
    )


def is_quick(tower: VisionTower) -> bool:
    """Whether the activation of a transformer of CLIP is the quick GELU."""
    if tower.library == "transformers":
        return bool(tower.model.config.hidden_act == "quick_gelu")
    return isinstance(tower.model.blocks[0].mlp.act, QuickGELU)


def text_kind(model: DualEncoder) -> str:
    """The ``model_type`` of the text tower in transformers."""
    return str(model.text.architecture["model_type"])


def text_act(model: DualEncoder) -> str:
    """The activation of a text tower of CLIP or SigLIP."""
    usual = "quick_gelu" if text_kind(model) == "clip_text_model" else "gelu_pytorch_tanh"
    return str(model.text.architecture.get("hidden_act", usual))


def is_native(model: DualEncoder) -> bool:
    """Whether open_clip has the image tower with its projection as a transformer of its own."""
    return is_clip(model.vision) and Layers.of(model.image_projection).is_clip


def _is_plain(model: Any) -> bool:
    """A transformer of timm of square images that reads out its class token, without later inventions."""
    if type(model) is not VisionTransformer:
        return False
    own: Any = model
    block, grid = own.blocks[0], own.patch_embed.grid_size
    return (
        own.global_pool == "token"
        and own.cls_token is not None
        and own.num_prefix_tokens == 1
        and own.pos_embed is not None
        and own.pos_embed.shape[1] == 1 + grid[0] * grid[1]
        and grid[0] == grid[1]
        and own.attn_pool is None
        and isinstance(model.fc_norm, nn.Identity)
        and isinstance(block.ls1, nn.Identity)
        and isinstance(block.attn.q_norm, nn.Identity)
        and block.attn.qkv.bias is not None
    )


def _is_bare(model: Any, *acts: type[nn.Module]) -> bool:
    """Whether the layers of a transformer of timm have one of these activations, and no norms of later inventions."""
    block = model.blocks[0]
    norms = (getattr(part, "norm", None) for part in (block.attn, block.mlp))
    return isinstance(getattr(block.mlp, "act", None), acts) and all(
        norm is None or isinstance(norm, nn.Identity) for norm in norms
    )


def _hf(model: Trained, size: tuple[int, int]) -> str:
    tower = model.vision
    _own_size(tower, size)
    if isinstance(model, ImageClassifier):
        _one_level(model)
        if tower.library == "timm":
            _own_pooling(tower)
            _one_classifier(model)
            return "TimmWrapperForImageClassification"
        if tower.model.config.model_type == "vit" and model.layout.readout == "cls" and tower.pooling == "default":
            return "ViTForImageClassification"
        raise MisfitError(f"transformers classifies with a {model.layout.name} in another way")
    _read_padding(model)
    kind, pooling = text_kind(model), model.text.pooling
    sides = {"image": Layers.of(model.image_projection), "text": Layers.of(model.text_projection)}
    _own_pooling(tower)
    if not any(layers.linear for layers in sides.values()):
        if kind == "siglip_text_model" and pooling == "pooler" and model.layout.name == "siglip_vision_model":
            return "SiglipModel"
        raise MisfitError("SiglipModel takes both towers of transformers, and its other classes have projections")
    for side, layers in sides.items():
        if not layers.is_clip:
            what = _of_layers(layers)
            raise MisfitError(
                f"its dual encoders project by one linear layer without a bias, and the {side} side has {what}"
            )
    if kind == "siglip_text_model" and pooling != "pooler":
        raise MisfitError(
            f"transformers reads texts of SigLIP's kind out by their pooler, and this expert by {pooling}"
        )
    if is_clip(tower) and pooling == "eot":
        return "CLIPModel"
    if is_clip(tower) and pooling == "cls" and kind in ("bert", "chinese_clip_text_model"):
        return "ChineseCLIPModel"
    if pooling not in ("pooler", "eot"):
        raise MisfitError(f"VisionTextDualEncoder reads texts out by a pooler, and this expert by {pooling}")
    if tower.library == "transformers" and model.layout.readout != "pooler":
        raise MisfitError("VisionTextDualEncoder reads images out by a pooler, and this expert by the class token")
    return "VisionTextDualEncoderModel"


def _open_clip(model: Trained, size: tuple[int, int]) -> str:
    if isinstance(model, ImageClassifier):
        raise MisfitError("open_clip has pairs of image and text towers, and this is a classifier of images")
    tower, native = model.vision, is_native(model)
    _own_pooling(tower)
    _own_size(tower, size)
    if not native:
        if tower.library != "timm":
            raise MisfitError(f"open_clip has no {model.layout.name}")
        _timm_in_open_clip(model, size)
    _read_padding(model)
    _text_in_open_clip(model)
    kind = text_kind(model)
    quick = kind in ("clip_text_model", "siglip_text_model") and text_act(model) == "quick_gelu"
    if native and kind in ("clip_text_model", "siglip_text_model") and quick != is_quick(tower):
        raise MisfitError("open_clip has one activation for both towers, and these have two")
    return "CLIP" if native and kind == "clip_text_model" else "CustomTextCLIP"


def _timm_in_open_clip(model: DualEncoder, size: tuple[int, int]) -> None:
    layers, layout = Layers.of(model.image_projection), model.layout
    if odd := sorted(layout.options.keys() - {"global_pool"}):
        raise MisfitError(f"open_clip builds towers of timm by their name alone, without {', '.join(odd)}")
    native = tuple((timm.get_pretrained_cfg(layout.name) or model.vision.model.pretrained_cfg).input_size[1:])
    if native != size and getattr(model.vision.model, "pos_embed", None) is not None:
        raise MisfitError(
            f"open_clip builds {layout.name} for its own {native[0]} x {native[1]} pixels, and this expert takes "
            f"{size[0]} x {size[1]}"
        )
    if len(layers.linear) > 1:
        inner, embed = layers.linear[0].out_features, layers.linear[-1].out_features
        if len(layers.linear) > 2 or layers.activation is not nn.GELU or inner > 2 * embed:
            raise MisfitError(
                "open_clip projects images by one layer, or by two around a GELU of at most twice the embedding "
                f"({2 * embed}), and this expert has {_of_layers(layers)}"
            )


def _text_in_open_clip(model: DualEncoder) -> None:
    kind, pooling, layers = text_kind(model), model.text.pooling, Layers.of(model.text_projection)
    if kind == "clip_text_model" and pooling == "eot" and layers.is_one:
        return
    if kind == "siglip_text_model" and not layers.linear:
        return
    if kind == "siglip_text_model" and pooling != "pooler" and layers.is_one:
        return
    if kind not in _OPEN_CLIP_TEXTS:
        raise MisfitError(
            f"open_clip has no text tower of type {kind}, but {', '.join(_OPEN_CLIP_TEXTS.values())}, or its own"
        )
    if pooling not in POOLERS:
        raise MisfitError(f"open_clip reads texts out by {', '.join(POOLERS)}, and this expert by {pooling}")
    embed = layers.linear[-1].out_features if layers.linear else 0
    inner = (model.text.num_features + embed) // 2
    fits = len(layers.linear) == 1 or (
        len(layers.linear) == 2 and layers.activation is nn.GELU and layers.linear[0].out_features <= inner
    )
    if not fits or any(bias is not None for bias in layers.biases):
        raise MisfitError(
            "open_clip projects texts by one layer, or by two around a GELU of at most the mean of features and "
            f"embedding ({inner}), without biases, and this expert has {_of_layers(layers)}"
        )


def _timm(model: Trained, size: tuple[int, int]) -> str:
    if model.vision.library != "timm":
        raise MisfitError(f"its image tower is a {model.layout.name} of transformers, which timm does not have")
    _own_pooling(model.vision)
    if isinstance(model, ImageClassifier):
        _one_level(model)
        _one_classifier(model)
        return "classifier"
    return IMAGE_TOWER


def _any(model: Trained, size: tuple[int, int]) -> str:
    return "classifier" if isinstance(model, ImageClassifier) else "both towers"


_DECIDES = {"hf": _hf, "open_clip": _open_clip, "timm": _timm, "onnx": _any, "safetensors": _any}


def _read_padding(model: DualEncoder) -> None:
    """Padding that a text tower reads must be what the files of a tokenizer can say: a special token."""
    if model.text.reads_padding and not model.tokenizer.pads_with_special:
        raise MisfitError(
            "its text tower reads its padding, which is an ordinary word of its tokenizer, and the form pads with a "
            "special token"
        )


def _own_pooling(tower: VisionTower) -> None:
    if tower.pooling != "default":
        raise MisfitError(
            f"its image tower is read out by task.vision.pooling: {tower.pooling}, not by its own pooling"
        )


def _own_size(tower: VisionTower, size: tuple[int, int]) -> None:
    """transformers interpolates positions only where each call says so."""
    own = None if tower.library == "timm" else getattr(tower.model.config, "image_size", None)
    if own is not None and (own if isinstance(own, tuple | list) else (own, own)) != size:
        raise MisfitError(
            f"its image tower has positions for {own} pixels, and it was trained with {size[0]} x {size[1]}"
        )


def _one_level(model: ImageClassifier) -> None:
    if model.labels.nested:
        raise MisfitError("its labels are a tree with a softmax at every node, and the form has one list of classes")
    if not Layers.of(model.head).is_one:
        raise MisfitError("its head has hidden layers, and the form has one linear layer")


def _one_classifier(model: ImageClassifier) -> None:
    layer = model.vision.model.pretrained_cfg.get("classifier")
    if not isinstance(layer, str):
        raise MisfitError(f"timm's {model.layout.name} has no single layer that classifies, but {layer}")


def _of_layers(layers: Layers) -> str:
    if not layers.linear:
        return "no layer"
    bias = " with a bias" if any(bias is not None for bias in layers.biases) else ""
    if layers.is_one:
        return f"one layer{bias}"
    inner = ", ".join(str(layer.out_features) for layer in layers.linear[:-1])
    act = layers.activation.__name__ if layers.activation else "nothing"
    return f"{len(layers.linear)} layers{bias} with {act} between them, of {inner} features inside"
