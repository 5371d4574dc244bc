"""Copies of training images: a frozen tower sees each once, and nothing else about a training changes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from consilium import load
from consilium.core.config import to_yaml
from consilium.core.contracts import Batch
from consilium.core.errors import ConfigError, DataError
from consilium.data.batches.copies import copy_digest, copy_draw
from consilium.data.batches.features import FeatureCache
from consilium.data.batches.readers import ImageReader
from consilium.data.batches.rows import Items
from consilium.data.batches.transforms import DeviceTransform
from consilium.session import train
from tests.conftest import write_images
from tests.session.test_frozen import FREEZE, RECIPE, Tower, assert_goes_on_as_unbroken, images, tower, tower_file
from tests.session.test_loop import torchrun
from tests.tiny import Recorder, assert_close, same, tiny_experiment, train_tiny

__all__ = ["images", "tower", "tower_file"]

CHANGES = "crop_scale: [0.1, 0.5], horizontal_flip_prob: 0.5, brightness_jitter: 0.3, compression: [50, 90]"
COPIES = f"data.augmentation.copies={{number: 2, {CHANGES}}}"
SHORT = [FREEZE, COPIES, "trainer.max_steps=3"]  # one epoch: all 24 training images are drawn


def folders(of: Path) -> dict[str, Path]:
    """The folders of features: those of the images and those of copies."""
    found = sorted(of.glob("stores/features-*"))
    about = {path: json.loads((path / "features.json").read_text(encoding="utf-8")) for path in found}
    return {"copies" if "changes" in about[path] else "images": path for path in found}


def test_a_copy_is_what_augmentation_makes_of_the_content_of_its_image(images: Path, tmp_path: Path) -> None:
    run = train_tiny(images, tmp_path / "runs", *SHORT, "seed=5")
    predictor = load(run.folder)
    encoder = predictor.task.encoders()["images"]
    cache = FeatureCache(folders(tmp_path)["copies"], width=encoder.width)
    copies = tiny_experiment(images, tmp_path, COPIES).data.augmentation.copies
    assert copies is not None
    changes = copies.changes
    paths = sorted(images.glob("train/*/*.jpg"))
    read = ImageReader(Items(paths), image=predictor.image, augmentation=changes, seed=5)
    transform = DeviceTransform(predictor.image, augmentation=changes, seed=5)
    for row, path in enumerate(paths[::5]):
        found = []
        for number in (1, 2):
            known = copy_digest(hashlib.sha256(path.read_bytes()).digest(), number)
            views = read.collate([read.read(5 * row, copy_draw(known))], shared=False).each(torch.as_tensor)
            batch = Batch(torch.zeros(1, dtype=torch.int64), torch.tensor([copy_draw(known)]), images=views)
            with torch.no_grad():
                found.append(encoder.encode(transform(batch, train=True)))
            np.testing.assert_allclose(found[-1].numpy(), cache.read([known]), atol=1e-5)
        assert not torch.allclose(*found, atol=1e-3)


def test_what_decides_a_copy_and_what_does_not(images: Path, tmp_path: Path, tower: Tower, tower_file: Path) -> None:
    recipe = [*SHORT, f"task.vision.pretrained={tower_file}"]
    first = train_tiny(images, tmp_path / "runs", *recipe)
    assert tower.since() == 42 + 2 * 24
    assert "features of 2 changed copies of each image of 24 cases are cached in" in first.log
    assert "32 copies are still to be computed, about" in first.log  # the trial needed a batch of 8
    assert "50% of the draws show an image itself, 50% one of its 2 copies" in first.log
    for same_copies in (
        ["data.augmentation.copies.weight=3"],
        ["data.augmentation.copies.number=1"],
        ["task.head={kind: mlp, hidden_sizes: [4]}", "data.loader.batch_size=6", "trainer.max_steps=4"],
    ):
        again = train_tiny(images, tmp_path / "runs", *recipe, *same_copies)
        assert tower.since() == 0, same_copies
        assert "copies are still to be computed" not in again.log
    train_tiny(images, tmp_path / "runs", *recipe, "data.augmentation.copies.number=3")
    assert tower.since() == 24  # the first two are there
    shutil.copytree(images, elsewhere := tmp_path / "elsewhere")
    for path in sorted(elsewhere.glob("train/*/*.jpg")):  # the same contents under other names
        path.rename(path.with_name(f"renamed-{path.name}"))
    train_tiny(elsewhere, tmp_path / "runs", *recipe)
    assert tower.since() == 0
    for change in ("data.augmentation.copies.crop_scale=[0.1, 0.4]", "data.augmentation.copies.blur=1", "seed=1"):
        train_tiny(images, tmp_path / "runs", *recipe, change)
        assert tower.since() == 2 * 24, change


def test_copies_change_what_is_learned_reproducibly(images: Path, tmp_path: Path) -> None:
    without = train_tiny(images, tmp_path / "without", FREEZE, "trainer.max_steps=3")
    run = train_tiny(images, tmp_path / "runs", *SHORT)
    assert same(run.weights, without.weights, prefix="tower.")
    assert not same(run.weights, without.weights)
    shutil.rmtree(tmp_path / "stores")
    assert same(train_tiny(images, tmp_path / "again", *SHORT).weights, run.weights)
    rare = train_tiny(images, tmp_path / "rare", *SHORT, "data.augmentation.copies.weight=1e-9")
    assert same(rare.weights, without.weights)  # the mixture and its order are as they were


def test_a_stopped_training_goes_on_as_the_unbroken_one(images: Path, tmp_path: Path) -> None:
    assert_goes_on_as_unbroken(images, tmp_path, *RECIPE, COPIES)


def test_computing_goes_on_where_it_was_stopped(images: Path, tmp_path: Path, tower: Tower) -> None:
    class Stop(Recorder):
        def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
            if name == "features" and total == 32 and done >= 16:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_experiment(images, tmp_path / "runs", *SHORT), reporter=Stop())
    assert (computed := tower.since()) == 42 + 16 + 16  # the trial's copies, and two batches
    train_tiny(images, tmp_path / "runs", *SHORT, resume=True)
    assert tower.since() == 42 + 2 * 24 - computed


def test_cases_of_several_views(tmp_path: Path, tower: Tower) -> None:
    images = write_images(tmp_path / "images", splits={"train": 8, "val": 3, "test": 3})
    rows = []
    for path in sorted(images.glob("*/*/*.jpg")):
        split, label = path.parts[-3:-1]
        views = [str(path), str(path.with_name("000.jpg"))] if int(path.stem) % 2 else [str(path)]
        rows.append({"image": views, "label": label, "split": split})
    table = tmp_path / "cases.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = "data.sources=" + json.dumps([{"kind": "jsonl", "name": "pairs", "path": str(table)}])
    train_tiny(
        images, tmp_path / "runs", *SHORT, "data.mixture.sampling=class_balanced", "trainer.max_epochs=9", source
    )
    assert tower.since() > 42


def test_an_image_that_cannot_be_read_is_named(images: Path, tmp_path: Path) -> None:
    broken = images / "train" / "xray" / "006.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-200] + whole[-2:])  # its header is right
    recipe = [*SHORT, "data.store.check_images=header"]
    with pytest.raises(DataError, match=r"case \S+ cannot be used in training: .*006.jpg"):
        train(tiny_experiment(images, tmp_path / "runs", *recipe), reporter=Recorder())
    broken.write_bytes(whole)
    train_tiny(images, tmp_path / "runs", *recipe)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([COPIES], "data.augmentation.copies keeps what a frozen tower makes of changed images, and the image tower"),
        ([COPIES, "task.vision.freeze={kind: all_but_last_blocks, blocks: 1}"], "Set task.vision.freeze.kind: tower"),
        ([COPIES, FREEZE, "trainer.cache_features=false"], "cache_features is false, but data.augmentation.copies"),
        (
            ["data.augmentation.copies={quarter_turn_prob: 0.5}", FREEZE, "data.image.size=[32, 64]"],
            "augmentation.copies.quarter_turn_prob needs a square image",
        ),
    ],
    ids=["learns", "learns in part", "not kept", "not square"],
)
def test_where_copies_cannot_be(images: Path, tmp_path: Path, overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        train(tiny_experiment(images, tmp_path / "runs", *overrides), dry_run=True, reporter=Recorder())


@pytest.mark.slow
def test_two_processes_train_as_one(images: Path, tmp_path: Path) -> None:
    recipe = [line for line in (*RECIPE, COPIES) if "hidden_sizes" not in line]  # dropout differs between processes
    one = train_tiny(images, tmp_path / "one", *recipe)
    for path in tmp_path.glob("stores/features-*"):
        shutil.rmtree(path)
    config = tmp_path / "two.yaml"
    config.write_text(to_yaml(tiny_experiment(images, tmp_path / "two", *recipe)), encoding="utf-8")
    two = torchrun(config, tmp_path / "two")
    for path in folders(tmp_path).values():
        assert sorted(keys.name for keys in path.glob("*.keys")) == ["0.keys", "1.keys"]
    weights = load_file(two / "model.safetensors")
    assert_close(weights, one.weights)
    assert same(weights, one.weights, prefix="tower.")
