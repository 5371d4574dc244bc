"""``consilium forgetting``: the start against the end on other data, and the weights between them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from consilium.bundle import bundle_config
from consilium.core.config import build
from consilium.core.errors import ConfigError
from consilium.evaluating import evaluate
from consilium.experiment import Experiment
from consilium.predictor import Predictor
from consilium.session import train
from consilium.session.forgetting import OWN, Between, begun_with, forgetting
from tests.cli.conftest import Cli
from tests.models.checkpoints.writers import clip_open
from tests.squares import write_squares
from tests.tasks.test_align_contract import train_pairs
from tests.tasks.test_whole_models import experiment_of
from tests.tiny import Recorder

PROBES = {"zero_shot": {"templates": ["A square that is {label}"]}, "knn": 3}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pretrained model, the bundle that was trained from it, and other labelled data."""
    folder = tmp_path_factory.mktemp("forgetting")
    clip_open(folder / "model")
    result = train(experiment_of(folder, str(folder / "model")), reporter=Recorder())
    assert result is not None
    shutil.move(result.folder, folder / "bundle")
    (folder / "other").mkdir()
    write_squares(folder / "other", PROBES)
    return folder


def figures(folder: Path, data: str) -> dict[tuple[float, str], float]:
    with (folder / "forgetting.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["data"] == data and row["value"]]
    return {(float(row["alpha"]), row["figure"]): float(row["value"]) for row in rows}


def test_before_is_the_untouched_model_and_after_the_bundle(home: Path, tmp_path: Path) -> None:
    data = home / "other/squares.yaml"
    result = forgetting(home / "bundle", data=[data], out=tmp_path / "out", device="cpu", reporter=Recorder())
    tree = yaml.safe_load(data.read_text(encoding="utf-8"))
    model = {"kind": "align", "model": str(home / "model")}
    own = {"name": "as-it-came", "zero_shot": True, "task": model, "evaluation": {"bootstrap_samples": 20}}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({**own, **tree}), encoding="utf-8")
    ends = {
        0.0: evaluate(tmp_path / "model.yaml", out=tmp_path / "start", device="cpu", reporter=Recorder()),
        1.0: evaluate(home / "bundle", data=data, out=tmp_path / "end", device="cpu", reporter=Recorder()),
    }
    found = figures(result.folder, "squares")
    assert sorted({alpha for alpha, _ in found}) == [0.0, 0.25, 0.5, 0.75, 1.0]
    for alpha, evaluation in ends.items():
        for name, value in evaluation.metrics.items():
            if value is not None:
                assert found[alpha, name] == pytest.approx(value, abs=1e-4), (alpha, name)
    assert found[0.0, "zero_shot_log_loss"] != found[0.5, "zero_shot_log_loss"] != found[1.0, "zero_shot_log_loss"]
    (row,) = [row for row in result.rows["squares"] if row["figure"] == "zero_shot_balanced_accuracy"]
    assert row["difference"] == pytest.approx(row["after"] - row["before"])
    assert "mean_recall" in {row["figure"] for row in result.rows[OWN]}


def test_the_command_writes_a_page_and_leaves_the_bundle_as_it_is(home: Path, cli: Cli, tmp_path: Path) -> None:
    before = (home / "bundle/model.safetensors").read_bytes()
    answer = cli(
        "forgetting", home / "bundle", "--data", home / "other/squares.yaml", "--alpha", "0.3", "--out", tmp_path
    )
    assert answer.code == 0, answer.err
    assert "squares, alpha 0.3: zero_shot_balanced_accuracy" in answer.out
    page = (tmp_path / "forgetting.html").read_text(encoding="utf-8")
    assert "On squares (16 held-out test cases)" in page
    assert str(home / "model") in page
    assert json.loads((tmp_path / "forgetting.json").read_text(encoding="utf-8"))["alphas"] == [0.0, 0.3, 1.0]
    assert (home / "bundle/model.safetensors").read_bytes() == before


