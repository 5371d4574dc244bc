"""``trainer.wise_ft``: the bundle lies between the weights that the training began with and those that it learned."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from consilium.core.errors import ConfigError, RunFolderError
from consilium.session import train
from consilium.training.config import TrainerConfig
from tests.session.tables import coloured_rows, write_table
from tests.tasks.test_align_contract import experiment_of
from tests.tiny import Recorder, Run, TrainTiny, assert_close, same, tiny_experiment, train_tiny

TOWER = [
    "task.vision.name=test_vit",
    "optimizer.learning_rate=0.01",
    "trainer.max_epochs=2",
    "trainer.max_steps=4",
    "trainer.save_every=0.34",
    "task.answers.calibrate=false",
]


@pytest.fixture(scope="module")
def weights(tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tower alone, from another training."""
    folder = tmp_path_factory.mktemp("start")
    run = train_tiny(tiny_images, folder / "runs", *TOWER, "task.vision.pretrained=false", "seed=5")
    own = {name.removeprefix("tower.model."): one for name, one in run.weights.items() if name.startswith("tower.")}
    save_file(own, folder / "tower.safetensors")
    return folder / "tower.safetensors"


@pytest.fixture(scope="module")
def start(weights: Path) -> list[str]:
    return [*TOWER, f"task.vision.pretrained={weights}"]


@pytest.fixture(scope="module")
def tuned(tiny_images: Path, start: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_tiny(tiny_images, tmp_path_factory.mktemp("tuned"), *start)


def mixture(start: Path, tuned: Run, alpha: float) -> dict[str, Any]:
    """By its definition: the tower averaged, the head as it was learned."""
    began = {f"tower.model.{name}": tensor for name, tensor in load_file(start).items()}
    return {
        name: (1 - alpha) * began[name] + alpha * tensor if name in began else tensor
        for name, tensor in tuned.weights.items()
    }


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_bundle_is_the_average_and_says_alpha(
    tiny: TrainTiny, start: list[str], weights: Path, tuned: Run, alpha: float
) -> None:
    run = tiny(*start, f"trainer.wise_ft={alpha}")
    assert_close(run.weights, mixture(weights, tuned, alpha))
    assert run.manifest["alpha"] == alpha
    assert tuned.manifest["alpha"] is None
    assert run.steps("train_loss") == tuned.steps("train_loss"), "the training is another's"
    assert same(run.weights, tuned.weights) == (alpha == 1.0)


def test_validation_chooses_among_alphas_and_the_report_shows_them(
    tiny: TrainTiny, start: list[str], weights: Path, tuned: Run
) -> None:
    run = tiny(*start, "trainer.wise_ft=[1, 0, 0.5]", "trainer.monitor=log_loss")
    with (run.folder / "tables" / "val_wise_ft.csv").open(encoding="utf-8") as file:
        curve = {float(row["alpha"]): float(row["log_loss"]) for row in csv.DictReader(file)}
    assert list(curve) == [0.0, 0.5, 1.0]
    best = min(curve, key=lambda alpha: curve[alpha])
    assert run.manifest["alpha"] == best
    assert run.metrics["val"]["log_loss"] == pytest.approx(curve[best], abs=1e-5)
    assert curve[1.0] == pytest.approx(tuned.metrics["val"]["log_loss"], abs=1e-5)
    assert_close(run.weights, mixture(weights, tuned, best))
    report = (run.folder / "report.html").read_text(encoding="utf-8")
    assert f"The bundle has those with alpha {best:g}, the best by log_loss" in report
    assert f"trainer.wise_ft: alpha {best:g} is the best on validation" in run.log


def test_a_resumed_run_goes_back_to_its_own_beginning(
    tiny_images: Path, start: list[str], weights: Path, tuned: Run, tmp_path: Path
) -> None:
    """Whatever became of the file of the weights."""
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    own = [*start[:-1], f"task.vision.pretrained={copy}", "trainer.wise_ft=0.5"]
    with pytest.raises(KeyboardInterrupt):
        train(tiny_experiment(tiny_images, tmp_path, *own), reporter=Recorder(stop_at=3))
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, copy)
    run = train_tiny(tiny_images, tmp_path, *own, resume=True)
    assert_close(run.weights, mixture(weights, tuned, 0.5))


def test_a_beginning_that_is_gone_is_said(tiny_images: Path, start: list[str], tmp_path: Path) -> None:
    own = [*start, "trainer.wise_ft=0.5"]
    with pytest.raises(KeyboardInterrupt):
        train(tiny_experiment(tiny_images, tmp_path, *own), reporter=Recorder(stop_at=3))
    (file,) = tmp_path.rglob("start.safetensors")
    file.unlink()
    with pytest.raises(RunFolderError, match=r"what the run began with cannot be had: .*Start a new run"):
        train_tiny(tiny_images, tmp_path, *own, resume=True)


