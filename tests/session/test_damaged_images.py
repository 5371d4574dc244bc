"""Images whose header is sound and whose pixels are not, and images that go away: bad rows before step one, set aside
after it; a training that was paid for always ends in its bundle."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consilium.core.errors import BadRowsError, DataError
from consilium.data.guards.digests import FILE
from consilium.data.images.reading import probe
from consilium.data.store import parts
from consilium.data.store.names import QUARANTINE
from consilium.data.store.prepare import prepare
from consilium.evaluation.report.page import read_unread
from tests.cli.conftest import Cli, cli, recipe
from tests.data.samples import data_config
from tests.tiny import Recorder, TrainTiny, same, train_tiny

__all__ = ["cli", "recipe"]  # fixtures
HEADER = "data.store.check_images=header"
FROZEN = "task.vision.freeze={kind: tower}"


@pytest.fixture
def images(tiny_images: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_images, tmp_path / "images"))


def damaged(kind: str) -> bytes:
    """An image file whose header and end are whole, with noise or zeros in the middle of its pixels."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    options = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
    Image.fromarray(pixels).save(stream, kind, **options)
    data = bytearray(stream.getvalue())
    middle = len(data) // 2
    data[middle : middle + 60] = b"\xff\xd0" * 30
    return bytes(data)


def damage(path: Path) -> Path:
    """Lose the last 200 bytes of a JPEG's pixels."""
    whole = path.read_bytes()
    path.write_bytes(whole[:-200] + whole[-2:])
    return path


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_damaged_pixels_are_a_bad_row(images: Path, tmp_path: Path, kind: str) -> None:
    data = damaged(kind)
    assert probe(data, name="x", max_pixels=10**6).width == 64
    broken = images / "train" / "ct" / f"broken.{kind.lower()}"
    broken.write_bytes(data)
    config = data_config(tmp_path, {"kind": "folder", "name": "s", "path": str(images)})
    with pytest.raises(BadRowsError, match=r"1 row is bad:\n  - .*broken.* is damaged and cannot be decoded"):
        prepare(config)
    prepared = prepare(config.model_copy(update={"on_bad_row": "quarantine"}))
    assert [str(broken) in row.reason for row in prepared.bad_rows] == [True]
    assert not any("broken" in name for name in prepared.store.table.ids)
    assert str(broken) in (prepared.store.path / QUARANTINE).read_text(encoding="utf-8")


def test_a_store_that_was_prepared_by_headers_is_looked_through(images: Path, tmp_path: Path) -> None:
    """As every store was before images were decoded; a sound one stays as it is."""
    source = {"kind": "folder", "name": "s", "path": str(images)}
    by_header = data_config(tmp_path, source, store={"root": str(tmp_path / "stores"), "check_images": "header"})
    decoding = data_config(tmp_path, source, store={"root": str(tmp_path / "stores")})
    first = prepare(by_header)
    assert not (first.store.path / FILE).exists()
    again = prepare(decoding)
    assert not again.created
    assert again.store.manifest.created == first.store.manifest.created
    damage(images / "val" / "ct" / "001.jpg")
    assert prepare(by_header).store.manifest.cases == 48
    with pytest.raises(BadRowsError, match=r"001\.jpg is damaged"):
        prepare(decoding)
    assert prepare(decoding.model_copy(update={"on_bad_row": "quarantine"})).store.manifest.cases == 47


