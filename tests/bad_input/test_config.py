"""Configs that cannot be meant: each is refused before anything is made, and everything older stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.bad_input.conftest import assert_refused, nothing_lost, runs
from tests.cli.conftest import Cli
from tests.tiny import Run

METRICS = "accuracy, balanced_accuracy, macro_f1"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optimizer.learning_rat=1", "`learning_rat` is not a key of `optimizer`; did you mean `learning_rate`?"),
        ("trainr.max_epochs=1", "`trainr` is not a key of the config; did you mean `trainer`?"),
        ("data.loader.batchsize=8", "`batchsize` is not a key of `data.loader`; did you mean `batch_size`?"),
        ("data.sources.0.pth=x", "`pth` is not a key of `data.sources.0`; did you mean `path`?"),
        ("task.vision.freeze.kind=towr", '`task.vision.freeze.kind` is "towr"; expected one of none, tower'),
        ("optimizer.kind=adamax", '`optimizer.kind` is "adamax", which does not exist; did you mean `adam`?'),
        ("trainer.max_epochs=three", '`trainer.max_epochs` is "three"; expected a whole number'),
        ("trainer.max_epochs=1.5", "`trainer.max_epochs` is 1.5; expected a whole number"),
        ("trainer.max_epochs=0", "`trainer.max_epochs` is 0; expected a number of 1 or more"),
        ("optimizer.learning_rate=-1", "`optimizer.learning_rate` is -1; expected a number above 0"),
        ("optimizer.learning_rate=.nan", "`optimizer.learning_rate` is NaN; expected a"),
        ("data.image.size=64", "`data.image.size` is 64; expected a list"),
        ("data.loader=8", "`data.loader` is 8; expected a section of keys"),
        ("output.variation=a/b", '`output.variation` is "a/b"; expected text that matches'),
        ("data.split={val: 0.6, test: 0.5}", "val + test is 1.1; it must leave something for train"),
        ("trainer.max_epochs", "override 'trainer.max_epochs' has no value; write it as section.key=value"),
    ],
    ids=lambda text: text.split("=")[0] if "=" in text else "",
)
def test_unknown_keys_and_wrong_values_are_named(
    cli: Cli, recipe: Path, tiny_run: Run, override: str, told: str
) -> None:
    with nothing_lost(tiny_run.folder):
        for command in (("train",), ("config", "show"), ("data", "prepare")):
            assert_refused(cli(*command, recipe, override), told)
    assert sorted(path.name for path in recipe.parent.iterdir()) == [recipe.name]


def test_all_problems_are_told_at_once(cli: Cli, recipe: Path) -> None:
    answer = cli("train", recipe, "trainer.max_epoch=1", "data.loader.workers=few", "seed=-1")
    assert_refused(answer, "`max_epoch` is not a key", "`data.loader.workers`", "`seed`")
    assert len(answer.err.splitlines()) == 4


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "does not exist; give the path of a YAML file"),
        (b"", "`name` is missing; it has no default, so give it a value"),
        (b"# nothing but this\n", "`task` is missing"),
        (b"- a\n- b\n", "holds a list; a config is a mapping of sections"),
        (b"just text", "holds a str; a config is a mapping of sections"),
        (b"name: [1\ntask: 2\n", "is not valid YAML"),
        (b"name: a\n\tseed: 1\n", "is not valid YAML"),
        (b"\xff\xd8\xff\xe0 a picture", "cannot be read: 'utf-8' codec"),
        (b"name: a\nname: b\n", "the key 'name' is given twice, first in line 1; keep one"),
        (b"name: ${NOT_SET_ANYWHERE}\n", "the environment variable NOT_SET_ANYWHERE is not set"),
        (b"extends: none.yaml\n", "experiment.yaml extends, does not exist"),
    ],
    ids=["missing", "empty", "comment", "list", "text", "yaml", "tab", "binary", "twice", "variable", "extends"],
)
def test_files_that_are_no_config(cli: Cli, tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "experiment.yaml"
    if content is not None:
        path.write_bytes(content)
    assert_refused(cli("train", path), "experiment.yaml", told)
    assert_refused(cli("config", "show", path), told)


def test_a_folder_is_no_config(cli: Cli, tmp_path: Path) -> None:
    assert_refused(cli("train", tmp_path), f"config file {tmp_path} cannot be read: [Errno 21] Is a directory")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["schedule.warmup=2"],
            ["schedule.warmup is 2 steps but the whole training has only 2", "Shorten the warm-up"],
        ),
        (["schedule.warmup=5000"], ["schedule.warmup is 5000 steps but the whole training has only 2"]),
        (
            ["data.loader={batch_size: 25, drop_last: true}"],
            ["data.loader.batch_size is 25, an epoch has only 24 rows", "at most 24, or drop_last: false"],
        ),
        (["trainer.monitor=macro_f2"], ["'macro_f2' is not a metric of this task", METRICS]),
        (["task.loss.class_weights={ctt: 1, mri: 1}"], ["'ctt' is not a label; did you mean `ct`?"]),
        (["task.loss.class_weights={ct: 1, mri: 1}"], ["no weight for xray; give every label one"]),
        (["task.vision.name=resnet5000"], ["'resnet5000' is not a timm model; did you mean"]),
        (["trainer.init_from=none.safetensors"], ["none.safetensors does not exist"]),
        (["task.vision.freeze={kind: all_but_last_blocks, blocks: 99}"], ["freeze.blocks is 99, but the tower has"]),
        (
            ["data.loader.batch_size=23"],
            ["a batch of the training has a single case", "BatchNorm", "Set data.loader.drop_last: true"],
        ),
        (
            ["data.loader.batch_size=1"],
            ["every batch of the training has a single case", "BatchNorm", "Set data.loader.batch_size to 2 or more"],
        ),
        (
            ["data.loader.batch_size=1", "data.image.size=[96, 96]"],
            ["every batch of the training has a single case", "freeze it: task.vision.freeze.kind: tower"],
        ),
    ],
    ids=[
        "warmup",
        "long",
        "drop_last",
        "monitor",
        "label",
        "weight",
        "tower",
        "weights",
        "blocks",
        "single",
        "one",
        "one large",
    ],
)
def test_what_only_the_data_shows_to_be_wrong(cli: Cli, recipe: Path, overrides: list[str], told: list[str]) -> None:
    overrides = ["task.loss.kind=cross_entropy", *overrides]
    assert cli("train", recipe, "output.if_exists=replace").code == 0
    with nothing_lost(recipe.parent / "stores", *runs(recipe)):
        assert_refused(cli("train", recipe, "output.if_exists=replace", *overrides), *told)
        assert_refused(cli("train", recipe, "--dry-run", *overrides), *told)
    assert len(runs(recipe)) == 1  # no dead run beside the good one


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there(cli: Cli, recipe: Path, tiny_run: Run) -> None:
    told = "the device is 'cuda', but this machine has cpu; choose one, or auto"
    assert_refused(cli("train", recipe, "trainer.device=cuda"), told)
    assert_refused(cli("predict", tiny_run.folder, "x.jpg", "--device", "cuda"), told)
    assert_refused(cli("evaluate", tiny_run.folder, "--device", "gpu"), "the device is 'gpu'")
    assert not runs(recipe)


# -- Places that cannot be written --------------------------------------------------------------------------------


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A folder that nobody can make, the administrator included: its parent is a file."""
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    return tmp_path / "file" / "folder"


