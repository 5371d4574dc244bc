"""Shortcuts: planted ones are told, and chance is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from consilium.data.guards import shortcuts
from consilium.data.guards.digests import STATISTICS, Digests
from consilium.data.guards.shortcuts import metadata_warnings, shortcut_warnings
from consilium.data.store.store import CaseTable, Store
from tests.data.guards.pictures import store_of

CASES = 240
Plant = Callable[[np.ndarray, np.ndarray], None]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> CaseTable:
    """Training cases of their own groups, without labels and images, of two sources in a column."""
    rows = [{"text": f"case {n}", "split": "train", "group_id": f"p{n}", "dataset": "ab"[n % 2]} for n in range(CASES)]
    store: Store = store_of(tmp_path_factory.mktemp("shortcuts"), {}, rows)
    return store.table


def labelled(table: CaseTable, classes: np.ndarray) -> CaseTable:
    part = table.select(np.arange(len(classes)))
    part.__dict__["labels"] = [(f"label{number}",) for number in classes.tolist()]
    return part


def digests(statistics_NF: np.ndarray) -> Digests:
    """As if each case had one image of these statistics."""
    count = len(statistics_NF)
    readable = np.ones(count, dtype=bool)
    return Digests(np.arange(count), np.zeros((count, 4), np.uint64), statistics_NF, readable, STATISTICS, [], 10**8)


def statistics(rng: np.random.Generator, count: int = CASES) -> np.ndarray:
    """Of images that tell nothing."""
    drawn_NF = rng.random((count, len(STATISTICS))).astype(np.float32)
    drawn_NF[:, :2] = rng.choice([256, 512, 640], (count, 2))
    return drawn_NF


def set_column(name: str, value: Callable[[np.ndarray], np.ndarray]) -> Plant:
    def plant(statistics_NF: np.ndarray, classes: np.ndarray) -> None:
        statistics_NF[:, STATISTICS.index(name)] = value(classes)

    return plant


PLANTED = {
    "image sizes": set_column("width", lambda classes: np.where(classes == 1, 512, 640)),
    "borders": set_column("left margin", lambda classes: np.where(classes == 1, 0.25, 0.0)),
    "colours and brightness": set_column("blue mean", lambda classes: 0.3 + 0.2 * classes),
}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(0, CASES), classes=st.integers(2, 6))
def test_chance_says_nothing(table: CaseTable, seed: int, count: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    part = labelled(table, labels)
    assert shortcut_warnings(part, digests(statistics(rng))) == []


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("classes", [2, 3])
def test_a_planted_shortcut_is_told(table: CaseTable, name: str, classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, CASES)
    planted = statistics(rng)
    PLANTED[name](planted, labels)
    warnings = shortcut_warnings(labelled(table, labels), digests(planted))
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{name} alone reach ")
    assert f"over {classes} classes (chance {1 / classes:.2f})" in warnings[0]
    shuffled = rng.permutation(labels)
    assert shortcut_warnings(labelled(table, shuffled), digests(planted)) == []


def test_sizes_need_no_order(table: CaseTable) -> None:
    """The classes' sizes lie between each other, which no line along width or height parts."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, CASES)
    planted = statistics(rng)
    planted[:, :2] = np.where(labels == 1, rng.choice([200, 400], CASES), rng.choice([300, 500], CASES))[:, None]
    (warning,) = shortcut_warnings(labelled(table, labels), digests(planted))
    assert warning.startswith("image sizes alone reach 1.00 balanced accuracy over 2 classes (chance 0.50): ")


def test_cases_of_one_patient_are_not_counted_twice(tmp_path: Path) -> None:
    """24 patients of ten images each, in two classes: their own colour tells the patient, not the label."""
    rows = [{"text": f"case {n}", "split": "train", "group_id": f"p{n // 10}"} for n in range(CASES)]
    store = store_of(tmp_path, {}, rows)
    said = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = np.repeat(rng.permutation(24) % 2, 10)
        own = statistics(rng, 24).repeat(10, axis=0)
        said += bool(shortcut_warnings(labelled(store.table, labels), digests(own)))
    assert said == 0


