"""All guards together: before a training in short, what is kept in the store, and what on_leak does."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from consilium.core.errors import DataError
from consilium.data.cases.load import LoadedData
from consilium.data.config import DataConfig
from consilium.data.guards import check as module
from consilium.data.guards.check import WHERE, Findings, check
from consilium.data.images import reading as images
from consilium.data.store.prepare import prepare
from tests.data.samples import data_config
from tests.labelled import load_labelled

SIDE = 48


@dataclass
class Told:
    """A reporter that remembers."""

    lines: list[str] = field(default_factory=list)
    bars: set[str] = field(default_factory=set)

    def line(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
        self.bars.add(name)


def picture(seed: int) -> Image.Image:
    """A smooth image; another seed is another one."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def rows_of(folder: Path) -> list[dict[str, str]]:
    """Four training, two validation and two test cases of two labels, each a picture and a patient of its own."""
    rows = []
    for number, split in enumerate(["train"] * 8 + ["val"] * 4 + ["test"] * 4):
        label = ("ct", "mri")[number % 2]
        picture(number).save(folder / f"{number}.png")
        rows.append({"id": f"case{number}", "image": f"{number}.png", "split": split, "label": label})
    return rows


def config_of(folder: Path, rows: Sequence[dict[str, str]], **sections: Any) -> DataConfig:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "t.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return data_config(folder, {"kind": "csv", "name": "s", "path": str(folder / "t.csv")}, **sections)


def load(config: DataConfig, *, reporter: Told | None = None, **options: Any) -> LoadedData:
    options = {"splits": ("train", "val"), "training": True, **options}
    return load_labelled(config, reporter=reporter or Told(), **options)


def ids(loaded: LoadedData, split: str) -> list[str]:
    cases = loaded.cases
    return [cases.table.ids[row] for row in cases.rows[split].tolist()]


@pytest.fixture
def leaking(tmp_path: Path) -> list[dict[str, str]]:
    """Case 0 of train is in test again, saved anew; case 1 shares a patient with val; case 2 its file with test."""
    rows = rows_of(tmp_path)
    again = picture(0).resize((SIDE * 2, SIDE * 2), Image.Resampling.BICUBIC)
    again.save(tmp_path / "14.jpg", quality=90)
    rows[14]["image"] = "14.jpg"
    rows[1]["group_id"] = rows[9]["group_id"] = "p1"
    (tmp_path / "12.png").write_bytes((tmp_path / "2.png").read_bytes())
    return rows


def test_before_a_training_each_kind_is_one_line(tmp_path: Path, leaking: list[dict[str, str]]) -> None:
    leaking[3]["group_id"] = leaking[11]["group_id"] = "p2"
    loaded = load(config_of(tmp_path, leaking))
    leaks = [note for note in loaded.cases.notes if note.startswith("leak: ")]
    assert leaks == [
        "leak: group 'p1' is in train and val (cases case1, case9); put it on one side. And 1 more like it.",
        "leak: the same file is in train and test (cases case2, case12); keep one of them.",
        "leak: almost the same image is in train and test (cases case0, case14); keep one of them, or give them one "
        "group.",
    ]
    assert WHERE in loaded.cases.notes
    assert len(ids(loaded, "train")) == 8


def test_images_are_looked_at_once(
    tmp_path: Path, leaking: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, leaking)
    first, again = Told(), Told()
    before = load(config, reporter=first)
    assert first.bars == {"prepare", "compare images"}
    monkeypatch.setattr(module, "find_near_duplicates", lambda *_, **__: pytest.fail("images are compared again"))
    after = load(config, reporter=again)
    assert again.bars <= {"prepare"}
    assert after.cases.notes == before.cases.notes
    # what is damaged is looked for anew, and so are other cases
    (found,) = before.store.path.glob("findings-*.json")
    found.write_text(found.read_text()[:40])
    assert load(config).cases.notes == before.cases.notes
    (kept,) = before.store.path.glob("near_duplicates-*.json")
    pairs = kept.read_text()
    kept.write_text(pairs[:40])
    found.unlink()
    with pytest.raises(pytest.fail.Exception):
        load(config)
    kept.write_text(pairs)
    load(config)
    with pytest.raises(pytest.fail.Exception):
        load(config_of(tmp_path, leaking, filters={"max_samples_per_label": 3}))


