"""What is inside a store, in figures and as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from consilium.data.config import DataConfig, FilterConfig, SplitConfig
from consilium.data.look.inspect import Inspection, inspect
from consilium.data.store.prepare import prepare
from consilium.data.store.store import Store
from tests.data.samples import data_config, image_bytes, write_images, write_jsonl
from tests.labelled import label_needs


class Sample(NamedTuple):
    store: Store
    config: DataConfig


def sample(tmp_path: Path, rows: list[dict[str, Any]], **sections: Any) -> Sample:
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    config = data_config(tmp_path, {"kind": "jsonl", "name": "s", "path": str(path)}, **sections)
    return Sample(prepare(config).store, config)


def inspected(tmp_path: Path, data: Sample) -> Inspection:
    return inspect(data.store, config=data.config, needs=label_needs(), out=tmp_path / "out")


def test_findings(tmp_path: Path) -> None:
    for number, (width, height) in enumerate([(10, 40), (20, 30), (30, 20)]):
        (tmp_path / f"{number}.png").write_bytes(image_bytes(number, size=(height, width)))
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / "mask.png").write_bytes(image_bytes(9))
    data = sample(
        tmp_path,
        [
            {"id": "a", "image": "0.png", "label": "ct", "split": "train", "mask": "mask.png"},
            {"id": "b", "image": "1.png", "label": "ct", "split": "train"},
            {"id": "c", "image": "2.png", "label": ["ct", "mri"], "split": "val"},
            {"id": "d", "image": "copy.png", "label": "mri", "split": "test"},
            {"id": "e", "text": "no image", "split": "unlabelled"},
            {"id": "f", "image": "1.png", "text": "the same file twice is no duplicate", "split": "train"},
        ],
    )
    (tmp_path / "2.png").unlink()
    (tmp_path / "mask.png").unlink()
    found = inspected(tmp_path, data)
    assert (found.cases, found.images, found.bad_rows) == (6, 5, 0)
    assert {(row["split"], row["label"]): row["cases"] for row in found.counts} == {
        ("train", "ct"): 2, ("train", ""): 1, ("val", "ct"): 1, ("val", "mri"): 1, ("test", "mri"): 1,
        ("unlabelled", ""): 1,
    }  # fmt: skip
    assert [(row["label"], row["train"], row["share of train"]) for row in found.balance] == [
        ("(none)", 1, pytest.approx(1 / 3)), ("ct", 2, pytest.approx(2 / 3)), ("mri", 0, 0.0),
    ]  # fmt: skip
    (sizes,) = found.sizes
    assert (sizes["images"], sizes["smallest"], sizes["median"], sizes["largest"]) == (
        5,
        "10 x 20",
        "20 x 30",
        "30 x 40",
    )
    assert found.missing == [str(tmp_path / "2.png"), str(tmp_path / "mask.png")]
    (duplicate,) = found.duplicates
    assert duplicate.files == (str(tmp_path / "0.png"), str(tmp_path / "copy.png"))
    assert duplicate.splits == ("train", "test")
    assert [leak.kind for leak in found.findings.leaks] == ["file"]
    assert any("single training case" in warning or "never shows" in warning for warning in found.warnings)
    text = "\n".join(found.lines())
    for expected in ("6 cases, 5 images", "missing file: ", "duplicate: ", "leak: the same file", "warning: "):
        assert expected in text
    assert json.loads((tmp_path / "out/inspection.json").read_text())["findings"]["leaks"][0]["splits"] == [
        "train",
        "test",
    ]


def test_dots_in_labels_are_shown_as_a_tree(tmp_path: Path) -> None:
    labels: list[tuple[str | list[str], str]] = [
        ("exp.gel.nor", "train"), ("exp.gel.wes", "train"), ("exp.gel", "val"), ("exp.pla", "train"), ("gra", "test"),
        (["exp.gel.nor", "exp.gel.wes", "exp2"], "train"), ([], "unlabelled"),
    ]  # fmt: skip
    write_images(tmp_path, [f"{n}.png" for n in range(len(labels))])
    rows = [{"image": f"{n}.png", "label": label, "split": split} for n, (label, split) in enumerate(labels)]
    data = sample(tmp_path, rows)
    found = inspect(data.store, config=data.config, needs=label_needs(multi_label=True), out=tmp_path / "out")
    columns = ("label", "train", "val", "test", "unlabelled", "stop here")
    assert [tuple(row[name] for name in columns) for row in found.nodes] == [
        ("root", 4, 1, 1, 1, 1),
        ("exp", 4, 1, 0, 0, 0),
        ("exp.gel", 3, 1, 0, 0, 1),
        ("exp.gel.nor", 2, 0, 0, 0, None),
        ("exp.gel.wes", 2, 0, 0, 0, None),
        ("exp.pla", 1, 0, 0, 0, None),
        ("exp2", 1, 0, 0, 0, None),
        ("gra", 0, 0, 1, 0, None),
    ]
    assert [row["share of train"] for row in found.nodes[:3]] == [1.0, 1.0, 0.75]
    lines = "\n".join(found.lines()).splitlines()
    start = lines.index("balance") + 3
    names = ["  root", "    exp", "      gel", "        nor", "        wes", "      pla", "    exp2", "    gra"]
    assert [line[: len(name) + 1] for line, name in zip(lines[start:], names, strict=False)] == [f"{n} " for n in names]


def test_labels_without_dots_are_no_tree(tmp_path: Path) -> None:
    write_images(tmp_path, ["0.png", "1.png"])
    rows = [{"image": f"{n}.png", "label": label, "split": "train"} for n, label in enumerate(("exp", "gra"))]
    found = inspected(tmp_path, sample(tmp_path, rows))
    assert found.nodes == []
    assert any("share of train" in line for line in found.lines())


def test_contact_sheet_shows_every_label_and_survives_unreadable_images(tmp_path: Path) -> None:
    colours = {"blue": (0, 0, 255), "red": (255, 0, 0)}
    for label, colour in colours.items():
        for number in range(3):
            Image.new("RGB", (30 + number, 30), colour).save(tmp_path / f"{label}{number}.png")
    rows = [{"image": f"{label}{number}.png", "label": label} for label in colours for number in range(3)]
    data = sample(tmp_path, rows)
    (tmp_path / "red1.png").write_text("gone bad")
    found = inspected(tmp_path, data)
    assert found.contact_sheet is not None
    sheet = np.asarray(Image.open(found.contact_sheet).convert("RGB")).astype(int)
    half = len(sheet) // 2
    is_blue = (sheet == (0, 0, 255)).all(-1)
    is_red = (sheet == (255, 0, 0)).all(-1)
    assert is_blue[:half].sum() > 2.5 * 100 * 100
    assert is_red[half:].sum() > 1.5 * 100 * 100
    assert not is_blue[half:].any()
    assert not is_red[:half].any()


def test_store_without_images_or_train(tmp_path: Path) -> None:
    found = inspected(tmp_path, sample(tmp_path, [{"text": "a", "split": "test"}]))
    assert found.contact_sheet is None
    assert not (tmp_path / "out/contact_sheet.png").exists()
    assert any("no case is in the split 'train'" in warning for warning in found.warnings)
    assert found.sizes == []


@pytest.mark.parametrize(
    ("row", "why"),
    [({"text": "a"}, "2 cases left out: no image."), ({"image": "a.png"}, "2 cases left out: no label.")],
)
def test_nothing_left_to_train_on_is_no_fault_of_the_splits(tmp_path: Path, row: dict[str, str], why: str) -> None:
    write_images(tmp_path, ["a.png"])
    rows = [{**row, "id": name, "split": "train"} for name in "ab"]
    (warning,) = inspected(tmp_path, sample(tmp_path, rows)).warnings
    assert warning.startswith(f"nothing is left to train on: {why} A training needs cases with an image and a label")


def test_embedded_images_are_never_missing(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    data = sample(tmp_path, [{"image": "a.png", "label": "x"}], store={"images": "embed"})
    (tmp_path / "a.png").unlink()
    found = inspected(tmp_path, data)
    assert found.missing == []
    assert found.contact_sheet is not None


def test_long_findings_are_cut_on_the_screen_only(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{n}.png" for n in range(15)])
    data = sample(tmp_path, [{"image": f"{n}.png"} for n in range(15)])
    for n in range(15):
        (tmp_path / f"{n}.png").unlink()
    found = inspected(tmp_path, data)
    assert len(found.missing) == 15
    lines = [line for line in found.lines() if line.startswith("missing file")]
    assert len(lines) == 11
    assert lines[-1] == "missing file: 5 more, see inspection.json"


def plain(folder: Path, number: int, **row: Any) -> dict[str, Any]:
    """A row with a smooth image of its own in a patient of its own."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return {"id": f"c{number}", "image": f"{number}.png", "label": "ct", "split": "train", **row}


