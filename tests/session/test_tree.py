"""A joint head over a label tree, from a table to a bundle: what it learns from, what it keeps, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import consilium
from consilium.core.config import to_yaml
from consilium.core.errors import ConfigError, DataError
from consilium.core.labels import LabelTree, paths_of
from consilium.evaluating import evaluate
from consilium.evaluation.labels.calibration import choose_thresholds, fit_temperatures
from consilium.experiment import Experiment
from consilium.predictor import Predictor, case_outputs
from consilium.session import train
from tests.conftest import coloured_image
from tests.labelled import load_labelled
from tests.session.tables import Row, coloured_rows, write_table
from tests.session.test_loop import torchrun
from tests.tiny import Recorder, Run, assert_close, same, tiny_experiment, train_tiny

LABELS = ["ct", "ct.chest", "ct.head", "mri.t1", "mri.t2", "xray"]  # the first stops at an inner node
NAMES = ("ct", "ct.chest", "ct.head", "mri", "mri.t1", "mri.t2", "xray")
YAML = "{xray: , mri: {t2: , t1: }, pet: [fdg, psma], ct: [head, chest]}"
JOINT = ["task.tree.head=joint", "task.answers.wanted_accuracy=0.25"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Four training images of each label, three to validate and two to test."""
    return coloured_rows(tmp_path_factory.mktemp("tree"), LABELS, {"train": 4, "val": 3, "test": 2})


def train_table(folder: Path, rows: Sequence[Row], *overrides: str, **options: Any) -> Run:
    """Train the tiny experiment on these rows; each folder holds one table."""
    return train_tiny(folder, folder / "runs", *JOINT, write_table(folder, rows), *overrides, **options)


