"""A cascade from a table to a bundle: ordinary flat runs, one after another, that outlive a kill, and one answer."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

import consilium
from consilium.core.config import to_yaml
from consilium.core.errors import BundleError, ConfigError, DataError
from consilium.crossval import cross_validate
from consilium.evaluating import evaluate
from consilium.evaluation.report.wording import number
from consilium.experiment import Experiment
from consilium.manifest import read_manifest
from consilium.predictor import Predictor
from consilium.session import train
from consilium.tasks.classify.nodes import node_folder
from tests.cli.conftest import Cli, cli
from tests.session.tables import Row, coloured_rows, write_table
from tests.tiny import Recorder, Run, assert_close, same, tiny_experiment, train_tiny

__all__ = ["cli"]

LABELS = ["ct", "ct.chest", "ct.head", "mri.t1", "mri.t2", "xray"]  # the first stops at an inner node
CHILDREN = {"root": ["ct", "mri", "xray"], "ct": ["ct.chest", "ct.head"], "mri": ["mri.t1", "mri.t2"]}
COUNTS = {"train": 6, "val": 3, "test": 2}
GIVEN = {"mean": [0.1, 0.2, 0.3], "std": [0.3, 0.2, 0.1]}
CASCADE = [
    "task.tree.head=cascade",
    f"task.tree.statistics={json.dumps({'ct': GIVEN})}",
    "data.image.statistics=data",
    "task.answers.wanted_accuracy=0.25",
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Of each label 6 training images, 3 to validate and 2 to test, and a pseudo-label in every split."""
    more = {split: count + 1 for split, count in COUNTS.items()}
    found = coloured_rows(tmp_path_factory.mktemp("tree"), LABELS, more)
    return [{**row, "is_gt": str(f"-{COUNTS[row['split']]}.png" not in row["image"]).lower()} for row in found]


def overrides_of(folder: Path, rows: Sequence[Row]) -> list[str]:
    """What trains a cascade on these rows; each folder holds one table."""
    return [write_table(folder, rows), *CASCADE]


def cascade(folder: Path, rows: Sequence[Row], *overrides: str) -> Experiment:
    return tiny_experiment(folder, folder / "runs", *overrides_of(folder, rows), *overrides)


def train_cascade(folder: Path, rows: Sequence[Row], *overrides: str, **options: Any) -> Run:
    return train_tiny(folder, folder / "runs", *overrides_of(folder, rows), *overrides, **options)


