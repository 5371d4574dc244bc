"""Checkpoints of other programs: how they are recognised, and what becomes of each of their tensors.

A file is recognised by the names of its tensors, and what it is made of is read from their shapes. Known are
Chinese-CLIP, RET-CLIP and the two models that are called FLAIR: that of fundus photographs (Silva-Rodríguez et al.,
2023, arXiv:2308.07898), and that of Xiao et al., 2024 (arXiv:2412.03561).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from consilium.core.errors import WeightsError
from consilium.models.checkpoints.layout import CLIP

_WIDE_HEADS = {1280: 80, 1408: 88, 1664: 104}  # widths of ViT-H, g and G, whose heads are not 64 wide
_RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {  # by whether a block has three convolutions, and by the blocks
    (True, (3, 4, 6, 3)): "resnet50", (True, (3, 4, 23, 3)): "resnet101", (False, (2, 2, 2, 2)): "resnet18",
}  # fmt: skip
_OPENAI = {"mean": list(CLIP[0]), "std": list(CLIP[1]), "interpolation": "bicubic"}


@dataclass(frozen=True)
class Rule:
    """What becomes of the tensors whose names begin with ``old``: ``new`` in its place; None: they are left out.

    ``head``: they go into a file of their own, since no tower has them. ``turned``: a matrix is transposed.
    """

    part: str
    old: str
    new: str | None
    head: bool = False
    turned: bool = False


@dataclass(frozen=True)
class Form:
    """Files of one program: how they are recognised, their rules, and what ``open_clip_config.json`` says of them.

    ``towers_only`` is why the towers cannot be joined by projections as we have them; '' where they can. ``views`` are
    the named views for which it has heads that ``task.views`` takes.
    """

    name: str
    marks: tuple[str, ...]
    rules: tuple[Rule, ...]
    describe: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    tokenizer: str | None
    towers_only: str = ""
    views: tuple[str, ...] = ()


def _depth(names: Collection[str], prefix: str) -> int:
    """How many numbered parts there are below a prefix."""
    numbers = (name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix))
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)


def _image(towers: Mapping[str, Tensor]) -> tuple[dict[str, Any], int]:
    """open_clip's ``vision_cfg`` of an image tower of CLIP, and the width of its space."""
    if "visual.layer1.0.conv1.weight" in towers:
        space, positions = towers["visual.attnpool.c_proj.weight"], towers["visual.attnpool.positional_embedding"]
        layers = [_depth(towers, f"visual.layer{stage}.") for stage in range(1, 5)]
        side = 32 * round((len(positions) - 1) ** 0.5)
        return {"image_size": side, "layers": layers, "width": len(towers["visual.conv3.weight"])}, len(space)
    width, _, patch, _ = towers["visual.conv1.weight"].shape
    inner = len(towers["visual.transformer.resblocks.0.mlp.c_fc.weight"])
    vision = {
        "image_size": patch * round((len(towers["visual.positional_embedding"]) - 1) ** 0.5),
        "layers": _depth(towers, "visual.transformer.resblocks."),
        "width": width,
        "patch_size": patch,
        "head_width": _WIDE_HEADS.get(width, 64),
        "mlp_ratio": inner / width,
    }
    projection = towers.get("visual.proj")
    return vision, width if projection is None else projection.shape[1]


