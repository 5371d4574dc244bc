"""Folds: every case tests once, groups stay whole, classes stay even; what is left out is tested and never trained."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold

from consilium.core.config import build
from consilium.core.errors import ConfigError, DataError
from consilium.core.reporter import Silent
from consilium.data.cases.filters import Filtered
from consilium.data.cases.folds import divide, resplit, seen_in_training, units_of
from consilium.data.config import DataConfig, SplitConfig
from consilium.data.guards.leaks import find_leaks
from consilium.data.store.prepare import prepare
from consilium.data.store.store import CaseTable
from tests.data.samples import data_config, image_bytes, write_images, write_jsonl
from tests.labelled import load_labelled, take_labelled

LABELS = ("ct", "ct.head", "mri", "xray")


# -- Dividing units -----------------------------------------------------------------------------------------------


def imbalance(counts_UC: np.ndarray, part_U: np.ndarray, parts: int) -> float:
    """0 where every part has the same share of every class; what ``divide`` makes small."""
    filled_PC = np.zeros((parts, counts_UC.shape[1]))
    np.add.at(filled_PC, part_U, counts_UC)
    return float(((filled_PC / counts_UC.sum(axis=0)) ** 2).sum(axis=0).sum() * parts - counts_UC.shape[1])


def sklearn_parts(counts_UC: np.ndarray, parts: int) -> np.ndarray:
    """The parts of scikit-learn's StratifiedGroupKFold."""
    classes = np.concatenate([np.repeat(np.arange(len(counts_C)), counts_C) for counts_C in counts_UC])
    groups = np.repeat(np.arange(len(counts_UC)), counts_UC.sum(axis=1))
    found = np.zeros(len(counts_UC), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer cases than folds
        for part, (_, tested) in enumerate(StratifiedGroupKFold(parts).split(classes, classes, groups)):
            found[groups[tested]] = part
    return found


def random_counts(seed: int, *, mixed: bool) -> tuple[np.ndarray, int]:
    """Cases of each class in each unit: one case a unit, or up to 20 in uneven classes; and a number of parts."""
    rng = np.random.default_rng(seed)
    parts = int(rng.integers(2, 7))
    units, classes = int(rng.integers(2 * parts, 80)), int(rng.integers(1, 6))
    shares = rng.dirichlet(np.ones(classes), size=units)
    sizes = rng.integers(1, 20, units) if mixed else np.ones(units, dtype=np.int64)
    counts_UC = np.array([rng.multinomial(size, share) for size, share in zip(sizes, shares, strict=True)])
    counts_UC = counts_UC[:, counts_UC.sum(axis=0) >= parts]
    return counts_UC[counts_UC.sum(axis=1) > 0], parts


@pytest.mark.parametrize("mixed", [False, True])
def test_as_even_as_scikit_learn(mixed: bool) -> None:
    ours, theirs = [], []
    for seed in range(40):
        counts_UC, parts = random_counts(seed, mixed=mixed)
        if len(counts_UC) < parts or not counts_UC.size or (counts_UC.sum(axis=0) < parts).any():
            continue
        part_U = divide(
            counts_UC, shares=[1 / parts] * parts, place_U=np.random.default_rng(seed).random(len(counts_UC)).tolist()
        )
        ours.append(imbalance(counts_UC, part_U, parts))
        theirs.append(imbalance(counts_UC, sklearn_parts(counts_UC, parts), parts))
    assert len(ours) > 25
    assert np.mean(ours) <= np.mean(theirs) + 1e-9
    assert np.max(np.array(ours) - np.array(theirs)) < 0.1


CASES = st.lists(st.integers(0, 3), min_size=1, max_size=60)


@given(classes=CASES, parts=st.integers(2, 6), seed=st.integers(0, 9))
def test_units_of_one_case_are_dealt_out_exactly(classes: list[int], parts: int, seed: int) -> None:
    counts_UC = np.eye(4, dtype=np.int64)[classes]
    place_U = np.random.default_rng(seed).random(len(classes)).tolist()
    part_U = divide(counts_UC, shares=[1 / parts] * parts, place_U=place_U)
    for label in set(classes):
        counts = np.bincount(part_U[np.array(classes) == label], minlength=parts)
        assert counts.max() - counts.min() <= 1
    assert len(set(part_U.tolist())) == min(parts, len(classes))


@given(units=st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any), min_size=1, max_size=25),
       parts=st.integers(2, 5), order=st.randoms())  # fmt: skip
