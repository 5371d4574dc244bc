"""``index`` and ``search``: a table, JSON or a page; what cannot be asked is said."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Cli
from tests.tasks.test_align_contract import train_pairs
from tests.tiny import Run

TEXT = "A square that is red, as number 1 of its kind"


@pytest.fixture(scope="module")
def expert(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_pairs(tmp_path_factory.mktemp("expert"), "trainer.max_steps=2")


@pytest.fixture
def bundle(expert: Run) -> Path:
    return expert.folder


@pytest.fixture
def squares(expert: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of six images, one with a name that a page must not take for its own; the test works beside it."""
    folder = tmp_path / "squares"
    folder.mkdir()
    for number in range(5):
        shutil.copy(expert.folder.parents[2] / "pairs" / f"{number}.png", folder)
    shutil.copy(folder / "0.png", folder / "<b onload=x>&.png")
    monkeypatch.chdir(tmp_path)
    return folder


def test_index_and_search(cli: Cli, bundle: Path, squares: Path) -> None:
    made = cli("index", bundle, squares, "--out", "made")
    assert (made.code, made.err) == (0, "")
    assert made.out == "index made: 6 cases, 6 images, 0 texts; embedded 6 images and 0 texts\n"
    assert cli("index", bundle, "--out", "made").out == "index made: 6 cases, 6 images, 0 texts; it is up to date\n"
    shown = cli("search", bundle, squares / "3.png", "--index", "made", "-k", 4)
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert lines[0] == f"'{squares / '3.png'}' in made: the nearest 4 of 6 images, by the expert pairs"
    assert lines[1].split() == ["rank", "similarity", "case"]
    assert lines[3].split() == ["1", "1.000", str(squares / "3.png")]
    assert len(lines) == 7
    asked = cli("search", bundle, squares / "3.png", "--index", "made", "-k", 4, "--json")
    (answer,) = asked.records
    assert answer["query"] == {"image": str(squares / "3.png")}
    assert [hit["id"] for hit in answer["hits"]] == [line.split(maxsplit=2)[2] for line in lines[3:]]
    assert cli("search", bundle, TEXT, "--index", "made", "--out", "found.json").code == 0
    found = json.loads(Path("found.json").read_text(encoding="utf-8"))
    assert found["query"] == {"text": TEXT}
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3, 4, 5, 6]


def test_a_collection_without_an_index_gets_one(cli: Cli, expert: Run, bundle: Path, squares: Path) -> None:
    (store,) = (expert.folder.parents[2] / "stores").glob("pairs-*")
    first = cli("search", bundle, TEXT, "--index", store, "--among", "texts", "-k", 1)
    assert "embedded 48 images and 24 texts" in first.out
    row = first.out.splitlines()[-1].split(maxsplit=5)
    assert [*row[:2], *row[3:]] == ["1", "1.000", "pairs", "2", TEXT]
    again = cli("search", bundle, TEXT, "--index", store, "--json", "--source", "pairs")
    assert len(again.records[0]["hits"]) == 10, "nothing but the answer is printed"
    (squares / "4.png").write_bytes(b"")
    folder = cli("search", bundle, TEXT, "--index", "squares")
    assert folder.code == 0
    assert "1 image could not be read, and cannot be found" in folder.err
    assert f"{squares / '4.png'}" in folder.err
    made = {path.name.rpartition("-")[0] for path in Path("indexes").iterdir() if path.is_dir()}
    assert made == {store.name, "squares"}


def test_unreadable_images_are_exit_code_1(cli: Cli, bundle: Path, squares: Path) -> None:
    (squares / "4.png").write_bytes(b"no image")
    (squares / "notes.txt").write_text("no image", encoding="utf-8")
    made = cli("index", bundle, squares, "--out", "made")
    assert made.code == 1
    assert "6 cases, 5 images" in made.out
    assert "skipped: 1 x .txt file" in made.err
    assert "1 image could not be read, and cannot be found:" in made.err
    assert f"{squares / '4.png'}: " in made.err


