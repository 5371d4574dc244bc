"""What is exported is read back by the kind of source named after its form."""

from __future__ import annotations

import base64
import io
import json
import os
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from consilium.core.errors import DataError, ImageError
from consilium.data.case import SPLITS
from consilium.data.store.export import Form, export, form_of
from consilium.data.store.prepare import prepare
from consilium.data.store.store import Store
from tests.data.samples import data_config, image_bytes, write_images, write_jsonl

Case = dict[str, Any]


def store_of(folder: Path, *sources: Mapping[str, Any], embed: bool = False) -> Store:
    """The prepared cases of sources."""
    store = {"images": "embed" if embed else "reference"}
    # All val and test come from the files, so that reading back divides nothing anew.
    return prepare(data_config(folder, *sources, store=store, split={"val": 0, "test": 0})).store


def cases_of(store: Store) -> list[Case]:
    """Every case in a form that can be compared: images by their bytes, views in the order of their names."""
    table = store.table
    columns = zip(
        table.ids, table.groups, table.splits, table.named_texts, table.labels, table.masks, table.metas, strict=True
    )
    return [
        {
            "id": identity, "group": group, "split": split, "text": text, "labels": labels, "mask": mask, "meta": meta,
            "is_gt": bool(table.is_gt[row]),
            "views": sorted(
                (name, image if isinstance(image, bytes) else Path(image).read_bytes())
                for name, image in zip(table.view_names(row), table.images(row), strict=True)
            ),
        }
        for row, (identity, group, split, text, labels, mask, meta) in enumerate(columns)
    ]  # fmt: skip


def modalities(*views: tuple[str, str]) -> list[dict[str, str]]:
    return [{"type": "image", "value": value, "name": name} for value, name in views]


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
NAMES = WORDS.map(str.strip).filter(bool)
LABELS = st.lists(st.sampled_from(["a", "b.c", "ü.é", "7"]), max_size=3, unique=True)
META = st.dictionaries(st.sampled_from(["age", "label", "meta.label", "source", "größe", "image"]), NAMES, max_size=3)