def test_findings_are_those_of_the_settings(
    tmp_path: Path, leaking: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second training looks at nothing; with other guards, or for `data inspect`, all is looked at again."""
    config = config_of(tmp_path, leaking)
    before = load(config)
    other = config.model_copy(update={"guards": config.guards.model_copy(update={"labels": False})})
    turned = config.model_copy(
        update={"augmentation": config.augmentation.model_copy(update={"rotation_degrees": 5.0})}
    )
    store = prepare(config).store

    def looked_again(*_: Any, **__: Any) -> dict[str, list[str]]:
        return {"layout": ["looked again"]}

    monkeypatch.setattr(module, "folder_warnings", looked_again)
    for same in (config, turned):
        assert load(same).cases.notes == before.cases.notes
    assert "layout: looked again" in load(other).cases.notes
    found = check(store, store.table, config, uses_text=False, everything=True, reporter=Told())
    assert found.warnings["layout"] == ["looked again"]


def test_judging_looks_at_no_image(
    tmp_path: Path, leaking: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, leaking, image={"statistics": "data"})
    prepare(config)
    monkeypatch.setattr(module, "image_digests", lambda *_, **__: pytest.fail("images are looked at"))
    with monkeypatch.context() as patch:
        patch.setattr(images, "_read", lambda *_: pytest.fail("an image is decoded"))
        notes = load(config, splits=("test",), training=False).cases.notes
    assert [note.partition(" (")[0] for note in notes if note.startswith("leak: ")] == [
        "leak: group 'p1' is in train and val",
        "leak: the same file is in train and test",
    ]
    (note,) = [
        note
        for note in load(config_of(tmp_path, leaking), limit=5).cases.notes
        if note.startswith("not looked at: images")
    ]
    assert "a part of the cases" in note
    off = {"near_duplicates": False, "shortcuts": False}
    assert not [
        note
        for note in load(config_of(tmp_path, leaking, guards=off), limit=5).cases.notes
        if note.startswith("not looked")
    ]


def test_judging_drops_what_the_training_dropped(
    tmp_path: Path, leaking: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, leaking, on_leak="drop")
    unknown = [note for note in load(config, training=False).cases.notes if note.startswith("not looked at: images")]
    assert len(unknown) == 1
    trained = load(config)
    monkeypatch.setattr(module, "image_digests", lambda *_, **__: pytest.fail("images are looked at"))
    monkeypatch.setattr(module, "find_near_duplicates", lambda *_, **__: pytest.fail("images are compared"))
    judged = load(config, splits=("test",), options={"given": trained.studied.knowledge.tree}, training=False)
    assert {split: ids(judged, split) for split in ("train", "val", "test")} == {
        split: ids(trained, split) for split in ("train", "val", "test")
    }
    assert "case0" not in ids(judged, "train")
    assert not [note for note in judged.cases.notes if note.startswith("not looked at")]
    (kept,) = judged.store.path.glob("near_duplicates-*.json")
    kept.unlink()
    assert "case0" in ids(load(config, training=False), "train")
    off = config_of(tmp_path, leaking, on_leak="drop", guards={"near_duplicates": False})
    assert not [note for note in load(off, training=False).cases.notes if note.startswith("not looked at")]


def test_error_stops_at_leaks_of_all_kinds(tmp_path: Path, leaking: list[dict[str, str]]) -> None:
    with pytest.raises(DataError, match=r"3 leak\(s\)") as caught:
        load(config_of(tmp_path, leaking, on_leak="error"))
    for told in ("group 'p1'", "the same file", "almost the same image"):
        assert told in str(caught.value)


def test_drop_leaves_one_side_and_goes_on(tmp_path: Path, leaking: list[dict[str, str]]) -> None:
    loaded = load(config_of(tmp_path, leaking, on_leak="drop"))
    assert ids(loaded, "train") == ["case3", "case4", "case5", "case6", "case7"]
    assert ids(loaded, "val") == [f"case{n}" for n in range(8, 12)]
    assert ids(loaded, "test") == [f"case{n}" for n in range(12, 16)]
    assert loaded.studied.knowledge.tree.leaves == ("ct", "mri")
    assert loaded.studied.targets is not None
    assert loaded.studied.targets.shape == (13,)
    assert "data.on_leak: drop takes out 3 cases that leak: train ct (2), train mri (1)." in loaded.cases.notes
    assert not [note for note in loaded.cases.notes if note.startswith("leak: ")]


def test_drop_of_a_part_of_the_cases_keeps_the_labels_of_all(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    for number, row in enumerate(rows):
        row["label"] = f"label{number % 4}"
    rows[0]["group_id"] = rows[4]["group_id"] = rows[12]["group_id"] = "p1"
    loaded = load(config_of(tmp_path, rows, on_leak="drop", filters={"max_train_samples": 4}))
    assert "data.on_leak: drop takes out 1 case that leaks: train label0 (1)." in loaded.cases.notes
    assert len(ids(loaded, "train")) == 3
    assert loaded.studied.knowledge.tree.leaves == ("label0", "label1", "label2", "label3")


def test_drop_that_empties_a_class_ends_in_the_usual_error(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    for row in rows:
        if row["label"] == "mri" and row["split"] in ("train", "test"):
            row["group_id"] = "p1"
    with pytest.raises(DataError, match=r"train has 1 label\(s\)"):
        load(config_of(tmp_path, rows, on_leak="drop"))


def test_only_cases_that_are_used_can_leak(tmp_path: Path, leaking: list[dict[str, str]]) -> None:
    for number in (0, 1, 2):
        leaking[number]["is_gt"] = "false"
    notes = load(config_of(tmp_path, leaking, on_leak="error")).cases.notes
    assert not [note for note in notes if note.startswith("leak: ")]
    with pytest.raises(DataError, match=r"3 leak\(s\)"):
        load(config_of(tmp_path, leaking, on_leak="error", pseudo_labels=True))


def test_a_label_in_its_text_is_a_leak_where_the_text_is_read(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    for row in rows:
        row["text"] = "a CT" if row["label"] == "ct" else "a picture"
    config = config_of(tmp_path, rows, on_leak="error")
    assert not [note for note in load(config).cases.notes if note.startswith(("label in text", "repeated texts"))]
    with pytest.raises(DataError, match="'ct' is in 100% of the texts of 'ct'"):
        load(config, reads_text=True)
    notes = load(config_of(tmp_path, rows), reads_text=True).cases.notes
    assert [note for note in notes if note.startswith("label in text: 'ct' is in 100%")]
    quiet = {"label_in_text": False}
    notes = load(config_of(tmp_path, rows, on_leak="error", guards=quiet), reads_text=True).cases.notes
    assert not [note for note in notes if note.startswith("label in text")]


def test_labels_in_doubt(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    rows[3]["image"] = "2.png"
    rows[4]["label"] = "CT"
    notes = load(config_of(tmp_path, rows)).cases.notes
    assert (
        "labelled two ways: the same file is labelled 'ct' (case2), 'mri' (case3); correct one, or leave both out."
        in (notes)
    )
    assert [note for note in notes if note.startswith("spelling: the labels 'CT' (1), 'ct' (7)")]
    notes = load(config_of(tmp_path, rows, guards={"labels": False})).cases.notes
    assert not [note for note in notes if note.startswith(("labelled two ways", "spelling"))]


def test_a_store_that_cannot_be_written_is_checked_all_the_same(
    tmp_path: Path, leaking: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, leaking)
    store = prepare(config).store

    def refused(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(module, "locked", refused)
    monkeypatch.setattr(module, "write_json", refused)
    found = check(store, store.table, config, uses_text=False, reporter=Told())
    assert [leak.kind for leak in found.leaks] == ["group", "file", "near_duplicate"]
    assert not list(store.path.glob("near_duplicates-*"))


def test_nothing_found_is_nothing_said(tmp_path: Path) -> None:
    assert Findings().short() == []
    assert Findings(notes=["2 images."]).short() == ["not looked at: 2 images."]


def test_captions_out_of_labels_name_them_by_intention(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    for given, named in (({"captions": {"template": "a scan: {label}"}}, []), ({}, ["ct", "mri"])):
        if not given:
            rows = [{**row, "text": f"a scan: {row['label']}"} for row in rows]
        config = config_of(tmp_path, rows)
        source = config.sources[0].model_dump() | given
        config = data_config(tmp_path, source)
        store = prepare(config).store
        assert store.table.texts[0] == "a scan: ct"
        found = check(store, store.table, config, uses_text=False, images=False, everything=True, reporter=Told())
        assert [leak.label for leak in found.label_in_text] == named
        assert bool(found.warnings["repeated texts"]) == bool(named)
