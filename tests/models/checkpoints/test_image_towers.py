"""Image towers of open_clip, of transformers and of bundles, for any task that sees images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from consilium.core.errors import ConfigError, WeightsError
from consilium.models.config import FreezeConfig, VisionConfig
from consilium.models.vision import VisionTower, build_vision
from consilium.models.weights import freeze_tower
from tests.models.checkpoints.writers import clip_hf, clip_open, shaken, siglip_hf

TINY: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 16,
}  # fmt: skip
CONVOLUTIONS = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}


def tower(name: Path, *, kind: str = "hf", size: tuple[int, int] = (32, 32), **options: Any) -> VisionTower:
    return build_vision(VisionConfig(kind=kind, name=str(name), **options), image_size=size).eval()  # type: ignore[arg-type]


def write_model(folder: Path, config: Any, **options: Any) -> Any:
    model = shaken(transformers.AutoModel.from_config(config, **options))
    model.save_pretrained(folder)
    return model


def features(model: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(images)
    return found


IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("config", "read"),
    [
        (transformers.ViTConfig(**TINY), lambda found: found.pooler_output),
        (transformers.Dinov2Config(**TINY), lambda found: found.pooler_output),
        (transformers.CLIPVisionConfig(**TINY), lambda found: found.pooler_output),
        (transformers.SiglipVisionConfig(**TINY), lambda found: found.pooler_output),
        (transformers.ResNetConfig(**CONVOLUTIONS), lambda found: found.pooler_output.flatten(1)),
    ],
    ids=["vit", "dinov2", "clip", "siglip", "resnet"],
)
def test_models_of_images_alone(config: Any, read: Any, tmp_path: Path) -> None:
    model = write_model(tmp_path, config)
    with torch.no_grad():
        expected = read(model(pixel_values=IMAGES))
    found = tower(tmp_path)
    torch.testing.assert_close(features(found, IMAGES), expected, rtol=0, atol=1e-5)
    again = build_vision(
        VisionConfig(kind="hf", name="gone"), image_size=(32, 32), weights=False, layout=found.layout
    ).eval()
    again.load_state_dict(found.state_dict())
    assert torch.equal(features(again, IMAGES), features(found, IMAGES))
    assert {parameter.grad is None for parameter in found.parameters()} == {True}
    found.train()
    found(IMAGES).sum().backward()
    assert all(parameter.grad is not None for parameter in found.parameters())


def test_a_pooling_that_was_never_trained_is_left_out(tmp_path: Path) -> None:
    """Trap 10: a ViT saved without its pooler gets a random one from the library."""
    model = write_model(tmp_path, transformers.ViTConfig(**TINY), add_pooling_layer=False)
    with torch.no_grad():
        expected = model(pixel_values=IMAGES).last_hidden_state[:, 0]
    found = tower(tmp_path)
    torch.testing.assert_close(features(found, IMAGES), expected, rtol=0, atol=1e-5)
    assert not any("pooler" in name for name in found.state_dict())


@pytest.mark.parametrize("pooling", ["avg", "max", "concat"])
def test_places_are_pooled_without_class_tokens(pooling: str, tmp_path: Path) -> None:
    model = write_model(tmp_path, transformers.Dinov2WithRegistersConfig(**TINY, num_register_tokens=4))
    with torch.no_grad():
        places = model(pixel_values=IMAGES).last_hidden_state[:, 5:]
    expected = {"avg": places.mean(1), "max": places.amax(1)}
    expected["concat"] = torch.cat((expected["avg"], expected["max"]), 1)
    torch.testing.assert_close(features(tower(tmp_path, pooling=pooling), IMAGES), expected[pooling], rtol=0, atol=1e-5)


def test_the_image_tower_of_a_whole_model_ends_before_its_projection(tmp_path: Path) -> None:
    written = clip_open(tmp_path / "open")
    found = tower(written.folder, kind="open_clip")
    state = load_file(written.folder / "open_clip_model.safetensors")
    with torch.no_grad():
        expected = written.images(IMAGES)
    torch.testing.assert_close(features(found, IMAGES) @ state["visual.proj"], expected, rtol=0, atol=1e-5)
    assert found.pretrained_input.mean == (0.4, 0.5, 0.6)
    siglip = siglip_hf(tmp_path / "siglip")
    with torch.no_grad():
        expected = siglip.images(IMAGES)
    torch.testing.assert_close(features(tower(siglip.folder), IMAGES), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["hf", "open_clip"])
def test_positions_are_interpolated_for_another_size(kind: str, tmp_path: Path) -> None:
    written = (clip_hf if kind == "hf" else clip_open)(tmp_path / kind)
    larger = tower(written.folder, kind=kind, size=(64, 48))
    assert features(larger, torch.zeros(2, 3, 64, 48)).shape == (2, 32)
    with pytest.raises(ConfigError, match=r"images of 40 x 40 pixels \(data.image.size\) do not fit"):
        tower(written.folder, kind=kind, size=(40, 40))


@pytest.mark.parametrize("kind", ["hf", "open_clip"])
def test_its_last_blocks_may_learn_alone(kind: str, tmp_path: Path) -> None:
    found = tower((clip_hf if kind == "hf" else clip_open)(tmp_path / kind).folder, kind=kind)
    freeze_tower(found, FreezeConfig(kind="all_but_last_blocks", blocks=1), epoch=0)
    learning = {name for name, parameter in found.named_parameters() if parameter.requires_grad}
    assert any(".1." in name for name in learning)
    assert not any(".0." in name or "embed" in name for name in learning)
    assert max(found.depths()) >= 2


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    bert = transformers.BertConfig(**{**TINY, "vocab_size": 64})
    write_model(tmp_path / "bert", bert)
    with pytest.raises((ConfigError, WeightsError), match=r"bert"):
        tower(tmp_path / "bert")
    model = write_model(tmp_path / "vit", transformers.ViTConfig(**TINY))
    with pytest.raises(ConfigError, match=r"drop_path is 0.1, but towers of transformers take none"):
        tower(tmp_path / "vit", drop_path=0.1)
    with pytest.raises(ConfigError, match=r"pretrained is x.pt, but the weights of a model of images alone lie in"):
        tower(tmp_path / "vit", pretrained="x.pt")
    state = {name: tensor for name, tensor in model.state_dict().items() if ".1." not in name}
    save_file(state, tmp_path / "vit" / "model.safetensors")
    with pytest.raises(WeightsError, match=r"lack \d+ tensors of the image tower: .*1.*of another model"):
        tower(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps({"image_mean": "grey"}), encoding="utf-8")
    with pytest.raises(WeightsError, match=r"preprocessor_config.json does not describe images"):
        tower(tmp_path / "vit")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"vision.name is .*empty, which is not a folder with a config.json"):
        tower(tmp_path / "empty")