@pytest.fixture(scope="module")
def run(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished cascade, trained with pseudo-labels; no test changes it."""
    return train_cascade(tmp_path_factory.mktemp("run"), rows, "data.pseudo_labels=true")


@pytest.fixture(scope="module")
def images(rows: list[Row]) -> list[str]:
    return [row["image"] for row in rows if row["split"] == "test"]


@pytest.fixture(scope="module")
def few_rows(rows: list[Row]) -> list[Row]:
    """A tree of two networks."""
    return [row for row in rows if row["label"] in ("ct.chest", "ct.head", "xray")]


def node(run: Run, name: str) -> Path:
    return run.folder / node_folder(name)


# -- What each node learns from --------------------------------------------------------------------------------------


def test_children_fold_into_their_parent_and_keep_their_split(run: Run, rows: list[Row]) -> None:
    for name, children in CHILDREN.items():
        expected = {
            split: Counter(
                child
                for row in rows
                for child in children
                if row["split"] == split
                and (row["label"] == child or row["label"].startswith(f"{child}."))
                and (split == "train" or row["is_gt"] == "true")
            )
            for split in COUNTS
        }
        manifest = read_manifest(node(run, name))
        assert manifest.knowledge["labels"] == children
        assert dict(zip(children, manifest.knowledge["class_counts"], strict=True)) == expected["train"]
        judged = json.loads((node(run, name) / "metrics.json").read_text(encoding="utf-8"))
        assert {split: judged[split]["cases"] for split in judged} == {
            split: expected[split].total() for split in ("val", "test")
        }


def test_a_pseudo_label_trains_and_never_judges(run: Run, rows: list[Row]) -> None:
    judged = {split: json.loads((run.folder / "metrics.json").read_text())[split]["cases"] for split in ("val", "test")}
    assert judged == {"val": 18, "test": 12}
    assert read_manifest(run.folder).knowledge["training_cases"] == sum(row["split"] == "train" for row in rows) == 42


def test_each_node_sees_images_with_its_own_statistics(run: Run, rows: list[Row]) -> None:
    """Given ones where the config has them, else those of the node's own training images."""
    images = {name: read_manifest(node(run, name)).image for name in CHILDREN}
    assert (list(images["ct"].mean), list(images["ct"].std)) == (GIVEN["mean"], GIVEN["std"])
    for name in ("root", "mri"):
        pixels_PC = np.concatenate(
            [
                np.asarray(Image.open(row["image"])).reshape(-1, 3) / 255
                for row in rows
                if row["split"] == "train" and (name == "root" or row["label"].startswith("mri."))
            ]
        )
        np.testing.assert_allclose(images[name].mean, pixels_PC.mean(0), atol=1e-6)
        np.testing.assert_allclose(images[name].std, pixels_PC.std(0), atol=1e-6)
    whole = read_manifest(run.folder).image
    assert (whole.mean, whole.std) == ((0, 0, 0), (1, 1, 1))


def test_statistics_of_the_tower_and_of_the_config(tmp_path: Path, few_rows: list[Row]) -> None:
    model, given = (
        train_cascade(tmp_path / how, few_rows, f"data.image.statistics={how}", "data.image.mean=[0.7, 0.7, 0.7]")
        for how in ("model", "given")
    )
    assert read_manifest(node(model, "root")).image.mean == (0.5, 0.5, 0.5)  # of timm's test_resnet
    assert read_manifest(node(given, "root")).image.mean == (0.7, 0.7, 0.7)
    assert {read_manifest(node(own, "ct")).image.mean for own in (model, given)} == {tuple(GIVEN["mean"])}


@pytest.mark.parametrize("name", CHILDREN)
def test_a_node_is_the_ordinary_flat_run_of_its_config(run: Run, tmp_path: Path, name: str) -> None:
    experiment = Experiment.load(node(run, name) / "config.yaml", overrides=[f"output.root={tmp_path}"])
    assert experiment.task.tree.head == "flat"
    again = train(experiment)
    assert again is not None
    assert same(load_file(again.bundle / "model.safetensors"), load_file(node(run, name) / "model.safetensors"))
    assert again.runs[0].metrics == read_manifest(node(run, name)).metrics


def test_weights_of_classes_go_to_the_node_of_each(tmp_path: Path, few_rows: list[Row]) -> None:
    weights = {"ct": 1.0, "xray": 2.0, "ct.chest": 3.0, "ct.head": 4.0}
    own = train_cascade(tmp_path, few_rows, f"task.loss.class_weights={json.dumps(weights)}")
    for name, children in {"root": ["ct", "xray"], "ct": ["ct.chest", "ct.head"]}.items():
        loss = Experiment.load(node(own, name) / "config.yaml").task.loss
        assert loss.class_weights == {child: weights[child] for child in children}


def test_each_node_may_learn_by_adapters(tmp_path: Path, few_rows: list[Row], images: list[str]) -> None:
    tower = "task.vision={name: test_vit, pretrained: false, lora: {rank: 2, last_blocks: 1}}"
    run = train_cascade(tmp_path, few_rows, tower, "trainer.max_steps=1")
    saved = [path.parent.parent.parent for path in run.folder.rglob("adapters/tower/adapter_config.json")]
    assert sorted(saved) == sorted(path.parent for path in run.folder.glob("nodes/*/bundle.json"))
    assert all("label" in record for record in consilium.load(run.folder, device="cpu").predict(images[:2]))


def test_a_source_may_have_nothing_below_a_node(tmp_path: Path, few_rows: list[Row]) -> None:
    """Weighted sources, of which one has no ct; towers that are frozen, whose features are kept."""
    parts = {"ct": few_rows, "xray": [row for row in few_rows if row["label"] == "xray"]}
    parts["ct"] = [row for row in few_rows if row not in parts["xray"]]
    sources = []
    for weight, (name, own) in enumerate(parts.items(), start=1):
        write_table(tmp_path / name, own)
        sources.append({"kind": "csv", "name": name, "path": str(tmp_path / name / "table.csv"), "weight": weight})
    drawn = [f"data.sources={json.dumps(sources)}", "task.vision.freeze.kind=tower"]
    found = train_tiny(tmp_path, tmp_path / "runs", *CASCADE, *drawn)
    log = (node(found, "ct") / "log.txt").read_text(encoding="utf-8")
    assert "features of" in log
    mixture = log.partition("mixture over")[2].partition("parameters")[0]
    assert "ct " in mixture
    assert "xray" not in mixture
    report = (found.folder / "report.html").read_text(encoding="utf-8")
    counts = re.findall(r"Parameters of the head of \w+</dt><dd>([^ <]+) \(([^ <]+) trained\)", report)
    heads = [load_file(node(found, name) / "model.safetensors")["head.1.weight"].numel() + 2 for name in ("root", "ct")]
    assert [trained for _, trained in counts] == [number(count) for count in heads]


def test_an_only_child_needs_no_network(tmp_path: Path, few_rows: list[Row], images: list[str]) -> None:
    own = [{**row, "label": row["label"].replace("xray", "xray.hand.left")} for row in few_rows]
    found = train_cascade(tmp_path, own, f"task.tree.statistics={json.dumps({'xray': GIVEN})}")
    assert set(read_manifest(found.folder).members) == {"nodes/root", "nodes/ct"}
    assert any(line.startswith("note: task.tree.statistics of xray are not used") for line in found.reporter.lines)
    for answer in consilium.load(found.folder).predict(images):
        says = answer["probabilities"]
        assert says["xray"] == says["xray.hand"] == says["xray.hand.left"] > 0


@given(names=st.lists(st.text(min_size=1), unique=True, max_size=5))
@example(names=["..", ".", "/", "a/b", "a_b", "a b", "../a", "A", ".a", "nodes", "a.b", "\\", "\0"])
def test_every_node_has_a_folder_of_its_own_inside(names: list[str]) -> None:
    found = [node_folder(name) for name in names]
    assert len(set(found)) == len(names)
    for place in found:
        assert re.fullmatch(r"nodes/[A-Za-z0-9_-][A-Za-z0-9_.-]*", place)


def test_labels_that_name_no_folder(tmp_path: Path, few_rows: list[Row], images: list[str]) -> None:
    own = [{**row, "label": row["label"].replace("ct.", "CT/MR of größe.")} for row in few_rows]
    found = train_cascade(tmp_path, own, "task.tree.statistics={}")
    places = {path.parent.name for path in (found.folder / "nodes").glob("*/bundle.json")}
    assert places == {"root", Path(node_folder("CT/MR of größe")).name}
    assert "CT/MR of größe.chest" in consilium.load(found.folder).predict(images)[0]["probabilities"]


# -- What the cascade says -------------------------------------------------------------------------------------------


def test_the_cascade_says_what_each_bundle_says_alone(run: Run, images: list[str]) -> None:
    whole = Predictor.load(run.folder, device="cpu")
    temperatures = whole.task.calibration.temperatures
    assert set(temperatures) == set(CHILDREN)
    answers = whole.predict(images)
    for name, children in CHILDREN.items():
        alone = Predictor.load(node(run, name), device="cpu")
        for own, answer in zip(alone.predict(images), answers, strict=True):
            power = alone.task.calibration.temperatures["root"] / temperatures[name]
            odds = np.array([own["probabilities"][child] for child in children]) ** power
            above = 1.0 if name == "root" else answer["probabilities"][name]
            expected = above * odds / odds.sum()
            np.testing.assert_allclose([answer["probabilities"][child] for child in children], expected, atol=2e-5)


def test_the_bundle_answers_as_it_was_judged_wherever_it_lies(run: Run, images: list[str], tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run.folder, tmp_path / "elsewhere"))
    assert consilium.load(copied).predict(images) == consilium.load(run.folder).predict(images)
    judged = evaluate(copied, out=tmp_path / "out")
    assert judged.metrics == run.metrics["test"]
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_cascade_in_an_archive(run: Run, images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_CACHE", str(tmp_path / "cache"))
    packed = shutil.make_archive(str(tmp_path / "cascade"), "zip", run.folder.parent, run.folder.name)
    assert consilium.load(packed).predict(images) == consilium.load(run.folder).predict(images)


def test_predict_and_evaluate_on_the_command_line(run: Run, images: list[str], tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "answers.csv"
    assert cli("predict", run.folder, *images, "--out", out).code == 0
    with out.open(encoding="utf-8", newline="") as file:
        answers = list(csv.DictReader(file))
    assert [row["image"] for row in answers] == images
    assert {f"p_{name}" for name in LABELS} < set(answers[0])
    judged = cli("evaluate", run.folder, "--split", "val", "--out", tmp_path / "val")
    assert (judged.code, "val: 18 cases" in judged.out + judged.err) == (0, True)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder / "nodes" / "ct")


def _damage(folder: Path) -> None:
    weights = folder / "nodes" / "mri" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")


def _exchange(folder: Path) -> None:
    """Another network of the same node, whole in itself."""
    place = folder / "nodes" / "ct" / "bundle.json"
    tree = json.loads(place.read_text(encoding="utf-8"))
    place.write_text(json.dumps({**tree, "seed": 7}), encoding="utf-8")


def _link(folder: Path) -> None:
    moved = (folder / "nodes" / "ct").rename(folder.parent / "moved")
    (folder / "nodes" / "ct").symlink_to(moved)


def _add(folder: Path) -> None:
    tree = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    tree["knowledge"]["labels"] += ["xray.hand", "xray.foot"]
    (folder / "bundle.json").write_text(json.dumps(tree), encoding="utf-8")


def _empty(folder: Path) -> None:
    tree = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    (folder / "bundle.json").write_text(
        json.dumps({**tree, "knowledge": {**tree["knowledge"], "labels": ["xray"]}}), encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_remove, r"nodes/ct/bundle.json is missing, without which the bundle is nothing. Copy it again"),
        (_damage, r"nodes/mri/model.safetensors is not the file that bundle.json names"),
        (_exchange, r"nodes/ct/bundle.json is not the file that bundle.json names"),
        (_link, r"nodes/ct/bundle.json is a link to \S+moved/bundle.json, outside of the bundle"),
        (_empty, "the labels xray leave a cascade nothing to tell apart"),
        (_add, r"lacks nodes/xray, the network of 'xray'"),
    ],
)
def test_a_cascade_that_is_not_whole_is_refused(run: Run, tmp_path: Path, harm: Any, message: str) -> None:
    folder = Path(shutil.copytree(run.folder, tmp_path / "run"))
    harm(folder)
    with pytest.raises(BundleError, match=message):
        consilium.load(folder)


