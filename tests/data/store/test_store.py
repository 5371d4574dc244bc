"""The store on disk and its case table."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from consilium.core.errors import StoreError
from consilium.core.places import facts
from consilium.data.batches.rows import Query
from consilium.data.case import Mask, Text
from consilium.data.store.prepare import prepare
from consilium.data.store.store import CaseTable, Store
from consilium.inputs import find_images
from tests.data.samples import data_config, write_images, write_jsonl


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Seven cases of several parts' worth of shapes: two views, one, none; two sources."""
    write_images(tmp_path, [f"{number}.png" for number in range(6)])
    first = write_jsonl(
        tmp_path / "a.jsonl",
        [
            {"id": "1", "modalities": [{"value": "0.png", "name": "left"}, {"value": "1.png", "name": "right"}],
             "label": ["x.y", "z"], "split": "train", "source": "clinic", "age": 7},
            {"id": "2", "text": "only text", "split": "train"},
            {"id": "3", "image": "2.png", "label": "x.y", "split": "val", "is_gt": False},
        ],
    )  # fmt: skip
    second = write_jsonl(
        tmp_path / "b.jsonl", [{"id": str(n), "image": f"{n}.png", "split": "test", "site": "ü"} for n in (3, 4, 5)]
    )
    config = data_config(
        tmp_path,
        {"kind": "jsonl", "name": "a", "path": str(first)},
        {"kind": "jsonl", "name": "b", "path": str(second)},
    )
    return prepare(config).store


