"""Hub datasets from local copies in the hub's own forms: every row once, with its split, label, group and image."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilium.core.errors import ConfigError, DataError, StoreError
from consilium.data.case import Case
from consilium.data.sources import hub_fetch
from consilium.data.sources.config import HubDataset
from consilium.data.sources.hub import open_cache
from consilium.data.store.prepare import prepare
from tests.data.samples import data_config, image_bytes
from tests.data.sources.hubs import cases_of, dataset, read_all, write_parquet

SPLITS = {"train": 30, "validation": 12, "test": 8}
BY_PATIENT = {"columns": {"group": "patient"}}


def saved(folder: Path) -> None:
    first, parts = 0, {}
    for split, rows in SPLITS.items():
        parts[split] = dataset(rows, first=first)
        first += rows
    datasets.disable_progress_bars()
    datasets.DatasetDict(parts).save_to_disk(folder)


def image_folder(folder: Path) -> None:
    first = 0
    for split, rows in SPLITS.items():
        (folder / split).mkdir(parents=True)
        lines = [["file_name", "label", "text", "patient"]]
        for n in range(first, first + rows):
            (folder / split / f"{n}.png").write_bytes(image_bytes(n))
            lines.append([f"{n}.png", "" if n % 7 == 6 else ["ct", "mri", "xray"][n % 3], f"text {n}", str(n)])
        with (folder / split / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows(lines)
        first += rows


def web_dataset(folder: Path) -> None:
    folder.mkdir()
    first = 0
    for split, rows in SPLITS.items():
        with tarfile.open(folder / f"{split}-00000.tar", "w") as tar:
            for n in range(first, first + rows):
                label = None if n % 7 == 6 else ["ct", "mri", "xray"][n % 3]
                told = json.dumps({"label": label, "text": f"text {n}", "patient": n}).encode()
                for name, data in ((f"{n:04d}.png", image_bytes(n)), (f"{n:04d}.json", told)):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
        first += rows


def image_of(case: Case) -> bytes:
    (view,) = case.views
    return Path(view.image).read_bytes() if view.data is None else view.data


FORMS: dict[str, Callable[[Path], object]] = {
    "parquet": lambda folder: write_parquet(folder, SPLITS),
    "save_to_disk": saved,
    "imagefolder": image_folder,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_local_copy_gives_the_same_cases(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path / "copy")
    cases = cases_of(read_all(tmp_path, {"kind": "hub", "path": str(tmp_path / "copy"), **BY_PATIENT}))
    cases.sort(key=lambda case: int(case.group))
    assert [case.text for case in cases] == [f"text {n}" for n in range(50)]
    assert [case.split for case in cases] == ["train"] * 30 + ["val"] * 12 + ["test"] * 8
    assert [case.labels for case in cases] == [() if n % 7 == 6 else (["ct", "mri", "xray"][n % 3],) for n in range(50)]
    assert [image_of(case) for case in cases] == [image_bytes(n) for n in range(50)]
    assert len({case.id for case in cases}) == 50


def test_tars_of_a_web_dataset(tmp_path: Path) -> None:
    web_dataset(tmp_path / "copy")
    columns = {"image": "png", "text": None, "label": None, "id": "__key__"}
    cases = cases_of(read_all(tmp_path, {"kind": "hub", "path": str(tmp_path / "copy"), "columns": columns}))
    cases.sort(key=lambda case: case.id)
    assert [case.id for case in cases] == [f"{n:04d}" for n in range(50)]
    assert [image_of(case) for case in cases] == [image_bytes(n) for n in range(50)]
    assert json.loads(cases[3].meta["json"])["text"] == "text 3"


def test_folders_of_images_have_labels_and_are_referenced(tmp_path: Path) -> None:
    for n, name in enumerate(("ct/a.png", "mri/b.png", "ct/c.png")):
        path = tmp_path / "copy" / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(n))
    config = data_config(tmp_path, {"kind": "hub", "name": "s", "path": str(tmp_path / "copy")}, split={"val": 0})
    table = prepare(config).store.table
    assert sorted(table.labels) == [("ct",), ("ct",), ("mri",)]
    assert {Path(str(table.images(row)[0])).name for row in range(3)} == {"a.png", "b.png", "c.png"}
    assert not prepare(config).created


def write_split(folder: Path, name: str, rows: int = 6) -> Path:
    datasets.disable_progress_bars()
    datasets.DatasetDict({name: dataset(rows)}).save_to_disk(folder)
    return folder


def test_a_split_of_no_usual_name_must_be_placed(tmp_path: Path) -> None:
    source = {"kind": "hub", "path": str(write_split(tmp_path / "copy", "fold1"))}
    with pytest.raises(DataError, match=r"split 'fold1'.*`splits:`.*`split:`.*`use_splits: false`"):
        read_all(tmp_path, source)
    assert {case.split for case in read_all(tmp_path, {**source, "split": "test"})} == {"test"}
    assert {case.split for case in read_all(tmp_path, {**source, "use_splits": False})} == {None}


def test_only_the_named_splits_are_fetched(tmp_path: Path) -> None:
    write_parquet(tmp_path / "copy", SPLITS)
    source = {"kind": "hub", "path": str(tmp_path / "copy"), "splits": ["test"]}
    assert len(cases_of(read_all(tmp_path, source))) == 8
    with pytest.raises(ConfigError, match="no split 'tset'; its splits are: train, validation, test"):
        read_all(tmp_path, {**source, "splits": ["tset"]})


def test_the_split_of_a_row_or_source_wins(tmp_path: Path) -> None:
    rows = dataset(3).add_column("split", ["test", "", "dev"])  # type: ignore[call-arg]
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "copy")
    source = {"kind": "hub", "path": str(tmp_path / "copy")}
    assert [case.split for case in read_all(tmp_path, source)] == ["test", "train", "val"]
    assert [case.split for case in read_all(tmp_path, {**source, "split": "unlabelled"})] == [
        "test", "unlabelled", "val"
    ]  # fmt: skip


def test_several_classes_become_their_names(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.List(datasets.ClassLabel(names=["effusion", "nodule"]))}
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [[0, 1], [], [1]]}, features=features)
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "copy")
    cases = cases_of(read_all(tmp_path, {"kind": "hub", "path": str(tmp_path / "copy")}))
    assert [case.labels for case in cases] == [("effusion", "nodule"), (), ("nodule",)]


def test_one_image_is_one_group_in_all_splits_and_one_id_is_given_once(tmp_path: Path) -> None:
    same = dataset(2).add_column("id", ["a", "b"])  # type: ignore[call-arg]
    datasets.DatasetDict({"train": same, "test": same}).save_to_disk(tmp_path / "copy")
    source = {"kind": "hub", "path": str(tmp_path / "copy")}
    cases = cases_of(read_all(tmp_path, {**source, "columns": {"id": None}}))
    assert cases[0].group == cases[2].group != cases[1].group
    twice = [item for item in read_all(tmp_path, source) if not isinstance(item, Case)]
    assert [item.reason.partition(" of ")[0] for item in twice] == [
        "the id 'a' was given before, in line 1",
        "the id 'b' was given before, in line 2",
    ]


def test_what_the_config_says_wrongly_is_told_before_a_row_is_fetched(tmp_path: Path) -> None:
    write_parquet(tmp_path / "copy", {"train": 6})
    source = {"kind": "hub", "name": "s", "path": str(tmp_path / "copy")}
    with pytest.raises(ConfigError, match=r"columns.label is 'labell'.*did you mean `label`"):
        prepare(data_config(tmp_path, {**source, "columns": {"label": "labell"}}))
    assert not list(tmp_path.glob("stores/hub-*/*/part-*"))
    with pytest.raises(DataError, match=r"set data\.store\.images: embed"):
        prepare(data_config(tmp_path, source))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "neither a folder of this machine nor a dataset id"),
        ("a/b/c", "neither a folder of this machine nor a dataset id"),
        ("owner/name", "is not here yet and HF_HUB_OFFLINE is set"),
    ],
)
def test_a_path_that_leads_nowhere(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(data_config(tmp_path, {"kind": "hub", "name": "s", "path": path}, store={"images": "embed"}))


def test_a_folder_that_holds_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    with pytest.raises(DataError, match=r"source 's': .*copy cannot be read"):
        prepare(data_config(tmp_path, {"kind": "hub", "name": "s", "path": str(tmp_path / "copy")}))


def test_bad_rows_are_counted_with_their_reasons(tmp_path: Path) -> None:
    good = [{"bytes": image_bytes(n), "path": None} for n in range(4)]
    rows = {
        "image": [*good, None, {"bytes": b"no image", "path": "x.png"}],
        "text": ["t"] * 4 + [None, "t"],
        "label": ["a", "b.", "a", "b", "a", "b"],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "label": datasets.Value("string")}
    )
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(tmp_path / "copy")
    prepared = prepare(
        data_config(
            tmp_path, {"kind": "hub", "name": "s", "path": str(tmp_path / "copy")},
            store={"images": "embed"}, split={"val": 0}, on_bad_row="quarantine",
        )
    )  # fmt: skip
    assert [(row.line, row.reason.partition(";")[0]) for row in prepared.bad_rows][:2] == [
        (2, "label 'b.' has an empty part"),
        (5, "the row has neither an image nor a text"),
    ]
    assert prepared.bad_rows[2].line == 6
    assert prepared.summary[0]["train"] == 3
    assert prepared.summary[0]["bad rows"] == 3


def test_a_changed_copy_is_read_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    write_parquet(tmp_path / "copy", {"train": 6})

    def made(**keys: Any) -> Any:
        source = {"kind": "hub", "name": "s", "path": str(tmp_path / "copy"), **keys}
        return prepare(data_config(tmp_path, source, store={"images": "embed"}))

    first = made()
    (rows,) = tmp_path.glob("stores/hub-*/train")
    shutil.rmtree(rows)  # a finished store needs the fetched rows no more
    assert not made(delay=0.5).created
    assert len(made(split="test").store.table) == 6, "another one fetches them again"
    write_parquet(tmp_path / "copy", {"train": 8})
    again = made()
    assert again.created
    assert (len(first.store.table), len(again.store.table)) == (6, 8)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    source = {"kind": "hub", "path": str(write_split(tmp_path / "copy", "train"))}
    read_all(tmp_path, source)
    (part,) = tmp_path.glob("stores/hub-*/train/part-*")
    part.write_bytes(b"nothing")
    with pytest.raises(StoreError, match=r"part-.*is damaged.*remove its folder"):
        read_all(tmp_path, source)


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copies")
    for form, write in FORMS.items():
        write(root / form)
    return root


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from(sorted(FORMS)),
    lost=st.sets(st.integers(0, 60), max_size=8),
    part_rows=st.integers(1, 20),
)
def test_lost_connections_lose_and_repeat_no_row(
    copies: Path, monkeypatch: pytest.MonkeyPatch, form: str, lost: set[int], part_rows: int
) -> None:
    """The connection is lost at any rows; also a process that starts anew goes on behind the last part."""
    write = hub_fetch._RowWriter.add
    count = 0

    def add(writer: Any, row: Any, position: Any) -> None:
        nonlocal count
        count += 1
        if count - 1 in lost:
            raise ConnectionResetError("lost")
        write(writer, row, position)

    root = copies / "roots"
    shutil.rmtree(root, ignore_errors=True)
    with monkeypatch.context() as patch:
        patch.setattr(hub_fetch._RowWriter, "add", add)
        patch.setattr(hub_fetch, "PART_ROWS", part_rows)
        patch.setattr(time, "sleep", lambda seconds: None)
        while True:
            cache = open_cache(HubDataset(path=str(copies / form), retries=2), splits=None, root=root)
            try:
                cache.fetch()
                break
            except DataError:  # lost three times running: the person starts again
                continue
    texts = sorted(int(row["text"].split()[1]) for name in cache.splits for row in cache.split(name))
    assert texts == list(range(50))
