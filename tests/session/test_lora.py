"""Trainings of adapters: what learns, what is saved, that a stopped one goes on, and bundles that need no peft."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import consilium
from consilium.core.errors import ConfigError, TrainingError
from consilium.experiment import Experiment
from consilium.models.config import VisionConfig
from consilium.models.vision import build_vision
from consilium.session import train
from consilium.training.state import FROZEN, saved_weights
from tests.models.texts import write_encoder
from tests.policy.source import REPOSITORY
from tests.session.test_loop import by_one_and_by_two
from tests.tasks.test_align_contract import experiment_of, square, train_pairs
from tests.tiny import Recorder, Run, TrainTiny, assert_close, same

BOTH = ["task.vision.lora={rank: 4}", "task.text.lora={rank: 2, alpha: 4, dropout: 0.1}"]
TINY = ["task.vision.name=test_vit", "task.vision.lora={rank: 4, last_blocks: 3}"]


def pairs(folder: Path, *overrides: str, resume: bool = False) -> Run:
    return train_pairs(folder, *BOTH, *overrides, resume=resume)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return pairs(tmp_path_factory.mktemp("lora"))


def frozen(run: Run) -> dict[str, Tensor]:
    """The tensors that never change, by the names of the plain model."""
    saved = load_file(run.folder / "checkpoints" / FROZEN)
    return {name.replace(".base_layer.", "."): tensor for name, tensor in saved.items()}


def test_adapters_projections_and_temperature_learn_and_nothing_else(run: Run) -> None:
    base, weights = frozen(run), run.weights
    assert not any("lora" in name or "base_layer" in name for name in weights)
    assert not any(name.startswith(("vision.", "text.")) for name in weights.keys() - base.keys())
    (last,) = (run.folder / "checkpoints").glob("step-*")
    stepped = torch.load(last / "trainer.pt", weights_only=True)["optimizer"]["state"]
    assert len(stepped) == 2 * (12 + 8) + len(weights.keys() - base.keys()) == 43, "and two projections, a temperature"
    moved = {name for name in base if not torch.equal(base[name], weights[name])}
    ends = ("attn.qkv.weight", "attn.proj.weight", "self.query.weight", "self.key.weight", "self.value.weight")
    assert moved == {name for name in base if name.endswith((*ends, "attention.output.dense.weight"))}


def test_the_log_says_how_much_learns(run: Run) -> None:
    assert "LoRA: 12 adapters in vision; 9,216 of its" in run.log
    assert "LoRA: 8 adapters in text; 4,096 of its" in run.log
    assert "features of" not in run.log, "such a tower is not cached"


def test_a_bundle_needs_no_peft(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "peft", None)
    (answer,) = consilium.load(run.folder, device="cpu").predict([square("red")])
    assert np.linalg.norm(answer["image_embedding"]) == pytest.approx(1, abs=1e-5)


def test_the_saved_adapters_on_the_first_weights_are_the_bundle(run: Run) -> None:
    assert sorted(path.name for path in (run.folder / "adapters").iterdir()) == ["text", "vision"]
    tower = build_vision(VisionConfig(name="test_vit", pretrained=False), image_size=(32, 32))
    prefix = "vision.model."
    first = {name.removeprefix(prefix): tensor for name, tensor in frozen(run).items() if name.startswith(prefix)}
    tower.model.load_state_dict(first)
    merged = peft.PeftModel.from_pretrained(tower.model, str(run.folder / "adapters" / "vision")).merge_and_unload()
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, run.weights[prefix + name], rtol=1e-6, atol=1e-7, msg=name)


def test_checkpoints_hold_what_learns(run: Run) -> None:
    base = load_file(run.folder / "checkpoints" / FROZEN)
    for folder in (run.folder / "checkpoints").glob("*-*"):
        saved = load_file(folder / "model.safetensors")
        assert not saved.keys() & base.keys()
        assert sum(tensor.numel() for tensor in saved.values()) < 0.2 * sum(tensor.numel() for tensor in base.values())
        assert saved_weights(folder).keys() == saved.keys() | base.keys()


def test_a_stopped_training_goes_on_as_the_unbroken_one(run: Run, tmp_path: Path) -> None:
    for step in (1, 5):
        with pytest.raises(KeyboardInterrupt):
            train(experiment_of(tmp_path, *BOTH), resume=step > 1, reporter=Recorder(stop_at=step))
    resumed = pairs(tmp_path, resume=True)
    assert same(resumed.weights, run.weights)
    assert resumed.metrics == run.metrics
    for tower in ("vision", "text"):
        file = Path("adapters") / tower / "adapter_model.safetensors"
        assert same(load_file(resumed.folder / file), load_file(run.folder / file))


def test_a_training_may_begin_with_the_bundle_of_another(run: Run, tmp_path: Path) -> None:
    """Merged weights are the base of new adapters; a checkpoint brings its own."""
    on = pairs(tmp_path, f"trainer.init_from={run.folder}")
    assert same(frozen(on), {name: run.weights[name] for name in frozen(on)})
    best = run.folder / "checkpoints" / f"best-{run.checkpoints('best')[0]:08d}" / "model.safetensors"
    again = pairs(tmp_path / "again", f"trainer.init_from={best}")
    assert same(frozen(again), frozen(run))


def test_one_tower_may_have_adapters_and_the_other_stay_frozen(tmp_path: Path) -> None:
    """The frozen one is cached, and both lie once beside the checkpoints."""
    experiment = experiment_of(tmp_path, BOTH[0], "task.text.freeze.kind=tower", "trainer.max_steps=3")
    reporter = Recorder()
    result = train(experiment, reporter=reporter)
    assert result is not None
    run = Run(result, reporter)
    base = frozen(run)
    assert base.keys() == {name for name in run.weights if name.startswith(("vision.", "text."))}
    assert same(base, {name: run.weights[name] for name in base}, prefix="text.")
    assert "features of the texts of" in run.log
    assert [path.name for path in (run.folder / "adapters").iterdir()] == ["vision"]


def test_a_classifier_has_adapters_too(tiny: TrainTiny) -> None:
    run = tiny(*TINY)
    base = frozen(run)
    assert {name.split(".")[3] for name in base if not torch.equal(base[name], run.weights[name])} == {"3", "4", "5"}
    assert "LoRA: 6 adapters in tower" in run.log
    assert (run.folder / "adapters" / "tower" / "adapter_config.json").is_file()


def test_adapters_that_could_not_learn_end_in_an_error(tiny: TrainTiny, tmp_path: Path) -> None:
    warm = "task.vision.freeze.warmup_epochs=1"
    with pytest.raises(TrainingError, match=r"LoRA: 6 adapters \(tower\.model\.blocks.* never moved.* freeze\.warmup"):
        tiny(*TINY, warm)
    assert not list((tmp_path / "runs").rglob("bundle.json"))
    late = tiny(*TINY, warm, "trainer.max_epochs=2", "trainer.max_steps=4")
    assert late.manifest["task"]["vision"]["freeze"]["warmup_epochs"] == 1


def test_adapters_that_do_nothing_stop_before_step_one(tiny: TrainTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def passed_by(self: peft.tuners.lora.Linear, features: Tensor) -> Tensor:
        found: Tensor = self.base_layer(features)
        return found

    monkeypatch.setattr(peft.tuners.lora.Linear, "forward", passed_by)
    with pytest.raises(ConfigError, match=r"no gradient reaches 6 adapters \(tower\.model\.blocks\.3\.attn\.qkv"):
        tiny(*TINY)


@pytest.mark.slow  # two processes that load everything
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    own = [
        f"task.text={{name: {encoder}, context_length: 16, lora: {{rank: 2}}}}",
        "task.vision.lora={rank: 4}",
        "data.loader={batch_size: 12, workers: 0, drop_last: false}",
        "optimizer={kind: sgd, learning_rate: 0.05, momentum: 0.9}",
        "trainer.clip_norm=1.0",
    ]
    one, two = by_one_and_by_two(experiment_of, tmp_path, *own)
    for tower in ("vision", "text"):
        file = Path("adapters") / tower / "adapter_model.safetensors"
        assert_close(load_file(two / file), load_file(one / file))


def two_steps(folder: Path, *, image_size: int, **towers: str) -> Run:
    """The recipe on captioned squares, with towers that lie here."""
    own = experiment_of(folder)
    overrides = [
        f"data.sources={json.dumps([source.model_dump(mode='json') for source in own.data.sources])}",
        f"data.store.root={own.data.store.root}",
        f"output.root={own.output.root}",
        *(f"task.{key}={value}" for key, value in towers.items()),
        f"data.image.size=[{image_size}, {image_size}]",
        "data.loader={batch_size: 8, workers: 0, drop_last: true}",
        "trainer={max_steps: 2, device: cpu, validate_every: 100}",
        "schedule.warmup=0",
    ]
    reporter = Recorder()
    result = train(Experiment.load(REPOSITORY / "recipes" / "lora.yaml", overrides=overrides), reporter=reporter)
    assert result is not None
    return Run(result, reporter)


def test_the_recipe_takes_two_steps(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    vit = build_vision(VisionConfig(name="test_vit", pretrained=False), image_size=(32, 32))
    save_file(vit.model.state_dict(), tmp_path / "vit.safetensors")
    towers = {
        "vision.name": "test_vit",
        "vision.pretrained": str(tmp_path / "vit.safetensors"),
        "text.name": str(encoder),
        "text.context_length": "32",
    }
    run = two_steps(tmp_path, image_size=32, **towers)
    first = {f"vision.model.{name}": tensor for name, tensor in vit.model.state_dict().items()}
    assert all(torch.equal(frozen(run)[name], tensor) for name, tensor in first.items())
    assert not torch.equal(run.weights[name := "vision.model.blocks.0.attn.qkv.weight"], first[name])


@pytest.mark.slow  # two towers of full size
def test_the_recipe_takes_two_steps_at_full_size(tmp_path: Path) -> None:
    size = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    encoder = write_encoder(tmp_path / "encoder", max_position_embeddings=512, **size)
    run = two_steps(
        tmp_path,
        image_size=224,
        **{"vision.pretrained": "false", "text.name": str(encoder), "text.pretrained": "false"},
    )
    assert "LoRA: 24 adapters in vision; 442,368 of its" in run.log
    learning = run.folder / "checkpoints" / "step-00000002" / "model.safetensors"
    assert learning.stat().st_size < 0.03 * (run.folder / "model.safetensors").stat().st_size
