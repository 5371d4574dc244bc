"""A frozen tower runs once over an image, and what is learned is what it would be if it ran every time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from consilium.core.config import apply_overrides, build, to_yaml
from consilium.core.errors import DataError, RunFolderError
from consilium.experiment import Experiment
from consilium.models.vision import VisionTower
from consilium.session import train
from consilium.training.hooks import read_history
from consilium.training.state import FROZEN, saved_weights
from tests.conftest import write_images
from tests.session.test_loop import torchrun
from tests.tiny import Recorder, Run, assert_close, same, tiny_experiment, train_tiny

FREEZE = "task.vision.freeze.kind=tower"
OFF = "trainer.cache_features=false"
STEPS = 6
# 24 cases in batches of 5, two batches a step: three steps an epoch.
RECIPE = [
    FREEZE,
    "task.head={kind: mlp, hidden_sizes: [16], dropout: 0.3}",
    "task.loss.class_weights=balanced",
    "data.loader.batch_size=5",
    "data.mixture.sampling=class_balanced",
    "optimizer={kind: adamw, learning_rate: 0.01}",
    "trainer.accumulate=2",
    "trainer.clip_norm=1.0",
    "trainer.max_epochs=2",
    f"trainer.max_steps={STEPS}",
    "trainer.validate_every=0.34",
    "trainer.threads=1",
]


class Tower:
    """Counts the images that pass the tower."""

    def __init__(self) -> None:
        self.images = 0

    def since(self) -> int:
        """The images since it was last asked."""
        count, self.images = self.images, 0
        return count


@pytest.fixture
def tower(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tower]:
    counter, forward = Tower(), VisionTower.forward

    def counted(self: VisionTower, images_BCHW: Tensor) -> Tensor:
        if images_BCHW.any():  # a probe is blank
            counter.images += len(images_BCHW)
        return forward(self, images_BCHW)

    monkeypatch.setattr(VisionTower, "forward", counted)
    return counter


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """24 + 9 + 9 images whose stores and features no other test sees."""
    return write_images(tmp_path / "images", splits={"train": 8, "val": 3, "test": 3})


def assert_equal(run: Run, other: Run, *, tolerance: float) -> None:
    """Weights, history and figures, but for the last digits."""
    assert run.weights.keys() == other.weights.keys()
    for name, tensor in other.weights.items():
        torch.testing.assert_close(run.weights[name], tensor, rtol=0, atol=tolerance, msg=name)
    rows, others = (read_history(each.folder / "history.csv") for each in (run, other))
    assert len(rows) == len(others)
    for row, expected in zip(rows, others, strict=True):
        for name in row.keys() - {"data_seconds", "step_seconds"}:
            assert float(row[name] or 0) == pytest.approx(float(expected[name] or 0), abs=100 * tolerance), name
    for split, figures in other.metrics.items():
        assert run.metrics[split] == pytest.approx(figures, abs=100 * tolerance)
    assert run.checkpoints("best") == other.checkpoints("best")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns_what_it_would_without_a_cache(images: Path, tmp_path: Path, tower: Tower, precision: str) -> None:
    recipe = [*RECIPE, f"trainer.precision={precision}"]
    without = train_tiny(images, tmp_path / "without", *recipe, OFF)
    assert tower.since() > 100
    cached = train_tiny(images, tmp_path / "cached", *recipe)
    assert tower.since() == 24 + 9 + 9 - unseen(cached)
    again = train_tiny(images, tmp_path / "again", *recipe)
    assert tower.since() == 0
    assert_equal(cached, without, tolerance=1e-6)
    assert_equal(again, cached, tolerance=0)
    assert same(cached.weights, without.weights, prefix="tower.")
    assert cached.manifest["task"] == without.manifest["task"]


def unseen(run: Run) -> int:
    """Training cases that a run never drew."""
    (row,) = [line.split() for line in run.log.splitlines() if line.strip().startswith("images ")]
    return 24 - int(row[5])


def test_another_head_seed_split_and_a_grown_folder_find_what_is_there(
    images: Path, tmp_path: Path, tower: Tower, tower_file: Path
) -> None:
    recipe = [FREEZE, f"task.vision.pretrained={tower_file}", "trainer.max_steps=3"]
    first = train_tiny(images, tmp_path / "runs", *recipe)
    assert tower.since() == 24 + 9 + 9
    assert "features of 42 cases are cached in" in first.log
    assert "34 images are still to be computed, about" in first.log  # the trial needed a batch of 8
    other = ["seed=3", "task.head={kind: mlp, hidden_sizes: [4]}", "data.split={folds: 3, fold: 1}"]
    second = train_tiny(images, tmp_path / "runs", *recipe, *other)
    assert tower.since() == 0
    assert "all are there" in second.log
    for folder in images.glob("*/mri"):  # a new label for the same images
        folder.rename(folder.with_name("brain"))
    relabelled = train_tiny(images, tmp_path / "runs", *recipe)
    assert tower.since() == 0
    assert relabelled.knowledge["labels"] == ["brain", "ct", "xray"]
    write_images(tmp_path / "more", labels=["brain", "ct", "xray"], splits={"train": 2}, seed=5)
    for path in (tmp_path / "more" / "train").glob("*/*.jpg"):
        path.rename(images / "train" / path.parent.name / f"more-{path.name}")
    third = train_tiny(images, tmp_path / "runs", *recipe, "trainer.max_steps=4")
    assert tower.since() == 6
    assert "features of 48 cases" in third.log
    assert len(list(tmp_path.glob("stores/features-*"))) == 1
    for change in ("data.image.fit=pad", "data.image.mean=[0.5, 0.5, 0.5]", "task.vision.pooling=max"):
        train_tiny(images, tmp_path / "runs", *recipe, change, "trainer.max_steps=4")
        assert tower.since() == 48, change


def assert_goes_on_as_unbroken(images: Path, folder: Path, *recipe: str) -> None:
    """A training that is stopped twice leaves what one that is never stopped leaves."""
    whole = train_tiny(images, folder / "whole", *recipe)
    experiment = tiny_experiment(images, folder / "broken", *recipe)
    for step in (1, 4):
        with pytest.raises(KeyboardInterrupt):
            train(experiment, resume=step > 1, reporter=Recorder(stop_at=step))
    assert_equal(train_tiny(images, folder / "broken", *recipe, resume=True), whole, tolerance=0)


def test_a_stopped_training_goes_on_as_the_unbroken_one(images: Path, tmp_path: Path) -> None:
    assert_goes_on_as_unbroken(images, tmp_path, *RECIPE)


@pytest.fixture
def tower_file(tiny_run: Run, tmp_path: Path) -> Path:
    """A weights file of the tower."""
    file = tmp_path / "tower.safetensors"
    state = load_file(tiny_run.folder / "model.safetensors")
    save_file({name[12:]: tensor for name, tensor in state.items() if name.startswith("tower.model.")}, file)
    return file


def stopped(images: Path, runs: Path, *recipe: str) -> Path:
    """The checkpoints of a run that was stopped after its fourth step."""
    with pytest.raises(KeyboardInterrupt):
        train(tiny_experiment(images, runs, *recipe), reporter=Recorder(stop_at=4))
    (folder,) = runs.glob("**/checkpoints")
    return folder


def test_checkpoints_leave_out_what_never_changes(images: Path, tmp_path: Path) -> None:
    run = train_tiny(images, tmp_path / "runs", *RECIPE)
    saved = load_file(run.folder / "checkpoints" / FROZEN)
    assert saved.keys() == {name for name in run.weights if name.startswith("tower.")}
    assert all(torch.equal(tensor, run.weights[name]) for name, tensor in saved.items())
    folders = [path for path in (run.folder / "checkpoints").iterdir() if path.is_dir()]
    assert len(folders) == 2
    for folder in folders:
        assert load_file(folder / "model.safetensors").keys() == run.weights.keys() - saved.keys()
        assert saved_weights(folder).keys() == run.weights.keys()
    assert same(saved_weights(folders[0].with_name(f"best-{run.checkpoints('best')[0]:08d}")), run.weights)
    going_on = train_tiny(images, tmp_path / "on", *RECIPE, f"trainer.init_from={folders[0] / 'model.safetensors'}")
    assert same(going_on.weights, run.weights, prefix="tower.")
    learns = train_tiny(images, tmp_path / "all", "trainer.max_steps=3", "task.vision.freeze.warmup_epochs=1")
    assert not (learns.folder / "checkpoints" / FROZEN).exists()


@pytest.mark.parametrize("cached", [True, False])
def test_a_run_goes_on_with_its_own_tower_whatever_became_of_the_file(
    images: Path, tmp_path: Path, tower_file: Path, cached: bool
) -> None:
    recipe = [*RECIPE, f"task.vision.pretrained={tower_file}", f"trainer.cache_features={str(cached).lower()}"]
    whole = train_tiny(images, tmp_path / "whole", *recipe)
    stopped(images, tmp_path / "broken", *recipe)
    save_file({name: 2 * tensor for name, tensor in load_file(tower_file).items()}, tower_file)
    run = train_tiny(images, tmp_path / "broken", *recipe, resume=True)
    assert "note: the frozen weights are not those that the run began with; it goes on with its own" in run.log
    assert_equal(run, whole, tolerance=0)
    assert "it goes on with its own" not in whole.log


def test_whole_checkpoints_of_an_earlier_version_are_resumed(images: Path, tmp_path: Path) -> None:
    whole = train_tiny(images, tmp_path / "whole", *RECIPE)
    folder = stopped(images, tmp_path / "broken", *RECIPE)
    for path in folder.glob("*-*"):
        save_file(saved_weights(path), path / "model.safetensors")
    (folder / FROZEN).unlink()
    assert_equal(train_tiny(images, tmp_path / "broken", *RECIPE, resume=True), whole, tolerance=0)
    assert (folder / FROZEN).is_file()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "its frozen weights cannot be used: .* is damaged"),
        (
            lambda path: save_file({"tower.other": torch.zeros(1)}, path),
            "(?s)do not fit the model.*not of the model +1  tower",
        ),
        (lambda path: path.unlink(), r"cannot be resumed: .*tower\."),
    ],
    ids=["cut short", "another tower", "gone"],
)
def test_frozen_weights_that_cannot_be_used_are_refused(
    images: Path, tmp_path: Path, damage: Callable[[Path], Any], says: str
) -> None:
    folder = stopped(images, tmp_path / "broken", *RECIPE)
    damage(folder / FROZEN)
    with pytest.raises(RunFolderError, match=f"(?s){says}"):
        train_tiny(images, tmp_path / "broken", *RECIPE, resume=True)


def test_computing_goes_on_where_it_was_stopped(images: Path, tmp_path: Path, tower: Tower) -> None:
    class Stop(Recorder):
        def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
            if name == "features" and total == 34 and done >= 16:
                raise KeyboardInterrupt

    recipe = [FREEZE, "trainer.max_steps=3"]
    with pytest.raises(KeyboardInterrupt):
        train(tiny_experiment(images, tmp_path / "runs", *recipe), reporter=Stop())
    assert tower.since() == 8 + 16
    run = train_tiny(images, tmp_path / "runs", *recipe, resume=True)
    assert tower.since() == 42 - 8 - 16
    assert_equal(run, train_tiny(images, tmp_path / "whole", *recipe, OFF), tolerance=1e-6)


def test_judging_by_several_looks_reads_the_images(images: Path, tmp_path: Path, tower: Tower) -> None:
    recipe = [FREEZE, "trainer.max_steps=3", "evaluation.averaging.mirror=true"]
    cached = train_tiny(images, tmp_path / "cached", *recipe)
    assert tower.since() == 42 + 2 * 18
    assert_equal(cached, train_tiny(images, tmp_path / "without", *recipe, OFF), tolerance=1e-6)


def test_cases_of_several_views(tmp_path: Path, tower: Tower) -> None:
    images = write_images(tmp_path / "images", splits={"train": 8, "val": 3, "test": 3})
    rows = []
    for path in sorted(images.glob("*/*/*.jpg")):
        split, label = path.parts[-3:-1]
        number = int(path.stem)
        views = [path, path.with_name(f"{number - 1:03d}.jpg")] if number % 2 else [path]
        rows.append({"image": [str(view) for view in views], "label": label, "split": split})
    table = tmp_path / "cases.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = ["data.sources=" + json.dumps([{"kind": "jsonl", "name": "pairs", "path": str(table)}])]
    recipe = [*(line for line in RECIPE if "sampling" not in line), *source]
    cached = run_of(images, tmp_path / "cached", recipe)
    assert tower.since() == 42  # 18 of them in two cases
    without = run_of(images, tmp_path / "without", [*recipe, OFF])
    assert tower.since() > 100
    assert_equal(cached, without, tolerance=1e-6)


def run_of(images: Path, runs: Path, recipe: list[str]) -> Run:
    """As ``train_tiny``, with sources of the recipe's own."""
    tree = apply_overrides(tiny_experiment(images, runs).model_dump(mode="json"), recipe)
    reporter = Recorder()
    result = train(build(Experiment, tree, origin="tests"), reporter=reporter)
    assert result is not None
    return Run(result, reporter)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([FREEZE], "are cached in"),
        ([FREEZE, OFF], "features of the frozen tower are not cached: trainer.cache_features is false"),
        (
            [FREEZE, "data.augmentation={horizontal_flip_prob: 0.5}"],
            "note: the tower is frozen, but data.augmentation (horizontal_flip_prob) changes its images, so that it "
            "runs in every epoch. Without augmentation, or with that of data.augmentation.copies, its features are "
            "computed once and the head trains in seconds.",
        ),
        ([], None),
        (["task.vision.freeze.warmup_epochs=1"], None),
        (["task.vision.freeze={kind: all_but_last_blocks, blocks: 1}"], None),
    ],
)
def test_the_log_tells_whether_features_are_cached(
    images: Path, tmp_path: Path, overrides: list[str], told: str | None
) -> None:
    reporter = Recorder()
    train(tiny_experiment(images, tmp_path / "runs", *overrides), dry_run=True, reporter=reporter)
    lines = [line for line in reporter.lines if "features" in line]
    assert len(lines) == (told is not None)
    assert told is None or told in lines[0]
    cached = list(tmp_path.glob("stores/features-*/features.json"))
    assert len(cached) == (told == "are cached in")


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_kept(
    images: Path, tmp_path: Path, tower: Tower
) -> None:
    broken = images / "train" / "xray" / "006.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-200] + whole[-2:])  # its header is right
    recipe = [FREEZE, "trainer.max_steps=3", "data.store.check_images=header"]
    with pytest.raises(DataError, match=r"case \S+ cannot be used in training: .*006.jpg"):
        train(tiny_experiment(images, tmp_path / "runs", *recipe), reporter=Recorder())
    assert (computed := tower.since()) == 41  # all but this one
    broken.write_bytes(whole)
    train_tiny(images, tmp_path / "runs", *recipe)
    assert tower.since() == 42 - computed


@pytest.mark.slow
def test_two_processes_train_as_one(images: Path, tmp_path: Path) -> None:
    recipe = [line for line in RECIPE if "hidden_sizes" not in line]  # dropout differs from process to process
    one = train_tiny(images, tmp_path / "one", *recipe)
    for path in tmp_path.glob("stores/features-*"):
        shutil.rmtree(path)
    config = tmp_path / "two.yaml"
    config.write_text(to_yaml(tiny_experiment(images, tmp_path / "two", *recipe)), encoding="utf-8")
    two = torchrun(config, tmp_path / "two")
    (features,) = tmp_path.glob("stores/features-*")
    assert sorted(path.name for path in features.glob("*.keys")) == ["0.keys", "1.keys"]
    weights = load_file(two / "model.safetensors")
    assert_close(weights, one.weights)
    assert same(weights, one.weights, prefix="tower.")
