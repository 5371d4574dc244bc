"""Stores that an earlier version prepared are used as they are, where this one would read their sources as it did.

``format_1`` holds two of them with the files they were made of: ``plain`` (a csv with two views, texts, masks and
metadata, and a jsonl) and ``attachments`` (a jsonl with the attachment token that was not removed by default then).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.core.files import fingerprint
from consilium.data.case import Mask, Text
from consilium.data.config import DataConfig
from consilium.data.images.reading import decode
from consilium.data.store.files import schema
from consilium.data.store.prepare import prepare
from consilium.data.store.store import CaseTable, Store
from tests.data.samples import data_config

FORMAT_1 = Path(__file__).parent / "format_1"
CLINIC = {
    "kind": "csv", "name": "clinic", "path": "cases.csv",
    "columns": {"image": ["left", "right"], "group": "patient", "text": "report"},
}  # fmt: skip
PAIRS = {"kind": "jsonl", "name": "pairs", "path": "pairs.jsonl"}
CHATS = {"kind": "jsonl", "name": "chats", "path": "chats.jsonl"}


def put(kind: str, folder: Path, **changes: Any) -> Path:
    """The files of a store of format 1 in another folder, under the name that its version gave it there.

    ``changes`` are keys of the sources that were given otherwise then, or ``every_class: None`` for a version that had
    no such key.
    """
    shutil.copytree(FORMAT_1 / kind, folder, dirs_exist_ok=True)
    tree = json.loads((folder / "store" / "store.json").read_text())["config"]
    if "every_class" in changes:
        del tree["split"]["every_class"]
    files = hashlib.sha256()
    for source in tree["sources"]:
        path = folder / Path(source["path"]).name
        os.utime(path, ns=(1, 1_700_000_000_123_456_789))
        source["path"] = str(path)
        source.update({key: value for key, value in changes.items() if key in source})
        files.update(f".\0{path.stat().st_size}\0{path.stat().st_mtime_ns}\n\0".encode())
    names = "+".join(source["name"] for source in tree["sources"])
    target = folder / "stores" / f"{names}-{fingerprint([1, tree, files.hexdigest()])}"
    target.parent.mkdir()
    return (folder / "store").rename(target)


def config(folder: Path, *sources: dict[str, Any]) -> DataConfig:
    return data_config(
        folder, *({**one, "path": str(folder / one["path"])} for one in sources), store={"images": "embed"}
    )


@pytest.mark.parametrize("changes", [{}, {"every_class": None}])
def test_a_store_of_an_earlier_version_is_unchanged(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = put("plain", tmp_path, **changes)
    found = prepare(config(tmp_path, CLINIC, PAIRS))
    assert (found.created, found.store.path) == (False, path)
    assert found.notes() == []


def test_a_store_of_an_earlier_version_serves_what_it_did(tmp_path: Path) -> None:
    store = Store.open(put("plain", tmp_path))
    table = store.table
    assert store.manifest.format_version == 1
    assert table.content == "4751972866789448", "what a run that began with it remembers"
    assert table.ids == ["a", "b", "c", "d", "pairs:1", "pairs:2"]
    assert table.splits == ["train", "val", "train", "test", "train", "test"]
    assert table.labels == [("x.y",), ("z",), (), ("z",), ("xray",), ("xray",)]
    assert table.named_texts == [
        (Text("Drusen in both eyes."),), (), (Text("No image at all: é."),), (), (Text("Effusion."),),
        (Text("No finding."),),
    ]  # fmt: skip
    assert table.masks == [(Mask("/tmp/format_1/m1.png"),), (Mask("/tmp/format_1/m2.png"),), (), (), (), ()]
    assert table.mask_files() == [(f"/tmp/format_1/m{number}.png", None, None) for number in (1, 2)]
    assert [table.view_names(row) for row in range(6)] == [
        ["left", "right"], ["left"], [], ["left"], ["frontal"], [""],
    ]  # fmt: skip
    sizes = {decode(image, name="", max_pixels=1000).shape for row in range(6) for image in table.images(row)}
    assert sizes == {(12, 10, 3)}
    assert table.columns()["age"] == ["54", "61.5", "", "", "", ""]
    kinds = {name: column.kind for name, column in table.select(np.array([3])).meta_columns().items()}
    assert kinds == {"age": "number", "code": "category", "dose": "category", "site": "category"}


WORDS = st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=3)


@given(st.lists(st.tuples(WORDS, WORDS), max_size=6), st.integers(1, 3))
def test_the_same_cases_have_the_same_content_in_every_format(
    cases: list[tuple[str | None, str | None]], size: int
) -> None:
    """So a run that began with a store of format 1 goes on when its data is prepared again."""
    shared = {"id": "", "source": "s", "group": "g", "split": "train", "views": [], "labels": [], "is_gt": True}
    new = [
        {**shared, "texts": [{"text": text, "name": ""}] if text else [],
         "masks": [{"image": mask, "name": "", "annotator": ""}] if mask else [], "meta": "{}"}
        for text, mask in cases
    ]  # fmt: skip
    old = [{**shared, "text": text, "mask": mask, "meta": "{}"} for text, mask in cases]
    views = schema().field("views")
    old_schema = pa.schema(
        [views if name == "views" else pa.field(name, pa.list_(pa.string()) if name == "labels" else pa.bool_()
         if name == "is_gt" else pa.string())
         for name in ("id", "source", "group", "split", "views", "text", "labels", "mask", "is_gt", "meta")]
    )  # fmt: skip
    tables = []
    for rows, kind in ((new, schema()), (old, old_schema)):
        table = CaseTable(Path())
        table.__dict__["_arrow"] = pa.concat_tables(
            [pa.Table.from_pylist(rows[start : start + size], schema=kind) for start in range(0, len(rows), size)]
            or [kind.empty_table()]
        )
        tables.append(table)
    assert tables[0].content == tables[1].content
    assert tables[0].texts == tables[1].texts
    assert tables[0].named_texts == tables[1].named_texts
    assert tables[0].masks == tables[1].masks
    order = np.arange(len(cases))[::-1]
    assert tables[0].select(order).masks == tables[1].select(order).masks == tables[0].masks[::-1]
    assert tables[0].select(order).texts == tables[1].select(order).texts == tables[0].texts[::-1]


@given(st.permutations([("a", "findings"), ("b", "impression")]))
def test_names_of_texts_are_content(texts: list[tuple[str, str]]) -> None:
    def content(*given: tuple[str, str]) -> str:
        table = CaseTable(Path())
        texts = [dict(zip(("text", "name"), one, strict=True)) for one in given]
        row = {"id": "", "views": [], "texts": texts, "labels": [], "masks": []}
        table.__dict__["_arrow"] = pa.Table.from_pylist([row], schema=schema())
        return table.content

    assert len({content(*texts), content(texts[0]), content((texts[0][0], "")), content()}) == 4


def test_texts_that_are_read_in_another_way_now_are_prepared_again(tmp_path: Path) -> None:
    old = put("attachments", tmp_path)
    assert Store.open(old).table.texts == ["<attachment>Effusion.", "No finding."]
    found = prepare(config(tmp_path, CHATS))
    assert (found.created, found.store.table.texts) == (True, ["Effusion.", "No finding."])
    assert found.notes() == ["chats: 1 row: attachment tokens, such as '<attachment>', are removed from the text"]
    assert not prepare(config(tmp_path, CHATS)).created
    assert Store.open(old).table.texts == ["<attachment>Effusion.", "No finding."]


def test_a_token_that_the_config_names_stays_the_only_one(tmp_path: Path) -> None:
    old = put("attachments", tmp_path)
    found = prepare(config(tmp_path, {**CHATS, "attachment_token": "<|reserved_special_token_0|>"}))
    assert (found.created, found.store.path) == (False, old)


@pytest.mark.parametrize(("reason", "created"), [("the text has 1 attachment tokens, the row 2 images", True),
                                                 ("neither an image nor a text", False)])  # fmt: skip
def test_a_row_that_was_bad_because_of_its_tokens_is_read_again(tmp_path: Path, reason: str, created: bool) -> None:
    old = put("plain", tmp_path)
    manifest = json.loads((old / "store.json").read_text())
    (old / "store.json").write_text(json.dumps({**manifest, "bad_rows": 1}))
    (old / "quarantine.csv").write_text(f'source,file,line,reason\npairs,p,3,"{reason}"\n')
    for name in ("l1", "r1", "l2", "c1", "c2", "m1", "m2"):
        shutil.copy(FORMAT_1 / "attachments" / "c1.png", tmp_path / f"{name}.png")
    keeps = config(tmp_path, CLINIC, PAIRS).model_copy(update={"on_bad_row": "quarantine"})
    assert prepare(keeps).created is created