def test_columns_of_the_table(store: Store, tmp_path: Path) -> None:
    table = store.table
    assert len(table) == 6
    assert table.ids == ["1", "2", "3", "3", "4", "5"]
    assert table.sources == ["a"] * 3 + ["b"] * 3
    assert table.splits == ["train", "train", "val", "test", "test", "test"]
    assert table.labels == [("x.y", "z"), (), ("x.y",), (), (), ()]
    assert table.texts == [None, "only text", None, None, None, None]
    assert table.is_gt.tolist() == [True, True, False, True, True, True]
    assert table.columns() == {
        "source": ["a"] * 3 + ["b"] * 3,
        "age": ["7", *[""] * 5],
        "meta.source": ["clinic", *[""] * 5],
        "site": [""] * 3 + ["ü"] * 3,
    }
    assert table.images(0) == [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    assert table.view_names(0) == ["left", "right"]
    assert [table.images(row) for row in (1, 5)] == [[], [str(tmp_path / "5.png")]]
    assert table.sizes.tolist() == [[10, 12], [0, 0], *[[10, 12]] * 4]
    assert table.rows("test").tolist() == [3, 4, 5]
    assert [row for row, _ in table.file_hashes()] == [0, 0, 2, 3, 4, 5]


def test_several_texts_and_masks(tmp_path: Path) -> None:
    write_images(tmp_path, [*"abc", "d1", "d2", "c1"])
    (tmp_path / "a.csv").write_text(
        "image,findings,impression,disc,cup\na,Drusen.,AMD.,d1,c1\nb,,Healthy.,d2,\nc,,,,\n"
    )
    columns = {"text": ["findings", "impression"], "mask": {"disc": "disc", "cup": {"ann": "cup"}}}
    source = {"kind": "csv", "name": "s", "path": str(tmp_path / "a.csv"), "columns": columns}
    store = prepare(data_config(tmp_path, source)).store
    for table, order in ((store.table, [0, 1, 2]), (store.table.select(np.array([2, 0])), [2, 0])):
        texts = [(Text("Drusen.", "findings"), Text("AMD.", "impression")), (Text("Healthy.", "impression"),), ()]
        assert table.named_texts == [texts[row] for row in order]
        assert table.texts == [["Drusen.", "Healthy.", None][row] for row in order]
        files = {name: facts(str(tmp_path / name)) for name in ("d1", "d2", "c1")}
        first, second, last = (
            Mask(str(tmp_path / name), kind, who, files[name])
            for name, kind, who in (("d1", "disc", ""), ("c1", "cup", "ann"), ("d2", "disc", ""))
        )
        assert table.masks == [[(first, second), (last,), ()][row] for row in order]
        assert [Path(path).name for path, _, _ in table.mask_files()] == (
            ["d1", "c1", "d2"] if 1 in order else ["d1", "c1"]
        )
    dataset = datasets.load_from_disk(str(store.path))
    assert dataset["texts"][0] == [{"text": "Drusen.", "name": "findings"}, {"text": "AMD.", "name": "impression"}]
    assert [mask["annotator"] for mask in dataset["masks"][0]] == ["", "ann"]
    assert {dataset["masks"][0][0][key] for key in ("bytes", "width", "height", "sha256")} == {None}


@pytest.mark.parametrize("rows", [[5, 0, 2], [], [1], [0, 0, 5, 1, 2, 3, 4]])
def test_select_is_the_same_table_with_other_rows(store: Store, rows: list[int]) -> None:
    table = store.table
    for chosen in (
        table.select(np.array(rows, dtype=int)),
        table.select(np.arange(6)[::-1]).select(5 - np.array(rows, int)),
    ):
        assert chosen.ids == [table.ids[row] for row in rows]
        assert chosen.labels == [table.labels[row] for row in rows]
        assert chosen.sizes.tolist() == [table.sizes[row].tolist() for row in rows]
        assert [chosen.images(i) for i in range(len(rows))] == [table.images(row) for row in rows]
        positions, names = chosen.view_column("name")
        expected = [(i, name) for i, row in enumerate(rows) for name in table.view_names(row)]
        assert list(zip(positions.tolist(), names, strict=True)) == expected
        assert {key: len(values) for key, values in chosen.columns().items() if key == "source"} == {
            "source": len(rows)
        }


def test_a_worker_gets_a_few_bytes_and_maps_the_same_files(store: Store) -> None:
    table = store.table.select(np.array([4, 0]))
    assert table.images(0)
    assert table.labels[1]  # now there are values that must not travel
    sent = pickle.dumps(table)
    assert len(sent) < 2000
    assert pickle.loads(sent).images(1) == table.images(1)  # noqa: S301


def test_the_store_is_a_hugging_face_dataset(store: Store) -> None:
    dataset = datasets.load_from_disk(str(store.path))
    assert dataset.num_rows == 6
    assert dataset["id"][:] == store.table.ids
    row = dataset[0]
    assert [view["name"] for view in row["views"]] == ["left", "right"]
    assert json.loads(row["meta"]) == {"source": "clinic", "age": "7"}


def test_embedded_images_are_reduced_once_and_need_no_files(tmp_path: Path) -> None:
    for name, size in (("big.png", (80, 40)), ("small.png", (20, 18))):
        Image.new("RGB", (size[1], size[0]), "red").save(tmp_path / name)
    path = write_jsonl(tmp_path / "a.jsonl", [{"image": "big.png"}, {"image": "small.png"}])
    original = (tmp_path / "small.png").read_bytes()
    config = data_config(
        tmp_path, {"kind": "jsonl", "name": "s", "path": str(path)}, store={"images": "embed", "resize": 20}
    )
    store = prepare(config).store
    for name in ("big.png", "small.png"):
        (tmp_path / name).unlink()
    big, small = store.table.images(0)[0], store.table.images(1)[0]
    assert isinstance(big, bytes)
    assert Image.open(io.BytesIO(big)).size == (20, 40)
    assert small == original
    assert store.table.sizes.tolist() == [[20, 40], [18, 20]]
    assert store.table.image_names(0) == [str(tmp_path / "big.png")]
    assert not prepare(config).created


def test_missing_incomplete_and_newer_stores(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store at"):
        Store.open(tmp_path / "nowhere")
    manifest = json.loads((store.path / "store.json").read_text())
    (store.path / "store.json").unlink()
    with pytest.raises(StoreError, match="not a complete store"):
        Store.open(store.path)
    (store.path / "store.json").write_text(json.dumps({**manifest, "format_version": 99, "consilium_version": "9.9"}))
    with pytest.raises(StoreError, match=r"has format 99, made by Consilium 9\.9"):
        Store.open(store.path)
    (store.path / "store.json").write_text(json.dumps({"format_version": 1}))
    with pytest.raises(StoreError, match="lacks bad_rows, cases"):
        Store.open(store.path)
    for text in ("[]", "{}", '"', '{"format_version": "1"}'):
        (store.path / "store.json").write_text(text)
        with pytest.raises(StoreError):
            Store.open(store.path)


def test_damaged_files(store: Store) -> None:
    part = next(store.path.glob("part-*.arrow"))
    data = part.read_bytes()
    part.write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreError, match="is damaged"):
        len(Store.open(store.path).table)
    part.unlink()
    with pytest.raises(StoreError, match="is damaged"):
        len(Store.open(store.path).table)
    part.write_bytes(data)
    manifest = json.loads((store.path / "store.json").read_text())
    (store.path / "store.json").write_text(json.dumps({**manifest, "cases": 7}))
    with pytest.raises(StoreError, match="holds 6 cases, its manifest says 7"):
        len(Store.open(store.path).table)


def test_predicting_a_store_reads_its_images_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(tmp_path / f"{number}.png") for number in range(5)]
    write_images(tmp_path, [f"{number}.png" for number in range(5)])
    path = write_jsonl(tmp_path / "a.jsonl", [{"image": path} for path in paths])
    config = data_config(tmp_path, {"kind": "jsonl", "name": "s", "path": str(path)}, store={"images": "embed"})
    read: list[int] = []
    images = CaseTable.images
    monkeypatch.setattr(CaseTable, "images", lambda table, row: [read.append(row), *images(table, row)][1:])
    names, items = find_images([str(prepare(config).store.path), paths[0]])
    assert (names, len(items), read) == ([*(f"s:{n}" for n in range(1, 6)), paths[0]], 6, [])
    assert items[3] == Query([(tmp_path / "3.png").read_bytes()])
    assert (items[5], read) == (paths[0], [3])
    again = pickle.loads(pickle.dumps(items))  # noqa: S301  (our own bytes)
    assert [*again][:5] == [Query([Path(path).read_bytes()]) for path in paths]
