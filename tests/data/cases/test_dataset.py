"""``data.dataset``: a name becomes the paths of a harmonised table and its images; filters say what they lack."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from consilium.core.config import build
from consilium.core.errors import ConfigError, ConsiliumError
from consilium.data.cases.filters import Filtered
from consilium.data.cases.load import used_cases
from consilium.data.config import DataConfig
from consilium.data.store.prepare import prepare
from consilium.experiment import Experiment
from consilium.session import train
from tests.data.cases.harmonised import rows_of, write_dataset
from tests.tasks.test_fuse_contract import TREE
from tests.tiny import Recorder

TABLE, IMAGES = "dataset_v1/metadata_all_harmonized.csv", "dataset_v1/imgs"


def config(**keys: Any) -> DataConfig:
    return build(DataConfig, keys, origin="test")


def paths(data: DataConfig) -> list[tuple[str, str | None]]:
    return [(source.path, getattr(source, "image_root", None)) for source in data.sources]


@pytest.mark.parametrize("root", ["data", "/scans", "gs://clinic/skin", "s3://clinic"])
def test_a_dataset_is_a_table_and_its_images_below_the_root(root: str) -> None:
    data = config(root=root, dataset="dataset_v1")
    assert [(source.kind, source.name) for source in data.sources] == [("harmonised", "dataset_v1")]
    assert paths(data) == [(f"{root}/{TABLE}", f"{root}/{IMAGES}")]
    assert data.in_dataset("embeddings/a.parquet") == f"{root}/dataset_v1/embeddings/a.parquet"
    assert config(**data.model_dump(mode="json")) == data, "a resolved config is the same config"


def test_explicit_paths_win() -> None:
    given = {"kind": "harmonised", "name": "skin"}
    own = {"path": "mine.csv", "image_root": "/fast"}
    for keys in ({}, {"path": "mine.csv"}, {"image_root": "/fast"}, own, {"image_root": None}):
        data = config(root="data", dataset="dataset_v1", sources=[{**given, **keys}])
        expected = {"path": f"data/{TABLE}", "image_root": f"data/{IMAGES}", **keys}
        assert paths(data) == [(expected["path"], expected["image_root"])]
    other = {"kind": "folder", "name": "more", "path": "more"}
    assert paths(config(root="data", dataset="dataset_v1", sources=[other])) == [("more", None)]
    assert config(sources=[other]).in_dataset("embeddings/a.parquet") is None
    assert paths(config(dataset="dataset_v1")) == [(f"data/{TABLE}", f"data/{IMAGES}")]


@pytest.mark.parametrize(
    ("name", "data", "place"),
    [
        ("a.npz", {"dataset": "v1"}, "data/v1/embeddings/a.npz"),
        ("a.npz", {"dataset": "v1", "root": "gs://clinic/skin"}, "gs://clinic/skin/v1/embeddings/a.npz"),
        ("./a.npz", {"dataset": "v1"}, "./a.npz"),
        ("gs://b/a.npz", {"dataset": "v1"}, "gs://b/a.npz"),
        ("a.npz", {"sources": [{"kind": "harmonised", "name": "v1", "path": "a.csv"}]}, "a.npz"),
    ],
)
def test_vectors_named_by_their_file_alone_lie_in_the_dataset(name: str, data: dict[str, Any], place: str) -> None:
    tree = {"name": "a", "task": {"kind": "fuse", "text": {"kind": "vectors", "name": name}}, "data": data}
    experiment = build(Experiment, tree, origin="test")
    assert experiment.task.text.name == place
    assert build(Experiment, experiment.model_dump(mode="json"), origin="test") == experiment


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "`data.sources` is missing|sources"),
        ({"dataset": "a/b"}, "a/b"),
        ({"root": "", "dataset": "a"}, "root"),
        ({"root": 3, "dataset": "a"}, "root"),
        ({"dataset": "a", "sources": 3}, "sources"),
    ],
)
def test_half_of_it_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**keys)


def fused(folder: Path, rows: list[dict[str, Any]], **data: Any) -> Experiment:
    """A small experiment of fusion on these rows."""
    write_dataset(folder / "root", rows)
    own = {"root": str(folder / "root"), "dataset": "dataset_v1", "store": {"root": str(folder / "stores")}}
    section = {**TREE["data"], **own, **data}
    return build(Experiment, {**TREE, "data": section, "output": {"root": str(folder / "runs")}}, origin="test")


def used(experiment: Experiment) -> Filtered:
    table = prepare(experiment.data).store.table
    return used_cases(table, config=experiment.data, needs=experiment.task.needs)


def told(found: Filtered, column: str) -> list[str]:
    return found.table.columns()[column]


def test_parts_of_a_dataset_are_kept_and_others_stay_whole(tmp_path: Path) -> None:
    found = used(fused(tmp_path, rows_of(), filters={"origins": {"derm1m": ["edu"]}}))
    assert Counter(told(found, "dataset")) == {"derm1m": 12, "isic": 24}
    assert {name.partition("/")[0] for name in told(found, "orig_filename") if "/" in name} == {"edu"}
    assert "12 cases left out by data.filters.origins.derm1m." in found.notes
    both = used(fused(tmp_path, rows_of(), filters={"origins": {"derm1m": ["edu", "youtube"]}}))
    assert len(both.table) == 48
    isic = used(fused(tmp_path, rows_of(), filters={"origins": {"isic": ["ISIC_2.png"]}}))
    assert Counter(told(isic, "dataset")) == {"derm1m": 24, "isic": 1}, "a name without a folder is its own first part"


def test_the_least_of_a_label_is_counted_on_what_is_left(tmp_path: Path) -> None:
    """Four cases of a third label: enough as they come, too few of the dataset that is kept."""
    rare = [{**row, "label": "wart", "image_id": f"w{n}", "filename": f"w{n}.png"} for n, row in enumerate(rows_of(4))]
    rows, least, split = [*rows_of(), *rare], {"min_samples_per_label": 4}, {"val": 0.0, "test": 0.0}
    assert set(used(fused(tmp_path, rows, filters=least, split=split)).table.labels) == {
        ("melanoma",),
        ("nevus",),
        ("wart",),
    }
    found = used(fused(tmp_path, rows, filters={**least, "sub_sources": {"dataset": ["isic"]}}, split=split))
    assert set(found.table.labels) == {("melanoma",), ("nevus",)}
    assert "data.filters.min_samples_per_label: 4 leaves out the labels 'wart' (2)." in found.notes
    half = used(fused(tmp_path, rows, filters={"fraction": 0.5}, split=split))
    assert Counter(half.table.labels) == {("melanoma",): 12, ("nevus",): 12, ("wart",): 2}


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"origins": {"derm2m": ["edu"]}}, "origins names the dataset 'derm2m', which no case has; did you mean"),
        ({"origins": {"derm1m": ["edv"]}}, "names the first part of orig_filename 'edv', which no case has; did you"),
        ({"sub_sources": {"dataset": ["ham"]}}, "sub_sources.dataset names the dataset 'ham', which no case has"),
        ({"origins": {"isic": ["ISIC_2.png"]}, "sub_sources": {"dataset": ["derm1m"]}}, "the dataset 'isic', which no"),
    ],
)
def test_what_no_row_has_is_named(filters: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        used(fused(tmp_path, rows_of(12), filters=filters))


def test_a_table_without_the_columns_of_origins_is_refused(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "orig_filename"} for row in rows_of(12)]
    with pytest.raises(ConfigError, match="origins names the metadata column 'orig_filename', which no case has"):
        used(fused(tmp_path, rows, filters={"origins": {"derm1m": ["edu"]}}))


def refused(experiment: Experiment, *words: str) -> None:
    """A training stops before its first step, and says all of this."""
    with pytest.raises(ConsiliumError) as error:
        train(experiment, dry_run=True, reporter=Recorder())
    for word in words:
        assert word in str(error.value)


def test_a_dataset_that_is_not_there_says_where_it_was_looked_for(tmp_path: Path) -> None:
    experiment = fused(tmp_path, rows_of(12))
    folder = tmp_path / "root" / "dataset_v1"
    shutil.rmtree(folder / "imgs")
    refused(experiment, f"relative paths are looked for in {folder}/imgs", "12 rows are bad", f"{folder}/imgs/0.png")
    (folder / "metadata_all_harmonized.csv").unlink()
    refused(experiment, f"the file {folder}/metadata_all_harmonized.csv does not exist")
    folder.rename(tmp_path / "root" / "dataset_v2")
    refused(experiment, f"{folder}/metadata_all_harmonized.csv", "did you mean 'dataset_v2'?")


def test_an_id_given_twice_is_a_bad_row(tmp_path: Path) -> None:
    rows = rows_of(12)
    refused(fused(tmp_path, [*rows, rows[3]]), "the id 'c3' was given before, in line 5", "1 row is bad")


def test_a_label_that_nothing_trains_is_refused(tmp_path: Path) -> None:
    rows = [{**row, "split": ("train", "val", "test")[number % 3]} for number, row in enumerate(rows_of(12))]
    rows[1]["label"] = "wart"
    refused(fused(tmp_path, rows), "labels occur that training never sees: 'wart' (1 case(s), first c1 in val)")


def test_filters_that_leave_nothing_are_named(tmp_path: Path) -> None:
    rows = [{**row, "text_desc": ""} for row in rows_of(12)]
    refused(fused(tmp_path, rows, filters={"has_text": True}), "none of 12 cases can be used", "has_text")
    refused(fused(tmp_path, rows, filters={"min_samples_per_label": 99}), "none of 12 cases", "min_samples_per_label")