def test_a_training_from_a_bundle_averages_all_that_learns(tiny: TrainTiny, start: list[str], tuned: Run) -> None:
    own = [*start, f"trainer.init_from={tuned.folder}", "seed=3"]
    further, run = tiny(*own), tiny(*own, "trainer.wise_ft=0.25")
    expected = {name: 0.75 * tuned.weights[name] + 0.25 * tensor for name, tensor in further.weights.items()}
    assert_close(run.weights, expected)


def test_it_averages_the_moving_average(tiny: TrainTiny, start: list[str], weights: Path) -> None:
    ema = [*start, "trainer.ema={decay: 0.5}"]
    assert_close(tiny(*ema, "trainer.wise_ft=0.5").weights, mixture(weights, tiny(*ema), 0.5))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["task.vision.pretrained=false"], "but here they are random"),
        (["task.vision.freeze.kind=tower"], r"those \(tower\) stay frozen, so that there is nothing to average"),
    ],
)
def test_what_cannot_be_averaged_is_refused(tiny: TrainTiny, start: list[str], overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        tiny(*start, *overrides, "trainer.wise_ft=0.5")


def test_statistics_of_batches_are_refused(tiny: TrainTiny, tiny_run: Run) -> None:
    own = [f"trainer.init_from={tiny_run.folder}", "trainer.wise_ft=0.5"]
    with pytest.raises(ConfigError, match=r"the model has BatchNorm that learns \(.*trainer\.ema, or leave it out"):
        tiny(*own)
    head = tiny(*own, "task.vision.freeze.kind=tower")  # its statistics stay
    assert head.manifest["alpha"] == 0.5


def test_alphas_are_shares(tmp_path: Path) -> None:
    assert TrainerConfig(wise_ft=[0.5, 0, 1, 0.5]).alphas == [0.0, 0.5, 1.0]
    assert TrainerConfig(wise_ft=0.0).alphas == [0.0]
    assert TrainerConfig().alphas == []
    for wrong in (1.5, -0.1, [], [2]):
        with pytest.raises(ValidationError):
            TrainerConfig(wise_ft=wrong)


def test_each_network_of_a_cascade_lies_between_its_own_start_and_end(start: list[str], tmp_path: Path) -> None:
    """With a moving average of its own, too."""
    labels = ["ct.chest", "ct.head", "xray"]
    table = write_table(tmp_path, coloured_rows(tmp_path, labels, {"train": 6, "val": 3, "test": 2}))
    own = [table, *start, "task.tree.head=cascade", "trainer.ema={decay: 0.5}", "trainer.wise_ft=[0, 1]"]
    run = train_tiny(tmp_path, tmp_path / "runs", *own)
    assert run.manifest["alpha"] is None, "it has no weights of its own"
    assert len(run.manifest["members"]) == 2
    for member in run.manifest["members"]:
        assert json.loads((run.folder / member / "bundle.json").read_text(encoding="utf-8"))["alpha"] in (0.0, 1.0)
        assert (run.folder / member / "tables" / "val_wise_ft.csv").is_file()


def test_a_router_that_grows_keeps_its_tower_and_has_nothing_to_average(
    tuned: Run, start: list[str], tmp_path: Path
) -> None:
    rows = coloured_rows(tmp_path, ["ct", "mri", "xray", "us"], {"train": 6, "val": 3, "test": 2})
    grown = [write_table(tmp_path, rows), *start, f"task.add_to={tuned.folder}"]
    with pytest.raises(ConfigError, match=r"trainer\.wise_ft averages .* learned stays as it is here"):
        train_tiny(tmp_path, tmp_path / "runs", *grown, "trainer.wise_ft=0.5")
    averaged = train_tiny(tmp_path, tmp_path / "runs", *grown, "trainer.ema={decay: 0.5}")
    assert same(averaged.weights, tuned.weights | averaged.weights, prefix="tower.")
    assert averaged.knowledge["labels"][-1] == "us"


def test_pairs_average_the_towers_that_were_pretrained(tmp_path: Path) -> None:
    first = train(experiment_of(tmp_path), reporter=Recorder())
    assert first is not None
    began = load_file(first.folder / "model.safetensors")
    tower = {name.removeprefix("vision.model."): one for name, one in began.items() if name.startswith("vision.")}
    save_file(tower, tmp_path / "tower.safetensors")
    own = [f"task.vision.pretrained={tmp_path / 'tower.safetensors'}", "trainer.max_epochs=1"]
    tuned, run = (
        train(experiment_of(tmp_path, *own, *more), reporter=Recorder()) for more in ([], ["trainer.wise_ft=0.5"])
    )
    assert tuned is not None
    assert run is not None
    learned, found = (load_file(result.folder / "model.safetensors") for result in (tuned, run))
    for name, tensor in found.items():
        half = name.startswith("vision.")
        expected = (began[name] + learned[name]) / 2 if half else learned[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-6, msg=name)
    assert json.loads((run.folder / "bundle.json").read_text())["alpha"] == 0.5