def test_the_run_folder(cli: Cli, recipe: Path, closed: Path) -> None:
    answer = cli("train", recipe, f"output.root={closed}")
    assert_refused(answer, f"the run folder {closed}", "could not be made", "Correct output.root")


def test_the_store(cli: Cli, recipe: Path, closed: Path) -> None:
    for command in (("train",), ("data", "prepare")):
        answer = cli(*command, recipe, f"data.store.root={closed}")
        assert_refused(answer, f"the store {closed}", "could not be written", "correct data.store.root")


def test_reports_and_predictions(cli: Cli, recipe: Path, tiny_run: Run, tiny_images: Path, closed: Path) -> None:
    image = next(tiny_images.rglob("*.jpg"))
    told = [str(closed), "permissions"]
    with nothing_lost(tiny_run.folder):
        assert_refused(cli("predict", tiny_run.folder, image, "--out", closed / "p.jsonl"), *told)
        assert_refused(cli("evaluate", tiny_run.folder, "--out", closed), *told)
        assert_refused(cli("data", "inspect", recipe, "--out", closed), *told)
        assert_refused(cli("demo", "--out", closed), str(closed))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to the administrator")
def test_a_folder_without_permission(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    (root := tmp_path / "theirs").mkdir(mode=0o500)
    assert_refused(cli("train", recipe, f"output.root={root}"), "Permission denied", "Correct output.root")