def test_a_start_that_is_gone_may_be_given(home: Path, tmp_path: Path) -> None:
    bundle, data = Path(shutil.copytree(home / "bundle", tmp_path / "bundle")), home / "other/squares.yaml"
    text = (bundle / "config.yaml").read_text(encoding="utf-8")
    (bundle / "config.yaml").write_text(text.replace(str(home / "model"), str(tmp_path / "gone")), encoding="utf-8")
    ask: Any = {"data": [data], "alphas": [0.5], "device": "cpu", "reporter": Recorder()}
    with pytest.raises(ConfigError, match=r"cannot be had: .*gone.* Give a bundle or a weights file of it"):
        forgetting(bundle, **ask)
    weights = load_file(home / "bundle/model.safetensors")
    save_file({name: tensor * 0.5 for name, tensor in weights.items()}, tmp_path / "start.safetensors")
    result = forgetting(bundle, **ask, start=tmp_path / "start.safetensors")
    assert (result.folder, result.rows.keys()) == (bundle / "forgetting", {"squares", OWN})
    same = forgetting(bundle, **ask, start=home / "bundle", out=tmp_path / "same")
    assert {row["difference"] for row in same.rows["squares"]} == {0.0}
    page = (same.folder / "forgetting.html").read_text(encoding="utf-8")
    assert "nothing of what was trained before has changed" in page


def test_random_parts_stay_and_a_random_start_is_refused(home: Path, tmp_path: Path) -> None:
    ask: Any = {"data": [home / "other/squares.yaml"], "alphas": [], "device": "cpu", "reporter": Recorder()}
    first = train_pairs(tmp_path / "first", "trainer.max_epochs=1", "seed=3")
    with pytest.raises(ConfigError, match="began with random weights, so that there is nothing"):
        forgetting(first.folder, **ask)
    own = {name: tensor for name, tensor in first.weights.items() if name.startswith("vision.model.")}
    tower = tmp_path / "tower.safetensors"
    save_file({name.removeprefix("vision.model."): tensor for name, tensor in own.items()}, tower)
    run = train_pairs(tmp_path / "second", "trainer.max_epochs=1", f"task.vision.pretrained={tower}")
    result = forgetting(run.folder, **ask)
    page = (result.folder / "forgetting.html").read_text(encoding="utf-8")
    assert "text, projection, temperature began with random weights" in page


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"alphas": [1.5]}, "an alpha is 1.5; expected numbers from 0"),
        ({"data": []}, "there is nothing to judge on"),
        ({"data": ["a/x.yaml", "b/x.yaml"]}, "two of the data are called 'x'"),
    ],
)
def test_what_cannot_be_asked_is_refused(home: Path, tmp_path: Path, ask: dict[str, Any], message: str) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(home / "other/squares.yaml", tmp_path / folder / "x.yaml")
    data = [tmp_path / name for name in ask.pop("data", ["a/x.yaml"])]
    with pytest.raises(ConfigError, match=message):
        forgetting(home / "bundle", data=data, device="cpu", reporter=Recorder(), **ask)


def test_weights_are_mixed_as_said_and_given_back(home: Path) -> None:
    predictor = Predictor.load(home / "bundle", device="cpu")
    own = {name: tensor.clone() for name, tensor in predictor.task.state_dict().items()}
    experiment = build(Experiment, bundle_config(home / "bundle"), origin="tests")
    began = begun_with(experiment, predictor, origin=None, folder=home)
    begun = began.task.state_dict()
    between = Between(predictor.task, began.task, groups=began.groups)
    between.take(0.25)
    for name, tensor in predictor.task.state_dict().items():
        torch.testing.assert_close(tensor, 0.75 * begun[name] + 0.25 * own[name], atol=1e-6, rtol=1e-5)
    between.take(1.0)
    assert all(torch.equal(tensor, own[name]) for name, tensor in predictor.task.state_dict().items())
