"""An index gives what a search through all embeddings gives, and stays true to its collection."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import consilium
from consilium import Index, Query
from consilium.core.errors import ConfigError, DataError, ImageError, MissingExtraError, SearchError
from consilium.data.store.store import Store
from consilium.predictor import Predictor
from consilium.search import building
from consilium.search.building import Built, build_index
from tests.data.samples import write_jsonl
from tests.tiny import Recorder, Run

TEXT = "A square that is red, as number 1 of its kind"


def build(model: Predictor, *places: Path | str, out: Path, **options: Any) -> Built:
    return build_index(model, [str(place) for place in places], out=out, **{"reporter": Recorder(), **options})


def files(folder: Path) -> dict[str, bytes]:
    """The files of an index that hold what was embedded."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "index.json"}


@pytest.fixture(scope="module")
def whole(model: Predictor, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """The index of the store; no test changes it."""
    return Index.build(model, [store], out=tmp_path_factory.mktemp("whole") / "index", quiet=True)


def test_results_are_those_of_all_embeddings(model: Predictor, store: Path, whole: Index) -> None:
    table = Store.open(store).table
    answers = model.predict([Query(table.images(row), table.texts[row]) for row in range(len(table))])
    images_ND = np.array([answer["image_embedding"] for answer in answers])
    texts_ND = np.array([answer["text_embedding"] for answer in answers])
    picture = table.images(5)[0]
    for asked, query_D in (({"text": TEXT}, model.predict([Query(text=TEXT)])[0]["text_embedding"]),
                           ({"image": picture}, images_ND[5])):  # fmt: skip
        expected_N = images_ND @ np.array(query_D)
        hits = whole.search(**asked, k=7)
        assert [hit.rank for hit in hits] == list(range(1, 8))
        np.testing.assert_allclose([hit.similarity for hit in hits], np.sort(expected_N)[::-1][:7], atol=1e-5)
        for hit in hits:
            row = table.ids.index(hit.id)
            assert hit.similarity == pytest.approx(expected_N[row], abs=1e-5)
            assert (hit.source, hit.labels, hit.texts) == ("pairs", (), (table.texts[row],))
            assert whole.views(hit) == table.images(row) == list(hit.images)
    best = whole.search(image=picture, k=1)[0]
    assert (best.id, best.similarity) == (table.ids[5], pytest.approx(1, abs=1e-5))
    found = whole.search(text=TEXT, among="texts", k=100)
    assert len({hit.text for hit in found}) == len(found) == len(set(table.texts)) == 24
    assert [hit.cases for hit in found] == [2] * 24
    assert (found[0].text, found[0].similarity) == (TEXT, pytest.approx(1, abs=1e-5))
    for hit in found:
        own_D = texts_ND[table.texts.index(hit.text)]
        assert hit.similarity == pytest.approx(float(own_D @ texts_ND[table.texts.index(TEXT)]), abs=1e-5)


def test_a_search_gives_at_most_all(whole: Index) -> None:
    assert len(whole.search(text=TEXT, k=1000)) == len(whole) == 48


def test_pixels_and_bytes_are_searched_for_too(whole: Index, squares: Path) -> None:
    by_path, by_bytes, by_pixels = (
        whole.search(image=image, k=3)
        for image in (squares / "03.png", (squares / "03.png").read_bytes(), np.asarray(Image.open(squares / "03.png")))
    )
    assert by_path == by_bytes == by_pixels


def test_an_update_embeds_what_is_new_or_changed_and_removes_what_is_gone(
    model: Predictor, squares: Path, tmp_path: Path
) -> None:
    first = build(model, squares, out=tmp_path / "index")
    assert (first.embedded_images, first.embedded_texts, first.removed, first.manifest.images) == (12, 0, 0, 12)
    before = (tmp_path / "index" / "index.json").stat()
    again = build(model, out=tmp_path / "index")
    assert (again.embedded_images, again.removed) == (0, 0)
    assert str(again).endswith("it is up to date")
    after = (tmp_path / "index" / "index.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), "nothing was written"

    (squares / "00.png").unlink()
    shutil.copy(squares / "05.png", squares / "deeper.png")
    Image.new("RGB", (32, 32), (9, 99, 9)).save(squares / "07.png")
    changed = build(model, squares, out=tmp_path / "index")
    assert (changed.embedded_images, changed.removed, changed.manifest.images) == (2, 1, 12)
    build(model, squares, out=tmp_path / "fresh")
    fresh, index = (Index.load(tmp_path / name, model) for name in ("fresh", "index"))
    assert [hit.id for hit in index.search(image=squares / "07.png", k=1)] == [str(squares / "07.png")]
    updated, made = ({hit.id: hit.similarity for hit in own.search(text=TEXT, k=20)} for own in (index, fresh))
    assert updated == pytest.approx(made, abs=1e-6)


def test_an_index_of_other_places_has_those_alone(model: Predictor, squares: Path, tmp_path: Path) -> None:
    build(model, squares, out=tmp_path / "index")
    one = build(model, squares / "03.png", squares / "0[34].png", squares / "04.png", out=tmp_path / "index")
    assert (one.embedded_images, one.removed, one.manifest.cases) == (0, 10, 2)


@pytest.mark.parametrize("damage", [None, b"", b"PK\x03\x04 and no more"])
def test_a_killed_build_goes_on(
    model: Predictor, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    """Also where the kill, or a full disk, left a part that cannot be read."""
    monkeypatch.setattr(building, "PART", 8)
    build(model, store, out=tmp_path / "unbroken")

    class Killed(Recorder):
        def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
            if name == "index" and done == 30:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(model, store, out=tmp_path / "index", reporter=Killed())
    with pytest.raises(SearchError, match="is not finished; run `consilium index` again"):
        Index.load(tmp_path / "index", model)
    parts = sorted((tmp_path / "index" / "parts").glob("*/*.npz"))
    assert len(parts) == 4, "three of 8 and one of the last 6"
    if damage is not None:
        parts[1].write_bytes(damage)
        parts[3].unlink()  # killed at once, it would not have been written
    asked: list[int] = []
    stream = Predictor.stream
    monkeypatch.setattr(Predictor, "stream", lambda self, items: asked.append(len(items)) or stream(self, items))
    reporter = Recorder()
    done = build(model, store, out=tmp_path / "index", reporter=reporter)
    assert asked == [48 + 24 - 30 + (8 + 6 if damage is not None else 0)]
    assert (done.embedded_images, done.embedded_texts) == (48, 24)
    assert any("of a build that was interrupted" in line for line in reporter.lines)
    assert any("000001.npz in" in line and "embedded again" in line for line in reporter.lines) == (damage is not None)
    assert not (tmp_path / "index" / "parts").exists()
    for name in ("images.npy", "texts.npy"):
        left, right = (np.load(tmp_path / folder / name) for folder in ("index", "unbroken"))
        np.testing.assert_allclose(left, right, atol=1e-6)
    assert (tmp_path / "index" / "cases.jsonl").read_bytes() == (tmp_path / "unbroken" / "cases.jsonl").read_bytes()


def test_unreadable_images_are_named_and_tried_again(model: Predictor, squares: Path, tmp_path: Path) -> None:
    whole = (squares / "03.png").read_bytes()
    (squares / "03.png").write_bytes(whole[:200])
    done = build(model, squares, out=tmp_path / "index")
    assert list(done.unread) == [str(squares / "03.png")]
    assert done.manifest.cases == 12
    assert done.manifest.images == 11
    lines = [json.loads(line) for line in (tmp_path / "index" / "cases.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines if line["error"]] == [str(squares / "03.png")]
    assert len(Index.load(tmp_path / "index", model).search(text=TEXT, k=50)) == 11
    assert list(build(model, out=tmp_path / "index").unread) == [str(squares / "03.png")], "it is named every time"
    (squares / "03.png").write_bytes(whole)
    mended = build(model, out=tmp_path / "index")
    assert (mended.embedded_images, dict(mended.unread), mended.manifest.images) == (1, {}, 12)


def test_nothing_to_search(model: Predictor, squares: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image under"):
        build(model, tmp_path / "empty", out=tmp_path / "index")
    with pytest.raises(ConfigError, match=r"no index in .* yet; say of what"):
        build(model, out=tmp_path / "index")
    for path in squares.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"no image of the collection can be read, the first since: .*00.png"):
        build(model, squares, out=tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_an_index_of_another_bundle_is_refused(
    model: Predictor, other: Path, expert: Run, squares: Path, tmp_path: Path
) -> None:
    build(model, squares, out=tmp_path / "index")
    wrong = consilium.load(other, device="cpu")
    message = "is of bundle 'pairs', not of the bundle 'other'.* in another folder"
    with pytest.raises(SearchError, match=message):
        Index.load(tmp_path / "index", wrong)
    kept = files(tmp_path / "index")
    with pytest.raises(SearchError, match=message):
        build(wrong, squares, out=tmp_path / "index")
    assert files(tmp_path / "index") == kept
    copy = shutil.copytree(expert.folder, tmp_path / "copy")  # the same weights elsewhere
    assert len(Index.load(tmp_path / "index", consilium.load(copy, device="cpu"))) == 12


def test_a_bundle_without_embeddings_is_refused(tiny_run: Run, squares: Path, tmp_path: Path) -> None:
    router = consilium.load(tiny_run.folder, device="cpu")
    for make in (lambda: build(router, squares, out=tmp_path / "index"), lambda: Index.load(tmp_path, router)):
        with pytest.raises(SearchError, match=r"has no embeddings of images.*task.kind: align"):
            make()
    assert not (tmp_path / "index").exists()


def shorter(folder: Path) -> None:
    (folder / "images.npy").write_bytes((folder / "images.npy").read_bytes()[:-9])


def lines_lost(folder: Path) -> None:
    (folder / "cases.jsonl").write_text("", encoding="utf-8")


def no_manifest(folder: Path) -> None:
    (folder / "index.json").write_text('{"format_version": 1, ', encoding="utf-8")


def newer(folder: Path) -> None:
    tree = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    (folder / "index.json").write_text(json.dumps({**tree, "format_version": 99}), encoding="utf-8")


def other_files(folder: Path) -> None:
    tree = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    (folder / "index.json").write_text(json.dumps({**tree, "files": {"../../secret": "0"}}), encoding="utf-8")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (shorter, "damaged .the checksum of images.npy differs.. Remove the folder and run `consilium index` again"),
        (lines_lost, "damaged .the checksum of cases.jsonl differs"),
        (lambda folder: (folder / "texts.jsonl").unlink(), "damaged .texts.jsonl is missing"),
        (no_manifest, "damaged .index.json"),
        (newer, "has format 99.* Update Consilium"),
        (other_files, "names ../../secret, which is no file of an index"),
        (lambda folder: (folder / "index.json").write_text("[]"), "damaged .index.json"),
        (lambda folder: shutil.rmtree(folder), "there is no index in"),
    ],
)
def test_a_damaged_index_is_refused(
    model: Predictor, squares: Path, tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    build(model, squares, out=tmp_path / "index")
    harm(tmp_path / "index")
    with pytest.raises(SearchError, match=message):
        Index.load(tmp_path / "index", model)


def test_what_is_no_index_is_not_written_over(model: Predictor, squares: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is there already and is no index"):
        build(model, squares, out=squares)
    assert len(list(squares.iterdir())) == 12


def test_filters(model: Predictor, squares: Path, tmp_path: Path) -> None:
    labels = ["eye.normal", "eye.ill", "skin", ""]
    rows = [{"image": f"{number:02d}.png", "label": labels[number % 4]} for number in range(12)]
    first = write_jsonl(squares / "first.jsonl", [row for row in rows if row["label"]][:6])
    second = write_jsonl(squares / "second.jsonl", [row for row in rows if row["label"]][6:])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        index = Index.build(model, [first, second], out="index", quiet=True)
    assert {hit.source for hit in index.search(text=TEXT, k=50)} == {"first", "second"}
    assert {hit.source for hit in index.search(text=TEXT, k=50, source="second")} == {"second"}
    assert {hit.labels for hit in index.search(text=TEXT, k=50, label="eye")} == {("eye.normal",), ("eye.ill",)}
    assert len(index.search(text=TEXT, k=50, label="eye.ill", source="first")) == 2
    with pytest.raises(
        ConfigError, match=r"no case of the index has the label 'ey'; there is eye.ill, eye.normal, skin"
    ):
        index.search(text=TEXT, label="ey")
    with pytest.raises(ConfigError, match="has the source 'third'; there is first, second"):
        index.search(text=TEXT, source="third")
    with pytest.raises(ConfigError, match="none of 9 cases has texts to search among"):
        index.search(text=TEXT, among="texts")


def test_a_table_is_prepared_and_its_bad_rows_are_named(
    model: Predictor, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    two = {"image": "00.png", "text": ["red", "a red square"]}
    rows: list[Any] = [two, {"image": "01.png", "text": "red"}, {"image": "missing.png", "text": "none"}]
    done = build(model, write_jsonl(squares / "table.jsonl", rows), out=tmp_path / "index")
    assert done.manifest.cases == 2
    assert len(done.bad_rows) == 1
    assert "missing.png does not exist" in done.bad_rows[0]
    found = Index.load(tmp_path / "index", model).search(text="red", among="texts")
    assert {(hit.text, hit.cases) for hit in found} == {("red", 2), ("a red square", 1)}
    assert (found[0].text, found[0].texts) == ("red", ("red", "a red square"))


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({}, ConfigError, "give one of the two"),
        ({"text": TEXT, "image": "a.png"}, ConfigError, "give one of the two"),
        ({"text": " "}, ConfigError, "is empty"),
        ({"text": TEXT, "k": 0}, ConfigError, "k is 0"),
        ({"image": "missing.png"}, ImageError, "cannot be read: missing.png does not exist"),
    ],
)
def test_what_cannot_be_asked(whole: Index, asked: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        whole.search(**asked)


def test_faiss_gives_the_same(model: Predictor, store: Path, whole: Index, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    build(model, store, out=tmp_path / "index", faiss="Flat")
    index = Index.load(tmp_path / "index", model)
    for asked in ({"text": TEXT}, {"text": TEXT, "among": "texts"}, {"text": TEXT, "source": "pairs", "k": 3},
                  {"image": whole.search(text=TEXT)[0].images[0], "k": 100}):  # fmt: skip
        exact, found = whole.search(**asked), index.search(**asked)
        assert [hit.id for hit in found] == [hit.id for hit in exact]
        np.testing.assert_allclose([hit.similarity for hit in found], [hit.similarity for hit in exact], atol=1e-6)
    assert build(model, out=tmp_path / "index").manifest.faiss == "Flat", "an update keeps it"
    changed = build(model, out=tmp_path / "index", faiss="HNSW8")
    assert changed.manifest.faiss == "HNSW8"
    assert "searched by faiss (HNSW8)" in str(changed)
    assert len(Index.load(tmp_path / "index", model).search(text=TEXT, k=5)) == 5
    assert build(model, out=tmp_path / "index", faiss="exact").manifest.faiss is None
    assert not (tmp_path / "index" / "images.faiss").exists()


def test_faiss_that_cannot(model: Predictor, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    with pytest.raises(ConfigError, match="--faiss is 'Flatt', of which faiss makes no index for embeddings of 16"):
        build(model, squares, out=tmp_path / "index", faiss="Flatt")
    with pytest.raises(ConfigError, match="faiss cannot build 'IVF256,Flat' of 12 images"):
        build(model, squares, out=tmp_path / "index", faiss="IVF256,Flat")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'consilium\[index\]'"):
        build(model, squares, out=tmp_path / "index", faiss="Flat")
    build(model, squares, out=tmp_path / "index")


def test_texts_that_are_cut_are_counted(
    model: Predictor, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"image": "00.png", "text": "a red square " * 30}, {"image": "01.png", "text": "red"}]
    reporter = Recorder()
    build(model, write_jsonl(squares / "table.jsonl", rows), out=tmp_path / "index", reporter=reporter)
    assert "note: 1 text of 2 longer than the expert reads; the end is cut." in reporter.lines
    index = Index.load(tmp_path / "index", model)
    assert index.cuts("a red square " * 30)
    assert not index.cuts("red")


def test_a_model_in_training_has_no_index(model: Predictor, squares: Path, tmp_path: Path) -> None:
    unsaved = Predictor(model.task, model.knowledge, image=model.image, loader=model.loader, device=model.device)
    with pytest.raises(SearchError, match="of a trained bundle"):
        build(unsaved, squares, out=tmp_path / "index")
