"""Towers, their weights, pooling, heads and freezing: each option trains, and does what its name says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from consilium.core.errors import ConfigError, WeightsError
from tests.tiny import Run, TrainTiny, changed, same

TOWER = "tower.model."
FROZEN = "task.vision.freeze.kind=tower"


def tower(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tower's tensors, by timm's names."""
    return {name.removeprefix(TOWER): tensor for name, tensor in weights.items() if name.startswith(TOWER)}


# -- Towers -------------------------------------------------------------------------------------------------------

# Short names of torchvision and their numbers of features there.
FEATURES = {
    "resnet18": 512,
    "resnet34": 512,
    "resnet50": 2048,
    "resnet101": 2048,
    "resnet152": 2048,
    "densenet121": 1024,
    "efficientnet_b0": 1280,
    "efficientnet_b1": 1280,
    "efficientnet_b4": 1792,
    "vgg16": 4096,
    "vit_b_16": 768,
    "vit_b_32": 768,
    "vit_l_16": 1024,
    "vit_l_32": 1024,
}
FAST = ["resnet18", "densenet121", "efficientnet_b0", "efficientnet_b1"]


def check_tower(tiny: TrainTiny, name: str) -> None:
    size = 224 if name == "vit_b_16" else 64
    # Plain SGD keeps no second copy of a large tower.
    light = ["optimizer={kind: sgd, momentum: 0}", "data.loader.batch_size=2", f"data.image.size=[{size}, {size}]"]
    run = tiny(f"task.vision.name={name}", *light, limit=4)
    assert len(run.steps("train_loss")) == 2
    assert run.weights["head.1.weight"].shape == (3, FEATURES[name])
    shutil.rmtree(run.folder)  # gigabytes


@pytest.mark.parametrize("name", FAST)
def test_common_towers_train_by_their_short_names(tiny: TrainTiny, name: str) -> None:
    check_tower(tiny, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FEATURES if name not in FAST])
def test_large_towers_train_by_their_short_names(tiny: TrainTiny, name: str) -> None:
    check_tower(tiny, name)


def test_any_timm_model_trains_by_its_name(tiny: TrainTiny) -> None:
    run = tiny("task.vision.name=mobilenetv3_small_050")
    assert len(run.steps("train_loss")) == 2
    assert "conv_stem.weight" in tower(run.weights)


def test_drop_path_drops_paths(tiny: TrainTiny) -> None:
    plain, dropping = (tiny("task.vision.name=test_convnext", f"task.vision.drop_path={rate}") for rate in (0.0, 0.5))
    assert not same(plain.weights, dropping.weights)


# -- Weights of a tower -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tower_state(tiny_run: Run) -> dict[str, Tensor]:
    """Weights of the tiny tower with a classifier of five classes, as a model zoo has them."""
    return {**tower(tiny_run.weights), "fc.weight": torch.ones(5, 96), "fc.bias": torch.ones(5)}


def assert_starts_from(run: Run, state: dict[str, Tensor]) -> None:
    """The run's tower, which was frozen, is the given one."""
    assert same(tower(run.weights), {name: tensor for name, tensor in state.items() if not name.startswith("fc.")})


def test_random_weights_depend_on_the_seed_alone(tiny: TrainTiny) -> None:
    first, again, other = (tiny(FROZEN, f"seed={seed}") for seed in (1, 1, 2))
    assert same(first.weights, again.weights)
    assert not same(tower(first.weights), tower(other.weights))


