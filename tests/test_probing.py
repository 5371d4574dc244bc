"""``consilium evaluate`` with ``probes``: what a frozen expert tells of labelled images, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from consilium.core.errors import ConfigError, ConsiliumError, DataError
from consilium.core.evaluation import Evaluation
from consilium.evaluating import evaluate
from tests.squares import write_squares
from tests.tasks.test_align_contract import COLOURS, train_pairs
from tests.tiny import Recorder, Run, TrainTiny

ALL = {
    "zero_shot": {"templates": ["A square that is {label}", "A square: {label}"]},
    "knn": 5,
    "linear": True,
    "few_shot": [1, 4],
    "few_shot_draws": 3,
}
Data = Callable[..., Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An expert of captioned squares that has learned the names of colours."""
    return train_pairs(tmp_path_factory.mktemp("expert"), "trainer.max_epochs=30", "trainer.monitor=log_loss")


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """Writes labelled squares, and the YAML file that probes them."""
    return partial(write_squares, tmp_path)


def judged(run: Run, data: Path, **options: Any) -> Evaluation:
    return evaluate(run.folder, data=data, out=data.parent / "out", device="cpu", **{"reporter": Recorder(), **options})


def notes(found: Evaluation) -> str:
    return "\n".join(row["note"] for row in found.tables.get("notes", []))


def test_a_frozen_expert_is_probed_on_labelled_images_without_texts(run: Run, data: Data) -> None:
    recorder = Recorder()
    path = data(ALL)
    found = judged(run, path, reporter=recorder)
    assert found.metrics["linear_accuracy"] == 1.0
    assert found.metrics["zero_shot_accuracy"] >= 0.5  # of four colours
    assert [row["probe"] for row in found.tables["probes"]] == ["zero_shot", "knn", "linear"]
    assert "retrieval" not in found.tables
    metrics = json.loads((path.parent / "out/metrics.json").read_text(encoding="utf-8"))["test"]
    assert metrics["metrics"]["knn_accuracy"] == found.metrics["knn_accuracy"]
    assert metrics["intervals"]["linear_accuracy"]["low"] < 1.0
    results = json.loads((path.parent / "out/evaluation_results.json").read_text(encoding="utf-8"))["test"]["probes"]
    assert set(results) == {"zero_shot", "knn", "linear", "few_shot"}
    assert results["linear"]["accuracy"]["value"] == 1.0 > results["linear"]["accuracy"]["low"]
    assert [row["label"] for row in results["knn"]["per_class"]] == sorted(COLOURS)
    tables = {file.name for file in (path.parent / "out/tables").iterdir()}
    assert {"test_probes.csv", "test_few_shot.csv", "test_zero_shot_per_class.csv", "test_prompts.csv"} <= tables
    page = (path.parent / "out/report.html").read_text(encoding="utf-8")
    assert "Asked by prompts alone (zero-shot) it named the right label in " in page
    assert "A square that is red | A square: red" in page
    assert any("probes of the frozen image tower" in line for line in recorder.lines)


def test_texts_are_judged_beside(run: Run, data: Data) -> None:
    found = judged(run, data({"knn": 3}, text=lambda name: f"A square that is {name}"))
    assert found.metrics["image_to_text_recall_at_1"] is not None
    assert found.metrics["knn_accuracy"] == 1.0
    assert {"retrieval", "probes", "knn_per_class"} <= set(found.tables)


def test_labels_that_training_knew_as_text_are_named(run: Run, data: Data, tmp_path: Path) -> None:
    """The captions of training say red, green, blue and yellow; of other words it knows nothing."""
    known = notes(judged(run, data({"zero_shot": {}})))
    assert "The texts that the expert was trained on name 4 of 4 labels" in known
    assert "zero-shot is not of labels that it never met" in known
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "name 4 of 4 labels" in page
    other = data({"zero_shot": {}}, labels=("crimson", "olive", "navy", "ochre"))
    assert "trained on" not in notes(judged(run, other))
    assert "trained on" not in notes(judged(run, data({"knn": 3})))


