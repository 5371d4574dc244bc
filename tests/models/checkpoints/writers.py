"""Whole image-text models in the forms of open_clip and transformers, tiny and random, for tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from tests.models.texts import caption_tokenizer

SIZE = 32
_VIT = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": SIZE}
_TEXT = {"context_length": 32, "vocab_size": 256, "width": 32, "heads": 2, "layers": 2}
_HF_TEXT: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
_HF_VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": SIZE,
    "patch_size": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """A folder, and the embeddings that its own library gives: of pixels, and of tokens with their mask."""

    folder: Path
    images: Callable[[Tensor], Tensor]
    texts: Callable[[Tensor, Tensor], Tensor]
    scale: float
    bias: float | None = None


def write_tokenizer(folder: Path) -> None:
    import tokenizers

    tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    library = tokenizers.Tokenizer.from_str(caption_tokenizer().definition)
    transformers.PreTrainedTokenizerFast(tokenizer_object=library, **tokens).save_pretrained(folder)


def shaken(model: Any) -> Any:
    """A model whose every tensor is random: zeros and ones of a fresh one would hide what is mixed up."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit" not in name:
                parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.ndim < 2 else 0.05))
    return model.eval()


def open_clip_folder(folder: Path, **config: Any) -> Written:
    """A model of open_clip as its hub holds it; ``config`` is its model_cfg."""
    model_cfg = {"embed_dim": 24, "vision_cfg": dict(_VIT), "text_cfg": dict(_TEXT), **config}
    shown = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic", "resize_mode": "shortest"}
    folder.mkdir(parents=True, exist_ok=True)
    size = model_cfg["vision_cfg"]["image_size"]
    described = {"model_cfg": model_cfg, "preprocess_cfg": {**shown, "size": size}}
    (folder / "open_clip_config.json").write_text(json.dumps(described), encoding="utf-8")
    write_tokenizer(folder)
    torch.manual_seed(1)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    shaken(model)
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return of_open_clip(folder, model)


def of_open_clip(folder: Path, model: Any) -> Written:
    bias = getattr(model, "logit_bias", None)
    return Written(
        folder,
        lambda pixels: model.encode_image(pixels),
        lambda tokens, mask: model.encode_text(tokens),
        float(model.logit_scale.detach().exp()),
        None if bias is None else float(bias.detach()),
    )


def clip_open(folder: Path) -> Written:
    return open_clip_folder(folder)


def clip_open_quick(folder: Path) -> Written:
    return open_clip_folder(folder, quick_gelu=True)


def clip_open_custom(folder: Path) -> Written:
    return open_clip_folder(folder, custom_text=True, text_cfg={**_TEXT, "pool_type": "eos", "eos_id": 3})


def timm_open(folder: Path) -> Written:
    vision = {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "mlp", "image_size": SIZE}
    return open_clip_folder(folder, vision_cfg=vision)


def timm_inside_open(folder: Path) -> Written:
    vision = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "", "image_size": 160}
    return open_clip_folder(folder, vision_cfg=vision)


def biomed_open(folder: Path, **text: Any) -> Written:
    """As BiomedCLIP: a ViT of timm, and a BERT with two layers upon it."""
    bert = folder / "bert"
    transformers.BertConfig(**{**_HF_TEXT, "hidden_size": 64, "num_attention_heads": 1}).save_pretrained(bert)
    vision = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160}
    chosen = {"hf_pooler_type": "cls_last_hidden_state_pooler", "hf_proj_type": "mlp", **text}
    text_cfg = {"hf_model_name": str(bert), "hf_tokenizer_name": str(folder), "context_length": 32, **chosen}
    return open_clip_folder(folder, vision_cfg=vision, text_cfg=text_cfg)


def siglip_open(folder: Path) -> Written:
    vision = {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "none", "image_size": 160}
    odd = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    text = {**_TEXT, **odd, "act_kwargs": {"approximate": "tanh"}}
    return open_clip_folder(
        folder, embed_dim=64, vision_cfg=vision, text_cfg=text, custom_text=True, init_logit_bias=-10
    )