def test_parts_that_a_killed_run_made_by_headers_are_not_trusted(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_ROWS", 8)
    damage(images / "train" / "ct" / "001.jpg")
    source = {"kind": "folder", "name": "s", "path": str(images)}

    class Killed(Recorder):
        def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr("consilium.data.store.prepare.BATCH", 16)
    store = {"root": str(tmp_path / "stores")}
    with pytest.raises(KeyboardInterrupt):
        prepare(data_config(tmp_path, source, store={**store, "check_images": "header"}), reporter=Killed())
    assert list(tmp_path.glob("stores/*.partial/part-*.arrow"))
    with pytest.raises(BadRowsError, match=r"001\.jpg is damaged"):
        prepare(data_config(tmp_path, source, store=store))


@pytest.mark.parametrize("cached", [True, False])
def test_a_training_ends_in_its_bundle_though_images_of_val_and_test_are_damaged(
    cli: Cli, recipe: Path, images: Path, cached: bool
) -> None:
    for place in ("val/ct/001.jpg", "test/mri/002.jpg", "test/xray/003.jpg"):
        damage(images / place)
    more = [FROZEN] if cached else []
    answer = cli("train", recipe, f"data.sources.0.path={images}", HEADER, *more)
    assert answer.code == 1
    assert "3 of the cases" in answer.err
    assert "warning: 2 cases of test could not be read and count in no figure" in answer.out
    assert answer.out.count("warning: case images:val/ct/001.jpg is not judged") == 1
    (run,) = (recipe.parent / "runs" / "tiny").iterdir()
    assert (run / "bundle.json").is_file()
    figures = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert {split: (own["cases"], own["unread"]) for split, own in figures.items()} == {"val": (11, 1), "test": (10, 2)}
    with (run / "tables" / "test_unread.csv").open(encoding="utf-8", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["images:test/mri/002.jpg", "images:test/xray/003.jpg"]
    assert "2 cases of test could not be read" in (run / "report.html").read_text(encoding="utf-8")
    assert len(read_unread(run)) == 3


def test_a_cross_validation_exits_1_where_a_case_is_not_judged(cli: Cli, recipe: Path, images: Path) -> None:
    command = ("crossval", recipe, "--folds", 2, f"data.sources.0.path={images}", "trainer.max_steps=1")
    assert cli(*command).code == 0
    victim = images / "test" / "ct" / "001.jpg"
    data, found = victim.read_bytes(), victim.stat()
    victim.write_bytes(bytes(len(data)))  # a disk that rots: neither size nor date tell
    os.utime(victim, ns=(found.st_atime_ns, found.st_mtime_ns))
    answer = cli(*command)
    assert answer.out.count("is finished: ") == 2
    assert answer.code == 1
    assert "not judged, since an image cannot be read: 1 of the cases" in answer.err


@pytest.mark.parametrize("cached", [True, False])
def test_a_damaged_image_of_train_is_named_and_put_back_the_run_goes_on(
    images: Path, tmp_path: Path, cached: bool
) -> None:
    more = ["trainer.max_steps=6", "trainer.max_epochs=2", "trainer.save_every=1", *([FROZEN] if cached else [])]
    whole = train_tiny(images, tmp_path / "whole", *more)
    victim = images / "train" / "xray" / "006.jpg"
    data = victim.read_bytes()
    for path in tmp_path.glob("stores/features-*"):
        shutil.rmtree(path)
    damage(victim)
    with pytest.raises(DataError, match=r"case \S+006.jpg cannot be used in training: .*--resume") as caught:
        train_tiny(images, tmp_path / "runs", *more, HEADER)
    assert "is damaged" in str(caught.value)
    victim.write_bytes(data)  # with another date than before
    run = train_tiny(images, tmp_path / "again", *more, HEADER)
    assert same(run.weights, whole.weights)


def test_a_run_goes_on_when_its_files_were_copied_anew(images: Path, tmp_path: Path) -> None:
    more = ["trainer.max_steps=4", "trainer.max_epochs=2"]
    whole = train_tiny(images, tmp_path / "whole", *more)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(images, tmp_path / "runs", *more, "trainer.save_every=1", reporter=Recorder(stop_at=2))
    for path in images.rglob("*.jpg"):
        os.utime(path, (0, 0))
    run = train_tiny(images, tmp_path / "runs", *more, "trainer.save_every=1", resume=True)
    assert same(run.weights, whole.weights)


def test_a_run_with_other_images_does_not_go_on_and_says_how_to_begin_anew(
    cli: Cli, recipe: Path, images: Path, tmp_path: Path
) -> None:
    more = ["trainer.max_steps=4", "trainer.max_epochs=2", "trainer.save_every=1"]
    with pytest.raises(KeyboardInterrupt):
        train_tiny(images, tmp_path / "runs", *more, reporter=Recorder(stop_at=2))
    (images / "train" / "ct" / "001.jpg").unlink()
    with pytest.raises(Exception, match="the data changed since") as caught:
        train_tiny(images, tmp_path / "runs", *more, resume=True)
    weights = str(caught.value).partition("trainer.init_from: ")[2].partition(" ")[0]
    assert train_tiny(images, tmp_path / "anew", f"trainer.init_from={weights}").metrics


def test_judging_on_other_data_leaves_bad_rows_out_when_asked(cli: Cli, tiny: TrainTiny, images: Path) -> None:
    run = tiny()
    damage(images / "test" / "ct" / "001.jpg")
    refused = cli("evaluate", run.folder, "--data", images / "test", "--out", images.parent / "out")
    assert refused.code == 2
    assert "--on-bad-row quarantine" in refused.err
    more = ("--on-bad-row", "quarantine")
    answer = cli("evaluate", run.folder, "--data", images / "test", "--out", images.parent / "out", *more)
    assert answer.code == 0
    assert "11 cases" in answer.out
    assert "1 bad row" in (images.parent / "out" / "report.html").read_text(encoding="utf-8")


def test_an_image_that_the_loader_would_refuse_is_refused_before_step_one(tiny: TrainTiny, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"48 images with more pixels than data.image.max_pixels \(1,000\)"):
        tiny("data.image.max_pixels=1000")