def test_several_labels_are_asked_against_their_negation(run: Run, data: Data) -> None:
    path = data(
        {"multi_label": True, "linear": True, "zero_shot": {"negative_prompts": {"red": ["A square that is blue"]}}},
        labels=("red|warm", "green", "blue", "yellow|warm"),
    )
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    tree["data"]["sources"][0]["columns"] = {"label_separator": "|"}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    found = judged(run, path)
    assert found.metrics["linear_macro_auroc"] == 1.0
    (red,) = [row for row in found.tables["prompts"] if row["label"] == "red"]
    assert red["against"] == "A square that is blue"
    assert {row["against"] for row in found.tables["prompts"] if row["label"] == "warm"} == {"no warm"}
    tree["probes"] = {"knn": 3}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    with pytest.raises(DataError, match=r"has 2 labels .*set probes.multi_label: true"):
        judged(run, path)


def test_features_of_the_tower_are_another_space(run: Run, data: Data) -> None:
    embedding = judged(run, data({"knn": 3, "linear": True}))
    tower = judged(run, data({"knn": 3, "linear": True, "features": "tower"}))
    assert embedding.metrics["linear_log_loss"] != tower.metrics["linear_log_loss"]


def test_the_expert_s_own_config_may_ask(run: Run, tmp_path: Path) -> None:
    """Probes in the config of the bundle are asked of its own data, which has no labels here."""
    import shutil

    bundle = Path(shutil.copytree(run.folder, tmp_path / "bundle"))
    tree = yaml.safe_load((bundle / "config.yaml").read_text(encoding="utf-8"))
    (bundle / "config.yaml").write_text(yaml.safe_dump({**tree, "probes": {"knn": 3}}), encoding="utf-8")
    with pytest.raises(DataError, match=r"probes need labels, and none of \d+ cases has one"):
        evaluate(bundle, device="cpu", reporter=Recorder())


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({"probes": {"zero_shot": {"templates": ["a square"]}}}, {}, r"'a square' has no \{label\}"),
        ({"probes": {"zero_shot": {"prompts": {"red": ["red"]}}}}, {}, "no phrase for blue, green, yellow"),
        ({"probes": {"knn": 3}, "labels": ("red", "red", "red", "red")}, {}, "all cases have one label"),
        ({"probes": {"zero_shot": {}, "knn": 3, "linear": True}, "splits": ("test", "val", "test")}, {}, "train split"),
        ({"probes": {"few_shot": [40]}}, {}, "asks for 40 training images of each class, and train has fewer of"),
        ({"probes": {"linear": True}}, {"split": "all"}, "probes.linear would be judged on the training cases"),
        ({"probes": {"linear": True}}, {"split": "train"}, "would be judged on the training cases"),
        ({"probes": {"knn": True, "lineer": True}}, {}, "did you mean `linear`"),
        ({"probes": {}}, {}, "nothing is asked"),
    ],
)
def test_what_cannot_be_probed_is_refused(
    run: Run, data: Data, given: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConsiliumError, match=message):
        judged(run, data(**given), **options)


def test_prompts_of_another_language_are_noticed(run: Run, data: Data) -> None:
    english, chinese = "A square that is {label}", "一个正方形 方块的颜色是 {label}"
    assert "does not know" not in notes(judged(run, data({"zero_shot": {"templates": [english]}})))
    found = judged(run, data({"zero_shot": {"templates": [chinese]}}))
    assert "% of the tokens of the prompts (the first: '一个正方形" in notes(found)


def test_a_classifier_has_no_space_to_probe(tiny: TrainTiny, data: Data) -> None:
    run = tiny()
    names = tuple(run.knowledge["labels"])
    with pytest.raises(ConfigError, match="they are for experts"):
        judged(run, data({"knn": 3}, labels=names))