def test_a_cascade_gives_no_first_weights_but_its_networks_do(run: Run, rows: list[Row], tmp_path: Path) -> None:
    given = [*overrides_of(tmp_path, rows), "task.tree={}", "data.filters.node=ct", "optimizer.learning_rate=1e-12"]
    with pytest.raises(
        BundleError, match=r"holds 3 bundles and no weights of its own; give one of them, \S+nodes/root for instance"
    ):
        train(tiny_experiment(tmp_path, tmp_path / "runs", *given, f"trainer.init_from={run.folder}"))
    started = train_tiny(tmp_path, tmp_path / "runs", *given, f"trainer.init_from={node(run, 'ct')}")
    head = load_file(node(run, "ct") / "model.safetensors")["head.1.weight"]
    assert (started.weights["head.1.weight"] - head).abs().max() < 1e-6


# -- One command -----------------------------------------------------------------------------------------------------


def test_the_log_says_which_node_is_trained(run: Run) -> None:
    said = [line for line in run.reporter.lines if line.startswith("stage ")]
    assert said == [
        "stage 1 of 3: root, 42 training cases",
        "stage 2 of 3: ct, 14 training cases",
        "stage 3 of 3: mri, 14 training cases",
    ]
    assert all(line in run.log for line in said)


def test_a_dry_run_tries_every_node_and_leaves_nothing(tmp_path: Path, rows: list[Row]) -> None:
    reporter = Recorder()
    assert train(cascade(tmp_path, rows), dry_run=True, reporter=reporter) is None
    (table,) = [line for line in reporter.lines if line.startswith("3 stages")]
    assert [line.split()[0] for line in table.splitlines()[3:]] == list(CHILDREN)
    assert not (tmp_path / "runs").exists()


