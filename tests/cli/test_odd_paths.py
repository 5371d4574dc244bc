"""What people give as paths: folders with other files, globs, names with every character, addresses, nothing."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.tiny import Run


@pytest.fixture
def image(tiny_images: Path) -> Path:
    return tiny_images / "test" / "ct" / "000.jpg"


@pytest.fixture
def mixed(image: Path, tmp_path: Path) -> Path:
    """Two images among files and folders that are none."""
    folder = tmp_path / "mixed"
    for name in ("a.jpg", "sub/B.JPG", "@eaDir/a.jpg", ".hidden.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder / name)
    for name in ("notes.txt", "sub/more.txt"):
        (folder / name).write_text("no image", encoding="utf-8")
    return folder


def names(records: list[dict[str, str]]) -> list[str]:
    return [record["image"] for record in records]


def test_what_a_folder_holds_beside_images_is_said(cli: Cli, tiny_run: Run, mixed: Path, tmp_path: Path) -> None:
    answer = cli("predict", tiny_run.folder, mixed)
    assert answer.code == 0
    assert names(answer.records) == [str(mixed / "a.jpg"), str(mixed / "sub" / "B.JPG")]
    assert answer.err.startswith("skipped: ")
    for told in ("2 x .txt file", "1 x hidden", "1 x @eaDir"):
        assert told in answer.err
    written = cli("predict", tiny_run.folder, mixed, "--out", tmp_path / "p.jsonl")
    assert written.err == answer.err


def test_a_glob_takes_files_and_says_that_folders_are_skipped(cli: Cli, tiny_run: Run, mixed: Path) -> None:
    answer = cli("predict", tiny_run.folder, f"{mixed}/*")
    assert names(answer.records) == [str(mixed / "a.jpg"), str(mixed / "notes.txt")]
    assert answer.code == 1  # a file that was named and is no image is an error
    assert "skipped: 2 x folder" in answer.err


@pytest.mark.parametrize("name", ["scans [1]", "a\nb", "50% *?", "~", "ünïcode", "-x y"])
def test_a_name_stands_for_itself_where_it_exists(
    cli: Cli, tiny_run: Run, image: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    path = shutil.copy(image, folder / f"{name}.jpg")
    for given in (folder, path, f"{folder}/*.jpg", folder.as_uri(), Path(path).as_uri()):
        answer = cli("predict", tiny_run.folder, given)
        assert answer.code == 0, (given, answer.err)
        assert names(answer.records) == [str(path)]


def test_a_name_that_is_no_text(cli: Cli, tiny_run: Run, image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    path = os.fsdecode(os.fsencode(folder) + b"/\xff.jpg")
    try:
        shutil.copy(image, path)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert cli("predict", tiny_run.folder, folder).code == 0
    for out in (tmp_path / "p.jsonl", tmp_path / "p.csv"):
        assert cli("predict", tiny_run.folder, folder, "--out", out).code == 0
    assert json.loads((tmp_path / "p.jsonl").read_text(encoding="utf-8"))["image"] == path
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == [f"{folder}/\\udcff.jpg"]


def test_the_home_folder(cli: Cli, tiny_run: Run, mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(mixed))
    for given in ("~/a.jpg", "~/a*", "file://~/a.jpg".replace("~", str(mixed))):
        assert names(cli("predict", tiny_run.folder, given).records) == [str(mixed / "a.jpg")]


def test_where_there_is_no_image_it_says_what_there_is(cli: Cli, tiny_run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a", encoding="utf-8")
    for given, said in (
        (tmp_path / "empty", "the folder is empty. Expected image files (.apng"),
        (tmp_path / "texts", "there is only 1 x .txt file. Expected"),
        (f"{tmp_path}/t*", "there is only 1 x folder. Expected"),
        (f"{tmp_path}/none/*.png", f"nothing matches (looked from {os.getcwd()}). Expected"),
        ("https://example.org/a.png", "an address of a kind that is not read"),
    ):
        answer = cli("predict", tiny_run.folder, given)
        assert answer.code == 2
        assert said in answer.err
        assert answer.out == ""
    answer = cli("predict", tiny_run.folder, "")
    assert answer.code == 1
    assert "a path is empty" in answer.records[0]["error"]


def test_what_cannot_be_judged_is_named(cli: Cli, tiny_run: Run, image: Path, tmp_path: Path) -> None:
    (store, *_) = [path.parent for path in (image.parents[3] / "stores").rglob("store.json")]
    for given, said in (
        ("nope", f"'nope', which does not exist (looked from {os.getcwd()})"),
        ("", "'', which does not exist"),
        (f"{tmp_path}/*", "which does not exist"),
        (image, "Images without labels are for `consilium predict`"),
        (store, "a prepared store; give the YAML file it was prepared from"),
    ):
        answer = cli("evaluate", tiny_run.folder, "--data", given, "--out", tmp_path / "out")
        assert answer.code == 2
        assert said in answer.err


def test_data_to_judge_on_may_have_any_name(cli: Cli, tiny_run: Run, tiny_images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "te[st]\n1"
    shutil.copytree(tiny_images / "test", folder)
    for number, given in enumerate((folder, folder.as_uri())):
        answer = cli("evaluate", tiny_run.folder, "--data", given, "--out", tmp_path / f"out{number}")
        assert answer.code == 0, answer.err
        assert (tmp_path / f"out{number}" / "report.html").is_file()
