"""Image towers: shapes, pooling, blocks, sizes, and weights from the hub, files and folders."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from consilium.core.errors import ConfigError, WeightsError
from consilium.models.config import VisionConfig
from consilium.models.vision import SHORT_NAMES, VisionTower, build_vision

SMALL = ["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_050", "convnext_atto"]
MOBILE, VIT = "mobilenetv3_small_050", "vit_tiny_patch16_224"


def tower(name: str, *, size: tuple[int, int] = (64, 64), weights: bool = True, **options: Any) -> VisionTower:
    torch.manual_seed(0)
    config = VisionConfig(**{"name": name, "pretrained": False, **options})
    return build_vision(config, image_size=size, weights=weights)


def images(size: tuple[int, int] = (64, 64), cases: int = 2) -> Tensor:
    return torch.randn(cases, 3, *size, generator=torch.Generator().manual_seed(0))


# --- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_default_pooling_is_timm_s_own(name: str) -> None:
    built = tower(name).eval()
    with torch.no_grad():
        features_BF = built(images())
        maps = built.model.forward_features(images())
        expected_BF = built.model.forward_head(maps, pre_logits=True)
    assert features_BF.shape == (2, built.num_features)
    torch.testing.assert_close(features_BF, expected_BF)


@pytest.mark.parametrize("name", SMALL)
def test_pooling_is_over_the_parts_of_the_image(name: str) -> None:
    size = (64, 96)
    built = tower(name, size=size, pooling="concat").eval()
    with torch.no_grad():
        maps = built.model.forward_features(images(size))
        features_BF = built(images(size))
    tokens_BLF = maps[:, 1:] if maps.ndim == 3 else maps.flatten(2).transpose(1, 2)  # a ViT's first is no part
    torch.testing.assert_close(features_BF, torch.cat((tokens_BLF.mean(1), tokens_BLF.amax(1)), 1))
    assert built.num_features == 2 * tokens_BLF.shape[2]


def test_concat_is_avg_and_max_side_by_side() -> None:
    built = {pooling: tower(MOBILE, pooling=pooling).eval() for pooling in ("avg", "max", "concat")}
    with torch.no_grad():
        found = {pooling: one(images()) for pooling, one in built.items()}
    assert [one.num_features for one in built.values()] == [288, 288, 576]
    torch.testing.assert_close(found["concat"], torch.cat((found["avg"], found["max"]), 1))


def test_maps_with_channels_last_are_pooled_over_space() -> None:
    built = tower("swin_tiny_patch4_window7_224", pooling="avg").eval()
    with torch.no_grad():
        maps_BHWF = built.model.forward_features(images())
        torch.testing.assert_close(built(images()), maps_BHWF.mean((1, 2)))
    assert maps_BHWF.shape[1:] == (2, 2, built.num_features)


def test_pooling_is_refused_where_timm_does_not_say_what_is_image() -> None:
    with pytest.raises(ConfigError, match=r"pooling is 'avg', but timm does not say .* levit_128s .*; use default"):
        tower("levit_128s", pooling="avg")


@pytest.mark.parametrize("pooling", ["default", "concat"])
@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name: str, pooling: str) -> None:
    """A parameter without one would hang distributed training; the parts that a pooling bypasses are taken out."""
    built = tower(name, pooling=pooling)
    assert all(parameter.grad is None for parameter in built.parameters())
    built.train()(images()).square().sum().backward()
    assert [key for key, parameter in built.named_parameters() if parameter.grad is None] == []


def test_building_leaves_the_statistics_of_batch_norm_alone() -> None:
    for pooling in ("default", "concat"):
        built = tower("resnet18", pooling=pooling)
        norms = [module for module in built.modules() if isinstance(module, nn.BatchNorm2d)]
        assert norms
        assert all(norm.num_batches_tracked == 0 and norm.running_mean.eq(0).all() for norm in norms)
        assert all(module.training for module in built.modules())


# --- names, sizes, options -------------------------------------------------------------------------------------------


USUAL = [
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "densenet121", "vgg16"),
    *("efficientnet_b0", "efficientnet_b1", "efficientnet_b4", "vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32"),
]


@pytest.mark.parametrize("name", USUAL)
def test_usual_name_is_a_timm_model_with_pretrained_weights(name: str) -> None:
    cfg = timm.get_pretrained_cfg(SHORT_NAMES.get(name, name))
    assert cfg is not None
    assert cfg.hf_hub_id


@pytest.mark.slow
@pytest.mark.parametrize("name", USUAL)
def test_usual_model_of_full_size_gives_finite_features(name: str) -> None:
    built = tower(name, size=(224, 224)).eval()
    with torch.no_grad():
        features_BF = built(images((224, 224), cases=1))
    assert features_BF.shape == (1, built.num_features)
    assert torch.isfinite(features_BF).all()
    assert len(built.blocks()) >= 5


def test_short_name_builds_its_timm_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHORT_NAMES, "short", MOBILE)
    assert tower("short").model.pretrained_cfg["architecture"] == MOBILE


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet_50", "did you mean .*resnet50"),
        ("vit_b16", "did you mean .*vit_b_16"),
        ("zzzzzz", r"timm\.list_models\(\) lists them"),
        ("hf-hub:someone/model", "is not a timm model"),
        ("../resnet18", "is not a timm model"),
    ],
)
def test_unknown_name_is_refused_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tower(name)


def test_unknown_weights_tag_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"resnet18\.nosuchtag.* It has: a1_in1k, "):
        tower("resnet18.nosuchtag")


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        (VIT, (64, 72), "64 x 72 pixels .* not divisible by its patches of 16 x 16 pixels.* Its own size is 224 x 224"),
        ("convit_tiny", (96, 64), "96 x 64 pixels .* do not fit convit_tiny"),
    ],
)
def test_size_that_does_not_fit_is_refused_before_training(name: str, size: tuple[int, int], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        tower(name, size=size)


@pytest.mark.parametrize("name", ["resnet18", VIT])
def test_drop_path_drops_paths_in_training_only(name: str) -> None:
    built = tower(name, drop_path=0.5)
    same = images(cases=1).expand(8, -1, -1, -1)
    built.train()
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm starts each residual branch at 0
            module.eval()  # so that only drop path can tell the cases apart
    assert built(same).std(0).max() > 1e-3
    assert built.eval()(same).std(0).max() < 1e-5


@pytest.mark.parametrize("name", ["vgg11", "densenet121"])
def test_drop_path_is_refused_where_there_is_none(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} takes no task\.vision\.drop_path.*set it to 0"):
        tower(name, drop_path=0.1)


# --- blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "blocks", "first", "last"),
    [
        ("resnet18", 5, "conv1.weight", "layer4.1.conv2.weight"),
        (VIT, 13, "patch_embed.proj.weight", "norm.weight"),
        (MOBILE, 8, "conv_stem.weight", "conv_head.weight"),
        ("convnext_atto", 5, "stem.0.weight", "head.norm.weight"),
        ("convnext_atto", 5, "stem.0.weight", "stages.3.blocks.0.conv_dw.weight"),
    ],
)
def test_blocks_hold_every_parameter_once_from_input_to_output(name: str, blocks: int, first: str, last: str) -> None:
    built = tower(name)
    found = built.blocks()
    ids = [id(parameter) for block in found for parameter in block]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(parameter) for parameter in built.parameters()}
    assert len(found) == blocks
    named = dict(built.model.named_parameters())
    assert any(parameter is named[first] for parameter in found[0])
    assert any(parameter is named[last] for parameter in found[-1])


def test_unknown_blocks_are_refused_and_only_when_asked_for() -> None:
    built = tower("pit_ti_224", size=(224, 224))
    with pytest.raises(ConfigError, match=r"blocks of pit_ti_224; set freeze\.kind to none or tower"):
        built.blocks()


@pytest.mark.parametrize(
    ("name", "depths"),
    [
        (
            VIT,
            {
                "patch_embed.proj.weight": 12,
                "blocks.0.attn.qkv.weight": 11,
                "blocks.11.mlp.fc2.bias": 0,
                "norm.bias": 0,
            },
        ),
        ("resnet18", {"conv1.weight": 8, "layer1.0.conv1.weight": 7, "layer4.1.conv2.weight": 0}),
    ],
)
def test_depths_count_the_layers_above(name: str, depths: dict[str, int]) -> None:
    built = tower(name)
    found = built.depths()
    names = [name for name, _ in built.model.named_parameters()]
    assert set(found) == set(range(max(found) + 1))
    assert depths.items() <= dict(zip(names, found, strict=True)).items()


def test_layers_that_timm_does_not_know_have_no_depths() -> None:
    with pytest.raises(ConfigError, match=r"timm does not know the layers of pit_ti_224; leave layer_decay out"):
        tower("pit_ti_224", size=(224, 224)).depths()


# --- weights ---------------------------------------------------------------------------------------------------------


def whole_model(name: str, *, size: tuple[int, int] = (64, 64), classes: int = 1000) -> Any:
    """A timm model with its classifier, whose weights the tests save and load."""
    torch.manual_seed(1)
    options = {"img_size": size} if name == VIT else {}
    return timm.create_model(name, num_classes=classes, **options).eval()


def assert_same_features(built: VisionTower, source: Any) -> None:
    with torch.no_grad():
        expected = source.forward_head(source.forward_features(images()), pre_logits=True)
        torch.testing.assert_close(built.eval()(images()), expected)


def save_folder(folder: Path, source: nn.Module, *, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    save_file(source.state_dict(), folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("name", "suffix"), [(VIT, ".safetensors"), (MOBILE, ".safetensors"), (MOBILE, ".pt"), (MOBILE, ".pth")]
)
def test_weights_file_is_loaded_without_its_classifier(tmp_path: Path, name: str, suffix: str) -> None:
    source, path = whole_model(name, classes=7), tmp_path / f"w{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    built = tower(name, pretrained=str(path))
    assert_same_features(built, source)
    assert "state_dict" not in built.model.pretrained_cfg
    assert "state_dict" not in built.model.default_cfg


def test_weights_without_a_classifier_are_loaded(tmp_path: Path) -> None:
    source = whole_model(MOBILE, classes=0)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    assert_same_features(tower(MOBILE, pretrained=str(tmp_path / "w.safetensors")), source)


def test_hub_folder_is_loaded_with_what_its_config_says(tmp_path: Path) -> None:
    source = whole_model(MOBILE)
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 96, 128], "interpolation": "bilinear"}
    config = {
        "architecture": MOBILE,
        "num_classes": 1000,
        "pretrained_cfg": {**cfg, "tag": "mine", "num_classes": 1000},
    }
    snapshot = save_folder(tmp_path / "models--x" / "snapshots" / "1", source, config=config)
    blob = tmp_path / "models--x" / "3fa9"
    (snapshot / "model.safetensors").rename(blob)
    (snapshot / "model.safetensors").symlink_to(os.path.relpath(blob, snapshot))
    built = tower(MOBILE, pretrained=str(snapshot))
    assert_same_features(built, source)
    assert built.pretrained_input.mean == (0.1, 0.2, 0.3)
    assert built.pretrained_input.std == (0.4, 0.5, 0.6)
    assert built.pretrained_input.size == (96, 128)
    assert built.pretrained_input.interpolation == "bilinear"


def test_folder_with_a_torch_file_and_no_config_is_loaded(tmp_path: Path) -> None:
    source = whole_model(MOBILE)
    torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same_features(tower(MOBILE, pretrained=str(tmp_path)), source)


def test_other_poolings_load_the_same_weights(tmp_path: Path) -> None:
    source = whole_model(MOBILE)
    built = tower(MOBILE, pretrained=str(save_folder(tmp_path / "m", source)), pooling="avg").eval()
    with torch.no_grad():
        torch.testing.assert_close(built(images()), source.forward_features(images()).mean((2, 3)))


def test_what_the_pretrained_model_expects_is_known() -> None:
    expected = tower(VIT).pretrained_input
    assert (expected.mean, expected.std, expected.size) == ((0.5,) * 3, (0.5,) * 3, (224, 224))


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (64, 96)])
def test_position_embeddings_are_resampled_to_the_size_of_the_images(tmp_path: Path, size: tuple[int, int]) -> None:
    source = whole_model(VIT)
    built = tower(VIT, size=size, pretrained=str(save_folder(tmp_path / "m", source)))
    grid = [size[0] // 16, size[1] // 16]
    expected = resample_abs_pos_embed(source.pos_embed, grid, num_prefix_tokens=1)
    torch.testing.assert_close(built.model.pos_embed, expected)
    torch.testing.assert_close(built.model.blocks[3].mlp.fc1.weight, source.blocks[3].mlp.fc1.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.0.0.conv_pw.weight": None}, r'Missing key\(s\).*"blocks.0.0.conv_pw.weight"'),
        ({"surplus": torch.ones(1)}, r'Unexpected key\(s\).*"surplus"'),
        ({"conv_head.bias": torch.ones(5)}, r"size mismatch for conv_head.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    folder = save_folder(tmp_path / "m", whole_model(MOBILE))
    state = load_file(folder / "model.safetensors")
    key = next(iter(change))
    changed = {name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}
    assert key == "surplus" or key in state
    save_file(changed, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=rf"model\.safetensors do not fit {MOBILE}: .*{message}"):
        tower(MOBILE, pretrained=str(folder))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "m", whole_model(MOBILE), config={"architecture": "mobilenetv3_small_075"})
    with pytest.raises(WeightsError, match=rf"are of mobilenetv3_small_075, but task\.vision\.name is {MOBILE}"):
        tower(MOBILE, pretrained=str(folder))
    with pytest.raises(WeightsError, match="do not fit resnet18"):
        tower("resnet18", pretrained=str(folder / "model.safetensors"))


def test_bad_config_is_still_a_config_error_when_weights_are_given(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "m", whole_model(VIT))
    with pytest.raises(ConfigError, match="not divisible by its patches"):
        tower(VIT, size=(72, 72), pretrained=str(folder))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "does not exist; give a weights file or folder"),
        ({}, r"holds no weights; expected model\.safetensors or pytorch_model\.bin"),
        ({"model.safetensors": "x", "config.json": "{"}, r"config\.json is not the config of a timm model"),
        ({"model.safetensors": "x", "config.json": "[]"}, r"config\.json is not the config of a timm model"),
        ({"model.safetensors": "x"}, "is damaged or not a weights file"),
    ],
)
def test_folder_that_is_none_is_refused(tmp_path: Path, files: dict[str, str] | None, message: str) -> None:
    folder = tmp_path / "m"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    with pytest.raises(WeightsError, match=message):
        tower(MOBILE, pretrained=str(folder))


def test_without_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))  # no weights of this machine's user
    with pytest.raises(WeightsError, match=r"local weights file or folder, or to false") as caught:
        tower(MOBILE, pretrained=True)
    assert MOBILE in str(caught.value)
    with pytest.raises(ConfigError, match="not divisible"):
        tower(VIT, size=(72, 72), pretrained=True)


def test_pretrained_true_takes_the_weights_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network: from the hub client's cache."""
    source, hub_id = whole_model(MOBILE), timm.get_pretrained_cfg(MOBILE).hf_hub_id
    repository = tmp_path / f"models--{hub_id.replace('/', '--')}"
    save_folder(repository / "snapshots" / "1a2b", source)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1a2b")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert_same_features(tower(MOBILE, pretrained=True), source)


def test_bundle_needs_no_pretrained_weights() -> None:
    for pretrained in (True, "no/such/folder"):
        assert tower(MOBILE, pretrained=pretrained, weights=False).num_features == 1024
