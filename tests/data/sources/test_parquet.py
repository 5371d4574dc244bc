"""Names of classes in the schema of a parquet file, and folders of parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consilium.core.errors import DataError
from consilium.data.store.prepare import prepare
from tests.data.samples import data_config, image_bytes, read


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_class_numbers_become_the_names_that_the_schema_gives(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["benign", "malignant"])
    features = datasets.Features({
        "image": datasets.Value("string"), "label": names, "many": datasets.List(names), "age": datasets.Value("int64"),
    })  # fmt: skip
    columns = {"image": list("abcd"), "label": [1, 0, -1, None], "many": [[0, 1], [1], [], None], "age": [1, 0, 1, 0]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "a.parquet")
    cases, bad = read("parquet", tmp_path / "a.parquet", columns={"meta": ["age"]})
    assert not bad
    assert [case.labels for case in cases] == [("malignant",), ("benign",), (), ()]
    assert [case.meta["age"] for case in cases] == ["1", "0", "1", "0"]
    cases, _ = read("parquet", tmp_path / "a.parquet", columns={"label": "many"})
    assert [case.labels for case in cases] == [("benign", "malignant"), ("malignant",), (), ()]


@pytest.mark.parametrize("metadata", [b"", b"[]", b"{", b'{"info": {"features": {"label": {"names": 3}}}}'])
def test_a_schema_that_names_nothing(tmp_path: Path, metadata: bytes) -> None:
    table = pa.table({"image": ["a.png"], "label": [1]}).replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read("parquet", tmp_path / "a.parquet")[0][0].labels == ("1",)


def test_a_folder_of_files(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    write(folder / "part-1.parquet", [{"image": "a.png", "label": "x"}, {"image": "b.png", "label": "y"}])
    write(folder / "more/part-0.parquet", [{"image": "c.png", "label": "x", "split": "test"}])
    write(folder / "_metadata.parquet", [{"image": "no.png"}])
    (folder / "README.md").touch()
    cases, bad = read("parquet", folder)
    assert not bad
    assert [(case.id, Path(case.file).name, case.line, case.split) for case in cases] == [
        ("s:more/part-0.parquet:1", "part-0.parquet", 1, "test"),
        ("s:part-1.parquet:1", "part-1.parquet", 1, None),
        ("s:part-1.parquet:2", "part-1.parquet", 2, None),
    ]
    assert cases[0].views[0].image == str(folder / "c.png")


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "validation-00000-of-00001.parquet"],
        ["train/0.parquet", "train/1.parquet", "val/0.parquet"],
        ["train_1.parquet", "train2.parquet", "dev.parquet"],
    ],
)
def test_files_called_after_splits(tmp_path: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        write(tmp_path / "d" / name, [{"image": f"{number}.png"}])
    cases, _ = read("parquet", tmp_path / "d")
    assert sorted((Path(case.views[0].image).name, case.split) for case in cases) == [
        ("0.png", "train"), ("1.png", "train"), ("2.png", "val")
    ]  # fmt: skip
    assert {case.split for case in read("parquet", tmp_path / "d", split="test")[0]} == {"test"}
    write(tmp_path / "d/results.parquet", [{"image": "9.png"}])
    with pytest.raises(DataError, match=r"holds files of a split \(.*\) beside others \(results\.parquet\)"):
        read("parquet", tmp_path / "d")


def test_folders_that_are_columns(tmp_path: Path) -> None:
    write(tmp_path / "d/label=ct/part-0.parquet", [{"image": "0.png"}])
    write(tmp_path / "d/label=mri%20head/part-0.parquet", [{"image": "1.png"}])
    cases, _ = read("parquet", tmp_path / "d")
    assert [case.labels for case in cases] == [("ct",), ("mri head",)]


def test_a_folder_is_prepared_again_when_a_file_of_it_changes(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    write(folder / "a.parquet", [{"image": image_bytes(1), "label": "x"}, {"image": image_bytes(2), "label": "y"}])
    source = {"kind": "parquet", "name": "s", "path": str(folder)}
    config = data_config(tmp_path, source, store={"images": "embed"})
    assert prepare(config).store.manifest.cases == 2
    assert not prepare(config).created
    write(folder / "b.parquet", [{"image": image_bytes(3), "label": "y"}])
    assert prepare(config).store.manifest.cases == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no file that ends in \.parquet or \.pq"):
        prepare(data_config(tmp_path, {**source, "path": str(tmp_path / "empty")}))
