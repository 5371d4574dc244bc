"""Cells that say in words that they have no value, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consilium.core.config import build
from consilium.core.errors import DataError
from consilium.core.reporter import Silent
from consilium.data.store.prepare import prepare
from tests.data.samples import data_config, read, write_images, write_jsonl
from tests.labelled import load_labelled
from tests.tiny import Recorder

SPELLINGS = ["nan", "NaN", "None", "NA", "N/A", "null", "<NA>", "#N/A", " nan "]


def table(folder: Path, header: str, cells: list[str]) -> Path:
    names = [f"{number}.png" for number in range(len(cells))]
    write_images(folder, names)
    rows = [f"{name},{'ab'[number % 2]},{cell}" for number, (name, cell) in enumerate(zip(names, cells, strict=True))]
    (folder / "a.csv").write_text("\n".join([f"image,label,{header}", *rows]) + "\n")
    return folder / "a.csv"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_value_that_is_missing_in_words_is_missing(tmp_path: Path, spelling: str) -> None:
    for header, key in (("group_id", "group"), ("id", "id"), ("split", "split"), ("is_gt", "is_gt")):
        path = table(tmp_path, header, [spelling] * 3)
        cases, bad = read("csv", path)
        assert not bad
        path.write_text(path.read_text().replace(f",{spelling}\n", ",\n"))
        empty, _ = read("csv", path)
        assert [getattr(case, key) for case in cases] == [getattr(case, key) for case in empty]
        (note,) = {note for case in cases for note in case.notes}
        assert note.startswith(f"'{spelling.strip()}' in the column '{header}' looks like a missing value: ")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_where_null_can_be_written_other_words_stay_and_are_said(tmp_path: Path, kind: str) -> None:
    groups = [None, "nan", "None", "null", "NIL", "p1"]
    rows = [{"image": f"{number}.png", "group_id": group} for number, group in enumerate(groups)]
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        write_jsonl(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    cases, bad = read(kind, path)
    assert not bad
    assert [case.group for case in cases] == ["s:0.png", "s:1.png", "s:2.png", "null", "NIL", "p1"]
    assert [bool(case.notes) for case in cases] == [False, True, True, True, True, False]
    assert cases[3].notes[0].endswith("it is the group as it stands; write null where there is none")


def test_prepare_says_how_many_rows_and_trains_on_what_is_left(tmp_path: Path) -> None:
    path = table(tmp_path, "group_id", ["nan"] * 24)
    source = {"kind": "csv", "name": "g", "path": str(path)}
    prepared = prepare(data_config(tmp_path, source, split={"val": 0.3, "test": 0.3}))
    assert len(set(prepared.store.table.groups)) == 24
    assert len(set(prepared.store.table.splits)) == 3
    assert prepared.notes() == [
        "g: 24 rows: 'nan' in the column 'group_id' looks like a missing value: each of these images is a group of "
        "its own"
    ]


def test_all_cases_of_one_group_are_named_with_their_column(tmp_path: Path) -> None:
    path = table(tmp_path, "group_id", ["p1"] * 6)
    config = data_config(tmp_path, {"kind": "csv", "name": "g", "path": str(path)})
    one = "all 6 cases are of one group, 'p1', which comes from the column 'group_id' (source 'g'); a group stays in"
    assert [line for line in prepare(config).notes() if one in line]
    with pytest.raises(DataError, match=r"split is empty .*all 6 cases are of one group, 'p1'.* columns\.group \(null"):
        load_labelled(config, splits=["train", "val"], training=True, reporter=Silent())


@pytest.mark.parametrize("training", [True, False])
def test_a_label_that_looks_missing_is_said_once(tmp_path: Path, training: bool) -> None:
    """A training speaks of the classes that are left, an evaluation of the rows as they stand."""
    path = table(tmp_path, "group_id", [""] * 24)
    path.write_text(path.read_text().replace(",b,", ",nan,"))
    config = data_config(tmp_path, {"kind": "csv", "name": "g", "path": str(path)}, split={"val": 0.3, "test": 0.3})
    told = Recorder()
    load_labelled(config, splits=["train"], training=training, reporter=told, options={"learns": training})
    (line,) = (line for line in told.lines if "missing value" in line)
    start = "note: labels that look like a missing value: 'nan'." if training else "note: g: 12 rows: the label 'nan'"
    assert line.startswith(start)
    if training:
        renamed = config.model_copy(update={"rename_labels": {"nan": "nothing found"}})
        load_labelled(renamed, splits=["train"], training=True, reporter=(told := Recorder()))
        assert not any("missing value" in line for line in told.lines)


@pytest.mark.parametrize(
    ("label", "separator", "note"),
    [
        ("nan", None, "the label 'nan' looks like a missing value, and is a class"),
        ("effusion|nodule", None, "a label with '|' in it, such as 'effusion|nodule', is one class"),
        ("effusion;nodule", "|", "a label with ';' in it, such as 'effusion;nodule', is one class"),
        ("effusion|nodule", "|", None),
        ("none of these", None, None),
    ],
)
def test_labels_that_may_be_something_else_are_pointed_out(
    tmp_path: Path, label: str, separator: str | None, note: str | None
) -> None:
    (tmp_path / "a.csv").write_text(f"image,label\na.png,{label}\nb.png,{label}\n")
    cases, bad = read("csv", tmp_path / "a.csv", columns={"label_separator": separator})
    assert not bad
    notes = [note for case in cases for note in case.notes]
    assert len(notes) == (0 if note is None else 2)
    assert all(found.startswith(note or "") for found in notes)


def test_a_store_of_an_earlier_version_has_no_notes(tmp_path: Path) -> None:
    path = table(tmp_path, "group_id", ["p1", "p2", "p3"])
    config = data_config(tmp_path, {"kind": "csv", "name": "g", "path": str(path)})
    store = prepare(config).store
    manifest = store.path / "store.json"
    manifest.write_text(manifest.read_text().replace('"notes": {}', '"other": {}'))
    again = prepare(config)
    assert not again.created
    assert again.notes() == []
    assert build(type(config), config.model_dump(), origin="x") == config
