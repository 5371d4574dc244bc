"""Labels added to a trained router: what it learns, what stays as it was, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import consilium
from consilium.core.config import apply_overrides, build
from consilium.core.errors import BundleError, ConfigError, DataError
from consilium.core.labels import LabelTree
from consilium.experiment import Experiment
from consilium.models.config import FreezeConfig
from consilium.session import train
from consilium.session.origin import with_start
from consilium.tasks.classify.nodes import growing
from tests.session.tables import Row, coloured_rows, write_table
from tests.tiny import TREE, Recorder, Run, same, tiny_experiment, train_tiny

OLD = ["ct.chest", "ct.head", "mri.t1", "mri.t2", "xray"]
NEW = ["ct.neck", "us", "xray.chest", "xray.hand", "eye.oct"]
COLOURS = [*OLD, *NEW]
LEARN = ["optimizer.learning_rate=0.03", "trainer.max_epochs=8", "trainer.max_steps=null", "trainer.log_every=100"]
JOINT = ["task.tree.head=joint", "task.answers.wanted_accuracy=0.3", *LEARN]
HIDDEN = "task.head={kind: mlp, hidden_sizes: [64], dropout: 0.2}"
GROW = [*LEARN, "trainer.max_epochs=20"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Six training images of each label in its own colour, three to validate and four to test."""
    return coloured_rows(tmp_path_factory.mktemp("growth"), COLOURS, {"train": 6, "val": 3, "test": 4})


def of(rows: Sequence[Row], labels: Sequence[str], *, split: str | None = None) -> list[Row]:
    return [row for row in rows if row["label"] in labels and split in (None, row["split"])]


def train_rows(folder: Path, rows: Sequence[Row], *overrides: str, **options: Any) -> Run:
    source = write_table(folder, rows)
    return train_tiny(folder, folder / "runs", source, *overrides, **options)


def grow(folder: Path, rows: Sequence[Row], bundle: Path, *overrides: str, **options: Any) -> Run:
    return train_rows(folder, rows, *GROW, f"task.add_to={bundle}", *overrides, **options)