@st.composite
def rows(draw: st.DrawFn, *, views: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """The lines of a jsonl file about the images of ``world``."""
    number = draw(st.integers(1, 4))
    found = []
    for line in range(number):
        names = draw(st.sampled_from(views))
        text = draw(WORDS.filter(str.strip) if not names else st.none() | WORDS)
        row = {
            "text": text,
            "modalities": modalities(*((f"scans/{draw(st.integers(0, 3))}.png", name) for name in names)),
            "labels": draw(LABELS), "split": draw(st.sampled_from(SPLITS)), "patient": draw(NAMES),
            "mask": draw(st.sampled_from([None, "scans/0.png"])), "is_gt": draw(st.booleans()), "key": f"c{line}",
        }  # fmt: skip
        found.append(row | draw(META))
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_images(folder, [f"scans/{number}.png" for number in range(4)])
    return folder


COLUMNS = {"label": "labels", "group": "patient", "id": "key"}
SEVERAL = [[], [""], ["", ""], ["left", "right"], ["frontal"], ["frontal", ""]]
UNNAMED = [[], [""], ["", ""]]
NAMED = [[], ["left", "right"], ["left", "left"], ["lateral"]]
EYES = [[], [""], ["left", "right"], ["left"], ["right"]]
quick = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


def round_trip(
    world: Path, folder: Path, lines: list[dict[str, Any]], form: Form, *, embed: bool, **keys: Any
) -> tuple[list[Case], list[Case]]:
    """The cases before and after they were exported and read; ``keys`` are those of the source that reads."""
    folder = folder / os.urandom(4).hex()
    folder.mkdir()
    source = {"kind": "jsonl", "name": "s", "path": str(write_jsonl(folder / "a.jsonl", lines)), "columns": COLUMNS,
              "image_root": str(world)}  # fmt: skip
    before = store_of(folder, source, embed=embed)
    ending = {"jsonl": "jsonl", "parquet": "parquet", "ret_clip_tsv": "tsv", "ret_clip_lmdb": "lmdb"}[form]
    out = folder / "out" / f"x.{ending}"
    export(before, out, form=form)
    if form == "ret_clip_tsv":
        keys["texts"] = str(out.with_suffix(".jsonl"))
    after = store_of(folder, {"kind": form, "name": "s", "path": str(out), **keys}, embed=embed)
    renamed = {"label": "meta.meta.label" if any("meta.label" in meta for meta in before.table.metas) else "meta.label",
               "image": "meta.image"}  # fmt: skip
    expected = cases_of(before)
    for case in expected:
        case["meta"] = {renamed.get(key, key): value for key, value in case["meta"].items()}
    return expected, cases_of(after)


@quick
@given(lines=rows(views=SEVERAL), embed=st.booleans())
def test_jsonl_and_back(world: Path, tmp_path: Path, lines: list[dict[str, Any]], embed: bool) -> None:
    expected, found = round_trip(world, tmp_path, lines, "jsonl", embed=embed)
    assert found == expected


@quick
@given(lines=rows(views=UNNAMED), embed=st.booleans())
def test_parquet_and_back(world: Path, tmp_path: Path, lines: list[dict[str, Any]], embed: bool) -> None:
    expected, found = round_trip(world, tmp_path, lines, "parquet", embed=embed)
    assert found == expected


@quick
@given(lines=rows(views=NAMED).filter(lambda rows: any(row["modalities"] for row in rows)), embed=st.booleans())
def test_parquet_of_named_views_and_back(world: Path, tmp_path: Path, lines: list[dict[str, Any]], embed: bool) -> None:
    names = list(dict.fromkeys(view["name"] for row in lines for view in row["modalities"]))
    expected, found = round_trip(world, tmp_path, lines, "parquet", embed=embed, columns={"image": names})
    assert found == expected


@quick
@given(lines=rows(views=UNNAMED), data=st.data(), form=st.sampled_from(["jsonl", "parquet"]))
def test_several_texts_and_masks_and_back(
    world: Path, tmp_path: Path, lines: list[dict[str, Any]], data: st.DataObject, form: Form
) -> None:
    columns = {
        "text": ["findings", "label", "image"],
        "mask": {"disc": "disc", "a.b": {"": "ab", "c": "abc"}, "a": {"b.c": "odd", "": "a"}},
    }
    named = ["disc", "ab", "abc", "odd", "a"]
    for row in lines:
        first = row.pop("text")
        row.pop("mask")
        row |= {"findings": first, "label": data.draw(WORDS), "image": data.draw(WORDS)}
        row |= {name: data.draw(st.sampled_from([None, "scans/1.png"])) for name in named}
    folder = tmp_path / os.urandom(4).hex()
    folder.mkdir()
    path = write_jsonl(folder / "a.jsonl", lines)
    before = store_of(
        folder,
        {"kind": "jsonl", "name": "s", "path": str(path), "columns": COLUMNS | columns, "image_root": str(world)},
    )
    out = folder / f"x.{form}"
    notes = export(before, out, form=form).notes
    keys: dict[str, Any] = {}
    for note in notes:
        if note.startswith("read its"):
            keys |= json.loads(note.partition("columns: ")[2].rstrip("."))
    after = store_of(folder, {"kind": form, "name": "s", "path": str(out), "columns": keys})
    expected, found = cases_of(before), cases_of(after)
    renamed = {"label": "text.label", "image": "text.image"}  # a text is named after its column
    for case in expected:
        case["text"] = tuple(text._replace(name=renamed.get(text.name, text.name)) for text in case["text"])
    for case in (*expected, *found):
        case["mask"] = set(case["mask"])
    assert found == expected


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_lists_of_texts_and_back(world: Path, tmp_path: Path, form: Form) -> None:
    lines = [{"text": text, "modalities": modalities(("scans/0.png", "")), "id": str(number)}
             for number, text in enumerate([["b", "a"], "c", None, ["d"]])]  # fmt: skip
    source = {"kind": "jsonl", "name": "s", "path": str(write_jsonl(world / "lists.jsonl", lines))}
    before = store_of(tmp_path, source)
    export(before, tmp_path / f"x.{form}", form=form)
    after = store_of(tmp_path, {"kind": form, "name": "s", "path": str(tmp_path / f"x.{form}")})
    assert [[text.text for text in own] for own in after.table.named_texts] == [["b", "a"], ["c"], [], ["d"]]
    assert cases_of(after) == cases_of(before)
    done = export(before, tmp_path / "eyes.tsv", form="ret_clip_tsv") if form == "jsonl" else None
    assert done is None or done.notes[0].startswith("of several texts of one name the form holds the first; jsonl and")


def test_ret_clip_holds_the_first_text(world: Path, tmp_path: Path) -> None:
    lines = [{"findings": "a", "impression": "b", "disc": "scans/1.png", "modalities": modalities(("scans/0.png", ""))}]
    columns = {"text": ["findings", "impression"], "mask": ["disc"]}
    path = write_jsonl(world / "named.jsonl", lines)
    done = export(
        store_of(tmp_path, {"kind": "jsonl", "name": "s", "path": str(path), "columns": columns}),
        tmp_path / "x.tsv",
        form="ret_clip_tsv",
    )
    assert done.notes == ["the form holds one text of a case, the first, and one mask; all others become metadata."]
    row = json.loads((tmp_path / "x.jsonl").read_text())
    assert (row["text"], row["impression"], row["mask.disc"]) == ("a", "b", str(world / "scans/1.png"))
    assert "findings" not in row


@quick
@given(lines=rows(views=EYES))
def test_ret_clip_and_back(world: Path, tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    for row in lines:  # the form holds an image that has no text alone
        row["text"] = row["text"] if (row["text"] or "").strip() else "none"
    expected, found = round_trip(world, tmp_path, lines, "ret_clip_tsv", embed=True)
    assert sorted(found, key=lambda case: case["id"]) == expected


def test_ret_clip_texts_and_images_are_written_once(world: Path, tmp_path: Path) -> None:
    lines = [
        {"text": text, "modalities": modalities(*((f"scans/{n}.png", name) for n, name in views)), "id": text}
        for text, views in (
            ("one", [(0, "left"), (1, "right")]), ("two", [(0, "left"), (1, "right")]), (None, [(2, "")]),
        )
    ]  # fmt: skip
    source = {"kind": "jsonl", "name": "s", "path": str(write_jsonl(world / "eyes.jsonl", lines))}
    done = export(store_of(tmp_path, source), tmp_path / "x.tsv", form="ret_clip_tsv")
    assert done.paths == [tmp_path / "x.tsv", tmp_path / "x.jsonl"]
    (eyes, alone) = [line.split("\t") for line in (tmp_path / "x.tsv").read_text().splitlines()]
    assert (len(eyes), len(alone)) == (3, 2)
    texts = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [(row["text_id"], row["text"], row["image_ids"]) for row in texts] == [
        (1, "one", [int(eyes[0])]), (2, "two", [int(eyes[0])]),
    ]  # fmt: skip
    assert done.notes == ["1 cases have no text: the form holds their images alone, without label, split or metadata."]
    again = export(store_of(tmp_path, source, embed=True), tmp_path / "again.tsv", form="ret_clip_tsv")
    assert again.paths[0].read_bytes() == (tmp_path / "x.tsv").read_bytes(), "embedded or not, the images are the same"


def test_a_frame_becomes_an_image_of_its_own_in_ret_clip(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "scan.tif", save_all=True, append_images=frames[1:])
    lines = [{"text": "second", "modalities": modalities(("scan.tif#1", ""))}]
    source = {"kind": "jsonl", "name": "s", "path": str(write_jsonl(tmp_path / "a.jsonl", lines))}
    export(store_of(tmp_path, source), tmp_path / "x.tsv", form="ret_clip_tsv")
    cell = (tmp_path / "x.tsv").read_text().split("\t")[1]
    with Image.open(io.BytesIO(base64.b64decode(cell))) as image:
        assert (image.size, image.convert("RGB").getpixel((0, 0))) == ((8, 6), (0, 0, 255))


def test_views_that_ret_clip_cannot_hold(world: Path, tmp_path: Path) -> None:
    for views in ([("scans/0.png", "frontal")], [("scans/0.png", ""), ("scans/1.png", "")],
                  [("scans/0.png", "left"), ("scans/1.png", "left")]):  # fmt: skip
        lines = [{"text": "a", "modalities": modalities(*views), "id": "c7"}]
        source = {"kind": "jsonl", "name": "s", "path": str(write_jsonl(world / "bad.jsonl", lines))}
        with pytest.raises(DataError, match="case 'c7' has the views"):
            export(store_of(tmp_path, source), tmp_path / "x.tsv", form="ret_clip_tsv")
    assert not list(tmp_path.glob("*x.*")), "nothing is left of an export that failed"


@pytest.mark.parametrize("embed", [False, True])
def test_hugging_face_reads_the_parquet_with_its_images(
    world: Path, tmp_path: Path, embed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)  # not the folder of the images
    lines = [
        {"text": "a", "modalities": modalities(("scans/0.png", "left"), ("scans/1.png", "right")), "age": 7},
        {"text": "b", "modalities": modalities(("scans/2.png", "left")), "label": "x"},
    ]
    source = {"kind": "jsonl", "name": "s", "path": str(write_jsonl(world / "hf.jsonl", lines))}
    export(store_of(tmp_path, source, embed=embed), tmp_path / "x.parquet", form="parquet")
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "x.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(loaded.features["left"], datasets.Image)
    assert [row["left"].size for row in loaded] == [(10, 12)] * 2
    assert (loaded[0]["right"].size, loaded[1]["right"]) == ((10, 12), None)
    assert (loaded["label"][:], loaded["age"][:], loaded["is_gt"][:]) == ([None, "x"], ["7", None], [True, True])


def test_jsonl_paths_are_relative_below_the_file_alone(world: Path, tmp_path: Path) -> None:
    source = {"kind": "folder", "name": "s", "path": str(world), "label_levels": 0}
    store = store_of(tmp_path, source)

    def values(out: Path) -> list[str]:
        export(store, out, form="jsonl", overwrite=True)
        return [json.loads(line)["modalities"][0]["value"] for line in out.read_text().splitlines()]

    assert values(world / "all.jsonl") == [f"scans/{n}.png" for n in range(4)]
    assert values(tmp_path / "all.jsonl") == [str(world / f"scans/{n}.png") for n in range(4)]
    (world / "all.jsonl").unlink()


def test_several_sources_keep_their_names_and_ids(world: Path, tmp_path: Path) -> None:
    sources = []
    for name in "ab":
        path = write_jsonl(tmp_path / f"{name}.jsonl", [{"text": name, "id": "1", "source": "x"}])
        sources.append({"kind": "jsonl", "name": name, "path": str(path)})
    done = export(store_of(tmp_path, *sources), tmp_path / "x.jsonl", form="jsonl")
    rows = [json.loads(line) for line in done.paths[0].read_text().splitlines()]
    assert [(row["id"], row["source"], row["meta.source"]) for row in rows] == [("a:1", "a", "x"), ("b:1", "b", "x")]
    assert len(done.notes) == 3


def test_splits(world: Path, tmp_path: Path) -> None:
    lines = [{"text": split, "split": split} for split in ("train", "val", "train")]
    source = {"kind": "jsonl", "name": "s", "path": str(write_jsonl(tmp_path / "a.jsonl", lines))}
    store = store_of(tmp_path, source)
    assert export(store, tmp_path / "x.jsonl", form="jsonl", splits=["train"]).cases == 2
    with pytest.raises(DataError, match=r"nothing to export in test; the cases are: train 2, val 1\."):
        export(store, tmp_path / "y.jsonl", form="jsonl", splits=["test"])
    with pytest.raises(DataError, match="the split 'dev' is unknown"):
        export(store, tmp_path / "y.jsonl", form="jsonl", splits=["dev"])


def test_nothing_is_replaced_unasked(world: Path, tmp_path: Path) -> None:
    source = {"kind": "folder", "name": "s", "path": str(world), "label_levels": 0}
    store = store_of(tmp_path, source, embed=True)
    out = tmp_path / "x.jsonl"
    first = export(store, out, form="jsonl")
    assert first.paths == [out, tmp_path / "x_images"]
    with pytest.raises(DataError, match=r"x\.jsonl exists; .* or --overwrite"):
        export(store, out, form="jsonl")
    out.unlink()
    with pytest.raises(DataError, match="x_images exists"):
        export(store, out, form="jsonl")
    assert export(store, out, form="jsonl", overwrite=True).paths == first.paths
    (tmp_path / "x_images" / "mine.png").write_bytes(image_bytes())
    with pytest.raises(DataError, match=r"holds 'mine\.png', which no export wrote"):
        export(store, out, form="jsonl", overwrite=True)
    (tmp_path / "folder.tsv").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        export(store, tmp_path / "folder.tsv", form="ret_clip_tsv", overwrite=True)


def test_a_failed_export_leaves_the_old_file(world: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(images, ["0.png", "1.png"])
    store = store_of(tmp_path, {"kind": "folder", "name": "s", "path": str(images), "label_levels": 0})
    (tmp_path / "x.tsv").write_text("old")
    (images / "1.png").unlink()
    with pytest.raises(ImageError, match=r"1\.png does not exist"):
        export(store, tmp_path / "x.tsv", form="ret_clip_tsv", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "stores", "x.tsv"}
    assert (tmp_path / "x.tsv").read_text() == "old"


@pytest.fixture(scope="module")
def large_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """40 images of 270 kB each."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "images").mkdir()
    for number in range(40):
        (folder / "images" / f"{number}.png").write_bytes(image_bytes(number, size=(300, 300)))
    return store_of(
        folder, {"kind": "folder", "name": "s", "path": str(folder / "images"), "label_levels": 0}, embed=True
    )


@pytest.mark.parametrize("form", ["jsonl", "parquet", "ret_clip_tsv", "ret_clip_lmdb"])
def test_memory_is_that_of_a_part(
    large_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Form
) -> None:
    for module in ("export", "export_lmdb"):
        monkeypatch.setattr(f"consilium.data.store.{module}.BATCH_BYTES", 2**20)
    tracemalloc.start()
    export(large_store, tmp_path / "x", form=form)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 2**20, f"{peak / 2**20:.1f} MiB for 10 MiB of images"


@pytest.mark.parametrize(
    ("out", "given", "expected"),
    [("a.jsonl", None, "jsonl"), ("a.PARQUET", None, "parquet"), ("a.tsv", None, "ret_clip_tsv"),
     ("a.lmdb", None, "ret_clip_lmdb"), ("a.txt", "jsonl", "jsonl")],
)  # fmt: skip
def test_form(out: str, given: str | None, expected: str) -> None:
    assert form_of(out, given) == expected


@pytest.mark.parametrize(
    ("out", "given", "message"),
    [("a.csv", None, "the ending of a.csv tells no format"), ("a", None, "tells no format"),
     ("a.jsonl", "csv", "the format 'csv' is unknown; expected jsonl, parquet, ret_clip_tsv"),
     ("gs://b/a.jsonl", None, "is an address"), ("a.jsonl", "ret_clip_tsv", "where the texts")],
)  # fmt: skip
def test_no_form(out: str, given: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        form_of(out, given)