def test_the_order_of_units_and_classes_changes_nothing(units: list[list[int]], parts: int, order: Any) -> None:
    counts_UC = np.array(units)
    place_U = np.random.default_rng(0).random(len(units))
    part_U = divide(counts_UC, shares=[1 / parts] * parts, place_U=place_U.tolist())
    other = np.array(order.sample(range(len(units)), len(units)))
    again = divide(counts_UC[other], shares=[1 / parts] * parts, place_U=place_U[other].tolist())
    assert again.tolist() == part_U[other].tolist()


@given(classes=st.lists(st.integers(0, 2), min_size=1, max_size=200), val=st.floats(0.01, 0.45))
def test_a_share_is_met_in_every_class_and_the_rare_train(classes: list[int], val: float) -> None:
    part_U = divide(np.eye(3, dtype=np.int64)[classes], shares=[1 - val, val], place_U=list(range(len(classes))))
    for label in set(classes):
        own = part_U[np.array(classes) == label]
        assert abs(int(own.sum()) - val * len(own)) <= 1
        assert (own == 0).any()


# -- Folds of a store ---------------------------------------------------------------------------------------------


def store_of(root: Path, rows: Sequence[dict[str, Any]], **sections: Any) -> tuple[CaseTable, DataConfig]:
    """A store of rows, each with the ``source`` it names; an image of its own where the row gives none."""
    sources = []
    for name in sorted({row["source"] for row in rows}):
        own = [
            {"image": f"{row['id']}.png", **{k: v for k, v in row.items() if k != "source"}}
            for row in rows
            if row["source"] == name
        ]
        write_jsonl(root / f"{name}.jsonl", own)
        sources.append({"kind": "jsonl", "name": name, "path": str(root / f"{name}.jsonl")})
    for number, row in enumerate(rows):
        path = root / row.get("image", f"{row['id']}.png")
        if not path.exists():
            path.write_bytes(image_bytes(number))
    config = data_config(root, *sources, **sections)
    return prepare(config).store.table, config


