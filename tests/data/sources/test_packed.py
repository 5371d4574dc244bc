"""Sources in archives: read like the folder or table that was packed."""

from __future__ import annotations

import base64
import os
import shutil
from pathlib import Path

import pytest

from consilium.core.errors import DataError
from consilium.data.store.prepare import Prepared, prepare
from tests.conftest import write_images
from tests.data.samples import data_config


def prepared(folder: Path, **source: object) -> Prepared:
    config = data_config(folder, {"name": "s", "kind": "folder", **source})
    return prepare(config)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder ``world`` with images and a table of some of them."""
    world = write_images(tmp_path / "world", splits={"train": 2, "val": 1, "test": 1})
    rows = [f"{path.relative_to(world)},{path.parent.name}" for path in sorted(world.glob("train/*/*.jpg"))]
    (world / "cases.csv").write_text("\n".join(["image,label", *rows]), encoding="utf-8")
    return world


def pack(world: Path, kind: str, *, top: bool) -> Path:
    root, base = (world.parent, world.name) if top else (world, ".")
    return Path(shutil.make_archive(str(world.parent / "out" / "world"), kind, root, base))


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
@pytest.mark.parametrize("top", [True, False])
def test_a_packed_folder_and_table_are_read_like_plain_ones(world: Path, tmp_path: Path, kind: str, top: bool) -> None:
    archive = pack(world, kind, top=top)
    plain = prepared(tmp_path, path=str(world))
    packed = prepared(tmp_path, path=str(archive))
    assert packed.store.table.ids == plain.store.table.ids
    assert packed.store.table.labels == plain.store.table.labels
    assert packed.store.manifest.splits == plain.store.manifest.splits
    assert not prepared(tmp_path, path=str(archive)).created
    table = prepared(tmp_path, kind="csv", path=f"{archive}/cases.csv")
    assert table.store.manifest.cases == 6
    shutil.copy(world / "cases.csv", tmp_path / "beside.csv")
    inner = f"{archive}/world" if top else str(archive)
    beside = prepared(tmp_path, kind="csv", path=str(tmp_path / "beside.csv"), image_root=inner)
    assert beside.store.table.ids == table.store.table.ids


def test_a_lone_folder_that_is_a_label_stays_one(tmp_path: Path) -> None:
    images = write_images(tmp_path / "all", labels=["ct"], splits={"train": 3})
    archive = shutil.make_archive(str(tmp_path / "ct"), "zip", images / "train", "ct")
    assert set(prepared(tmp_path, path=archive).store.table.labels) == {("ct",)}


def test_a_changed_archive_is_read_again(world: Path, tmp_path: Path) -> None:
    archive = pack(world, "zip", top=False)
    first = prepared(tmp_path, path=str(archive))
    os.remove(next(world.glob("train/ct/*.jpg")))
    assert pack(world, "zip", top=False) == archive
    again = prepared(tmp_path, path=str(archive))
    assert again.created
    assert again.store.manifest.cases == first.store.manifest.cases - 1


def test_what_is_not_in_an_archive_is_named(world: Path, tmp_path: Path) -> None:
    archive = pack(world, "zip", top=False)
    with pytest.raises(DataError, match=r"source 's': the file .*none\.csv does not exist"):
        prepared(tmp_path, kind="csv", path=f"{archive}/none.csv")
    with pytest.raises(DataError, match=r"source 's': the folder .*none\.zip does not exist"):
        prepared(tmp_path, path=str(tmp_path / "none.zip"))
    archive.write_bytes(archive.read_bytes()[:500])
    with pytest.raises(DataError, match=r"source 's': the archive .*world\.zip is damaged or no archive"):
        prepared(tmp_path, path=str(archive))


def test_a_folder_may_be_called_like_an_archive(world: Path, tmp_path: Path) -> None:
    world.rename(tmp_path / "data.zip")
    assert prepared(tmp_path, path=str(tmp_path / "data.zip")).store.manifest.cases == 12


def test_both_files_of_a_ret_clip_export_may_be_packed(world: Path, tmp_path: Path) -> None:
    image = base64.b64encode(next(world.glob("train/ct/*.jpg")).read_bytes()).decode()
    (world / "eyes.tsv").write_text(f"1\t{image}\n", encoding="utf-8")
    (world / "eyes.jsonl").write_text('{"text_id": 1, "text": "a fundus", "image_ids": [1]}\n', encoding="utf-8")
    archive = pack(world, "zip", top=False)
    source = {"kind": "ret_clip_tsv", "path": f"{archive}/eyes.tsv", "texts": f"{archive}/eyes.jsonl"}
    config = data_config(tmp_path, {"name": "s", **source}, store={"images": "embed"})
    assert prepare(config).store.table.texts == ["a fundus"]
