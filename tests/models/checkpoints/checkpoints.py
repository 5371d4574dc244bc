"""Checkpoints as Chinese-CLIP, RET-CLIP and the two FLAIRs write them: tiny, random, in their layouts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torchvision
import transformers
from torch import Tensor, nn

from consilium.models.checkpoints.convert import convert
from tests.models.checkpoints.writers import Written, shaken, write_tokenizer

SIZE, WIDTH, EMBED, CONTEXT = 32, 64, 24, 32
BERT: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 1,
    "max_position_embeddings": CONTEXT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """The towers that a checkpoint was made of, and its tensors by their names in the program."""

    image: Any
    text: Any
    state: dict[str, Tensor]


def vit(*, quick: bool, layers: int = 2) -> Any:
    """A CLIP of open_clip, whose image tower these programs have by the same names."""
    vision = {"layers": layers, "width": WIDTH, "head_width": 64, "patch_size": 16, "image_size": SIZE}
    text = {"context_length": CONTEXT, "vocab_size": 256, "width": WIDTH, "heads": 1, "layers": 2}
    torch.manual_seed(2)
    return shaken(open_clip.model.CLIP(embed_dim=EMBED, vision_cfg=vision, text_cfg=text, quick_gelu=quick))  # type: ignore[arg-type]


def bert(*, pooler: bool = False, layers: int = 3) -> Any:
    config = transformers.BertConfig(**{**BERT, "num_hidden_layers": layers})
    return shaken(transformers.BertModel(config, add_pooling_layer=pooler))


def below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def chinese_clip(*, layers: int = 2) -> Parts:
    whole, text = vit(quick=True, layers=layers), bert()
    state = below("visual.", whole.visual.state_dict()) | below("bert.", text.state_dict())
    state |= {"text_projection": torch.randn(WIDTH, EMBED), "logit_scale": torch.tensor(3.0)}
    state["bert.pooler.dense.weight"] = torch.randn(WIDTH, WIDTH)  # which old files have
    return Parts(whole.visual, text, state)


def chinese_resnet() -> Parts:
    """Chinese-CLIP's RN50, but for its depth, which timm has no narrower one of."""
    vision = {"layers": [3, 4, 6, 3], "width": 64, "head_width": 64, "image_size": 64}
    text = {"context_length": CONTEXT, "vocab_size": 256, "width": WIDTH, "heads": 1, "layers": 1}
    torch.manual_seed(2)
    whole = open_clip.model.CLIP(embed_dim=EMBED, vision_cfg=vision, text_cfg=text)  # type: ignore[arg-type]
    whole, own = shaken(whole), bert()
    state = below("visual.", whole.visual.state_dict()) | below("bert.", own.state_dict())
    state |= {"text_projection": torch.randn(WIDTH, EMBED), "logit_scale": torch.ones(())}
    return Parts(whole.visual, own, state)


def ret_clip() -> Parts:
    whole, text = vit(quick=True), bert()
    state = below("visual.", whole.visual.state_dict()) | below("bert.", text.state_dict())
    state["global_feature_mapping.weight"] = torch.randn(EMBED, 2 * EMBED)
    for side in ("left", "right"):
        state[f"{side}_feature_mapping.weight"] = torch.randn(EMBED, EMBED)
    for name in ("", "_left", "_right"):
        head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, EMBED))
        state |= below(f"text_projection{name}.", head.state_dict())
        state[f"logit_scale{name}"] = torch.tensor(90.0).log()
    return Parts(whole.visual, text, state)


def fundus_flair() -> Parts:
    image, text = shaken(torchvision.models.resnet18()), bert(pooler=True)
    image.fc = nn.Identity()
    state = below("vision_model.model.", image.state_dict()) | below("text_model.model.", text.state_dict())
    state["vision_model.projection_head_vision.projection.weight"] = torch.randn(EMBED, 512)
    state["text_model.projection_head_text.projection.weight"] = torch.randn(EMBED, WIDTH)
    state["text_model.model.embeddings.position_ids"] = torch.arange(CONTEXT)[None]
    return Parts(image, text, state | {"logit_scale": torch.tensor(2.66)})


def other_flair() -> Parts:
    whole = vit(quick=False)
    state = {
        name: tensor
        for name, tensor in whole.state_dict().items()
        if name not in ("visual.proj", "text_projection", "attn_mask")
    }
    state |= {"image_post.proj": torch.randn(WIDTH, EMBED), "text_post.proj": torch.randn(WIDTH, EMBED)}
    attention = nn.MultiheadAttention(EMBED, 8)
    state |= below("visual_proj.attn.", attention.state_dict())
    return Parts(whole.visual, whole, state | {"logit_bias": torch.tensor(-10.0)})


def save_flat(file: Path, state: Mapping[str, Tensor], *, prefix: str = "module.") -> Path:
    """As the released weights of RET-CLIP."""
    torch.save(below(prefix, state), file)
    return file


def save_training(file: Path, state: Mapping[str, Tensor], **more: Any) -> Path:
    """As ``epoch_latest.pt`` of a training."""
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    whole = {"epoch": 3, "step": 700, "name": "retclip", "state_dict": below("module.", state)}
    torch.save({**whole, "optimizer": optimizer.state_dict(), **more}, file)
    return file


def converted_chinese_clip(folder: Path) -> Written:
    """A folder that a checkpoint of Chinese-CLIP was converted to."""
    parts, tokenizer = chinese_clip(), folder.with_name("tokenizer")
    write_tokenizer(tokenizer)
    (tokenizer / "config.json").write_text(json.dumps({"model_type": "bert", **BERT}), encoding="utf-8")
    file = save_training(folder.with_name("epoch_latest.pt"), parts.state)
    convert(file, out=folder, tokenizer=str(tokenizer))

    def texts(tokens: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = parts.text(input_ids=tokens, attention_mask=mask).last_hidden_state
        return found[:, 0] @ parts.state["text_projection"]

    return Written(folder, parts.image, texts, float(parts.state["logit_scale"].exp()))