@dataclass
class KilledIn(Recorder):
    """Stops without a word in a step of the training of a node."""

    node: str = ""
    at: int = 1

    def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
        super().progress(name, done, total, text)
        here = [line for line in self.lines if line.startswith("stage ")]
        if name == "train" and here and f": {self.node}," in here[-1] and done == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("resume", ["--resume", "if_exists"])
def test_a_kill_in_the_third_node_loses_nothing_of_the_others(
    run: Run, rows: list[Row], tmp_path: Path, resume: str
) -> None:
    own = ["data.pseudo_labels=true", "trainer.save_every=0.1", "output.if_exists=resume"]
    experiment = cascade(tmp_path, rows, *own)
    with pytest.raises(KeyboardInterrupt):
        train(experiment, reporter=KilledIn(node="mri", at=2))
    (folder,) = (tmp_path / "runs" / "tiny").iterdir()
    finished = {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for name in ("root", "ct")
        for path in (folder / node_folder(name)).rglob("*")
        if path.is_file()
    }
    assert not (folder / "bundle.json").exists()
    assert not (folder / "nodes" / "mri" / "bundle.json").exists()
    with pytest.raises(BundleError, match="so it is not a finished run"):
        consilium.load(folder)
    reporter = Recorder()
    result = train(experiment, resume=resume == "--resume", reporter=reporter)
    assert result is not None
    resumed = Run(result, reporter)
    assert resumed.folder == folder
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished} == finished
    assert [line.partition(" is finished")[0] for line in resumed.reporter.lines if "is finished" in line] == [
        "stage 1 of 3: root",
        "stage 2 of 3: ct",
    ]
    (said,) = [line for line in resumed.reporter.lines if line.startswith("resumed from")]
    assert re.match(r"resumed from step-0*1: epoch 0, batch 1", said)
    for name in CHILDREN:
        left, right = (load_file(node(own, name) / "model.safetensors") for own in (run, resumed))
        assert same(left, right)
    assert resumed.metrics == run.metrics