def test_a_source_that_tells_the_label(table: CaseTable) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(CASES) % 2
    (warning,) = shortcut_warnings(labelled(table, labels), digests(statistics(rng)))
    assert warning.startswith(
        "the column dataset alone reaches 1.00 balanced accuracy over 2 classes (chance 0.50), and 100% of the "
        "training cases are from a dataset of a single label"
    )
    assert warning.endswith("`consilium crossval --leave-out dataset`.")
    mixed = np.where(rng.random(CASES) < 0.4, 1 - labels, labels)
    assert shortcut_warnings(labelled(table, mixed), digests(statistics(rng))) == []


def test_unreadable_images_pseudo_labels_and_missing_labels_do_not_count(table: CaseTable) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, CASES)
    planted = statistics(rng)
    PLANTED["borders"](planted, labels)
    broken = digests(planted)
    broken.readable[:] = False
    broken.statistics[:] = np.nan
    assert shortcut_warnings(labelled(table, labels), broken) == []
    pseudo = labelled(table, labels)
    pseudo.__dict__["is_gt"] = np.zeros(CASES, dtype=bool)
    assert shortcut_warnings(pseudo, digests(statistics(rng))) == []
    assert shortcut_warnings(table, digests(statistics(rng))) == []
    assert shortcut_warnings(labelled(table, labels).with_splits(["test"] * CASES), digests(planted)) == []


def with_metadata(table: CaseTable, **columns: list[str]) -> CaseTable:
    part = table.select(np.arange(len(table)))
    part.__dict__["labels"] = table.labels
    part.__dict__["metas"] = [{name: values[row] for name, values in columns.items()} for row in range(len(table))]
    return part


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), classes=st.integers(2, 6))
def test_metadata_of_chance_say_nothing(table: CaseTable, seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    part = with_metadata(
        labelled(table, rng.integers(0, classes, CASES)),
        age=[f"{age:.1f}" for age in rng.uniform(20, 90, CASES)],
        site=rng.choice(["hand", "foot", ""], CASES).tolist(),
        name=[f"patient {n}" for n in range(CASES)],  # names nobody again
    )
    assert metadata_warnings(part, ["age", "site", "name", "of no case"]) == []


def test_metadata_that_tell_the_label_are_named_the_strongest_first(table: CaseTable) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, CASES)
    ages, sides, asked = 50 + 10 * rng.random(CASES), rng.choice([-1, 1], CASES), rng.random(CASES) < 0.8
    told = with_metadata(
        labelled(table, labels),
        age=[f"{age:.2f}" for age in ages + 30 * labels],
        odd=[f"{age:.2f}" for age in ages + 30 * labels * sides],  # in the middle, or on both sides of it
        asked=np.where((labels == 0) & asked, "NA", "yes").tolist(),  # a missing value tells, too
        site=rng.choice(["hand", "foot"], CASES).tolist(),
    )
    (warning,) = metadata_warnings(told, ["site", "asked", "age"])
    assert warning.startswith(
        "of the metadata that the model reads, by itself age reaches 1.00 balanced accuracy over 2 classes (chance "
        "0.50); asked reaches 0.9"
    )
    assert "odd reaches 0.9" in metadata_warnings(told, ["odd"])[0]
    assert "site" not in warning
    assert metadata_warnings(told, ["site"]) == metadata_warnings(told, []) == []


def test_fewer_values_than_labels_tell_what_they_can(table: CaseTable) -> None:
    """How a diagnosis was confirmed names three of seven labels, and these surely."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, CASES)
    told = with_metadata(
        labelled(table, labels),
        confirmed=np.array(["histology", "follow-up", "consensus"])[labels.clip(max=2)].tolist(),
        sex=rng.choice(["f", "m"], CASES).tolist(),
        one=["a"] * CASES,
    )
    (warning,) = metadata_warnings(told, ["sex", "confirmed", "one"])
    assert "by itself confirmed reaches 0.43 balanced accuracy over 7 classes (chance 0.14), of 0.43 that 3" in warning
    assert "sex" not in warning


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), classes=st.integers(2, 5))
def test_the_discriminant_is_that_of_scikit_learn(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, 300)])
    features_NF = rng.standard_normal((classes, 6))[labels] + rng.standard_normal((len(labels), 6)) * rng.uniform(
        1, 5, 6
    )
    judged_NF = rng.standard_normal((400, 6)) * 3
    ours = shortcuts._linear_discriminant(features_NF, labels, judged_NF, classes)
    oracle = LinearDiscriminantAnalysis(solver="lsqr", priors=np.full(classes, 1 / classes)).fit(features_NF, labels)
    assert (ours == oracle.predict(judged_NF)).mean() > 0.97  # the ridge moves the border a little
