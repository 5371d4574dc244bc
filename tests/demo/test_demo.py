"""The embedded demo data is what its documentation says: complete, small, free of leaks, free to share."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import consilium.demo
from consilium.core.errors import DataError
from consilium.demo import demo_data_path

DATA = demo_data_path()
DEMO = DATA.parent
SPLITS = {"train", "val", "test"}
MODALITIES = {
    "blood_microscopy",
    "chart",
    "ct",
    "dermoscopy",
    "endoscopy",
    "fluorescence_microscopy",
    "fundus",
    "histopathology",
    "mri",
    "oct",
    "ultrasound",
    "xray_chest",
    "xray_hand",
}
# Each may be shared and changed, also commercially; share-alike and notice licences have their file in the package.
LICENCES = {
    "Apache-2.0",
    "BSD-3-Clause",
    "CC BY 3.0",
    "CC BY 4.0",
    "CC BY-SA 4.0",
    "CC0 1.0",
    "MIT",
    "OpenSlide free data",
}
PAIRS = ("isic2017.jsonl", "idrid_grades.jsonl", "vqa_rad.jsonl")


@dataclass(frozen=True)
class Row:
    """One row of any table, with what all tables share."""

    table: str
    image: str
    value: dict[str, Any]

    @property
    def split(self) -> str:
        return str(self.value["split"])

    @property
    def source(self) -> str:
        return str(self.value["source"])


def _csv(name: str) -> list[Row]:
    with (DATA / name).open(newline="", encoding="utf-8") as stream:
        return [Row(name, value["image"], value) for value in csv.DictReader(stream)]


def _jsonl(name: str) -> Iterator[Row]:
    for line in (DATA / name).read_text(encoding="utf-8").splitlines():
        value = json.loads(line)
        (part,) = value["modalities"]
        assert part["type"] == "image"
        yield Row(name, part["value"], value)


MODALITY = _csv("modality.csv")
MASKS = _csv("masks.csv")
TEXTS = [row for name in PAIRS for row in _jsonl(name)]
ROWS = [*MODALITY, *MASKS, *TEXTS]


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_whole_demo_is_at_most_12_mib() -> None:
    sizes = [(DEMO / file).stat().st_size for file in _files(DEMO) if "__pycache__" not in file]
    assert sum(sizes) <= 12 * 2**20


def test_files_are_the_referenced_ones_and_nothing_else() -> None:
    referenced = {row.image for row in ROWS} | {row.value["mask"] for row in MASKS}
    assert _files(DATA) == referenced | {"modality.csv", "masks.csv", *PAIRS}


def test_every_image_opens_and_is_stored_once() -> None:
    seen: dict[str, str] = {}
    for file in sorted({row.image for row in ROWS}):
        with Image.open(DATA / file) as image:
            image.load()
            assert max(image.size) <= 256, file
        digest = hashlib.sha256((DATA / file).read_bytes()).hexdigest()
        assert seen.setdefault(digest, file) == file


def test_no_image_is_listed_twice_where_one_row_is_one_image() -> None:
    for table in ("modality.csv", "masks.csv", "isic2017.jsonl", "idrid_grades.jsonl"):
        images = [row.image for row in ROWS if row.table == table]
        assert len(images) == len(set(images)), table


def test_groups_and_images_keep_to_one_split_over_all_tables() -> None:
    split_of_group: dict[str, str] = {}
    group_of_image: dict[str, str] = {}
    for row in ROWS:
        group = row.value["group_id"]
        assert row.split in SPLITS
        assert group
        assert split_of_group.setdefault(group, row.split) == row.split, (row.table, row.image)
        assert group_of_image.setdefault(row.image, group) == group, (row.table, row.image)


def test_every_modality_is_in_every_split() -> None:
    assert {(row.value["label"], row.split) for row in MODALITY} == {(m, s) for m in MODALITIES for s in SPLITS}
    assert all(row.image.startswith(f"images/{row.value['label']}/") for row in MODALITY)


@pytest.mark.parametrize(("table", "labels"), [("isic2017.jsonl", 3), ("idrid_grades.jsonl", 5)])
def test_every_label_of_the_pairs_is_in_every_split(table: str, labels: int) -> None:
    found = {(row.value["label"], row.split) for row in TEXTS if row.table == table}
    assert len(found) == labels * len(SPLITS)


def test_texts_are_there_and_context_leaves_the_diagnosis_out() -> None:
    assert all(row.value["text"].strip() for row in TEXTS)
    for row in TEXTS:
        if row.table == "isic2017.jsonl":
            assert row.value["context"].strip()
            assert row.value["label"] in row.value["text"]
            assert row.value["label"] not in row.value["context"]
        if row.table == "vqa_rad.jsonl":
            assert row.value["question"] in row.value["text"]
            assert row.value["answer"] in row.value["text"]


@pytest.mark.parametrize("table", ["modality.csv", "masks.csv", *PAIRS])
def test_every_row_names_a_free_licence_and_its_provenance(table: str) -> None:
    rows = [row for row in ROWS if row.table == table]
    assert {row.value["licence"] for row in rows} <= LICENCES
    assert all(re.match(r"[\w.-]+/[\w.-]+: \S", row.value["provenance"]) for row in rows)
    assert not {row.source for row in rows} & {"ham", "wbc", "niivue"}


def test_images_of_many_authors_name_whom_to_credit() -> None:
    assert all(row.value["credit"] for row in MODALITY if row.source == "covid_cxr")


def test_licences_md_counts_the_images_of_every_source() -> None:
    text = (DEMO / "LICENSES.md").read_text(encoding="utf-8")
    counts: dict[tuple[str, str], int] = {}
    modalities: dict[tuple[str, str], set[str]] = {}
    for image, key in sorted({row.image: (row.source, row.value["licence"]) for row in ROWS}.items()):
        counts[key] = counts.get(key, 0) + 1
        modalities.setdefault(key, set()).add(image.split("/")[1])
    expected = [
        f"| {source} | {licence} | {number} | {', '.join(sorted(modalities[source, licence]))} |"
        for (source, licence), number in sorted(counts.items())
    ]
    assert [line for line in text.splitlines() if line.startswith("| ")][1:] == expected
    sections = {name for line in text.splitlines() if line.startswith("## ") for name in line[3:].split(", ")}
    assert sections == {source for source, _ in counts}


def test_licences_that_ask_for_a_notice_have_one_in_the_package() -> None:
    text = (DEMO / "LICENSES.md").read_text(encoding="utf-8")
    links = set(re.findall(r"\]\((LICENSE-[^)]*)\)", text))
    assert links == {"LICENSE-MIT.md", "LICENSE-BSD-3-Clause.md", "LICENSE-CC-BY-SA-4.0.md"}
    for link in links:
        licence = link.removeprefix("LICENSE-").removesuffix(".md").replace("CC-BY-SA-", "CC BY-SA ")
        notice = (DEMO / link).read_text(encoding="utf-8")
        sources = {row.source for row in ROWS if row.value["licence"] == licence}
        assert sources
        assert all(source in notice for source in sources)


def test_masks_fit_their_images_and_classes() -> None:
    assert {(row.value["task"], row.split) for row in MASKS} == {(t, s) for t in ("lesion", "nuclei") for s in SPLITS}
    for row in MASKS:
        classes = {int(pair.split("=")[0]) for pair in row.value["classes"].split(";")}
        with Image.open(DATA / row.value["mask"]) as mask, Image.open(DATA / row.image) as image:
            assert mask.format == "PNG"
            assert mask.size == image.size, row.image
            values = np.unique(np.asarray(mask))
        assert set(values.tolist()) <= classes, row.value["mask"]
        assert values.max() > 0, f"{row.value['mask']} is empty"


def test_a_package_without_its_data_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(consilium.demo, "files", lambda _: tmp_path)
    with pytest.raises(DataError, match="demo data is not a folder"):
        demo_data_path()


_COLLECTION = os.environ.get("CONSILIUM_SHARED")


@pytest.mark.skipif(not _COLLECTION, reason="CONSILIUM_SHARED (the folder of the curated collection) is not set")
def test_the_committed_data_is_what_the_builder_writes() -> None:
    script = Path(__file__).parents[2] / "tools" / "build_demo_data.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