def _chinese(projection: str, context: int) -> Callable[[Mapping[str, Tensor]], dict[str, Any]]:
    """The config of an image tower of CLIP with QuickGELU beside a Chinese BERT."""

    def describe(towers: Mapping[str, Tensor]) -> dict[str, Any]:
        vision, embed = _image(towers)
        text = _bert(towers, _CHINESE, projection, "cls_last_hidden_state_pooler", context)
        shown = {**_OPENAI, "size": vision["image_size"], "resize_mode": "squash"}
        model = {"embed_dim": embed, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
        return {"model_cfg": model, "preprocess_cfg": shown}

    return describe


def _bert(towers: Mapping[str, Tensor], name: str, projection: str, pooler: str, context: int) -> dict[str, Any]:
    positions = len(towers["text.transformer.embeddings.position_embeddings.weight"])
    return {"hf_model_name": name, "hf_tokenizer_name": name, "hf_proj_type": projection, "hf_pooler_type": pooler,
            "context_length": min(context, positions)}  # fmt: skip


def _fundus(towers: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config of a ResNet and a BERT; images are divided by 255 and nothing else."""
    trunk = "visual.trunk."
    deep = f"{trunk}layer1.0.conv3.weight" in towers
    layers = tuple(_depth(towers, f"{trunk}layer{stage}.") for stage in range(1, 5))
    if (deep, layers) not in _RESNETS:
        raise WeightsError(f"its image tower is a ResNet of {list(layers)} blocks, or none; it is not read.")
    vision = {"timm_model_name": _RESNETS[deep, layers], "timm_pool": "avg", "timm_proj": "linear", "image_size": 512}
    embed = len(towers["visual.head.proj.weight"])
    model = {"embed_dim": embed, "vision_cfg": vision, "text_cfg": _bert(towers, _CLINICAL, "none", "mean_pooler", 77)}
    shown = {"mean": [0.0] * 3, "std": [1.0] * 3, "size": 512, "interpolation": "bilinear", "resize_mode": "longest"}
    return {"model_cfg": model, "preprocess_cfg": shown}


def _fine_grained(towers: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config of both towers of an open_clip."""
    vision, embed = _image(towers)
    vocabulary, width = towers["token_embedding.weight"].shape
    text = {
        "context_length": len(towers["positional_embedding"]), "vocab_size": vocabulary, "width": width,
        "heads": max(1, width // 64), "layers": _depth(towers, "transformer.resblocks."),
    }  # fmt: skip
    shown = {**_OPENAI, "size": vision["image_size"], "resize_mode": "shortest"}
    return {"model_cfg": {"embed_dim": embed, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": shown}


_CHINESE, _CLINICAL = "hfl/chinese-roberta-wwm-ext", "emilyalsentzer/Bio_ClinicalBERT"
_TOWERS = (
    Rule("image tower", "visual.", "visual."),
    Rule("text pooler, never trained", "bert.pooler.", None),
    Rule("positions of tokens, a constant", "bert.embeddings.position_ids", None),
    Rule("text tower", "bert.", "text.transformer."),
)


def _heads(*kinds: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(part, prefix, prefix, head=True) for part, prefix in kinds)


FORMS = (
    Form(
        "RET-CLIP",
        ("visual.", "bert.", "global_feature_mapping.weight"),
        _TOWERS
        + _heads(
            ("image heads", "global_feature_mapping."), ("image heads", "left_feature_mapping."),
            ("image heads", "right_feature_mapping."), ("text heads", "text_projection."),
            ("text heads", "text_projection_left."), ("text heads", "text_projection_right."),
            ("temperatures", "logit_scale"),
        ),
        _chinese("none", 100),
        _CHINESE,
        towers_only="RET-CLIP has heads for the patient, the left and the right eye",
        views=("left", "right"),
    ),
    Form(
        "Chinese-CLIP",
        ("visual.", "bert.", "text_projection"),
        (
            *_TOWERS,
            Rule("text projection", "text_projection", "text.proj.weight", turned=True),
            Rule("temperature", "logit_scale", "logit_scale"),
        ),
        _chinese("linear", 52),
        _CHINESE,
    ),
    Form(
        "FLAIR of fundus photographs",
        ("vision_model.model.", "text_model.model.", "vision_model.projection_head_vision.projection.weight"),
        (
            Rule("image tower", "vision_model.model.", "visual.trunk."),
            Rule("image projection", "vision_model.projection_head_vision.projection.", "visual.head.proj."),
            Rule("positions of tokens, a constant", "text_model.model.embeddings.position_ids", None),
            Rule("text tower", "text_model.model.", "text.transformer."),
            *_heads(
                ("text projection", "text_model.projection_head_text.projection."), ("temperature", "logit_scale")
            ),
        ),
        _fundus,
        _CLINICAL,
        towers_only="FLAIR reads a text out of three layers at once, padding included, and here its vector is the "
        "mean of the last layer without padding",
    ),
    Form(
        "FLAIR of Xiao et al.",
        ("visual.", "transformer.resblocks.", "image_post.", "text_post.", "visual_proj."),
        (
            *(
                Rule("image tower" if name == "visual." else "text tower", name, name)
                for name in ("visual.", "transformer.", "token_embedding.", "positional_embedding", "ln_final.")
            ),
            *_heads(
                ("image head", "image_post."), ("text head", "text_post."), ("attention pooling", "visual_proj."),
                ("temperature and bias", "logit_"),
            ),
        ),
        _fine_grained,
        None,
        towers_only="FLAIR pools an image anew for each text",
    ),
)  # fmt: skip
