"""Adapters: where they lie, that they learn, that merged is unmerged, peft's own form, and what is refused."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import peft
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from consilium.core.errors import ConfigError, MissingExtraError, TrainingError
from consilium.models.config import FreezeConfig, LoraConfig, TextConfig, VisionConfig
from consilium.models.lora import (
    add_lora,
    base_names,
    merge_adapters,
    refuse_unmoved_adapters,
    refuse_unused_adapters,
    renamed,
    save_adapters,
)
from consilium.models.text import build_text, build_tokenizer
from consilium.models.vision import build_vision
from consilium.models.weights import adapters, freeze_tower
from tests.models.checkpoints.writers import clip_hf, clip_open, siglip_hf
from tests.models.test_text import KINDS
from tests.models.texts import CAPTIONS, write_encoder


class Whole(nn.Module):
    """A tower as the part of a task."""

    def __init__(self, tower: Any, *inputs: Tensor) -> None:
        super().__init__()
        self.tower, self.inputs = tower, inputs

    def forward(self) -> Tensor:
        features_BF: Tensor = self.tower(*self.inputs)
        return features_BF

    def layers(self) -> list[str]:
        """The names of the layers with adapters."""
        return list(dict.fromkeys(name.removeprefix("tower.model.").partition(".lora_")[0] for name in adapters(self)))


class OpenClip(nn.Module):
    """The image tower of a small open_clip model, which has torch's own attention."""

    def __init__(self) -> None:
        from open_clip.model import CLIP

        super().__init__()
        vision = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}
        text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}
        self.model: Any = CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).visual  # type: ignore[arg-type]

    def forward(self, images_BCHW: Tensor) -> Tensor:
        features_BF: Tensor = self.model(images_BCHW)
        return features_BF

    def blocks(self) -> list[list[nn.Parameter]]:
        return [list(block.parameters()) for block in self.model.transformer.resblocks]


def vision(name: str, size: tuple[int, int] = (64, 64)) -> Whole:
    torch.manual_seed(0)
    tower = build_vision(VisionConfig(name=name, pretrained=False), image_size=size)
    return Whole(tower, torch.randn(2, 3, *size)).eval()


def text(folder: Path, kind: str) -> Whole:
    config = TextConfig(name=str(write_encoder(folder, kind=kind, **KINDS[kind])), context_length=32)
    tokenizer = build_tokenizer(config)
    padded = tokenizer.pad(tokenizer.encode(CAPTIONS))
    return Whole(build_text(config, tokenizer=tokenizer), padded.tokens_BT, padded.attention_BT).eval()


# Towers of other libraries, as a task builds them: the kind in a config, and who writes the folder.
FOLDERS: dict[str, tuple[Literal["hf", "open_clip"], Callable[[Path], Any]]] = {
    "clip of transformers": ("hf", clip_hf),
    "siglip of transformers": ("hf", siglip_hf),
    "clip of open_clip": ("open_clip", clip_open),
}


def whole(name: str, folder: Path) -> Whole:
    if name in FOLDERS:
        (kind, write), place = FOLDERS[name], folder / "model"
        if not place.exists():  # written twice it would be another model
            write(place)
        tower = build_vision(VisionConfig(kind=kind, name=str(place)), image_size=(32, 32))
        return Whole(tower, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))).eval()
    if name == "open_clip":
        torch.manual_seed(0)
        return Whole(OpenClip(), torch.randn(2, 3, 32, 32)).eval()
    return text(folder, name) if name in KINDS else vision(name)


def adapted(name: str, folder: Path, **options: Any) -> Whole:
    found = whole(name, folder)
    add_lora(found.tower, LoraConfig(**options), key="task.vision.lora", base=name)
    freeze_tower(found.tower, FreezeConfig(), epoch=0)
    return found.eval()


