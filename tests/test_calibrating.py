"""``calibrate``: a bundle learns from a site's cases how sure it may be, and nothing else."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import consilium
from consilium.calibrating import CalibrateResult, calibrate, restore
from consilium.core.errors import ConfigError, DataError
from consilium.core.evaluation import Evaluation
from consilium.evaluating import evaluate
from consilium.manifest import read_manifest
from tests.cli.conftest import Cli, cli
from tests.conftest import ImageFolder
from tests.tiny import Run

__all__ = ["cli"]

BUNDLES = Path(__file__).parent / "bundles"
LEAVES = ("cold.blue", "cold.green", "warm.red", "warm.yellow")
COLOURS = ((0, 0, 255), (0, 255, 0), (255, 0, 0), (255, 255, 0))
OLDER = ("format2_flat", "format2_joint", "format2_cascade", "format2_multi_label")
Cases = Callable[..., Path]


@pytest.fixture
def cases(tmp_path: Path) -> Cases:
    """Writes a jsonl file of noisy coloured images, ``count`` of each label, each of a patient of its own."""

    def write(name: str = "clinic", *, count: int = 20, labels: Any = LEAVES, patients: int | None = None) -> Path:
        rng, rows = np.random.default_rng(3), []
        (tmp_path / name).mkdir()
        for number, label in enumerate(labels):
            for case in range(count):
                noise_HWC = rng.normal(0, 60, (32, 32, 3))
                pixels_HWC = np.clip(np.array(COLOURS[number % 4]) * 0.5 + 60 + noise_HWC, 0, 255).astype(np.uint8)
                path = tmp_path / name / f"{number}-{case}.png"
                Image.fromarray(pixels_HWC).save(path)
                group = f"p{len(rows) if patients is None else len(rows) % patients}"
                rows.append({"image": str(path), "label": label, "group": group})
        table = tmp_path / f"{name}.jsonl"
        table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        config = {"sources": [{"kind": "jsonl", "name": name, "path": str(table), "columns": {"group": "group"}}]}
        config |= {"store": {"root": str(tmp_path / "stores")}}
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps({"data": config}), encoding="utf-8")
        return path

    return write


def run(bundle: Path, data: Path, out: Path, **options: Any) -> CalibrateResult:
    return calibrate(bundle, data=data, out=out, split="all", device="cpu", quiet=True, **options)


@pytest.mark.parametrize("name", OLDER)
def test_every_kind_of_labels_and_the_old_answers_come_back(name: str, cases: Cases, tmp_path: Path) -> None:
    bundle = BUNDLES / f"{name}.zip"
    found = run(bundle, cases(), tmp_path / "new")
    pictures = [np.full((32, 32, 3), colour, dtype=np.uint8) for colour in COLOURS]
    before, after = (consilium.load(own, device="cpu") for own in (bundle, found.bundle))
    assert after.predict(pictures) != before.predict(pictures)
    back = restore(found.bundle, name="training", out=tmp_path / "back")
    assert consilium.load(back, device="cpu").predict(pictures) == before.predict(pictures)
    again = restore(back, name="clinic", out=tmp_path / "again")
    assert consilium.load(again, device="cpu").predict(pictures) == after.predict(pictures)
    kept = read_manifest(found.bundle).knowledge["calibrations"]
    assert [(own["name"], own["cases"], own["groups"]) for own in kept] == [("training", 0, 0), ("clinic", 80, 80)]
    rows = {row["figure"]: row for row in found.figures}
    assert rows["log_loss"]["difference_high"] < 0  # a run of a few steps knows nothing of its own sureness
    assert all(row["training"] is None for row in found.drift if "label" not in row["what"])


def test_what_is_judged_is_what_evaluate_says(cases: Cases, tmp_path: Path) -> None:
    """Before: to the digit. After: by the calibration of all cases in the place of that of four fifths of them."""
    data = cases()

    def judged(bundle: Path) -> Evaluation:
        return evaluate(bundle, data=data, split="all", out=tmp_path / "judged", device="cpu", quiet=True)

    for name in ("format2_flat", "format2_multi_label"):
        bundle = BUNDLES / f"{name}.zip"
        found = run(bundle, data, tmp_path / name)
        rows = {row["figure"]: row for row in found.figures}
        shared = {"log_loss", "calibration_error", "accuracy", "micro_f1", "macro_f1", "exact_match"} & set(rows)
        before = judged(bundle).metrics
        assert {figure: rows[figure]["before"] for figure in shared} == pytest.approx(
            {figure: before[figure] for figure in shared}, abs=1e-6
        )
        if name == "format2_flat":
            after = judged(found.bundle).metrics
            assert rows["log_loss"]["after"] == pytest.approx(after["log_loss"], abs=0.08)
            assert rows["log_loss"]["after"] > after["log_loss"]  # which has seen the very cases


def test_the_weights_stay_and_the_manifest_says_what_was_found(tiny_run: Run, cases: Cases, tmp_path: Path) -> None:
    data = cases(labels=("ct", "mri", "xray"))
    found = run(tiny_run.folder, data, tmp_path / "new", name="hospital")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tiny_run.folder, found.bundle)]
    assert weights[0] == weights[1]
    manifest = read_manifest(found.bundle)
    assert set(manifest.metrics) == {"val", "test", "hospital"}
    assert manifest.metrics["hospital"]["log_loss"] == next(
        row["after"] for row in found.figures if row["figure"] == "log_loss"
    )
    with pytest.raises(ConfigError, match="already has a calibration called 'hospital'"):
        run(found.bundle, data, tmp_path / "newer", name="hospital")
    newer = run(found.bundle, data, tmp_path / "newer", name="ward")
    assert [own["name"] for own in read_manifest(newer.bundle).knowledge["calibrations"]] == [
        "training", "hospital", "ward",
    ]  # fmt: skip


def test_inputs_of_the_site_stand_beside_those_of_the_training(tiny_run: Run, cases: Cases, tmp_path: Path) -> None:
    found = run(tiny_run.folder, cases(labels=("ct", "mri", "mri", "xray")), tmp_path / "new")
    drift = {row["what"]: row for row in found.drift}
    width = drift["width of images in pixels"]
    assert (width["training"], width["site"], width["far"]) == (40, 32, True)
    assert drift["share of cases with an image"]["difference"] == 0
    label = drift["share of label mri"]
    assert (label["training"], label["site"], label["far"]) == (pytest.approx(1 / 3), 0.5, True)
    assert not drift["share of label ct"]["far"]
    with (found.bundle / "drift.csv").open(encoding="utf-8", newline="") as file:
        assert [row["what"] for row in csv.DictReader(file)] == list(drift)


def test_the_page_is_whole_and_loads_nothing(tiny_run: Run, cases: Cases, tmp_path: Path) -> None:
    found = run(tiny_run.folder, cases(labels=("ct", "mri", "xray")), tmp_path / "new")
    text = (found.bundle / "calibration.html").read_text(encoding="utf-8")
    opened: list[str] = []

    class Page(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            if tag not in {"meta", "img", "br", "wbr"}:
                opened.append(tag)
            assert not any(value and value.startswith(("http:", "https:", "//")) for _, value in attrs)

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

    Page().feed(text)
    assert not opened
    assert "None" not in text.split("</style>")[1]
    assert text.count('class="reliability"') == 2


# -- Bad input ----------------------------------------------------------------------------------------------------


def test_data_that_cannot_calibrate(tiny_run: Run, cases: Cases, tmp_path: Path) -> None:
    three = ("ct", "mri", "xray")
    few = cases("few", count=6, labels=three)
    for data, message in (
        (cases("other", labels=("ct", "dog")), "labels occur that the model does not know: 'dog'"),
        (few, r"18 labelled cases of 18 groups .*needs at least 20 groups.* Label 2 more groups"),
        (cases("patients", count=20, labels=three, patients=19), "60 labelled cases of 19 groups .*Label 1 more group"),
        (cases("bare", labels=(None,) * 3), "none of 60 cases can be used: 60 cases left out: no label"),
        (cases("one", count=30, labels=("ct",)), r"all labelled cases have one label \(ct\)"),
    ):
        with pytest.raises(DataError, match=message):
            run(tiny_run.folder, data, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_thresholds_need_more_cases_the_more_is_wanted(tiny_run: Run, cases: Cases, tmp_path: Path) -> None:
    data = cases(count=10, labels=("ct", "mri", "xray"))
    with pytest.raises(DataError, match=r"wanted accuracy of 0\.95 need at least 60: .* Label 30 more cases"):
        run(tiny_run.folder, data, tmp_path / "new", wanted_accuracy=0.95)
    found = run(tiny_run.folder, data, tmp_path / "new", wanted_accuracy=0.4)
    calibration = read_manifest(found.bundle).knowledge["calibration"]
    assert calibration["wanted_accuracy"] == 0.4
    assert len(calibration["thresholds"]) == 1


def test_asked_for_what_cannot_be(tiny_run: Run, cases: Cases, tmp_path: Path, cli: Cli) -> None:
    data = cases(labels=("ct", "mri", "xray"))
    for options, message in (
        ([], "give one of them"),
        (["--data", data, "--restore", "training"], "give one of them"),
        (["--restore", "training"], "no calibration but that of its training"),
        (["--data", tiny_run.folder / "config.yaml", "--split", "train"], "taught the bundle its weights"),
        (["--data", tmp_path / "nowhere"], "does not exist"),
    ):
        answer = cli("calibrate", tiny_run.folder, "--out", tmp_path / "new", *options)
        assert (answer.code, message in answer.err) == (2, True), (answer.err, message)
    (tmp_path / "new").mkdir()
    answer = cli("calibrate", tiny_run.folder, "--out", tmp_path / "new", "--data", data)
    assert (answer.code, "exists already" in answer.err) == (2, True)
    several = Path(shutil.copy(BUNDLES / "format2_multi_label.zip", tmp_path / "several.zip"))
    with pytest.raises(ConfigError, match=r"--wanted-accuracy is 0\.9, but this bundle gives any number of labels"):
        run(several, cases("several"), tmp_path / "other", wanted_accuracy=0.9)


def test_from_the_command_line(tiny_run: Run, image_folder: ImageFolder, tmp_path: Path, cli: Cli) -> None:
    images = image_folder(splits={"site": 8}, seed=9) / "site"
    answer = cli("calibrate", tiny_run.folder, "--data", images, "--out", tmp_path / "new", "--device", "cpu")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[-2:] == [
        f"bundle: {tmp_path / 'new'}",
        f"report: {tmp_path / 'new' / 'calibration.html'}",
    ]
    answer = cli("calibrate", tmp_path / "new", "--restore", "trainig", "--out", tmp_path / "back")
    assert (answer.code, "did you mean `training`" in answer.err) == (2, True)
    assert cli("calibrate", tmp_path / "new", "--restore", "training", "--out", tmp_path / "back").code == 0
    assert cli("predict", tmp_path / "back", images / "ct").code == 0