def mobileclip_open(folder: Path) -> Written:
    """Texts see their padding and are read out at their end."""
    vision = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": None, "image_size": 160}
    text = {**_TEXT, "no_causal_mask": True}
    return open_clip_folder(folder, vision_cfg=vision, text_cfg=text, custom_text=True)


def clipa_open(folder: Path) -> Written:
    """Both towers read out otherwise than CLIP's: the mean of all patches, the last place of a text."""
    vision = {**_VIT, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
    tokens = {"hf_tokenizer_name": str(folder), "tokenizer_kwargs": {"strip_sep_token": True}}
    text = {**_TEXT, **tokens, "pool_type": "last", "no_causal_mask": True}
    return open_clip_folder(folder, vision_cfg=vision, text_cfg=text)


def resnet_open(folder: Path) -> Written:
    vision = {"layers": [3, 4, 6, 3], "width": 64, "image_size": 64}
    return open_clip_folder(folder, vision_cfg=vision)


def siglip_i18n_open(folder: Path) -> Written:
    """Without a projection of texts."""
    vision = {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "none", "image_size": 160}
    text = {**_TEXT, "width": 64, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "proj_type": "none"}
    return open_clip_folder(
        folder, embed_dim=64, vision_cfg=vision, text_cfg=text, custom_text=True, init_logit_bias=-10
    )


def hf_folder(folder: Path, model: Any, *, masked: bool) -> Written:
    """A model of transformers as its hub holds it."""
    shaken(model).save_pretrained(folder)
    write_tokenizer(folder)
    shown = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "resample": 2, "do_center_crop": False}
    described = {**shown, "size": {"height": SIZE, "width": SIZE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(described), encoding="utf-8")
    bias = getattr(model, "logit_bias", None)
    return Written(
        folder,
        lambda pixels: model.get_image_features(pixel_values=pixels).pooler_output,
        lambda tokens, mask: (
            model.get_text_features(input_ids=tokens, **({"attention_mask": mask} if masked else {})).pooler_output
        ),
        float(model.logit_scale.detach().exp()),
        None if bias is None else float(bias.detach()),
    )


def clip_hf(folder: Path, **text: Any) -> Written:
    config = transformers.CLIPConfig(text_config={**_HF_TEXT, **text}, vision_config=_HF_VISION, projection_dim=24)
    return hf_folder(folder, transformers.CLIPModel(config), masked=True)


def clip_hf_old(folder: Path) -> Written:
    """With the end of text as the library once had it: the largest id is read out."""
    return clip_hf(folder, eos_token_id=2, hidden_act="gelu")


def siglip_hf(folder: Path) -> Written:
    text = {**_HF_TEXT, "projection_size": 32}
    return hf_folder(
        folder,
        transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=_HF_VISION)),
        masked=False,
    )


def chinese_hf(folder: Path) -> Written:
    config = transformers.ChineseCLIPConfig(text_config=_HF_TEXT, vision_config=_HF_VISION, projection_dim=24)
    return hf_folder(folder, transformers.ChineseCLIPModel(config), masked=True)


def dual_hf(folder: Path, *, clip: bool = False) -> Written:
    text = transformers.BertModel(transformers.BertConfig(**_HF_TEXT))
    vision: Any = transformers.ViTModel(transformers.ViTConfig(**_HF_VISION))
    if clip:
        vision = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**_HF_VISION))
    model = transformers.VisionTextDualEncoderModel(vision_model=vision, text_model=text)
    return hf_folder(folder, model, masked=True)


def dual_clip_hf(folder: Path) -> Written:
    return dual_hf(folder, clip=True)


FORMS: dict[str, Callable[[Path], Written]] = {
    form.__name__: form
    for form in (
        clip_open, clip_open_quick, clip_open_custom, timm_open, timm_inside_open, biomed_open, siglip_open,
        siglip_i18n_open, mobileclip_open, clipa_open, resnet_open, clip_hf, clip_hf_old, siglip_hf, chinese_hf,
        dual_hf, dual_clip_hf,
    )
}  # fmt: skip