def learn(module: Whole) -> None:
    """Two steps: the first moves B alone, since it starts at 0."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        module().square().sum().backward()
        refuse_unused_adapters(module)
        optimizer.step()


OWN = {
    "test_vit": ["attn.qkv", "attn.proj"],
    "open_clip": ["attn"],
    "bert": ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"],
    "roberta": ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"],
    "distilbert": ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"],
    "modernbert": ["attn.Wqkv", "attn.Wo"],
    "clip of transformers": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"],
    "siglip of transformers": [
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "head.attention"
    ],
    "clip of open_clip": ["attn.qkv", "attn.proj"],
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_the_attention_learns_and_merged_is_unmerged(name: str, tmp_path: Path) -> None:
    plain = whole(name, tmp_path)
    names, before = list(plain.state_dict()), plain()
    module = adapted(name, tmp_path)
    layers = module.layers()
    assert {layer for layer in layers if not layer.endswith(tuple(OWN[name]))} == set()
    assert {end for end in OWN[name] if any(layer.endswith(end) for layer in layers)} == set(OWN[name])
    torch.testing.assert_close(module(), before, rtol=1e-5, atol=1e-6)
    weights = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    learn(module)
    refuse_unmoved_adapters(module)
    moved = {key for key, tensor in module.state_dict().items() if not torch.equal(tensor, weights[key])}
    assert moved == set(adapters(module))
    assert base_names(module) == weights.keys() - moved
    after = module()
    assert float((after - before).detach().abs().max()) > 1e-3
    merge_adapters(module)
    assert sorted(module.state_dict()) == sorted(names)
    assert not adapters(module)
    torch.testing.assert_close(module(), after, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft asks for it
@pytest.mark.parametrize("name", ["test_vit", "open_clip", "bert"])
def test_what_is_saved_is_an_adapter_of_peft(name: str, tmp_path: Path) -> None:
    """peft puts it on the plain tower, which then answers as ours."""
    module = adapted(name, tmp_path / "base", rank=3, alpha=5)
    learn(module)
    save_adapters(module, tmp_path / "adapters")
    folder = tmp_path / "adapters" / "tower"
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    plain = whole(name, tmp_path / "base")
    own: Any = peft.PeftModel.from_pretrained(copy.deepcopy(plain.tower.model), str(folder))
    plain.tower.model = own.eval()
    assert own.peft_config["default"].base_model_name_or_path == name
    with torch.no_grad():
        torch.testing.assert_close(plain(), module(), rtol=1e-5, atol=1e-6)
        plain.tower.model = own.merge_and_unload()
        torch.testing.assert_close(plain(), module(), rtol=1e-5, atol=1e-5)


def test_transformers_loads_it_too(tmp_path: Path) -> None:
    module = adapted("bert", tmp_path / "base")
    learn(module)
    save_adapters(module, tmp_path / "adapters")
    plain = whole("bert", tmp_path / "base")
    plain.tower.model.load_adapter(str(tmp_path / "adapters" / "tower"))
    torch.testing.assert_close(plain(), module(), rtol=1e-5, atol=1e-6)


BLOCKS = range(6)


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({"targets": ["fc1"]}, [f"blocks.{block}.mlp.fc1" for block in BLOCKS]),
        ({"targets": ["blocks.1.mlp.fc2", "blocks.0.mlp.fc1"]}, ["blocks.0.mlp.fc1", "blocks.1.mlp.fc2"]),
        ({"targets": ["proj"]}, [f"blocks.{block}.attn.proj" for block in BLOCKS]),  # that of patches is a convolution
        (
            {"targets": r"blocks\.[13]\..*fc\d"},
            [f"blocks.{block}.mlp.fc{layer}" for block in (1, 3) for layer in (1, 2)],
        ),
        ({"last_blocks": 1}, ["blocks.5.attn.qkv", "blocks.5.attn.proj"]),
        ({"last_blocks": 2, "targets": ["fc2"]}, ["blocks.4.mlp.fc2", "blocks.5.mlp.fc2"]),
    ],
)
def test_layers_may_be_named(options: dict[str, Any], layers: list[str], tmp_path: Path) -> None:
    assert adapted("test_vit", tmp_path, **options).layers() == layers


def test_rank_and_alpha_are_those_of_the_paper(tmp_path: Path) -> None:
    """The change is alpha / rank times B A."""
    module = adapted("test_vit", tmp_path, rank=4, alpha=6, targets=["blocks.0.mlp.fc1"])
    before = module.tower.model.blocks[0].mlp.fc1.weight.clone()
    learn(module)
    parts = list(adapters(module).values())
    assert [list(part.shape) for part in parts] == [[4, 64], [192, 4]]
    merge_adapters(module)
    change = module.tower.model.blocks[0].mlp.fc1.weight - before
    torch.testing.assert_close(change, 6 / 4 * parts[1] @ parts[0], rtol=1e-4, atol=1e-7)


def test_dropout_is_of_adapters_and_in_training_alone(tmp_path: Path) -> None:
    module = adapted("test_vit", tmp_path, dropout=0.5)
    learn(module)
    assert torch.equal(module(), module())
    module.train()
    assert not torch.equal(module(), module())


@pytest.mark.parametrize("name", FOLDERS)
def test_towers_of_other_libraries_may_have_dropout(name: str, tmp_path: Path) -> None:
    """The pooling of SigLIP makes query, key and value with one weight, cannot have it, and is left out."""
    module = adapted(name, tmp_path, dropout=0.1)
    assert not any("head" in layer for layer in module.layers())
    assert len(module.layers()) == (4 if name == "clip of open_clip" else 8), "all others of both layers"
    learn(module)
    refuse_unmoved_adapters(module)
    module.train()
    assert not torch.equal(module(), module())


def test_a_warm_up_holds_the_adapters_too(tmp_path: Path) -> None:
    module = adapted("test_vit", tmp_path)
    for epoch, learning in ((0, set()), (1, set(adapters(module)))):
        freeze_tower(module.tower, FreezeConfig(warmup_epochs=1), epoch=epoch)
        assert {name for name, parameter in module.named_parameters() if parameter.requires_grad} == learning


def test_weights_of_a_plain_model_find_their_places(tmp_path: Path) -> None:
    plain, module = whole("test_vit", tmp_path), adapted("test_vit", tmp_path)
    state = {name: tensor + 1 for name, tensor in plain.state_dict().items()}
    found = renamed(module, state)
    assert found.keys() == base_names(module)
    module.load_state_dict({**adapters(module), **found})
    plain.load_state_dict(state)
    torch.testing.assert_close(module(), plain(), rtol=1e-5, atol=1e-6)
    assert renamed(module, module.state_dict()).keys() == module.state_dict().keys()


# -- What is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("test_resnet", {}, r"this tower \(ResNet\) has no linear layers.*freeze.kind: all_but_last_blocks"),
        ("test_convnext", {}, r"no attention in this tower. Name layers in .*\.targets; linear are .*mlp\.fc1"),
        ("test_vit", {"targets": ["query"]}, r"'query' is no layer.*Linear are blocks\.\*\.attn\.qkv \(6\), blocks"),
        ("test_vit", {"targets": ["qkv", "k"]}, "'k' is no layer"),  # whole parts of names
        ("test_vit", {"targets": ["norm1"]}, r"'norm1' is no linear layer but a LayerNorm. Linear are blocks"),
        ("test_vit", {"targets": ["patch_embed.proj"]}, "is no linear layer but a Conv2d"),
        ("test_vit", {"targets": "qkv"}, "no layer that fits 'qkv'"),
        ("test_vit", {"last_blocks": 9}, r"last_blocks is 9, but the tower has 7 blocks; give at most that many"),
        ("test_vit", {"last_blocks": 1, "targets": ["blocks.0.attn.qkv"]}, "none of blocks.0.attn.qkv lies in these"),
        (
            "open_clip",
            {"targets": ["out_proj"]},
            r"the weight of \S*out_proj and never calls it.* Name attn,",
        ),
        (
            "open_clip",
            {"dropout": 0.1},
            r"dropout is 0.1, but transformer\.resblocks\.0\.attn makes query, key",
        ),
    ],
)
def test_what_cannot_be_adapted_is_refused(name: str, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    """Trap 7: among them ``out_proj`` of open_clip's attention, whose weight is read and which is never called."""
    with pytest.raises(ConfigError, match=rf"task\.vision\.lora.*{said}"):
        adapted(name, tmp_path, **options)


