"""Data that cannot be used as it is: named with file and line; the rest goes on only when the config says so."""

from __future__ import annotations

import csv
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consilium.core.evaluation import Outputs
from consilium.manifest import read_manifest
from consilium.predictor import case_outputs
from consilium.training.hooks import ProgressHook
from tests.bad_input.conftest import assert_refused, nothing_lost, runs
from tests.cli.conftest import Cli
from tests.data.samples import write_jsonl
from tests.tiny import Run

QUARANTINE = "data.on_bad_row=quarantine"


def at(images: Path) -> str:
    return f"data.sources.0.path={images}"


# -- Splits and classes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "told"),
    [
        ("train", ["the train split is empty", "consilium data inspect"]),
        ("val", ["the val split is empty (cases: train 24, val 0, test 12)", "Raise data.split.val"]),
    ],
)
def test_an_empty_split(cli: Cli, recipe: Path, images: Path, split: str, told: list[str]) -> None:
    shutil.rmtree(images / split)
    assert_refused(cli("train", recipe, at(images), "data.split={val: 0, test: 0}"), *told)
    assert not runs(recipe)


def test_an_empty_split_to_judge(cli: Cli, recipe: Path, images: Path) -> None:
    shutil.rmtree(images / "test")
    trained = cli("train", recipe, at(images))
    assert trained.code == 0
    assert "no case is in the test split" in trained.out
    (run,) = runs(recipe)
    with nothing_lost(run):
        assert_refused(cli("evaluate", run), "the test split is empty (cases: train 24, val 12, test 0)")