def test_pretrained_weights_from_a_local_file(tiny: TrainTiny, tower_state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(tower_state, tmp_path / "zoo.safetensors")
    torch.save({"state_dict": tower_state}, tmp_path / "zoo.pt")
    for name in ("zoo.safetensors", "zoo.pt"):
        assert_starts_from(tiny(FROZEN, f"task.vision.pretrained={tmp_path / name}", "seed=5"), tower_state)
    learned = tiny(f"task.vision.pretrained={tmp_path / 'zoo.pt'}", "seed=5")
    assert "conv1.0.weight" in changed(tower(tiny(FROZEN, "seed=5").weights), tower(learned.weights))


def test_pretrained_weights_from_a_local_folder(
    tiny: TrainTiny, tower_state: dict[str, Tensor], tmp_path: Path
) -> None:
    described = {"architecture": "test_resnet", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "config.json").write_text(json.dumps(described), encoding="utf-8")
    save_file(tower_state, tmp_path / "zoo" / "model.safetensors")
    pretrained = f"task.vision.pretrained={tmp_path / 'zoo'}"
    run = tiny(FROZEN, pretrained, "seed=5")
    assert_starts_from(run, tower_state)
    assert any("the pretrained tower expects mean (0.1, 0.2, 0.3)" in line for line in run.reporter.lines)
    assert tiny(FROZEN, pretrained, "data.image.statistics=model").manifest["image"]["mean"] == [0.1, 0.2, 0.3]


def test_pretrained_true_takes_the_weights_of_the_hub(
    tiny: TrainTiny, tower_state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"cannot be had from the hub[\s\S]*set task.vision.pretrained to a local"):
        tiny(FROZEN, "task.vision.pretrained=true")
    assert not list((tmp_path / "runs").rglob("bundle.json"))
    repository = tmp_path / "models--timm--test_resnet.r160_in1k"  # downloaded before
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    classifier = {"fc.weight": torch.ones(1000, 96), "fc.bias": torch.ones(1000)}
    save_file({**tower_state, **classifier}, snapshot / "model.safetensors")
    assert_starts_from(tiny(FROZEN, "task.vision.pretrained=true", "seed=5"), tower_state)


# -- Weights of everything ----------------------------------------------------------------------------------------


def test_a_run_starts_from_a_bundle_or_a_file(tiny: TrainTiny, tiny_run: Run) -> None:
    still = "optimizer.learning_rate=1e-12"  # what was loaded is what is left, but for statistics
    for origin in (tiny_run.folder, tiny_run.folder / "model.safetensors"):
        run = tiny(FROZEN, still, f"trainer.init_from={origin}", "seed=5")
        assert same(tower(run.weights), tower(tiny_run.weights))
        torch.testing.assert_close(run.weights["head.1.weight"], tiny_run.weights["head.1.weight"])


@pytest.mark.parametrize("change", ["missing", "other tower", "more classes", "damaged"])
def test_weights_that_do_not_fit_are_an_error_and_never_a_start_from_scratch(
    tiny: TrainTiny, tiny_run: Run, tmp_path: Path, change: str
) -> None:
    origin = tmp_path / "start.safetensors"
    state = dict(tiny_run.weights)
    if change == "other tower":
        state["tower.model.other.weight"] = state.pop("tower.model.conv1.0.weight")
    if change == "more classes":
        state["head.1.weight"], state["head.1.bias"] = torch.ones(4, 96), torch.ones(4)
    if change != "missing":
        save_file(state, origin)
    if change == "damaged":
        origin.write_bytes(origin.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=origin.name):
        tiny(f"trainer.init_from={origin}")
    assert not list((tmp_path / "runs").rglob("bundle.json"))


# -- Pooling and heads --------------------------------------------------------------------------------------------


def test_pooling(tiny: TrainTiny) -> None:
    default, average, maximum, both = (
        tiny(f"task.vision.pooling={pooling}", "data.image.size=[64, 64]")  # 2 x 2 feature maps
        for pooling in ("default", "avg", "max", "concat")
    )
    features = default.weights["head.1.weight"].shape[1]
    torch.testing.assert_close(average.weights, default.weights)  # the pooling of a ResNet is the average
    assert not same(maximum.weights, default.weights)
    assert both.weights["head.1.weight"].shape[1] == 2 * features
    assert default.metrics != maximum.metrics


def test_heads(tiny: TrainTiny) -> None:
    activations = ("relu", "gelu", "silu", "tanh")
    runs = [tiny(f"task.head={{kind: mlp, hidden_sizes: [8, 4], activation: {name}}}") for name in activations]
    for run in runs:
        shapes = [list(tensor.shape) for name, tensor in run.weights.items() if name.startswith("head.")]
        assert sorted(shapes) == sorted([[8, 96], [8], [4, 8], [4], [3, 4], [3]])
    assert len({run.weights["head.0.weight"].sum().item() for run in runs}) == len(activations)


@pytest.mark.parametrize("head", ["{kind: linear, dropout: %s}", "{kind: mlp, hidden_sizes: [8], dropout: %s}"])
def test_dropout_of_heads(tiny: TrainTiny, head: str) -> None:
    none, some = (tiny(f"task.head={head % rate}") for rate in (0.0, 0.5))
    assert not same(none.weights, some.weights)


# -- Freezing -----------------------------------------------------------------------------------------------------


def run_from(tiny: TrainTiny, start: Run, *overrides: str) -> set[str]:
    """The names of what a training changed, parameters and statistics."""
    return changed(start.weights, tiny(f"trainer.init_from={start.folder}", *overrides).weights)


def test_nothing_is_frozen_unless_asked_for(tiny: TrainTiny, tiny_run: Run) -> None:
    assert run_from(tiny, tiny_run) == set(tiny_run.weights)


def test_a_frozen_tower_keeps_parameters_and_statistics(tiny: TrainTiny, tiny_run: Run) -> None:
    assert run_from(tiny, tiny_run, FROZEN) == {"head.1.weight", "head.1.bias"}


def test_the_last_blocks_learn_and_the_others_keep_parameters_and_statistics(tiny: TrainTiny, tiny_run: Run) -> None:
    freeze = "task.vision.freeze={kind: all_but_last_blocks, blocks: 2}"
    learning = {name for name in tiny_run.weights if name.startswith((f"{TOWER}layer3.", f"{TOWER}layer4.", "head."))}
    assert len(learning) > 20
    assert run_from(tiny, tiny_run, freeze) == learning


def test_the_tower_is_frozen_in_the_warmup_epochs_only(tiny: TrainTiny, tiny_run: Run) -> None:
    freeze = "task.vision.freeze.warmup_epochs=1"
    epoch = ["trainer.max_steps=3", "trainer.validate_every=100"]
    assert run_from(tiny, tiny_run, freeze, *epoch) == {"head.1.weight", "head.1.bias"}
    step = ["trainer.max_steps=4", "trainer.max_epochs=2", "trainer.validate_every=100"]
    assert run_from(tiny, tiny_run, freeze, *step) == set(tiny_run.weights)


def test_blocks_begin_to_learn_one_epoch_after_the_other_from_the_top(tiny: TrainTiny, tiny_run: Run) -> None:
    freeze, trainer = "task.vision.freeze.unfreeze_every=1", ["trainer.max_epochs=3", "trainer.validate_every=100"]
    begun = []
    for epochs in (1, 2, 3):
        names = run_from(tiny, tiny_run, freeze, *trainer, f"trainer.max_steps={3 * epochs}")
        begun.append({name.removeprefix(TOWER).partition(".")[0] for name in names} - {"head"})
    assert begun == [{"layer4"}, {"layer3", "layer4"}, {"layer2", "layer3", "layer4"}]


def test_more_blocks_than_the_tower_has_are_refused(tiny: TrainTiny) -> None:
    with pytest.raises(ConfigError, match=r"freeze.blocks is 99, but the tower has \d+ blocks"):
        tiny("task.vision.freeze={kind: all_but_last_blocks, blocks: 99}")


# -- What the manifest says ---------------------------------------------------------------------------------------


def test_the_bundle_remembers_what_it_was_built_from(tiny: TrainTiny) -> None:
    run = tiny("task.vision.pooling=concat", "task.head={kind: mlp, hidden_sizes: [8]}", "task.loss.kind=focal")
    task = run.manifest["task"]
    assert task["vision"]["pooling"] == "concat"
    assert task["head"]["hidden_sizes"] == [8]
    assert task["loss"]["kind"] == "focal"
    assert load_file(run.folder / "model.safetensors").keys() == run.weights.keys()


def test_weights_of_a_tower_alone_start_no_training_and_say_where_they_belong(tiny: TrainTiny, tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    state = {f"model.{name}": tensor for name, tensor in timm.create_model("test_resnet").state_dict().items()}
    torch.save({"state_dict": state}, file)
    with pytest.raises(WeightsError, match=r"nothing, but all below `model\.`: .* belong to task\.vision\.pretrained"):
        tiny(f"trainer.init_from={file}")
    assert "w.pt: the weights below `state_dict.model.` are used" in tiny(f"task.vision.pretrained={file}").log