def test_several_seeds_are_several_cascades(tmp_path: Path, few_rows: list[Row], images: list[str]) -> None:
    result = train(cascade(tmp_path, few_rows, "trainer.num_runs=2"))
    assert result is not None
    first, second = (one.folder for one in result.runs)
    assert read_manifest(second / node_folder("ct")).seed == 1
    assert consilium.load(first).predict(images) != consilium.load(second).predict(images)
    assert (result.folder / "summary.json").is_file()


@pytest.mark.slow  # six trainings
def test_cross_validation_of_a_cascade(tmp_path: Path, rows: list[Row]) -> None:
    found = cross_validate(cascade(tmp_path, rows, "data.split.val=0.4"), folds=2)
    leaves = [row for row in rows if row["is_gt"] == "true" and row["label"] != "ct"]
    assert found.pooled.cases == len(leaves)
    assert [read_manifest(Path(fold.folder)).task.tree.head for fold in found.folds] == ["cascade"] * 2


@pytest.mark.slow  # two processes that load everything
def test_two_processes_train_as_one(run: Run, rows: list[Row], tmp_path: Path) -> None:
    own = ["task.vision.name=test_convnext", "optimizer={kind: sgd, learning_rate: 0.01}"]
    one = train_cascade(tmp_path / "one", rows, *own)
    config, script = tmp_path / "config.yaml", tmp_path / "train.py"
    config.write_text(to_yaml(cascade(tmp_path / "two", rows, *own)), encoding="utf-8")
    script.write_text("from consilium.cli import main\nmain()\n", encoding="utf-8")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script), "train", str(config)]
    done = subprocess.run([sys.executable, *launch], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "two" / "runs" / "tiny").iterdir()
    for name in CHILDREN:
        left, right = (load_file(place / node_folder(name) / "model.safetensors") for place in (folder, one.folder))
        assert_close(left, right)
    assert set(read_manifest(folder).members) == {node_folder(name) for name in CHILDREN}