def test_a_class_with_one_row_is_trained_with_a_warning(cli: Cli, recipe: Path, images: Path) -> None:
    for path in sorted((images / "train" / "ct").iterdir())[1:]:
        path.unlink()
    answer = cli("train", recipe, at(images), "data.loader.drop_last=true")
    assert answer.code == 0
    assert "train has fewer than 5 cases of: ct (1); their figures mean little" in answer.out
    assert "ct (1)" in (runs(recipe)[0] / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_training_never_sees(cli: Cli, recipe: Path, images: Path, split: str) -> None:
    (folder := images / split / "pet").mkdir()
    (images / split / "ct" / "000.jpg").rename(folder / "000.jpg")
    told = ["labels occur that training never sees: 'pet' (1 case(s), first images:", f"in {split})", "add cases"]
    assert_refused(cli("train", recipe, at(images)), *told)
    assert not runs(recipe)


def test_one_class_is_no_classification(cli: Cli, recipe: Path, images: Path) -> None:
    for split in ("train", "val", "test"):
        for label in ("mri", "xray"):
            shutil.rmtree(images / split / label)
    assert_refused(cli("train", recipe, at(images)), "train has 1 label(s) (ct); a classifier needs at least two")


# -- Images -------------------------------------------------------------------------------------------------------


def huge_png() -> bytes:
    """200 megapixels in a few hundred bytes: a header, nothing behind it, an end."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20000, 10000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def huge_jpeg(real: bytes) -> bytes:
    """A real JPEG whose header says 20000 x 10000."""
    frame = real.index(b"\xff\xc0")
    return real[: frame + 5] + struct.pack(">HH", 10000, 20000) + real[frame + 9 :]


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "truncated": ("train/ct/000.jpg", lambda data: data[: len(data) // 2], "cut short"),
    "header": ("train/ct/000.jpg", lambda data: data[:100], "cut short"),
    "empty": ("val/mri/001.jpg", lambda data: b"", "is empty (0 bytes)"),
    "text": ("test/xray/002.jpg", lambda data: b"This is no picture.\n", "is no image of a known kind"),
    "huge_jpeg": ("train/mri/003.jpg", huge_jpeg, "20000 x 10000 = 200,000,000 pixels, more than max_pixels"),
    "huge_png": ("train/mri/004.png", lambda data: huge_png(), "200000000 pixels"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_an_image_that_cannot_be_used(cli: Cli, recipe: Path, images: Path, kind: str) -> None:
    name, damage, reason = DAMAGE[kind]
    path = images / name
    path.write_bytes(damage(path.with_suffix(".jpg").read_bytes()))
    answer = cli("train", recipe, at(images))
    assert_refused(answer, "1 row is bad", str(path), reason, "set data.on_bad_row: quarantine")
    assert answer.err.count(str(path)) == 1  # once is enough
    assert not runs(recipe)


@pytest.mark.parametrize("kind", ["huge_jpeg", "huge_png"])
def test_a_limit_of_pixels_can_be_lowered(cli: Cli, recipe: Path, tiny_images: Path, kind: str) -> None:
    answer = cli("data", "prepare", recipe, "data.store.max_pixels=1000")
    assert_refused(answer, "48 rows: a file in ", " has 40 x 32 = 1,280 pixels, more than max_pixels: 1,000", "000.jpg")


def test_in_quarantine_the_others_go_on(cli: Cli, recipe: Path, images: Path) -> None:
    for name, damage, _ in DAMAGE.values():
        path = images / name
        path.write_bytes(damage(path.with_suffix(".jpg").read_bytes()))
    broken = {str(images / name) for name, _, _ in DAMAGE.values()}
    answer = cli("train", recipe, at(images), QUARANTINE)
    assert answer.code == 0
    assert f"note: {len(broken)} bad rows left out" in answer.out
    (listing,) = (recipe.parent / "stores").glob("*/quarantine.csv")
    assert str(listing) in answer.out
    with listing.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == broken
    assert all(row["source"] == "images" and row["reason"] for row in rows)
    (run,) = runs(recipe)
    assert read_manifest(run).knowledge["training_cases"] == 24 - 2


def test_predictions_go_on_past_images_that_cannot_be_read(
    cli: Cli, tiny_run: Run, images: Path, tmp_path: Path
) -> None:
    for name, damage, _ in DAMAGE.values():
        path = images / name
        path.write_bytes(damage(path.with_suffix(".jpg").read_bytes()))
    out = tmp_path / "predictions.jsonl"
    answer = cli("predict", tiny_run.folder, images, images / "none.jpg", "--out", out)
    assert answer.code == 1
    broken = {str(images / name): reason for name, _, reason in DAMAGE.values()}
    assert f"{len(broken) + 1} of 50 cases have no answer; see their `error`." in answer.err
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(records) == 50
    errors = {record["image"]: record["error"] for record in records if "error" in record}
    assert errors.keys() == {*broken, str(images / "none.jpg")}
    assert all(reason in errors[path] for path, reason in broken.items() if path != str(images / "train/ct/000.jpg"))
    assert all("label" in record for record in records if "error" not in record)


# -- Rows ---------------------------------------------------------------------------------------------------------


def rows(images: Path) -> list[dict[str, Any]]:
    """A row of the jsonl form for every image."""
    return [
        {
            "id": str(path.relative_to(images)),
            "modalities": [{"type": "image", "value": str(path.relative_to(images))}],
            "label": path.parent.name,
            "split": path.parts[-3],
        }
        for path in sorted(images.rglob("*.jpg"))
    ]


def table(images: Path) -> str:
    return f"data.sources=[{{kind: jsonl, name: images, path: {images / 'rows.jsonl'}}}]"


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "json": ('{"id": "x", "modalities": [', "not valid JSON: Expecting value (character 29)"),
    "list": ("[1, 2]", "the line holds a list; expected one JSON object a line"),
    "split": ({"split": "holdout"}, "split 'holdout' is unknown; expected train, val, test or unlabelled"),
    "label": ({"label": "a..b"}, "label 'a..b' has an empty part"),
    "image": ({"modalities": [{"type": "image", "value": "none.jpg"}]}, "none.jpg does not exist"),
    "id": ({"id": "test/ct/000.jpg"}, "the id 'test/ct/000.jpg' was given before, in line 1"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_in_the_middle(cli: Cli, recipe: Path, images: Path, kind: str) -> None:
    content, reason = BAD_ROWS[kind]
    good: list[Any] = rows(images)
    good[20] = content if isinstance(content, str) else {**good[20], **content}
    file = write_jsonl(images / "rows.jsonl", good)
    answer = cli("train", recipe, table(images))
    assert_refused(answer, "1 row is bad", f"{file}:21: ", reason, "quarantine")
    assert not runs(recipe)
    # The reason is also in a file, for when there are many.
    (listing,) = (recipe.parent / "stores").glob("*/quarantine.csv")
    assert str(listing) in answer.err
    assert cli("train", recipe, table(images), QUARANTINE).code == 0
    with listing.open(encoding="utf-8", newline="") as opened:
        (row,) = csv.DictReader(opened)
    assert (row["source"], row["file"], row["line"]) == ("images", str(file), "21")
    assert reason in row["reason"]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{kind: folder, name: a, path: none}", "the folder none does not exist; correct its path"),
        ("{kind: csv, name: a, path: none.csv}", "the file none.csv does not exist; correct its path"),
        ("{kind: jsonl, name: a, path: EMPTY}", "is empty"),
        ("{kind: csv, name: a, path: HEADER}", "holds no rows"),
        ("{kind: folder, name: a, path: FOLDER}", "holds no image"),
        ("{kind: parquet, name: a, path: HEADER}", "HEADER"),
        ("{kind: csv, name: a, path: HEADER, columns: {label: lable}}", "lable"),
    ],
    ids=["folder", "file", "empty", "header", "no_image", "parquet", "column"],
)
def test_sources_that_hold_nothing(cli: Cli, recipe: Path, tmp_path: Path, source: str, told: str) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "header.csv").write_text("image,label\n", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    places = {"EMPTY": "empty.jsonl", "HEADER": "header.csv", "FOLDER": "folder"}
    for name, file in places.items():
        source, told = (text.replace(name, str(tmp_path / file)) for text in (source, told))
    assert_refused(cli("train", recipe, f"data.sources=[{source}]"), "source 'a'", told)


# -- Data that changes under the hands ----------------------------------------------------------------------------


class Vanishes:
    """Lets something happen to the files in the middle of a training."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self._on_step = ProgressHook.on_step

    def after(self, step: int, act: Callable[[], object]) -> None:
        on_step = self._on_step

        def acting(hook: ProgressHook, progress: Any, log: Any) -> None:
            on_step(hook, progress, log)
            if progress.step == step:
                act()

        self._patch.setattr(ProgressHook, "on_step", acting)

    def never(self) -> None:
        self._patch.setattr(ProgressHook, "on_step", self._on_step)


@pytest.fixture
def vanishes(monkeypatch: pytest.MonkeyPatch) -> Vanishes:
    return Vanishes(monkeypatch)


LONG = ["trainer.max_epochs=3", "trainer.max_steps=9"]  # three steps an epoch


def test_an_image_that_is_deleted_while_training(cli: Cli, recipe: Path, images: Path, vanishes: Vanishes) -> None:
    write_jsonl(images / "rows.jsonl", rows(images))
    unbroken = cli("train", recipe, table(images), *LONG, "output.variation=whole")
    assert unbroken.code == 0
    victim, hidden = images / "train" / "ct" / "005.jpg", images / "hidden"
    vanishes.after(4, lambda: victim.rename(hidden))
    answer = cli("train", recipe, table(images), *LONG)
    assert_refused(answer, "case train/ct/005.jpg cannot be used in training", f"{victim} does not exist")
    vanishes.never()
    (run,) = runs(recipe, "default-*")
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == ["step-00000003"]
    # Gone for good: the restart says so as well, and touches nothing.
    with nothing_lost(run, recipe.parent / "stores"):
        assert_refused(cli("train", recipe, table(images), *LONG, "--resume"), f"{victim} does not exist")
    hidden.rename(victim)
    assert cli("train", recipe, table(images), *LONG, "--resume").code == 0
    (whole,) = runs(recipe, "whole-*")
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_an_image_that_is_deleted_while_validating(cli: Cli, recipe: Path, images: Path, vanishes: Vanishes) -> None:
    victim = images / "val" / "ct" / "001.jpg"
    vanishes.after(6, victim.unlink)
    answer = cli("train", recipe, at(images), *LONG)
    assert answer.code == 1
    assert answer.out.count(f"{victim} does not exist") == 2  # in the training, and where it is judged
    (run,) = runs(recipe)
    assert (run / "bundle.json").is_file()


def test_an_image_that_is_deleted_before_judging(
    cli: Cli, recipe: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(images / "rows.jsonl", rows(images))
    assert cli("train", recipe, table(images)).code == 0
    (run,) = runs(recipe)
    assert cli("evaluate", run).code == 0
    victim = images / "test" / "mri" / "002.jpg"

    def outputs(*arguments: Any, **options: Any) -> Outputs:
        victim.unlink()
        return case_outputs(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("consilium.judge.case_outputs", outputs)
        answer = cli("evaluate", run)
    assert answer.code == 1
    assert "1 case of test could not be read" in answer.out
    assert f"{victim} does not exist" in answer.out
    with nothing_lost(run, recipe.parent / "stores"):
        assert_refused(cli("evaluate", run), "1 row is bad", f"{victim} does not exist")


def test_judging_tells_when_a_folder_is_not_what_it_was(cli: Cli, recipe: Path, images: Path) -> None:
    assert cli("train", recipe, at(images)).code == 0
    (run,) = runs(recipe)
    assert "changed since the training" not in cli("evaluate", run).out
    (images / "test" / "mri" / "002.jpg").unlink()
    answer = cli("evaluate", run)
    assert answer.code == 0
    assert "note: the data changed since the training; this may be another test set." in answer.out
    assert "changed since the training" in (run / "evaluation-test" / "report.html").read_text(encoding="utf-8")


def test_data_that_changed_between_start_and_resume(
    cli: Cli, recipe: Path, images: Path, vanishes: Vanishes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    vanishes.after(4, interrupt)
    assert cli("train", recipe, at(images), *LONG).code == 130
    vanishes.never()
    (run,) = runs(recipe)
    added = images / "train" / "ct" / "999.jpg"
    shutil.copy(images / "train" / "ct" / "000.jpg", added)
    with nothing_lost(run):
        answer = cli("train", recipe, at(images), *LONG, "--resume")
        assert_refused(answer, f"the data changed since {run} was started", "Put the files back", "start a new run")
    added.unlink()
    image = images / "train" / "ct" / "000.jpg"
    times = image.stat()
    image.write_bytes(image.read_bytes() + b"\0")  # harmless behind the end, but another file
    with nothing_lost(run):
        assert_refused(cli("train", recipe, at(images), *LONG, "--resume"), "the data changed since")
    image.write_bytes(image.read_bytes()[:-1])
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert cli("train", recipe, at(images), *LONG, "--resume").code == 0


def test_a_config_that_changed_between_start_and_resume(cli: Cli, recipe: Path, vanishes: Vanishes) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    vanishes.after(4, interrupt)
    assert cli("train", recipe, *LONG).code == 130
    vanishes.never()
    (run,) = runs(recipe)
    with nothing_lost(run):
        answer = cli("train", recipe, *LONG, "--resume", "optimizer.learning_rate=0.5", "task.head.dropout=0.1")
        assert_refused(
            answer,
            f"{run} was started with another config",
            "optimizer.learning_rate was 0.001 and is 0.5; task.head.dropout was 0.0 and is 0.1",
        )
        assert_refused(cli("train", recipe, *LONG, "--resume", "--limit", 6), "--limit was null and is 6")
    assert cli("train", recipe, *LONG, "--resume").code == 0
    assert_refused(cli("train", recipe, *LONG, "--resume"), "there is no unfinished run of 'default'")