@pytest.fixture(scope="module")
def run(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tree from dot paths; no test changes it."""
    return train_table(tmp_path_factory.mktemp("run"), rows)


def outputs_of(run: Run, split: str) -> Any:
    """What a freshly loaded bundle says of a split, and its targets."""
    experiment = Experiment.load(run.folder / "config.yaml")
    predictor = consilium.load(run.folder)
    options = {"given": predictor.task.labels}
    loaded = load_labelled(experiment.data, nested=True, options=options, splits=(split,))
    return case_outputs(predictor, loaded.studied, split)


# -- The tree and its ids -----------------------------------------------------------------------------------------


def test_a_tree_of_dot_paths_holds_the_nodes_above_the_labels(run: Run) -> None:
    assert tuple(run.knowledge["labels"]) == NAMES
    assert run.knowledge["class_counts"] == [12, 4, 4, 8, 4, 4, 4]  # of a node: at it or below it
    assert run.knowledge["training_cases"] == 24
    assert run.weights["head.1.weight"].shape[0] == len(NAMES)
    assert set(run.knowledge["calibration"]["temperatures"]) == {"root", "ct", "mri"}
    assert len(run.knowledge["calibration"]["thresholds"]) == 2


@pytest.mark.parametrize("sampling", ["shuffle", "class_balanced"])
def test_a_tree_in_yaml_gives_the_ids_and_may_have_nodes_without_a_case(
    rows: list[Row], tmp_path: Path, sampling: str
) -> None:
    balanced = ["task.loss.class_weights=balanced", f"data.mixture.sampling={sampling}", "report.images=true"]
    run = train_table(tmp_path, rows, f"task.tree.nodes={YAML}", *balanced)
    given = Experiment.load(run.folder / "config.yaml").task.tree.nodes
    assert given is not None
    assert run.knowledge["labels"] == paths_of(given)
    assert run.knowledge["labels"][:4] == ["xray", "mri", "mri.t2", "mri.t1"]
    told = "note: train has no case of: pet, pet.fdg, pet.psma; a training on these data cannot learn them."
    assert told in run.reporter.lines
    assert run.knowledge["calibration"]["temperatures"]["pet"] == 1.0
    assert (run.folder / "report.html").stat().st_size > 0
    (record,) = consilium.load(run.folder).predict(rows[0]["image"])
    assert list(record["probabilities"]) == run.knowledge["labels"]


def test_flat_a_tree_in_yaml_gives_its_leaves(rows: list[Row], tmp_path: Path) -> None:
    leaves = [row for row in rows if row["label"] != "ct"]
    run = train_table(tmp_path, leaves, "task.tree.head=flat", f"task.tree.nodes={YAML}")
    assert run.knowledge["labels"] == [
        "xray",
        "mri.t2",
        "mri.t1",
        "pet.fdg",
        "pet.psma",
        "ct.head",
        "ct.chest",
    ]
    with pytest.raises(DataError) as error:
        train_table(tmp_path / "all", rows, "task.tree.head=flat", f"task.tree.nodes={YAML}")
    told = str(error.value)
    assert "'ct' (9 case(s), first table:2 in train; it stops above known ones" in told
    assert "which only task.tree.head: joint or cascade learns" in told


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_label_outside_of_the_tree_comes_with_the_nearest_one(rows: list[Row], tmp_path: Path, split: str) -> None:
    strange = [
        {**row, "label": "ct.hed"} if row["split"] == split and row["label"] == "ct.head" else row for row in rows
    ]
    with pytest.raises(DataError) as error:
        train_table(tmp_path, strange, f"task.tree.nodes={YAML}")
    told = str(error.value)
    assert f"in {split}; did you mean 'ct.head'?)" in told
    assert "The known ones are: xray, mri, mri.t2," in told
    assert "Correct or rename the labels (data.rename_labels), keep the cases out (data.filters.labels), or" in told


def test_a_tree_of_one_leaf_is_no_task(rows: list[Row], tmp_path: Path) -> None:
    chest = [{**row, "label": "ct.chest"} if row["label"] != "ct" else row for row in rows]
    with pytest.raises(DataError, match=r"train has 1 label\(s\) \(ct\.chest\); a classifier needs at least two"):
        train_table(tmp_path, chest)


def test_a_tree_is_printed_branch_by_branch_also_with_one_at_the_top(rows: list[Row], tmp_path: Path) -> None:
    below = [{**row, "label": f"figure.{row['label']}"} for row in rows]
    ids = ["figure.ct.chest", "figure.mri.t1", "figure.xray", "figure.ct.head", "figure.mri.t2"]
    run = train_table(tmp_path, below, f"task.tree.nodes={json.dumps(ids)}")
    (told,) = (line for line in run.reporter.lines if line.startswith("test: the label tree"))
    table = [line.split() for line in told.splitlines()[3:]]
    assert [row[0] for row in table] == ["root", "figure", "ct", "chest", "head", "mri", "t1", "t2", "xray"]
    assert [row[1] for row in table] == ["12", "12", "6", "2", "2", "4", "2", "2", "2"]  # two of each label


@pytest.mark.parametrize("monitor", ["coverage", "answered_accuracy"])
def test_figures_of_thresholds_choose_no_weights(rows: list[Row], tmp_path: Path, monitor: str) -> None:
    with pytest.raises(ConfigError, match=f"trainer.monitor is {monitor}, which depends on thresholds"):
        train_table(tmp_path, rows, f"trainer.monitor={monitor}")


def test_many_labels_a_case_have_no_tree(rows: list[Row], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tree\.head: joint takes one label a case; with multi_label leave it flat"):
        train_table(tmp_path, rows, "task.multi_label=true")


# -- What calibration learns from ---------------------------------------------------------------------------------


def test_calibration_is_what_validation_alone_teaches(run: Run) -> None:
    found, val = run.knowledge["calibration"], outputs_of(run, "val")
    labels = LabelTree(NAMES, nested=True)
    assert found["temperatures"] == pytest.approx(
        fit_temperatures(val.arrays["logits"], val.targets, labels=labels), abs=2e-4
    )
    wanted = {"labels": labels, "wanted_accuracy": 0.25}
    expected = choose_thresholds(val.arrays["probabilities"], val.targets, **wanted)
    assert None not in expected, "choose a lower accuracy, so that this shows something"
    assert found["thresholds"] == pytest.approx(expected, rel=1e-5)
    assert found["wanted_accuracy"] == 0.25


def test_nothing_of_the_test_split_reaches_weights_or_calibration(rows: list[Row], run: Run, tmp_path: Path) -> None:
    test = iter([row for row in rows if row["split"] == "test"][::-1])
    turned = [{**row, "label": next(test)["label"]} if row["split"] == "test" else row for row in rows]
    val = iter([row for row in rows if row["split"] == "val"][::-1])
    other_val = [{**row, "label": next(val)["label"]} if row["split"] == "val" else row for row in rows]
    same_run = train_table(tmp_path / "test", turned)
    assert same(same_run.weights, run.weights)
    assert same_run.knowledge["calibration"] == run.knowledge["calibration"]
    assert same_run.metrics["val"] == run.metrics["val"]
    assert same_run.metrics["test"] != run.metrics["test"]
    assert train_table(tmp_path / "val", other_val).knowledge["calibration"] != run.knowledge["calibration"]


def test_pseudo_labels_teach_in_train_and_nowhere_else(rows: list[Row], tmp_path: Path) -> None:
    copies = []
    for number, split in enumerate(("train", "val", "test")):  # two strange pictures in each
        for turn in range(2):
            path = tmp_path / f"{split}-{turn}.png"
            coloured_image(label=turn, labels=3, size=(48, 32), rng=np.random.default_rng(number)).save(path)
            copies.append({"image": str(path), "split": split, "label": "mri.t1", "is_gt": "false"})
    options = ["data.pseudo_labels=true", "data.image.statistics=data", "data.image.mean=[0.5, 0.5, 0.5]"]
    taught = [row for row in copies if row["split"] == "train"]
    both = train_table(tmp_path / "both", [*rows, *copies], *options)
    only = train_table(tmp_path / "only", [*rows, *taught], *options)
    none = train_table(tmp_path / "none", rows, *options)
    kept_out = train_table(tmp_path / "out", [*rows, *copies], *options, "data.pseudo_labels=false")
    for with_strangers, without in ((both, only), (kept_out, none)):
        assert same(with_strangers.weights, without.weights)
        for key in ("knowledge", "metrics", "image"):
            assert with_strangers.manifest[key] == without.manifest[key], key
    assert both.knowledge["training_cases"] == none.knowledge["training_cases"] + 2
    assert not same(both.weights, none.weights)


# -- The bundle ---------------------------------------------------------------------------------------------------


def test_evaluate_and_predict_agree_with_the_training(run: Run, tmp_path: Path) -> None:
    for split in ("val", "test"):
        found = evaluate(run.folder, split=split, out=tmp_path / split)
        assert found.metrics == pytest.approx(run.metrics[split], abs=1e-5)


def test_a_case_exactly_at_a_threshold_is_answered_alone_as_in_its_batch(run: Run, rows: list[Row]) -> None:
    """The threshold of the first level is that of a validation case, whichever batch it comes in."""
    images = [row["image"] for row in rows if row["split"] == "val"]
    (least, *_) = run.knowledge["calibration"]["thresholds"]
    assert least is not None
    predictor = Predictor.load(run.folder)
    together = predictor.predict(images)
    alone = [predictor.predict(image)[0] for image in images]
    assert [record["label"] for record in together] == [record["label"] for record in alone]
    sure = [record["path"][0]["probability"] for record in together]
    assert min(p for p in sure if p >= least) == pytest.approx(least, rel=2e-4)
    answered = sum(record["label"] != "unknown" for record in together)
    assert answered == sum(p >= least for p in sure)


# -- The loop -----------------------------------------------------------------------------------------------------

LONG = ["data.loader.batch_size=5", "trainer.max_epochs=2", "trainer.max_steps=8", "trainer.deterministic=true"]


def test_killed_and_resumed_is_the_unbroken_run(rows: list[Row], tmp_path: Path) -> None:
    options = [*JOINT, *LONG, write_table(tmp_path, rows)]
    whole = train_tiny(tmp_path, tmp_path / "whole", *options)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_experiment(tmp_path, tmp_path / "broken", *options), reporter=Recorder(stop_at=6))
    resumed = train_tiny(tmp_path, tmp_path / "broken", *options, resume=True)
    assert "resumed from" in resumed.log
    assert same(resumed.weights, whole.weights)
    assert {**resumed.manifest, "created": ""} == {**whole.manifest, "created": ""}


@pytest.mark.slow
def test_two_processes_train_as_one(rows: list[Row], tmp_path: Path) -> None:
    frozen = "task.vision.freeze.kind=tower"  # no batch statistics, which processes do not share
    options = [*JOINT, "trainer.max_steps=3", "trainer.max_epochs=1", frozen, write_table(tmp_path, rows)]
    one = train_tiny(tmp_path, tmp_path / "one", *options)
    config = tmp_path / "two.yaml"
    config.write_text(to_yaml(tiny_experiment(tmp_path, tmp_path / "two", *options)), encoding="utf-8")
    two = torchrun(config, tmp_path / "two")
    manifest = json.loads((two / "bundle.json").read_text(encoding="utf-8"))
    assert manifest["knowledge"]["labels"] == one.knowledge["labels"]
    assert_close(load_file(two / "model.safetensors"), one.weights)
    for key in ("temperatures", "thresholds"):
        assert manifest["knowledge"]["calibration"][key] == pytest.approx(one.knowledge["calibration"][key], rel=1e-3)
