"""``evaluate``: a bundle's own figures again, and figures on other data."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Cli
from tests.conftest import ImageFolder
from tests.older import make_older
from tests.tiny import Run


@pytest.fixture
def bundle(tiny_run: Run, tmp_path: Path) -> Path:
    """A copy, since an evaluation is written into its bundle."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "bundle"))


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_figures_of_training_come_out_again(cli: Cli, bundle: Path, tiny_run: Run, split: str) -> None:
    answer = cli("evaluate", bundle, "--split", split)
    assert answer.code == 0
    folder = bundle / f"evaluation-{split}"
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))[split]
    trained = json.loads((tiny_run.folder / "metrics.json").read_text(encoding="utf-8"))[split]
    assert found["metrics"] == tiny_run.metrics[split]
    assert found == trained
    tables = sorted(path.name for path in (folder / "tables").iterdir())
    assert f"{split}_per_class.csv" in tables
    for name in tables:
        assert (folder / "tables" / name).read_bytes() == (tiny_run.folder / "tables" / name).read_bytes()
    assert answer.out.splitlines()[-1] == f"report: {folder / 'report.html'}"
    assert (folder / "report.html").is_file()
    assert "macro_f1" in answer.out


def test_a_bundle_of_a_version_whose_keys_have_moved_is_judged_by_them(cli: Cli, bundle: Path) -> None:
    make_older(bundle, specificities=[0.5], calibration_bins=4)
    assert cli("evaluate", bundle).code == 0
    with (bundle / "evaluation-test" / "tables" / "test_per_class.csv").open(encoding="utf-8", newline="") as file:
        (first, *_) = csv.DictReader(file)
    assert "sensitivity_at_specificity_0.50" in first
    assert "sensitivity_at_specificity_0.95" not in first


def test_the_training_split_and_another_folder(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    assert cli("evaluate", bundle, "--split", "train", "--out", tmp_path / "out").code == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert found["train"]["cases"] == 24
    assert not (bundle / "evaluation-train").exists()


def test_other_data(cli: Cli, bundle: Path, tmp_path: Path, image_folder: ImageFolder) -> None:
    images = image_folder(splits={"train": 1, "val": 2, "test": 3}, labels=("mri", "xray"), seed=4)
    section = {"sources": [{"kind": "folder", "name": "clinic", "path": str(images)}], "store": {"root": str(tmp_path)}}
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump({"data": section}), encoding="utf-8")
    (tmp_path / "section.yaml").write_text(yaml.safe_dump(section), encoding="utf-8")
    for name in ("whole.yaml", "section.yaml"):
        for split, cases in (("val", 4), ("test", 6)):
            out = tmp_path / f"{name}-{split}"
            answer = cli("evaluate", bundle, "--data", tmp_path / name, "--split", split, "--out", out)
            assert answer.code == 0
            found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))[split]
            assert found["cases"] == cases
            with (out / "tables" / f"{split}_per_source.csv").open(encoding="utf-8", newline="") as file:
                assert [(row["source"], row["n"]) for row in csv.DictReader(file)] == [("clinic", str(cases))]


def test_a_folder_without_splits(cli: Cli, bundle: Path, tmp_path: Path, image_folder: ImageFolder) -> None:
    images = image_folder(splits={"test": 3}) / "test"
    answer = cli("evaluate", bundle, "--data", images, "--out", tmp_path / "out")
    assert answer.code == 0
    assert "note:" not in answer.out  # nothing trains on these cases, so no split of them can be too small
    found = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert [part["cases"] for part in found.values()] == [9]


def test_what_a_person_can_mend_is_exit_code_2(
    cli: Cli, bundle: Path, tmp_path: Path, image_folder: ImageFolder
) -> None:
    strange = image_folder(labels=("ct", "dog"), splits={"test": 2})
    (tmp_path / "strange.yaml").write_text(
        yaml.safe_dump(
            {"sources": [{"kind": "folder", "name": "s", "path": str(strange)}], "store": {"root": str(tmp_path)}}
        ),
        encoding="utf-8",
    )
    bare = strange.parent / "bare.csv"
    bare.write_text("image\n" + "".join(f"{path}\n" for path in strange.rglob("*.*")), encoding="utf-8")
    for arguments, message in (
        (["--split", "holdout"], "holdout"),
        (["--data", tmp_path / "none.yaml"], "does not exist"),
        (["--data", tmp_path / "strange.yaml"], "'dog'"),
        (["--data", tmp_path / "data.docx"], "expected a YAML file"),
        (["--data", tmp_path / "strange.yaml", "--split", "val"], "'dog'"),
        (["--data", bare], "none of 4 cases can be used: 4 cases left out: no label"),
    ):
        answer = cli("evaluate", bundle, *arguments)
        assert answer.code == 2, arguments
        assert answer.err.startswith("error: ")
        assert message in answer.err
    assert not list(bundle.glob("evaluation-*"))
