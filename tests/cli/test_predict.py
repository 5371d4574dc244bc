"""``predict``: files, folders, globs and stores in; jsonl, csv or the screen out."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

import consilium
from consilium.core.reporter import Reporter
from consilium.data.store.store import Store
from consilium.predictions import PredictionSummary
from tests.cli.conftest import Cli
from tests.tiny import Run

LABELS = ["ct", "mri", "xray"]


@pytest.fixture
def bundle(tiny_run: Run) -> Path:
    return tiny_run.folder


@pytest.fixture
def images(tiny_images: Path, tmp_path: Path) -> Path:
    """A folder with two images, one of them deeper, and a file that is none."""
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(tiny_images / "test" / "ct" / "000.jpg", folder / "a.jpg")
    shutil.copy(tiny_images / "test" / "mri" / "000.jpg", folder / "deep" / "b.jpg")
    (folder / "notes.txt").write_text("no image", encoding="utf-8")
    return folder


def test_records_are_those_of_python(cli: Cli, bundle: Path, images: Path) -> None:
    answer = cli("predict", bundle, images / "a.jpg", images / "deep" / "b.jpg")
    assert answer.code == 0
    assert answer.err == ""
    assert answer.records == consilium.load(bundle).predict([images / "a.jpg", images / "deep" / "b.jpg"])
    for record in answer.records:
        assert record["label"] == max(record["probabilities"], key=record["probabilities"].get)
        assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_notes_are_beside_the_answers(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed is JSON, line by line, whatever there is to say of the cases."""

    def answered(*_: object, reporter: Reporter, **__: object) -> PredictionSummary:
        reporter.line("note: of what the cases lack")
        print(json.dumps({"image": "a"}))  # noqa: T201
        return PredictionSummary(1, 0)

    monkeypatch.setattr("consilium.predictions.predict_files", answered)
    printed = cli("predict", tmp_path, "a.png")
    assert (printed.records, printed.err.strip()) == ([{"image": "a"}], "note: of what the cases lack")
    written = cli("predict", tmp_path, "a.png", "--out", tmp_path / "a.csv")
    assert "note: of what the cases lack" in written.out
    assert written.err == ""


def test_folders_and_globs(cli: Cli, bundle: Path, images: Path) -> None:
    expected = [str(images / "a.jpg"), str(images / "deep" / "b.jpg")]
    for given in (
        [images],
        [images / "a.jpg", images / "deep"],
        [f"{images}/**/*.jpg"],
        [f"{images}/*.jpg", images / "deep"],
    ):
        answer = cli("predict", bundle, *given)
        assert answer.code == 0
        assert [record["image"] for record in answer.records] == expected


def test_a_store(cli: Cli, tiny_run: Run, tiny_images: Path) -> None:
    stores = {path.parent for path in (tiny_images.parent / "stores").rglob("store.json")}
    content = tiny_run.manifest["data_fingerprint"]
    store = min(path for path in stores if Store.open(path).table.content == content)
    answer = cli("predict", tiny_run.folder, store)
    assert answer.code == 0
    answers = {record["image"]: record["label"] for record in answer.records}
    assert len(answers) == 48
    file = tiny_images / "val" / "mri" / "001.jpg"
    assert answers["images:val/mri/001.jpg"] == consilium.load(tiny_run.folder).predict(file)[0]["label"]


def test_jsonl_and_csv_hold_the_same(cli: Cli, bundle: Path, images: Path, tmp_path: Path) -> None:
    (images / "c.png").write_bytes(b"no png")
    lines, table = tmp_path / "out" / "p.jsonl", tmp_path / "out" / "p.csv"
    assert cli("predict", bundle, images, "--out", lines).code == 1
    assert cli("predict", bundle, images, "--out", table, "--batch-size", 1).code == 1
    records = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [record["image"] for record in records]
    for row, record in zip(rows, records, strict=True):
        assert row["error"] == record.get("error", "")
        assert row["label"] == record.get("label", "")
        if "label" in record:
            assert float(row["probability"]) == pytest.approx(record["probability"], abs=1e-5)
            shown = {label: float(row[f"p_{label}"]) for label in LABELS}
            assert shown == pytest.approx(record["probabilities"], abs=1e-5)
    assert sum(bool(row["error"]) for row in rows) == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"p.jsonl", "p.csv"}


def test_an_unreadable_image_gets_an_error_entry_and_the_rest_goes_on(cli: Cli, bundle: Path, images: Path) -> None:
    truncated = images / "truncated.jpg"
    truncated.write_bytes((images / "a.jpg").read_bytes()[:300])
    empty = images / "empty.png"
    empty.touch()
    given = [truncated, images / "a.jpg", images / "none.jpg", empty, images / "notes.txt", images / "deep" / "b.jpg"]
    answer = cli("predict", bundle, *given)
    assert answer.code == 1
    assert "4 of 6 cases have no answer" in answer.err
    assert "Traceback" not in answer.err
    assert [record["image"] for record in answer.records] == [str(path) for path in given]
    assert ["error" in record for record in answer.records] == [True, False, True, True, True, False]
    messages = [record["error"] for record in answer.records if "error" in record]
    for message, told in zip(
        messages, ("cut short", "does not exist", "empty", "no image of a known kind"), strict=True
    ):
        assert told in message


def test_what_a_person_can_mend_is_exit_code_2(cli: Cli, bundle: Path, images: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([tmp_path / "nothing", images], f"{tmp_path / 'nothing'} does not exist; give the folder of a finished run"),
        ([images, images], "has no bundle.json, so it is not a finished run"),
        ([bundle, images, "--out", tmp_path / "p.xlsx"], "expected a name that ends in .jsonl, .csv, .npz,"),
        ([bundle, f"{tmp_path}/*.tiff"], "no image under"),
        ([bundle, bundle / "tensorboard"], "no image under"),
    ):
        answer = cli("predict", *arguments)
        assert answer.code == 2, arguments
        assert message in answer.err
        assert answer.out == ""
    assert not (tmp_path / "p.xlsx").exists()


def test_many_labels(cli: Cli, tiny_images: Path, images: Path, tmp_path: Path) -> None:
    from tests.tiny import train_tiny

    run = train_tiny(tiny_images, tmp_path / "runs", "task.multi_label=true", "task.answers.threshold=0.01")
    answer = cli("predict", run.folder, images / "a.jpg")
    assert [record["labels"] for record in answer.records] == [LABELS]
    out = tmp_path / "p.csv"
    assert cli("predict", run.folder, images / "a.jpg", "--out", out).code == 0
    with out.open(encoding="utf-8", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [";".join(LABELS)]


@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_sleep_while_they_wait_unless_told_otherwise(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, given: str | None, used: str
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    cli("--help")
    assert os.environ["OMP_WAIT_POLICY"] == used


def test_one_case_in_the_call_is_read_as_it_is_written(cli: Cli, bundle: Path, images: Path) -> None:
    for arguments, said in (
        ((), "there is nothing to predict"),
        (("--meta", "age"), "--meta is 'age'; expected COLUMN=VALUE, such as age=70"),
        (("--meta", "age=7", "--meta", "age=8"), "--meta gives 'age' twice: 7 and 8"),
        ((images / "a.jpg", "--text", "a scan"), "--text is given, but this bundle reads no text"),
        ((images / "a.jpg", "--meta", "age=70"), "--meta names 'age', which this bundle does not read; it reads none"),
        ((images, "--meta", "age=70"), "holds 2 cases"),
    ):
        answer = cli("predict", bundle, *arguments)
        assert answer.code == 2
        assert said in answer.err