@pytest.fixture(scope="module")
def joint(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A joint router of the old labels; no test changes it."""
    return train_rows(tmp_path_factory.mktemp("joint"), of(rows, OLD), *JOINT)


@pytest.fixture(scope="module")
def flat(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A flat router of the old labels with a hidden layer; no test changes it."""
    return train_rows(tmp_path_factory.mktemp("flat"), of(rows, OLD), *LEARN, HIDDEN)


def said(bundle: Path, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """The prediction arrays of a bundle over images, by a name a column."""
    predictor = consilium.load(bundle)
    found = predictor.task.predict
    arrays: dict[str, list[np.ndarray]] = {}

    def remember(batch: Any) -> Any:
        prediction = found(batch)
        for name, tensor in prediction.arrays.items():
            arrays.setdefault(name, []).append(tensor.numpy())
        return prediction

    predictor.task.predict = remember  # type: ignore[method-assign]
    predictor.predict([row["image"] for row in rows])
    return {name: np.concatenate(parts) for name, parts in arrays.items()}


def found(run: Run, rows: Sequence[Row]) -> float:
    """The share of images whose likeliest path ends at their label."""
    records = consilium.load(run.folder).predict([row["image"] for row in rows])
    return float(
        np.mean([record["path"][-1]["label"] == row["label"] for record, row in zip(records, rows, strict=True)])
    )


def assert_stays(old: Run, new: Run, rows: Sequence[Row], *, learning: Sequence[str]) -> None:
    """The ids, the tower, hidden layers and scores of what does not learn, and what follows from it for ``rows``."""
    nested = old.manifest["task"]["tree"]["head"] == "joint"
    before, after = (LabelTree(run.knowledge["labels"], nested=nested) for run in (old, new))
    assert after.names[: len(before)] == before.names
    assert [after.names[node] for node in growing(after, known=len(before))] == list(learning)
    staying = [node for node, name in enumerate(before.names) if name not in learning]
    last = [name for name in old.weights if name.startswith("head.")][-2:]
    for name, tensor in old.weights.items():
        mine = new.weights[name]
        assert (mine[staying] == tensor[staying]).all() if name in last else (mine == tensor).all(), name
    for name in last:  # what learns did
        told_apart = [label for label in learning if label != "eye.oct"]  # which has no siblings
        assert all((new.weights[name][after.index(label)] != 0).any() for label in told_apart)
    here, there = said(old.folder, rows), said(new.folder, rows)
    np.testing.assert_allclose(there["logits"][:, staying], here["logits"][:, staying], rtol=1e-5, atol=1e-5)
    for group in before.siblings:
        ids = [node for node in group.ids if node in staying]
        odds = [np.log(array["conditionals"][:, ids]) for array in (here, there)]
        odds = [array - array[:, :1] for array in odds]
        np.testing.assert_allclose(odds[1], odds[0], rtol=1e-4, atol=1e-4)
        if ids == list(group.ids) and not any(
            after.parent(node) == group.parent for node in range(len(before), len(after))
        ):
            np.testing.assert_allclose(
                there["conditionals"][:, ids], here["conditionals"][:, ids], rtol=1e-4, atol=1e-6
            )


@pytest.mark.parametrize(
    ("new", "learning"),
    [
        (["us"], ["us"]),
        (["ct.neck"], ["ct", "ct.neck"]),
        (["xray.chest", "xray.hand"], ["xray", "xray.chest", "xray.hand"]),
        (["eye.oct", "us"], ["eye", "eye.oct", "us"]),
    ],
    ids=["top", "branch", "below-a-leaf", "new-branch"],
)
def test_a_joint_router_learns_new_labels_and_keeps_the_rest(
    rows: list[Row], joint: Run, tmp_path: Path, new: list[str], learning: list[str]
) -> None:
    run = grow(tmp_path, of(rows, [*OLD, *new]), joint.folder, "optimizer.weight_decay=0.5")
    assert_stays(joint, run, of(rows, OLD, split="test"), learning=learning)
    assert found(run, of(rows, new, split="test")) >= 0.75
    old = joint.knowledge["calibration"]
    assert {name: run.knowledge["calibration"]["temperatures"][name] for name in old["temperatures"]} == old[
        "temperatures"
    ]
    assert run.knowledge["calibration"]["thresholds"] == old["thresholds"]
    assert "features of" in run.log
    added = run.knowledge["labels"][len(joint.knowledge["labels"]) :]
    told = f"adding {', '.join(added)} to the 7 labels of {joint.folder}, whose tower stays"
    assert told in run.reporter.lines


def test_a_flat_router_learns_a_new_label_and_keeps_the_rest(rows: list[Row], flat: Run, tmp_path: Path) -> None:
    run = grow(tmp_path, of(rows, [*OLD, "us"]), flat.folder, HIDDEN)
    assert_stays(flat, run, of(rows, OLD, split="test"), learning=["us"])
    assert found(run, of(rows, ["us"], split="test")) >= 0.75
    assert run.knowledge["calibration"] == flat.knowledge["calibration"]


def test_a_grown_router_grows_again_from_a_part_of_the_old_cases(rows: list[Row], joint: Run, tmp_path: Path) -> None:
    once = grow(tmp_path / "once", of(rows, [*OLD, "ct.neck"]), joint.folder)
    part = of(rows, ["ct.chest", "mri.t1", "xray", "us"])  # a case below each sibling of the new label is enough
    twice = grow(tmp_path / "twice", part, once.folder)
    assert twice.knowledge["labels"] == [*joint.knowledge["labels"], "ct.neck", "us"]
    assert_stays(once, twice, of(rows, [*OLD, "ct.neck"], split="test"), learning=["us"])
    # Two at once come in the order of the tree in the config, and old cases of other branches may be in validation.
    nodes = "task.tree.nodes=[us, ct.neck, xray]"
    both = grow(tmp_path / "both", of(rows, [*OLD, "us", "ct.neck"]), joint.folder, nodes)
    assert both.knowledge["labels"] == [*joint.knowledge["labels"], "us", "ct.neck"]


def test_thresholds_are_chosen_anew_where_an_accuracy_is_wanted(rows: list[Row], joint: Run, tmp_path: Path) -> None:
    router = Path(shutil.copytree(joint.folder, tmp_path / "router"))
    manifest = joint.manifest
    manifest["knowledge"]["calibration"]["thresholds"] = [0.4, 0.2]  # which no choice on validation gives
    (router / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    run = grow(tmp_path, of(rows, [*OLD, "us"]), router, "task.answers.wanted_accuracy=0.999")
    old, new = manifest["knowledge"]["calibration"], run.knowledge["calibration"]
    assert new["temperatures"] == old["temperatures"]
    assert new["wanted_accuracy"] == 0.999
    assert new["thresholds"] != old["thresholds"]


def test_a_level_that_the_router_did_not_have_gets_a_threshold(rows: list[Row], joint: Run, tmp_path: Path) -> None:
    deeper = {"us": "ct.head.bone", "eye.oct": "ct.head.brain"}
    table = [{**row, "label": deeper.get(row["label"], row["label"])} for row in of(rows, [*OLD, *deeper])]
    run = grow(tmp_path, table, joint.folder)
    old, new = joint.knowledge["calibration"], run.knowledge["calibration"]
    assert new["thresholds"][:2] == old["thresholds"]
    assert len(new["thresholds"]) == 3
    assert new["wanted_accuracy"] == old["wanted_accuracy"]


def test_a_killed_training_goes_on_where_it_was(rows: list[Row], joint: Run, tmp_path: Path) -> None:
    table, settings = of(rows, [*OLD, "us"]), ["trainer.validate_every=0.5", "trainer.deterministic=true"]
    whole = grow(tmp_path / "whole", table, joint.folder, *settings)
    with pytest.raises(KeyboardInterrupt):
        grow(tmp_path / "killed", table, joint.folder, *settings, reporter=Recorder(stop_at=47))
    resumed = grow(tmp_path / "killed", table, joint.folder, *settings, resume=True)
    assert any(line.startswith("resumed from") for line in resumed.reporter.lines)
    assert same(resumed.weights, whole.weights)
    assert resumed.knowledge["calibration"] == whole.knowledge["calibration"]


# -- What is taken over, and what must not be said otherwise -------------------------------------------------------


def bare(folder: Path, rows: Sequence[Row], bundle: Path, *overrides: str) -> Experiment:
    """An experiment that says nothing of the tower, the head, the tree or the images."""
    tree = {key: value for key, value in TREE.items() if key != "task"}
    tree["data"] = {key: value for key, value in TREE["data"].items() if key != "image"}
    places = [write_table(folder, rows), f"data.store.root={folder / 'stores'}", f"output.root={folder / 'runs'}"]
    return build(Experiment, apply_overrides(tree, [*places, f"task.add_to={bundle}", *overrides]), origin="tests")


def test_the_tower_the_head_and_the_images_need_not_be_given(rows: list[Row], flat: Run, tmp_path: Path) -> None:
    given = bare(tmp_path, of(rows, [*OLD, "us"]), flat.folder, "data.image.max_pixels=5000", "trainer.max_steps=2")
    result = train(given)
    assert result is not None
    manifest = Run(result, Recorder()).manifest
    task, old = manifest["task"], flat.manifest["task"]
    assert task["vision"] == {**old["vision"], "freeze": FreezeConfig(kind="tower").model_dump()}
    assert (task["head"], task["tree"]["head"]) == (old["head"], "flat")
    assert manifest["image"] == {**flat.manifest["image"], "max_pixels": 5000}
    # The config beside the bundle says all that was taken over, and gives the same training.
    kept = Experiment.load(result.bundle / "config.yaml")
    assert with_start(given)[0] == kept == with_start(kept)[0]


def test_statistics_of_the_tower_or_the_data_are_those_of_the_router(
    rows: list[Row], joint: Run, tmp_path: Path
) -> None:
    for statistics in ("model", "data"):
        own = [f"data.image.statistics={statistics}", "data.image.mean=[0.1, 0.2, 0.3]"]
        image = with_start(bare(tmp_path, rows, joint.folder, *own))[0].data.image
        assert (image.statistics, list(image.mean)) == ("given", joint.manifest["image"]["mean"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("task.vision.name=test_vit", 'task.vision.name is "test_vit", the bundle\'s is "test_resnet"'),
        ("task.vision.pooling=max", 'task.vision.pooling is "max", the bundle\'s is "default"'),
        ("task.tree.head=flat", 'task.tree.head is "flat", the bundle\'s is "joint"'),
        ("task.head={kind: mlp}", 'task.head.kind is "mlp", the bundle\'s is "linear"'),
        ("task.head={kind: linear, dropout: 0.5}", "task.head.dropout is 0.5, the bundle's is 0.0"),
        ("data.image.size=[32, 48]", "data.image.size is [32, 48], the bundle's is [32, 32]"),
        (
            "data.image.mean=[0.1, 0.2, 0.3]",
            "data.image.mean is [0.1, 0.2, 0.3], the bundle's is [0.485, 0.456, 0.406]",
        ),
        ("evaluation.averaging.mirror=true", "evaluation.averaging.mirror is true, the bundle's is false"),
    ],
    ids=["name", "pooling", "tree", "head", "dropout", "size", "mean", "looks"],
)
def test_settings_other_than_the_routers_are_refused(
    rows: list[Row], joint: Run, tmp_path: Path, override: str, says: str
) -> None:
    with pytest.raises(ConfigError) as error:
        train(bare(tmp_path, rows, joint.folder, "task.tree.head=joint", override))
    assert says in str(error.value)
    assert str(joint.folder) in str(error.value)


def test_augmentation_that_the_routers_images_cannot_have_is_refused(
    rows: list[Row], joint: Run, tmp_path: Path
) -> None:
    wide = tmp_path / "wide"
    shutil.copytree(joint.folder, wide)
    manifest = joint.manifest
    manifest["image"]["size"] = [32, 64]
    (wide / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ConfigError, match="quarter_turn_prob needs a square image"):
        train(bare(tmp_path, rows, wide, "data.augmentation.quarter_turn_prob=0.5"))


# -- What cannot be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "overrides", "says"),
    [
        (OLD, (), "knows every label of the training cases already: ct, ct.chest, ct.head, mri, mri.t1, mri.t2, xray."),
        (["us"], (), "us cannot learn to differ from ct, mri, xray, of which there is no training case: add some of"),
        (["ct.neck", "ct.head", "mri.t1", "xray"], (), "ct.neck cannot learn to differ from ct.chest, of which"),
        (["ct.neck", "ct.head", "ct.chest", "mri.t1"], (), "ct cannot learn to differ from xray, of which"),
        ([*OLD, "us"], ("task.tree.nodes=[us, pet]",), "no training case has the new label(s) pet."),
    ],
    ids=["nothing-new", "no-old", "no-sibling", "no-sibling-above", "no-case"],
)
def test_data_that_cannot_teach_it_are_refused(
    rows: list[Row], joint: Run, tmp_path: Path, labels: list[str], overrides: Sequence[str], says: str
) -> None:
    with pytest.raises(DataError) as error:
        grow(tmp_path, of(rows, labels), joint.folder, *overrides)
    assert says in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_a_flat_router_wants_all_its_labels(rows: list[Row], flat: Run, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"us cannot learn to differ from ct\.chest, ct\.head, mri\.t1, mri\.t2, xray, of"
    ):
        grow(tmp_path, of(rows, ["us"]), flat.folder, HIDDEN)


@pytest.mark.parametrize(
    "override", ["task.multi_label=true", "task.tree.head=cascade"], ids=["multi-label", "cascade"]
)
def test_what_cannot_grow_is_refused_in_the_config(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="add_to takes a flat or joint router of one label a case"):
        tiny_experiment(tmp_path, tmp_path, "task.add_to=bundle", override)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"multi_label": True}, "takes any number of labels a case"),
        ({"tree": {"head": "cascade"}}, "is a cascade"),
    ],
    ids=["multi-label", "cascade"],
)
def test_a_bundle_that_cannot_grow_is_refused(
    rows: list[Row], flat: Run, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    manifest = flat.manifest
    manifest["task"].update(changes)
    (tmp_path / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        with_start(bare(tmp_path, rows, tmp_path))


def test_first_weights_given_twice_are_refused(rows: list[Row], joint: Run, tmp_path: Path) -> None:
    start = f"trainer.init_from={joint.folder}"
    with pytest.raises(ConfigError, match=r"and trainer\.init_from both give the first weights"):
        grow(tmp_path, rows, joint.folder, "task.tree.head=joint", start)


@pytest.mark.parametrize("broken", ["missing", "no-weights", "cut"])
def test_a_broken_bundle_is_refused(rows: list[Row], joint: Run, tmp_path: Path, broken: str) -> None:
    folder = tmp_path / "bundle"
    if broken != "missing":
        shutil.copytree(joint.folder, folder)
    weights = folder / "model.safetensors"
    if broken == "no-weights":
        weights.unlink()
    if broken == "cut":
        weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(BundleError):
        grow(tmp_path / "grown", of(rows, [*OLD, "us"]), folder)
    assert not (tmp_path / "grown" / "runs").exists()


def test_a_router_that_learned_by_adapters_grows(rows: list[Row], tmp_path: Path) -> None:
    """How its tower learned is not taken over: it is frozen now."""
    tower, short = "task.vision={name: test_vit, pretrained: false}", "trainer.max_steps=2"
    options = ["lora={rank: 2}", "patch_dropout=0.3", "gradient_checkpointing=true"]
    own = [tower, *(f"task.vision.{option}" for option in options)]
    old = train_rows(tmp_path / "old", of(rows, OLD), *JOINT, *own, short)
    new = grow(tmp_path / "new", of(rows, [*OLD, "us"]), old.folder, tower, short)
    learned, vision = new.weights, new.manifest["task"]["vision"]
    assert all((learned[name] == tensor).all() for name, tensor in old.weights.items() if name.startswith("tower."))
    assert (vision["lora"], vision["patch_dropout"], vision["freeze"]["kind"]) == (None, 0.0, "tower")
    assert not (new.folder / "adapters").exists()