def test_the_page_needs_no_other_file_and_escapes_names(cli: Cli, bundle: Path, squares: Path) -> None:
    odd = squares / "<b onload=x>&.png"
    assert cli("search", bundle, odd, "--index", squares, "--out", "found.html").code == 0
    page = Path("found.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/jpeg;base64,') == 7
    assert "<b onload" not in page
    assert "Cases like &lt;b onload=x&gt;&amp;.png" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert cli("search", bundle, odd, "--index", squares, "--out", "bare.html", "--no-images").code == 0
    bare = Path("bare.html").read_text(encoding="utf-8")
    assert "<img" not in bare
    assert "base64" not in bare
    (squares / "1.png").unlink()  # gone since it was embedded
    index = next(path for path in Path("indexes").iterdir() if path.is_dir())
    assert cli("search", bundle, TEXT, "--index", index, "--out", "gone.html").code == 0
    page = Path("gone.html").read_text(encoding="utf-8")
    assert page.count("<img") == 5
    assert page.count("no picture") == 1


def test_pictures_that_a_store_embeds(cli: Cli, bundle: Path, squares: Path) -> None:
    recipe = Path("embed.yaml")
    recipe.write_text(
        "name: embed\ntask: {kind: align}\ndata:\n  store: {images: embed}\n"
        "  sources: [{kind: folder, name: own, path: squares, label_levels: 0}]\n",
        encoding="utf-8",
    )
    assert cli("data", "prepare", recipe).code == 0
    (store,) = Path("stores").glob("own-*")
    shutil.rmtree(squares)
    assert cli("search", bundle, TEXT, "--index", store, "--out", "found.html").code == 0
    assert Path("found.html").read_text(encoding="utf-8").count("<img") == 6


def test_what_a_person_can_mend_is_exit_code_2(cli: Cli, bundle: Path, squares: Path, tiny_run: Run) -> None:
    (squares / "notes.txt").write_text("no image", encoding="utf-8")
    assert cli("index", bundle, squares, "--out", "made").code == 0
    for arguments, message in (
        ([bundle, squares, "--index", "made"], "is a folder; give one image of it, or --text"),
        ([bundle, "missing.png", "--index", "made"], "there is no image missing.png (looked from"),
        ([bundle, squares / "notes.txt", "--index", "made"], "is a file, but no image by its name. Give --text"),
        ([bundle, squares / "notes.txt", "--image", "--index", "made"], "the image to search for cannot be read"),
        ([bundle, "", "--index", "made"], "the text to search for is empty"),
        ([bundle, TEXT, "--index", "elsewhere"], "which does not exist (looked from"),
        ([bundle, TEXT, "--index", squares / "notes.txt"], "no image of the collection can be read"),
        ([bundle, TEXT, "--index", "made", "--label", "ct"], "no case of the index has the label 'ct'; there is none"),
        ([bundle, TEXT, "--index", "made", "--out", "found.xlsx"], "expected a name that ends in .html or .json"),
        ([bundle, TEXT, "--index", "made", "--among", "texts"], "none of 6 cases has texts to search among"),
        ([tiny_run.folder, TEXT, "--index", "made"], "has no embeddings of images, so it cannot search"),
    ):
        answer = cli("search", *arguments)
        assert (answer.code, answer.out) == (2, ""), arguments
        assert message in answer.err
        assert "Traceback" not in answer.err
    assert "longer than the expert reads" in cli("search", bundle, f"{TEXT} " * 30, "--index", "made").err
    for as_text in ("missing.png", squares / "notes.txt", squares):
        assert cli("search", bundle, as_text, "--text", "--index", "made").code == 0


def test_an_image_of_another_ending(cli: Cli, bundle: Path, squares: Path) -> None:
    Image.open(squares / "2.png").save("scan.bin", format="PNG")
    answer = cli("search", bundle, "scan.bin", "--image", "--index", squares, "-k", 1, "--json")
    assert answer.records[0]["hits"][0]["id"] == str(squares / "2.png")