def test_layers_that_share_weights_are_no_last_blocks(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, kind="albert", embedding_size=16)
    config = TextConfig(name=str(folder), context_length=32)
    tower = build_text(config, tokenizer=build_tokenizer(config))
    with pytest.raises(
        ConfigError, match=r"task\.text\.lora\.last_blocks: the blocks of this tower cannot be told apart"
    ):
        add_lora(tower, LoraConfig(last_blocks=1), key="task.text.lora", base="albert")


class PassedBy(nn.Module):
    """A tower that reads a weight, as BEiT does for its queries, and never calls its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.model: Any = nn.ModuleDict({"attn": nn.ModuleDict({"qkv": nn.Linear(4, 4), "proj": nn.Linear(4, 4)})})

    def forward(self, features_BF: Tensor) -> Tensor:
        attention = self.model["attn"]
        found_BF: Tensor = attention["proj"](nn.functional.linear(features_BF, attention["qkv"].weight))
        return found_BF

    def blocks(self) -> list[list[nn.Parameter]]:
        return [list(self.parameters())]


def test_an_adapter_that_does_nothing_is_named() -> None:
    module = Whole(PassedBy(), torch.randn(2, 4))
    add_lora(module.tower, LoraConfig(), key="task.vision.lora", base="beit")
    freeze_tower(module.tower, FreezeConfig(), epoch=0)
    module().sum().backward()
    with pytest.raises(ConfigError, match=r"no gradient reaches 1 adapter \(tower\.model\.attn\.qkv\)"):
        refuse_unused_adapters(module)
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    with pytest.raises(TrainingError, match=r"LoRA: 1 adapter \(tower\.model\.attn\.qkv\) never moved"):
        refuse_unmoved_adapters(module)


def test_without_peft_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"task\.vision\.lora needs .*pip install 'consilium\[lora\]'"):
        adapted("test_vit", tmp_path)


@pytest.mark.parametrize(
    ("tower", "options", "said"),
    [
        (VisionConfig, {"lora": {"rank": 0}}, "greater than or equal to 1"),
        (VisionConfig, {"lora": {"alpha": 0}}, "greater than or equal to 1"),
        (VisionConfig, {"lora": {"targets": []}}, "at least 1 item"),
        (VisionConfig, {"lora": {"targets": "blocks.(0"}}, r"'blocks\.\(0' is no regular expression"),
        (VisionConfig, {"lora": {}, "freeze": {"kind": "tower"}}, "and freeze.kind is tower; leave one of them out"),
        (
            TextConfig,
            {"lora": {}, "freeze": {"kind": "all_but_last_blocks", "blocks": 1}},
            r"and freeze.kind is all_but_last_blocks; leave one of them out \(lora.last_blocks: N",
        ),
    ],
)
def test_settings_that_contradict_each_other(tower: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        tower(**options)