# -- What is refused -------------------------------------------------------------------------------------------------


def test_nodes_with_too_few_cases_are_one_error_before_anything_trains(tmp_path: Path, rows: list[Row]) -> None:
    few = [row for row in rows if (row["label"], row["split"]) != ("ct.head", "train")]
    few = [row for row in few if row["label"] not in ("mri.t1", "mri.t2") or row["split"] != "val"]
    tree = "task.tree.nodes={xray: , mri: [t1, t2], ct: [head, chest], pet: [fdg, psma]}"
    with pytest.raises(DataError) as caught:
        train(cascade(tmp_path, few, tree))
    message = str(caught.value)
    assert "ct: of its 2 children only ct.chest has training cases" in message
    assert "mri: no validation case has a label below it" in message
    assert "pet: none of its children has training cases" in message
    assert "root:" not in message
    assert "task.tree.head: joint" in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "trainer.init_from=start.safetensors",
            r"init_from is start.safetensors, but this training has 3 stages, each with weights of",
        ),
        ("task.tree.statistics.rot={mean: [0, 0, 0], std: [1, 1, 1]}", r"'rot' is no inner node; did you mean `root`"),
        ("task.tree.statistics.xray={mean: [0, 0, 0], std: [1, 1, 1]}", r"statistics: 'xray' is no inner node"),
        ("task.loss.class_weights={ct.chst: 1.0}", r"class_weights: 'ct.chst' is not a label; did you mean `ct.chest`"),
        ("task.loss.class_weights={ct.chest: 1.0}", r"stage root: class_weights: no weight for ct, mri, xray"),
        ("trainer.monitor=no_metric", r"stage root: .*no_metric"),
        ("trainer.monitor=hierarchical_f1", r"stage root: 'hierarchical_f1' is not a metric of this task"),
    ],
)
def test_what_a_cascade_cannot_follow_is_refused_before_a_folder_is_made(
    tmp_path: Path, rows: list[Row], override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(cascade(tmp_path, rows, override))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.tree.head=joint", r"statistics are those of the networks of a cascade, but head is joint"),
        ("task.tree.statistics.ct.std=[0.1, 0.0, 0.1]", r"task.tree.statistics.ct.std.*above 0"),
        ("task.tree.statistics.ct.mean=[128, 128, 128]", r"task.tree.statistics.ct.mean.*divide figures of 0 to 255"),
        ("task.multi_label=true", r"tree.head: cascade takes one label a case"),
    ],
)
def test_configs_that_are_none(tmp_path: Path, rows: list[Row], override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cascade(tmp_path, rows, override)
