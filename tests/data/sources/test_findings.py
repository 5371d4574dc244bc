"""Tables with one column per finding, and tables of bare ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consilium.core.errors import ConfigError
from consilium.data.config import DataConfig
from consilium.data.store.prepare import prepare
from consilium.experiment import Experiment
from tests.data.samples import data_config, read, write_images, write_jsonl

TABLE = """Path,Sex,No Finding,Edema,Lung Lesion
a.png,F,1.0,,
b.png,M,,1.0,0.0
c.png,F,,1,1
d.png,M,,0,-1
e.png,F,,1.0,-1.0
f.png,M,,,
"""
NAMES = ["No Finding", "Edema", "Lung Lesion"]


def findings(tmp_path: Path, keys: Any, **others: Any) -> Any:
    (tmp_path / "a.csv").write_text(TABLE)
    return read("csv", tmp_path / "a.csv", columns={"image": "Path", "findings": keys, **others})


@pytest.mark.parametrize(
    ("uncertain", "fourth", "fifth"),
    [
        ("positive", ("Lung Lesion",), ("Edema", "Lung Lesion")),
        ("negative", (), ("Edema",)),
        ("ignore", (), ()),
    ],
)
def test_columns_are_labels(tmp_path: Path, uncertain: str, fourth: tuple[str, ...], fifth: tuple[str, ...]) -> None:
    cases, bad = findings(tmp_path, {"columns": NAMES, "uncertain": uncertain})
    assert not bad
    assert [case.labels for case in cases] == [
        ("No Finding",), ("Edema",), ("Edema", "Lung Lesion"), fourth, fifth, ()
    ]  # fmt: skip
    assert [case.meta for case in cases[:2]] == [{"Sex": "F"}, {"Sex": "M"}]
    unlabelled = [case.split for case in cases]
    assert unlabelled == [None, None, None, *(["unlabelled"] * 2 if uncertain == "ignore" else [None] * 2), None]
    assert bool(cases[3].notes) == (uncertain == "ignore")


def test_uncertain_without_a_policy_is_a_bad_row_that_names_the_key(tmp_path: Path) -> None:
    cases, bad = findings(tmp_path, NAMES)
    assert len(cases) == 4
    assert [row.line for row in bad] == [5, 6]
    assert "finding 'Lung Lesion' is -1, uncertain; " in bad[0].reason
    assert "columns.findings.uncertain: positive, negative, or ignore" in bad[0].reason


def test_a_label_for_cases_without_findings(tmp_path: Path) -> None:
    keys = {"columns": ["Edema", "Lung Lesion"], "uncertain": "negative", "none": "healthy"}
    cases, _ = findings(tmp_path, keys, meta=["Sex"])
    assert [case.labels for case in cases] == [
        ("healthy",), ("Edema",), ("Edema", "Lung Lesion"), ("healthy",), ("Edema",), ("healthy",)
    ]  # fmt: skip


@pytest.mark.parametrize("value", ["2", "0.5", "x", "-2"])
def test_other_values_are_bad_rows(tmp_path: Path, value: str) -> None:
    (tmp_path / "a.csv").write_text(f"image,Edema\na.png,1\nb.png,{value}\n")
    cases, bad = read("csv", tmp_path / "a.csv", columns={"findings": "Edema"})
    assert [case.labels for case in cases] == [("Edema",)]
    assert bad[0].reason.startswith(f"finding 'Edema' is '{value}'; expected 1 (there), 0 (not there), -1 (uncertain)")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_pattern_of_columns_in_every_kind_of_table(tmp_path: Path, kind: str) -> None:
    rows = [{"image": "a.png", "f_ct": 1, "f_mri": 0, "age": 7}, {"image": "b.png", "f_ct": None, "f_mri": 1, "age": 8}]
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        path.write_text("image,f_ct,f_mri,age\na.png,1,0,7\nb.png,,1,8\n")
    elif kind == "jsonl":
        write_jsonl(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    cases, bad = read(kind, path, columns={"findings": "f_*"}, label_prefix="m")
    assert not bad
    assert [(case.labels, case.meta) for case in cases] == [(("m.ct",), {"age": "7"}), (("m.mri",), {"age": "8"})]


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"findings": ["Edema", "Lung Lesoin"]}, r"columns\.findings has 'Lung Lesoin'.* did you mean `Lung Lesion`\?"),
        ({"findings": "x_*"}, r"columns\.findings has 'x_\*', which .* does not have"),
        ({"findings": "Edema", "label": "Sex"}, r"set columns\.label: null"),
    ],
)
def test_columns_that_cannot_be_findings(tmp_path: Path, columns: dict[str, Any], complaint: str) -> None:
    (tmp_path / "a.csv").write_text(TABLE)
    with pytest.raises(ConfigError, match=complaint):
        read("csv", tmp_path / "a.csv", columns={"image": "Path", **columns})


def test_a_config_without_the_new_keys_is_written_as_before(tmp_path: Path) -> None:
    def columns(config: DataConfig) -> dict[str, Any]:
        found: dict[str, Any] = config.model_dump(mode="json")["sources"][0]["columns"]
        return found

    assert "findings" not in columns(data_config(tmp_path, {"kind": "csv", "name": "s", "path": "a.csv"}))
    source = {"kind": "csv", "name": "s", "path": "a.csv", "columns": {"findings": ["a"]}}
    assert columns(data_config(tmp_path, source))["findings"] == {"columns": ["a"], "uncertain": None, "none": None}
    assert "Findings" in Experiment.model_json_schema()["$defs"]


# ---------------------------------------------------------------- bare ids


@pytest.mark.parametrize(
    ("template", "image"),
    [("{}.png", "7.png"), ("{:04}.png", "0007.png"), ("p/{patient}/{}_{view:02}.jpg", "p/x 1/7_0a.jpg")],
)
def test_bare_ids_with_an_ending_and_a_folder_given_once(tmp_path: Path, template: str, image: str) -> None:
    (tmp_path / "a.csv").write_text("image_id,patient,view\n7,x 1,a\n")
    keys = {"columns": {"image": "image_id", "id": "image_id"}, "image_root": str(tmp_path / "images")}
    (case,), bad = read("csv", tmp_path / "a.csv", image_template=template, **keys)
    assert not bad
    assert case.views[0].image == str(tmp_path / "images" / image)
    assert (case.id, case.meta["patient"]) == ("7", "x 1")


def test_views_of_bare_ids(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"left": 3, "right": None}, {"left": [4, 5], "right": 6}])
    cases, _ = read("jsonl", path, columns={"image": ["left", "right"]}, image_template="{}.png")
    assert [[(Path(view.image).name, view.name) for view in case.views] for case in cases] == [
        [("3.png", "left")],
        [("4.png", "left"), ("5.png", "left"), ("6.png", "right")],
    ]


def test_templates_that_cannot_be_filled(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,patient\n7,\n8,p\n")
    cases, bad = read("csv", tmp_path / "a.csv", image_template="{patient}/{}.png")
    assert [case.line for case in cases] == [3]
    assert bad[0].reason == "image_template needs the column 'patient', which is empty here"
    with pytest.raises(ConfigError, match=r"image_template names 'patent', .* did you mean `patient`\?"):
        read("csv", tmp_path / "a.csv", image_template="{patent}/{}.png")
    with pytest.raises(ConfigError, match="image_template` is "):
        read("csv", tmp_path / "a.csv", image_template="{patient}.png")


def test_an_id_without_its_ending_is_said(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ["7.png", "8.png"])
    (tmp_path / "a.csv").write_text("image,label\n7,a\n8,b\n")
    source = {"kind": "csv", "name": "s", "path": str(tmp_path / "a.csv"), "image_root": str(tmp_path / "images")}
    with pytest.raises(Exception, match=r'set image_template: "\{\}\.png"'):
        prepare(data_config(tmp_path, source))
    assert prepare(data_config(tmp_path, {**source, "image_template": "{}.png"})).store.manifest.cases == 2


def test_file_addresses_are_paths(tmp_path: Path) -> None:
    write_images(tmp_path, ["a b.png"])
    address = f"file://{tmp_path}/a%20b.png"
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"image": address}, {"modalities": [{"type": "image", "value": address}]}]
    )
    cases, bad = read("jsonl", path)
    assert not bad
    assert [case.views[0].image for case in cases] == [str(tmp_path / "a b.png")] * 2
    source = {"kind": "jsonl", "name": "s", "path": f"file://{path}", "image_root": f"file://localhost{tmp_path}"}
    assert prepare(data_config(tmp_path, source)).store.manifest.cases == 2
