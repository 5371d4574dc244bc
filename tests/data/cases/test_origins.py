"""The sources of each label: counted, and what they promise said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from consilium.core.errors import ConfigError
from consilium.data.cases.origins import Origins
from consilium.data.config import DataConfig
from consilium.data.store.prepare import prepare
from consilium.data.store.store import CaseTable
from tests.data.samples import data_config, write_jsonl

CASES = [
    *(("mri", "niivue", "train"), ("mri", "sct", "test"), ("mri", "sct", "val")),
    *(("ct", "totalseg", "train"), ("ct", "vqa", "train"), ("ct", "vqa", "train"), ("ct", "vqa", "test")),
]


def loaded(
    tmp_path: Path, cases: list[tuple[str, str, str]], key: str = "source", **split: Any
) -> tuple[CaseTable, DataConfig]:
    rows = [
        {"text": str(number), "label": label, key: source, "split": split}
        for number, (label, source, split) in enumerate(cases)
    ]
    source = {"kind": "jsonl", "name": "s", "path": str(write_jsonl(tmp_path / "a.jsonl", rows))}
    config = data_config(tmp_path, source, split=split, mixture={"source_column": "meta.source"} if split else {})
    return prepare(config).store.table, config


def test_each_label_has_its_sources(tmp_path: Path) -> None:
    table, _ = loaded(tmp_path, CASES)
    origins = Origins.of(table, "source")  # of which there is one, so that meta.source stands for it
    assert origins.column == "meta.source"
    assert origins.rows() == [
        {"label": "ct", "sources in train": 2, "train": "vqa 2, totalseg 1", "not in train": ""},
        {"label": "mri", "sources in train": 1, "train": "niivue 1", "not in train": "sct 2"},
    ]


def test_a_label_of_one_source_and_a_source_that_never_trains_are_said(tmp_path: Path) -> None:
    table, config = loaded(tmp_path, CASES)
    single, never = Origins.of(table, "meta.source").warnings(config)
    assert "1 label has one source in train: mri (niivue)" in single
    assert "train has no case of mri of sct (1 in val, 1 in test). With data.split.keep_sources_in" in never


def test_what_rows_name_is_kept_and_what_nothing_tests_is_named(tmp_path: Path) -> None:
    table, config = loaded(tmp_path, CASES, keep_sources_in="train")
    _, never, untested = Origins.of(table, "meta.source").warnings(config)
    assert "the splits that their rows name keep them out" in never
    assert untested == "wholly in train, so that nothing tests it: ct of totalseg, mri of niivue."


def test_one_source_in_all_says_nothing(tmp_path: Path) -> None:
    table, config = loaded(tmp_path, [("a", "x", "train"), ("b", "x", "train"), ("b", "x", "test")])
    origins = Origins.of(table, "source")
    assert (origins.rows(), origins.warnings(config)) == ([], [])


def test_what_is_left_out_on_purpose_is_no_warning(tmp_path: Path) -> None:
    table, config = loaded(tmp_path, CASES)
    asked = config.model_copy(update={"split": config.split.model_copy(update={"leave_out": {"source": ["sct"]}})})
    assert len(Origins.of(table, "source").warnings(asked)) == 1


def test_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    table, _ = loaded(tmp_path, CASES, key="hospital")
    with pytest.raises(ConfigError, match=r"source_column is 'hospitl'.*did you mean `hospital`"):
        Origins.of(table, "hospitl")