def test_near_duplicates_are_drawn_side_by_side(tmp_path: Path) -> None:
    rows = [plain(tmp_path, number) for number in range(4)]
    for number, original in ((4, 0), (5, 1)):
        rows.append(plain(tmp_path, number, split="test" if number == 5 else "train"))
        again = Image.open(tmp_path / f"{original}.png").resize((96, 96), Image.Resampling.BICUBIC)
        again.save(tmp_path / f"{number}.png")
    found = inspected(tmp_path, sample(tmp_path, rows))
    assert [(leak.kind, leak.ids) for leak in found.findings.leaks] == [("near_duplicate", ("c1", "c5"))]
    assert found.near_duplicates == str(tmp_path / "out/near_duplicates.png")
    sheet = np.asarray(Image.open(found.near_duplicates).convert("RGB")).astype(int)
    tile = np.asarray(Image.open(tmp_path / "1.png").resize((192, 192), Image.Resampling.BICUBIC)).astype(int)
    for left in (8, 8 + 192 + 8):  # the pair across the split comes first
        assert np.abs(sheet[36 : 36 + 192, left : left + 192] - tile).mean() < 4
    is_red = (sheet == (0xB0, 0x00, 0x20)).all(-1)
    half = sheet.shape[1] // 2
    assert is_red[:, :half].any()
    assert not is_red[:, half:].any()
    tree = json.loads((tmp_path / "out/inspection.json").read_text(encoding="utf-8"))["findings"]
    assert [pair["ids"] for pair in tree["near_duplicates"]] == [["c1", "c5"], ["c0", "c4"]]
    assert "rows" not in tree["leaks"][0]
    assert f"near-duplicates (2): {found.near_duplicates}" in found.lines()


