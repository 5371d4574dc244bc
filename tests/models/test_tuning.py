"""Patch dropout and gradient checkpointing: what they change, what they leave, and where they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from consilium.core.errors import ConfigError
from consilium.models.config import TextConfig, VisionConfig
from consilium.models.tuning import tune
from consilium.models.vision import build_vision
from consilium.models.weights import adapters
from tests.models.checkpoints.writers import clip_hf, siglip_hf
from tests.models.test_lora import Whole, vision, whole


def tuned(name: str, folder: Path, **options: Any) -> Whole:
    """A tower set up as a vision or text config asks for."""
    found = whole(name, folder)
    text = hasattr(found.tower, "architecture")
    tune(found.tower, (TextConfig if text else VisionConfig)(**options), key="task.text" if text else "task.vision")
    return found


def empty(name: str) -> Any:
    """A timm tower without memory."""
    tower = nn.Module()
    with torch.device("meta"):
        tower.model = timm.create_model(name, num_classes=0)
    return tower


# -- Patch dropout ------------------------------------------------------------------------------------------------


def tokens(module: Whole) -> int:
    """The tokens of an image that the first block reads."""
    model, seen = module.tower.model, []
    block = (model.blocks if hasattr(model, "blocks") else model.transformer.resblocks)[0]
    handle = block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    module().sum().backward()
    handle.remove()
    return int(seen[0])


@pytest.mark.parametrize(("name", "patches", "prefix"), [("test_vit", 16, 1), ("eva02_tiny_patch14_224", 16, 1)])
def test_a_share_of_the_patches_is_left_out_in_training_alone(
    name: str, patches: int, prefix: int, tmp_path: Path
) -> None:
    size = (56, 56) if name.startswith("eva") else (64, 64)
    module = vision(name, size)
    before = module()
    tune(module.tower, VisionConfig(patch_dropout=0.75), key="task.vision")
    torch.testing.assert_close(module(), before)
    assert tokens(module) == prefix + patches
    assert not any(part.training for part in module.modules())
    module.train()
    assert tokens(module) == prefix + patches // 4
    assert not torch.equal(module(), module()), "each draw is another"


@pytest.mark.parametrize(("form", "prefix"), [(clip_hf, 1), (siglip_hf, 0)])
def test_patches_are_left_out_of_transformers_of_transformers(form: Any, prefix: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = VisionConfig(kind="hf", name=str(form(tmp_path / "model").folder), patch_dropout=0.5)
    tower = build_vision(config, image_size=(64, 64)).eval()
    images_BCHW, seen = torch.randn(2, 3, 64, 64), []
    before = tower(images_BCHW)
    tune(tower, config, key="task.vision")
    torch.testing.assert_close(tower(images_BCHW), before)
    layer = next(part for name, part in tower.named_modules() if name.endswith("layers.0"))
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    tower.train()
    assert not torch.equal(tower(images_BCHW), tower(images_BCHW))
    assert seen == [prefix + 8, prefix + 8]  # of 16 patches


@pytest.mark.parametrize("name", ["test_resnet", "swin_tiny_patch4_window7_224", "samvit_base_patch16"])
def test_patches_are_left_out_of_plain_transformers_alone(name: str) -> None:
    said = r"task\.vision\.patch_dropout is 0\.5, but this tower \(\w+\) is not known to read patches one by one"
    with pytest.raises(ConfigError, match=said):
        tune(empty(name), VisionConfig(patch_dropout=0.5), key="task.vision")


# -- Gradient checkpointing ---------------------------------------------------------------------------------------


def step(module: Whole) -> tuple[dict[str, Tensor], int]:
    """The gradients of a training step, and the bytes that it keeps for them."""
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += 0 if isinstance(tensor, nn.Parameter) else tensor.nbytes
        return tensor

    torch.manual_seed(3)
    module.train().zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = module().square().sum()
    loss.backward()
    return {name: part.grad for name, part in module.named_parameters() if part.grad is not None}, kept


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "open_clip", "bert", "modernbert"])
def test_gradients_are_the_same_with_less_kept(name: str, tmp_path: Path) -> None:
    """BERT has dropout, whose draws must be the same in the second computation."""
    expected, all_bytes = step(whole(name, tmp_path))
    found, kept = step(tuned(name, tmp_path, gradient_checkpointing=True))
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-5, atol=1e-6, msg=key)
    assert kept < 0.5 * all_bytes


@pytest.mark.parametrize("name", ["test_vit", "bert"])
def test_adapters_learn_under_it(name: str, tmp_path: Path) -> None:
    gradients, _ = step(tuned(name, tmp_path, gradient_checkpointing=True, lora={"rank": 2}))
    assert gradients.keys() == set(adapters(tuned(name, tmp_path, lora={"rank": 2})))


def test_towers_that_cannot_compute_twice_are_refused(tmp_path: Path) -> None:
    where = r"task\.vision\.gradient_checkpointing: this tower"
    with pytest.raises(ConfigError, match=rf"{where} \(ResNet\) has BatchNorm.* would count every batch twice"):
        tune(empty("test_resnet"), VisionConfig(gradient_checkpointing=True), key="task.vision")
    with pytest.raises(ConfigError, match=rf"{where} \(VGG\) cannot compute its blocks again"):
        tune(empty("vgg11"), VisionConfig(gradient_checkpointing=True), key="task.vision")
    bert = whole("bert", tmp_path)
    bert.tower.model.supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match=r"task\.text\.gradient_checkpointing: this tower \(BertModel\) cannot"):
        tune(bert.tower, TextConfig(gradient_checkpointing=True), key="task.text")


@pytest.mark.parametrize("option", [{"patch_dropout": 0.5}, {"gradient_checkpointing": True}])
def test_a_frozen_tower_takes_no_settings_of_learning(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(ValidationError, match=f"{name} is for towers that learn, and freeze.kind is tower"):
        VisionConfig.model_validate({"freeze": {"kind": "tower"}, **option})
    assert VisionConfig.model_validate({"freeze": {"warmup_epochs": 2}, **option}).freeze.warmup_epochs == 2
