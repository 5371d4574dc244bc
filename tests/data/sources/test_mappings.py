"""``modality_classifier``, ``harmonised`` and ``multimediset``: known tables in one word."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consilium.core.config import build
from consilium.core.errors import ConfigError
from consilium.data.config import DataConfig
from tests.data.samples import data_config, read, write_jsonl

MODALITY_CSV = """img_path,split_set,label,is_gt,doc_id
a.jpg,TRAIN,mic.flu,True,7
b.jpg,VAL,rad.xra,1,7
c.jpg,TEST,exp.gel.nor,1.0,8
d.jpg,TRAIN,rad.ang,false,9
e.jpg,UNL,,,9
f.jpg,unl,gra,0.0,
"""
HARMONISED_CSV = """image_id,dataset,filename,orig_filename,label,text_desc
1,isic,img/1.png,ISIC_0001.jpg,melanoma,A dark spot.
2,ham,img/2.png,HAM_2.jpg,nevus,
3,ham,img/2.png,HAM_2.jpg,nevus,The same spot again.
"""


def test_modality_classifier_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(MODALITY_CSV)
    cases, bad = read("modality_classifier", tmp_path / "a.csv")
    assert not bad
    assert [(case.split, case.labels, case.is_gt) for case in cases] == [
        ("train", ("mic.flu",), True),
        ("val", ("rad.xra",), True),
        ("test", ("exp.gel.nor",), True),
        ("train", ("rad.ang",), False),
        ("unlabelled", (), True),
        ("unlabelled", ("gra",), False),
    ]
    assert cases[0].views[0].image == str(tmp_path / "a.jpg")
    assert cases[0].meta == {"doc_id": "7"}


@pytest.mark.parametrize("ending", ["parquet", "PARQUET", "pq"])
def test_modality_classifier_parquet(tmp_path: Path, ending: str) -> None:
    table = {
        "img_path": ["a.jpg", "b.jpg", "c.jpg"],
        "split_set": ["TRAIN", "UNL", "TEST"],
        "label": ["mic.ele.sca", None, "rad"],
        "is_gt": [False, None, True],
    }
    pq.write_table(pa.table(table), tmp_path / f"a.{ending}")
    cases, bad = read("modality_classifier", tmp_path / f"a.{ending}", image_root=str(tmp_path / "base"))
    assert not bad
    assert [(case.split, case.labels, case.is_gt) for case in cases] == [
        ("train", ("mic.ele.sca",), False), ("unlabelled", (), True), ("test", ("rad",), True),
    ]  # fmt: skip
    assert cases[0].views[0].image == str(tmp_path / "base/a.jpg")


def test_harmonised(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HARMONISED_CSV)
    cases, bad = read("harmonised", tmp_path / "a.csv")
    assert not bad
    assert [(case.id, case.labels, case.text) for case in cases] == [
        ("1", ("melanoma",), "A dark spot."), ("2", ("nevus",), None), ("3", ("nevus",), "The same spot again."),
    ]  # fmt: skip
    assert cases[0].meta == {"dataset": "isic", "orig_filename": "ISIC_0001.jpg"}
    assert cases[0].group != cases[1].group == cases[2].group, "rows of one image stay together"
    named, _ = read("harmonised", tmp_path / "a.csv", columns={"group": "dataset"})
    assert [case.group for case in named] == ["isic", "ham", "ham"]


def test_an_id_given_twice_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HARMONISED_CSV.replace("\n3,", "\n2,"))
    cases, bad = read("harmonised", tmp_path / "a.csv")
    assert (len(cases), bad[0].line) == (2, 4)
    assert "the id '2' was given before, in line 3" in bad[0].reason
    assert len(read("harmonised", tmp_path / "a.csv", columns={"id": None})[0]) == 3


def test_multimediset_is_jsonl(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"text": "Two.", "modalities": [{"type": "image", "value": "a.png"}], "label": "x"}]
    )
    assert read("multimediset", path) == read("jsonl", path)


@pytest.mark.parametrize(
    ("kind", "table", "renamed"),
    [
        ("modality_classifier", MODALITY_CSV, "label"),
        ("modality_classifier", MODALITY_CSV, "split_set"),
        ("harmonised", HARMONISED_CSV, "label"),
        ("harmonised", HARMONISED_CSV, "image_id"),
        ("harmonised", HARMONISED_CSV, "text_desc"),
    ],
)
def test_one_renamed_column_leaves_the_others(tmp_path: Path, kind: str, table: str, renamed: str) -> None:
    key = {"split_set": "split", "image_id": "id", "text_desc": "text"}.get(renamed, renamed)
    (tmp_path / "a.csv").write_text(table)
    expected, _ = read(kind, tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text(table.replace(renamed, "other", 1))
    assert read(kind, tmp_path / "a.csv", columns={key: "other"})[0] == expected


@pytest.mark.parametrize(
    ("kind", "table", "gone", "message"),
    [
        ("modality_classifier", MODALITY_CSV, "img_path", "expects the columns img_path, split_set, label"),
        ("modality_classifier", MODALITY_CSV, "split_set", "or columns.split: null if the file has none"),
        ("harmonised", HARMONISED_CSV, "filename", "expects the columns image_id, filename, label, text_desc"),
        ("harmonised", HARMONISED_CSV, "text_desc", "The text column is 'text_desc', which"),
    ],
)
def test_a_missing_column_is_named(tmp_path: Path, kind: str, table: str, gone: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(table.replace(gone, "zzz", 1))
    with pytest.raises(ConfigError, match=message):
        read(kind, tmp_path / "a.csv")


def test_columns_that_a_file_does_not_have_can_be_renounced(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("img_path\na.jpg\n")
    (case,), bad = read("modality_classifier", tmp_path / "a.csv", columns={"split": None, "label": None})
    assert not bad
    assert (case.split, case.labels) == (None, ())


@pytest.mark.parametrize("kind", ["modality_classifier", "harmonised", "multimediset", "ret_clip_tsv"])
def test_a_resolved_config_is_the_same_config(tmp_path: Path, kind: str) -> None:
    config = data_config(tmp_path, {"kind": kind, "name": "s", "path": "a.csv"})
    assert build(DataConfig, config.model_dump(mode="json"), origin="test") == config