def patients(count: int, *, source: str = "a", **cells: Any) -> list[dict[str, Any]]:
    """Cases 2 by 2 of a patient, labels in turn, in explicit splits."""
    return [
        {"id": f"{source}{n}", "source": source, "label": LABELS[n // 2 % 4], "group_id": f"{source}-p{n // 2}",
         "split": ("train", "train", "val", "test", "train")[n // 2 % 5], **cells}
        for n in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> CaseTable:
    """80 cases of 40 patients; one file twice in two patients, unlabelled rows, pseudo-labels with and without."""
    root = tmp_path_factory.mktemp("folds")
    rows = patients(80)
    write_images(root, ["shared.png"], first_seed=1000)
    rows[0]["image"] = rows[10]["image"] = "shared.png"
    rows += [{"id": f"u{n}", "source": "a", "split": "unlabelled", "group_id": f"a-p{n}"} for n in range(4)]
    rows += [{"id": f"s{n}", "source": "a", "label": "ct", "is_gt": False, "group_id": f"a-p{n}"} for n in range(4)]
    rows += [{"id": f"alone{n}", "source": "a", "label": "mri", "is_gt": False} for n in range(3)]
    return store_of(root, rows)[0]


def split_of(table: CaseTable, **keys: Any) -> dict[str, str]:
    found = resplit(table, config=build(SplitConfig, keys, origin="test")).table
    return dict(zip(found.ids, found.splits, strict=True))


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_every_true_case_tests_once_and_no_group_is_divided(table: CaseTable, folds: int) -> None:
    units = dict(zip(table.ids, units_of(table), strict=True))
    tested: Counter[str] = Counter()
    for fold in range(folds):
        split = split_of(table, folds=folds, fold=fold, val=0.2)
        for unit in set(units.values()):
            inside = {split[id] for id in units if units[id] == unit} - {"unlabelled"}
            assert len(inside) <= 1, unit
        assert set(split.values()) == {"train", "val", "test", "unlabelled"}
        assert {split[f"u{n}"] for n in range(4)} == {"unlabelled"}
        assert {split[f"alone{n}"] for n in range(3)} == {"train"}
        assert {split[f"s{n}"] == split[f"a{2 * n}"] for n in range(4)} == {True}
        tested.update(id for id in split if split[id] == "test" and not id.startswith("s"))
        labels = Counter(
            table.labels[row][0] for row, id in enumerate(table.ids) if split[id] == "test" and table.is_gt[row]
        )
        assert max(labels.values()) - min(labels.values()) <= 4, "two cases a group, and one pair of groups"
        again = resplit(table, config=SplitConfig(folds=folds, fold=fold, val=0.2)).table
        assert find_leaks(again) == []
    assert tested == Counter({f"a{n}": 1 for n in range(80)})


def test_cases_of_one_file_are_of_one_unit(table: CaseTable) -> None:
    units = dict(zip(table.ids, units_of(table), strict=True))
    assert units["a0"] == units["a1"] == units["a10"] == units["a11"] == "a-p0"
    assert units["a2"] == "a-p1"


def test_pseudo_labels_train_or_are_left_out(table: CaseTable, tmp_path: Path) -> None:
    for fold in range(3):
        split = SplitConfig(folds=3, fold=fold)
        config = data_config(tmp_path, {"kind": "jsonl", "name": "a", "path": "a"}, split=split, pseudo_labels=True)
        cases = take_labelled(table, config=config).cases
        where = {name: {cases.table.ids[row] for row in rows} for name, rows in cases.rows.items()}
        assert not [id for name in ("val", "test") for id in where[name] if id[:2] in ("s0", "s1", "s2", "s3", "al")]
        assert {"alone0", "alone1", "alone2"} <= where["train"]


def test_another_seed_and_the_order_of_rows(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    rows = patients(40)
    first, _ = store_of(tmp_path / "a", rows)
    second, _ = store_of(tmp_path / "b", rows[::-1])
    assert split_of(first, folds=4, fold=1) == split_of(second, folds=4, fold=1)
    assert split_of(first, folds=4, fold=1, seed=0) != split_of(first, folds=4, fold=1, seed=1)


def test_without_folds_nothing_changes(table: CaseTable) -> None:
    assert resplit(table, config=SplitConfig()).table is table


def test_too_few_groups(tmp_path: Path) -> None:
    table, _ = store_of(tmp_path, patients(8))
    with pytest.raises(DataError, match="folds is 5, but there are only 4 groups"):
        split_of(table, folds=5, fold=0)


def test_no_val_where_none_is_wanted(table: CaseTable) -> None:
    assert set(split_of(table, folds=3, fold=0, val=0).values()) == {"train", "test", "unlabelled"}


def test_a_class_of_one_group_is_named_where_training_never_sees_it(tmp_path: Path) -> None:
    rows = [*patients(40), {"id": "rare", "source": "a", "label": "pet"}]
    table, _ = store_of(tmp_path, rows)
    without = 0
    for fold in range(4):
        again = resplit(table, config=SplitConfig(folds=4, fold=fold))
        found = seen_in_training(again, nested=False)
        told = [note for note in found.notes if "training never sees their labels (pet)" in note]
        assert bool(told) == ("rare" in [again.table.ids[row] for row in again.table.rows("test")])
        assert ("rare" in found.table.ids) == (not told)
        without += bool(told)
    assert without == 1


def test_a_label_above_those_of_training_is_known_in_a_tree_alone(tmp_path: Path) -> None:
    labels = {"train": ("ct.head", "mri"), "val": ("ct", "mri"), "test": ("ct", "ct.chest", "xray")}
    rows = [
        {"id": f"{split}-{label}", "source": split, "label": label} for split, own in labels.items() for label in own
    ]
    table, _ = store_of(tmp_path, rows)
    found = Filtered(table.with_splits(table.sources))
    assert {"val-ct", "test-ct"} & set(seen_in_training(found, nested=False).table.ids) == set()
    left = seen_in_training(found, nested=True)
    assert set(left.table.ids) == {"train-ct.head", "train-mri", "val-ct", "val-mri", "test-ct"}
    assert any("training never sees their labels (ct.chest, xray)" in note for note in left.notes)


@pytest.mark.parametrize("nested", [False, True])
def test_a_fold_tests_what_its_tree_knows(tmp_path: Path, nested: bool) -> None:
    rows = [
        {"id": f"{n}", "source": "a", "label": label} for n, label in enumerate(["ct.head"] * 8 + ["mri"] * 8 + ["ct"])
    ]
    table, config = store_of(tmp_path, rows)
    tested = set()
    for fold in range(4):
        own = config.model_copy(update={"split": SplitConfig(folds=4, fold=fold)})
        cases = take_labelled(table, config=own, nested=nested).cases
        tested |= {cases.table.ids[row] for row in cases.rows["test"]}
    assert ("16" in tested) == nested


# -- Leaving out --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> CaseTable:
    """Sources a, b and c of 16 cases each; scanner s0 or s1; patient a-p0 is in b too, one file of a in c too."""
    root = tmp_path_factory.mktemp("hospitals")
    write_images(root, ["shared.png"], first_seed=1000)
    rows = [row for source in "abc" for row in patients(16, source=source)]
    for n, row in enumerate(rows):
        row["scanner"] = f"s{n % 2}"
    rows[16]["group_id"] = "a-p0"
    rows[7]["image"] = rows[35]["image"] = "shared.png"
    return store_of(root, rows)[0]


def test_a_source_left_out(hospitals: CaseTable) -> None:
    found = resplit(hospitals, config=build(SplitConfig, {"leave_out": {"source": ["b"]}}, origin="test"))
    split = dict(zip(found.table.ids, found.table.splits, strict=True))
    assert {id for id in split if split[id] == "test"} == {f"b{n}" for n in range(16)}
    assert not {"a0", "a1"} & set(split), "the patient of b16 must not train"
    (note,) = found.notes
    assert "2 cases of the rest left out" in note
    assert "(cases a0, a1)" in note
    before = dict(zip(hospitals.ids, hospitals.splits, strict=True))
    for id, now in split.items():
        if id[0] != "b":
            assert now == ("val" if before[id] == "val" else "train"), id
    assert find_leaks(resplit(hospitals, config=SplitConfig(leave_out={"source": ["b"]})).table) == []


def test_a_file_of_the_rest_that_is_tested_is_left_out(hospitals: CaseTable) -> None:
    found = resplit(hospitals, config=SplitConfig(leave_out={"source": ["c"]}))
    assert not {"a6", "a7"} & set(found.table.ids)


@pytest.mark.parametrize(
    ("leave_out", "tested"),
    [
        ({"label": ["mri"]}, ["a4", "a5", "a12", "a13"]),
        ({"label": ["ct"]}, ["a0", "a1", "a2", "a3", "a8", "a9", "a10", "a11"]),
        ({"label": ["ct.head", "mri"]}, ["a2", "a3", "a4", "a5", "a10", "a11", "a12", "a13"]),
        ({"label": ["mri"], "scanner": ["s1"]}, ["a5", "a13"]),
    ],
    ids=str,
)
def test_every_column_must_match_and_a_label_names_its_branch(
    hospitals: CaseTable, leave_out: dict[str, list[str]], tested: list[str]
) -> None:
    split = split_of(hospitals, leave_out={"source": ["a"], **leave_out})
    assert {id for id in split if split[id] == "test"} == set(tested)


def test_several_cells(hospitals: CaseTable) -> None:
    split = split_of(hospitals, leave_out=[{"source": ["a"], "label": ["mri", "xray"]}, {"source": ["c"]}])
    tested = {id for id in split if split[id] == "test"}
    assert tested == {f"a{n}" for n in (4, 5, 6, 7, 12, 13, 14, 15)} | {f"c{n}" for n in range(16)}


def test_val_is_taken_from_the_rest_where_it_has_none(tmp_path: Path) -> None:
    rows = [
        {**row, "split": "val" if row["source"] == "b" else "train"} for s in "ab" for row in patients(80, source=s)
    ]
    table, _ = store_of(tmp_path, rows, split={"val": 0})
    split = split_of(table, leave_out={"source": ["b"]}, val=0.25)
    val = [id for id in split if split[id] == "val"]
    assert all(id.startswith("a") for id in val)
    assert 16 <= len(val) <= 24


@pytest.mark.parametrize(
    ("leave_out", "message"),
    [
        ({"sorce": ["a"]}, "names the column 'sorce'; did you mean `source`"),
        ({"hospital": ["a"]}, "names the column 'hospital'; there are: label, scanner, source"),
        ({"scanner": ["s2"]}, "names the scanner 's2', which no case has; there are: s0, s1"),
        ({"label": ["pet"]}, r"names the label 'pet', which no case has; there are: ct, ct.head, mri, xray"),
        ({"source": ["a", "b", "c"]}, "matches every case"),
        ([{"source": ["a"]}, {"scanner": ["s0", "s1"]}], "matches every case"),
    ],
    ids=str,
)
def test_what_cannot_be_left_out(hospitals: CaseTable, leave_out: Any, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        split_of(hospitals, leave_out=leave_out)


def test_a_combination_that_no_case_has(tmp_path: Path) -> None:
    rows = [*patients(8, source="a"), {"id": "x", "source": "b", "label": "pet"}]
    with pytest.raises(DataError, match="no case with a true label has the source a and the label pet"):
        split_of(store_of(tmp_path, rows)[0], leave_out={"source": ["a"], "label": ["pet"]})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"folds": 3}, "folds: K and fold: k belong together"),
        ({"folds": 3, "fold": 3}, "fold is 3; of 3 folds the last is 2"),
        ({"folds": 3, "fold": 0, "leave_out": {"source": ["a"]}}, "exclude each other"),
        ({"leave_out": {}}, "1 or more items"),
        ({"leave_out": []}, "1 or more items"),
        ({"leave_out": {"source": []}}, "1 or more items"),
        ({"leave_out": {"source": "a"}}, "expected a list"),
        ({"leave_out": {"year": [2019]}}, "expected text"),
        ({"leave_out": "source"}, "expected"),
    ],
    ids=str,
)
def test_configs_that_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(SplitConfig, keys, origin="test")


def test_a_label_of_the_left_out_that_training_never_sees_is_not_tested(tmp_path: Path) -> None:
    rows = [
        *patients(16, source="a"),
        *patients(4, source="b", label="pet"),
        {"id": "x", "source": "b", "label": "mri"},
    ]
    table, config = store_of(tmp_path, rows, split={"leave_out": {"source": ["b"]}})
    cases = take_labelled(table, config=config).cases
    assert [cases.table.ids[row] for row in cases.rows["test"]] == ["x"]
    assert [note for note in cases.notes if "never sees" in note] == [
        "4 cases of test left out: training never sees their labels (pet)."
    ]
    assert Filtered(table).notes == []


def test_the_statistics_of_pixels_are_those_of_the_folds_own_training(tmp_path: Path) -> None:
    table, config = store_of(tmp_path, patients(16), split={"folds": 2, "fold": 0}, image={"statistics": "data"})
    loaded = load_labelled(config, splits=("train",), training=True, reporter=Silent())
    trained = [id for id, split in split_of(table, folds=2, fold=0).items() if split == "train"]
    pixels = np.concatenate([np.asarray(Image.open(tmp_path / f"{id}.png")).reshape(-1, 3) for id in trained]) / 255
    assert loaded.image.mean == pytest.approx(pixels.mean(axis=0), abs=1e-9)