def test_findings_are_those_of_what_a_training_uses(tmp_path: Path) -> None:
    rows = [plain(tmp_path, number, group_id="p" if number < 3 else f"p{number}") for number in range(6)]
    rows[1].update(split="test", label="mri")
    rows[2].update(split="val", is_gt=False)
    data = sample(tmp_path, rows)
    found = inspected(tmp_path, data)
    assert (found.cases, found.used) == (6, 5)
    assert found.left_out == ["1 case left out: a pseudo-label."]
    assert [leak.splits for leak in found.findings.leaks] == [("train", "test")]
    assert "1 case left out: a pseudo-label." in found.lines()
    only_ct = data.config.model_copy(update={"filters": FilterConfig(labels=["ct"])})
    found = inspected(tmp_path, Sample(data.store, only_ct))
    assert (found.cases, found.used, found.findings.leaks) == (6, 4, [])
    assert "found in the 4 cases that a training uses:" in found.lines()


def test_splits_are_those_of_the_config(tmp_path: Path) -> None:
    data = sample(tmp_path, [plain(tmp_path, number) for number in range(6)])
    assert {row["split"] for row in inspected(tmp_path, data).counts} == {"train", "val"}
    folds = data.config.model_copy(update={"split": SplitConfig(folds=3, fold=0)})
    found = inspected(tmp_path, Sample(data.store, folds))
    assert sum(row["cases"] for row in found.counts if row["split"] == "test") == 2


def test_labels_that_a_training_of_the_split_never_sees_are_left_out(tmp_path: Path) -> None:
    rows = [plain(tmp_path, n, label=("ct", "mri")[n % 2], site="a") for n in range(8)]
    rows += [plain(tmp_path, 8, label="ct", site="b"), plain(tmp_path, 9, label="pet", site="b")]
    data = sample(tmp_path, rows, split={"leave_out": {"site": ["b"]}})
    found = inspected(tmp_path, data)
    assert found.used == 9
    assert found.left_out == ["1 case of test left out: training never sees their labels (pet)."]
    assert not [text for text in found.warnings if "never shows" in text]


def test_numbers_as_labels_are_listed_by_value(tmp_path: Path) -> None:
    data = sample(tmp_path, [plain(tmp_path, n, label=str(n), split="train") for n in (11, 2, 10, 1)])
    found = inspected(tmp_path, data)
    for rows in (found.counts, found.balance):
        assert [row["label"] for row in rows] == ["1", "2", "10", "11"]


def test_clean_data_says_so(tmp_path: Path) -> None:
    splits = ["train"] * 4 + ["val"] * 4 + ["test"] * 4
    rows = [plain(tmp_path, n, split=split, label=("ct", "mri")[n % 2]) for n, split in enumerate(splits)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/near_duplicates.png").write_text("of an earlier look")
    found = inspected(tmp_path, sample(tmp_path, rows))
    assert "found in the 12 cases that a training uses: nothing" in found.lines()
    assert found.near_duplicates is None
    assert not (tmp_path / "out/near_duplicates.png").exists()
