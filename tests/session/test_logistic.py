"""A head that is fitted to all training cases at once: what scikit-learn finds, whatever the seed, stop and machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import consilium
from consilium.core.config import to_yaml
from consilium.core.errors import ConfigError, DataError
from consilium.core.labels import LabelTree
from consilium.evaluation.report.page import REPORT
from consilium.session import train
from consilium.tasks.classify.logistic import fit_siblings
from tests.session.tables import Row, coloured_rows, write_table
from tests.session.test_loop import torchrun
from tests.tiny import Recorder, Run, same, tiny_experiment, train_tiny

LABELS = ["ct", "ct.chest", "ct.head", "mri.t1", "mri.t2", "xray"]  # the first stops at an inner node
HEAD = ["task.head={kind: logistic, leave_out: site}", "task.vision.freeze.kind=tower"]
JOINT = [*HEAD, "task.tree.head=joint"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Six training images of each label from three sites, four to validate and three to test."""
    found = coloured_rows(tmp_path_factory.mktemp("rows"), LABELS, {"train": 6, "val": 4, "test": 3})
    return [{**row, "site": f"site {number % 3}"} for number, row in enumerate(found)]


def fitted(folder: Path, rows: Sequence[Row], *overrides: str, **options: Any) -> Run:
    """A training on these rows; each folder holds one table."""
    return train_tiny(folder, folder / "runs", *JOINT, write_table(folder, rows), *overrides, **options)


@pytest.fixture(scope="module")
def run(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A joint head; no test changes it."""
    return fitted(tmp_path_factory.mktemp("run"), rows)


def head_of(run: Run) -> tuple[np.ndarray, np.ndarray]:
    return run.weights["head.1.weight"].numpy(), run.weights["head.1.bias"].numpy()


def test_copies_are_further_rows_of_their_case(rows: list[Row], tmp_path: Path) -> None:
    """Image and copies share what the case counts; what is left out is judged by the images themselves."""
    copies = "{number: 2, weight: 0.5, crop_scale: [0.3, 0.6], horizontal_flip_prob: 0.5}"
    seen: list[Any] = []

    def look(features_TF: np.ndarray, *others: np.ndarray, **options: Any) -> Any:
        seen.append((features_TF, *others, options["judged_T"]))
        return fit_siblings(features_TF, *others, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("consilium.tasks.classify.task.fit_siblings", look)
        for number, own in enumerate(([], [f"data.augmentation.copies={copies}"])):
            train_tiny(tmp_path, tmp_path / "runs", *JOINT, write_table(tmp_path, rows), *own, f"name=run{number}")
    (plain_TF, targets_T, weights_T, units_T, _), (features_LF, targets_L, weights_L, units_L, judged_L) = seen
    cases = len(targets_T)
    np.testing.assert_array_equal(features_LF[:cases], plain_TF)
    np.testing.assert_array_equal(targets_L, np.tile(targets_T, 3))
    np.testing.assert_array_equal(units_L, np.tile(units_T, 3))
    np.testing.assert_allclose(weights_L, np.concatenate([weights_T * share for share in (2 / 3, 1 / 6, 1 / 6)]))
    np.testing.assert_array_equal(judged_L, np.arange(3 * cases) < cases)
    assert len(np.unique(features_LF.round(5), axis=0)) > 2 * cases


# -- What it finds ----------------------------------------------------------------------------------------------------


def matrix(count: int, labels: LabelTree, *, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features, nodes, weights and units; leaves have a centre each, every tenth case stops above its leaf."""
    random = np.random.default_rng(seed)
    targets_T = random.choice(labels.leaf_ids, count)
    centres_KF = random.normal(size=(len(labels), 8))
    features_TF = centres_KF[targets_T] + 0.8 * random.normal(size=(count, 8)) + 5
    stops = [labels.parent(int(node)) for node in targets_T]
    targets_T = np.array(
        [
            node if above is None or number % 10 else above
            for number, (node, above) in enumerate(zip(targets_T, stops, strict=True))
        ]
    )
    return features_TF, targets_T, random.uniform(0.2, 3, count), random.integers(0, 12, count)


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "joint"])
def test_it_is_scikit_learn_s_at_every_node(nested: bool) -> None:
    labels = (
        LabelTree(["a", "b", "c"])
        if not nested
        else LabelTree(["a", "a.x", "a.y", "b", "b.x", "b.y", "b.z", "c"], nested=True)
    )
    features_TF, targets_T, weights_T, units_T = matrix(400, labels, seed=3)
    seen: list[tuple[int, int]] = []
    found = fit_siblings(
        features_TF,
        targets_T,
        weights_T,
        units_T,
        labels=labels,
        leave_out="group",
        progress=lambda *own: seen.append(own),
    )
    assert len(found.table) == (3 if nested else 1)
    assert all(row["converged"] for row in found.table)
    assert all(done <= total == 7 for done, total in seen)
    (images_NF, *_) = matrix(50, labels, seed=4)
    groups = [group for group in labels.siblings if len(group.ids) > 1]
    for group, row in zip(groups, found.table, strict=True):
        steps_T = labels.steps_MG[targets_T, labels.siblings.index(group)]
        here = steps_T >= 0
        scale = StandardScaler().fit(features_TF[here], sample_weight=weights_T[here])
        # Of two classes scikit-learn has one column of weights, and here are two of half the size.
        shares = 2 if len(group.ids) == 2 else 1
        oracle = LogisticRegression(C=shares / float(row["strength"]), tol=1e-10, max_iter=10_000)
        oracle.fit(
            scale.transform(features_TF[here]), steps_T[here], sample_weight=weights_T[here] / weights_T[here].sum()
        )
        scores_NK = images_NF @ found.weight_KF[list(group.ids)].T + found.bias_K[list(group.ids)]
        expected_NK = oracle.predict_proba(scale.transform(images_NF))
        np.testing.assert_allclose(torch.from_numpy(scores_NK).softmax(1).numpy(), expected_NK, atol=1e-4)
        tried = {key: value for key, value in row.items() if key.startswith("log_loss_") and value is not None}
        assert min(tried, key=lambda key: tried[key]) == f"log_loss_{row['strength']}"


def test_a_weight_is_so_many_copies_of_a_case() -> None:
    labels = LabelTree(["a", "b", "c"])
    features_TF, targets_T, _, units_T = matrix(90, labels, seed=0)
    weights_T = np.random.default_rng(1).integers(1, 4, 90)
    arrays = features_TF, targets_T, units_T
    options: dict[str, Any] = {"labels": labels, "leave_out": "group", "progress": lambda *_: None}
    weighted = fit_siblings(arrays[0], arrays[1], weights_T.astype(float), arrays[2], **options)
    copied = [np.repeat(own, weights_T, axis=0) for own in arrays]
    again = fit_siblings(copied[0], copied[1], np.ones(len(copied[0])), copied[2], **options)
    np.testing.assert_allclose(weighted.weight_KF, again.weight_KF, atol=1e-4)
    np.testing.assert_allclose(weighted.bias_K, again.bias_K, atol=1e-4)


def test_the_order_of_the_rows_does_not_matter() -> None:
    labels = LabelTree(["a", "b", "c"])
    arrays = matrix(90, labels, seed=0)
    order = np.random.default_rng(1).permutation(90)
    options: dict[str, Any] = {"labels": labels, "leave_out": "group", "progress": lambda *_: None}
    one, other = fit_siblings(*arrays, **options), fit_siblings(*(own[order] for own in arrays), **options)
    np.testing.assert_allclose(one.weight_KF, other.weight_KF, atol=1e-6)
    for row, same_row in zip(one.table, other.table, strict=True):
        assert row == {
            # Fits of folds are in single precision.
            key: pytest.approx(value, abs=1e-4) if isinstance(value, float) else value
            for key, value in same_row.items()
        }


def test_classes_without_cases_are_never_likely_and_a_node_that_cannot_choose_takes_the_strength_above() -> None:
    labels = LabelTree(["a", "a.x", "a.y", "a.z", "b", "b.x", "b.y"], nested=True)
    random = np.random.default_rng(0)
    targets_T = np.repeat([1, 2, 5], 40)
    units_T = np.tile(np.arange(8), 15)
    units_T[:80] = np.where(targets_T[:80] == 1, 0, 1)  # below a each class has one unit
    features_TF = random.normal(size=(120, 4)) + np.eye(7, 4)[targets_T % 4] * 2
    found = fit_siblings(
        features_TF, targets_T, np.ones(120), units_T, labels=labels, leave_out="group", progress=lambda *_: None
    )
    top, below, single = found.table
    assert (top["node"], below["node"], single["node"]) == ("root", "a", "b")
    assert (below["strength"], below["chosen_by"]) == (top["strength"], "the node above")
    scores_NK = features_TF @ found.weight_KF.T + found.bias_K
    assert torch.from_numpy(scores_NK[:, [1, 2, 3]]).softmax(1)[:, 2].max() < 1e-8
    assert torch.from_numpy(scores_NK[:, [5, 6]]).softmax(1)[:, 1].max() < 1e-8
    with pytest.raises(
        DataError, match=r"at the node 'root' no class has cases of two, .*Name the column of the patient"
    ):
        fit_siblings(
            features_TF[:80],
            targets_T[:80] - 1,
            np.ones(80),
            units_T[:80],
            labels=LabelTree(["p", "q"]),
            leave_out="group",
            progress=lambda *_: None,
        )


# -- A training -------------------------------------------------------------------------------------------------------


def test_a_training_is_one_step_and_leaves_a_linear_head(run: Run) -> None:
    assert run.steps("step") == [1]
    assert run.steps("cases") == [36]
    assert run.metrics["test"]["accuracy"] is not None
    assert run.knowledge["labels"] == ["ct", "ct.chest", "ct.head", "mri", "mri.t1", "mri.t2", "xray"]
    assert set(run.weights) >= {"head.1.weight", "head.1.bias"}
    report = (run.folder / REPORT).read_text(encoding="utf-8")
    assert "The fit of the head" in report
    for node in ("root", "ct", "mri"):
        assert f"{node} " in run.log
    assert (
        "note: task.head is fitted in one step, for which these keys mean nothing: schedule, "
        "trainer.max_epochs, trainer.max_steps" in run.log
    )


def features_of(task: Any, predict: Any) -> np.ndarray:
    """What the head of a task is given while ``predict`` runs, [N, F]."""
    inputs: list[np.ndarray] = []
    hook = task.head.register_forward_pre_hook(lambda _, given: inputs.append(given[0].double().numpy()))
    predict()
    hook.remove()
    return np.concatenate(inputs)


@pytest.mark.parametrize("sampling", ["shuffle", "class_balanced"])
def test_the_matrix_is_the_tower_s_and_the_weights_are_the_mixture_s(
    sampling: str, rows: list[Row], tmp_path: Path
) -> None:
    """Features come from the bundle here, without a cache; six, six and three training cases."""
    kept = ["ct.chest", "mri.t1", "xray"]
    few = [row for row in rows if row["label"] != "xray" or row["split"] != "train" or row["image"][-5] in "012"]
    filters = f"data.filters.labels={json.dumps(kept)}"
    own = fitted(tmp_path, few, f"data.mixture.sampling={sampling}", "task.tree.head=flat", filters)
    train_rows = [row for row in few if row["split"] == "train" and row["label"] in kept]
    predictor = consilium.load(own.folder, device="cpu")
    features_TF = features_of(predictor.task, lambda: predictor.predict([row["image"] for row in train_rows]))
    targets_T = np.array([kept.index(row["label"]) for row in train_rows])
    counts_K = np.bincount(targets_T)
    assert counts_K.tolist() == [6, 6, 3]
    weights_T = np.full(15, 1 / 15) if sampling == "shuffle" else 1 / (3 * counts_K[targets_T])
    scale = StandardScaler().fit(features_TF, sample_weight=weights_T)
    (strength,) = [float(line.split()[1]) for line in own.log.splitlines() if line.strip().startswith("root ")]
    oracle = LogisticRegression(C=1 / strength, tol=1e-10, max_iter=10_000)
    oracle.fit(scale.transform(features_TF), targets_T, sample_weight=weights_T)
    weight_KF, bias_K = head_of(own)
    found_TK = torch.from_numpy(features_TF @ weight_KF.T + bias_K).softmax(1).numpy()
    np.testing.assert_allclose(found_TK, oracle.predict_proba(scale.transform(features_TF)), atol=1e-4)


def test_no_seed_is_in_the_head(rows: list[Row], run: Run, tmp_path: Path) -> None:
    other = fitted(tmp_path, rows, "seed=7", f"trainer.init_from={run.folder}")  # the same random tower
    assert same(other.weights, run.weights)


@pytest.mark.parametrize("stopped", ["before", "after"])
def test_a_training_that_was_stopped_goes_on_as_the_unbroken_one(
    rows: list[Row], run: Run, tmp_path: Path, stopped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Recorder):
        def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
            if name == ("fit" if stopped == "before" else "train"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path, rows, reporter=Stop())
    again = fitted(tmp_path, rows, resume=True)
    assert same(again.weights, run.weights)
    assert again.metrics == run.metrics
    assert "The fit of the head" in (again.folder / REPORT).read_text(encoding="utf-8")
    assert len(list((tmp_path / "runs" / "tiny").iterdir())) == 1


def test_labels_are_added_to_its_bundle(rows: list[Row], run: Run, tmp_path: Path) -> None:
    us = coloured_rows(tmp_path, ["us"], {"train": 4, "val": 3, "test": 2})
    us = [{**row, "site": "site 0"} for row in us]
    grown = train_tiny(
        tmp_path,
        tmp_path / "runs",
        "task.tree.head=joint",
        f"task.add_to={run.folder}",
        write_table(tmp_path, [*rows, *us]),
    )
    assert grown.knowledge["labels"] == [*run.knowledge["labels"], "us"]
    assert grown.manifest["task"]["head"] == {"kind": "linear", "dropout": 0.0}
    np.testing.assert_array_equal(head_of(grown)[0][:3], head_of(run)[0][:3])


@pytest.mark.slow
def test_two_processes_solve_as_one(rows: list[Row], run: Run, tmp_path: Path) -> None:
    recipe = [*JOINT, write_table(tmp_path, rows)]
    config = tmp_path / "tiny.yaml"
    config.write_text(to_yaml(tiny_experiment(tmp_path, tmp_path / "two", *recipe)), encoding="utf-8")
    from safetensors.torch import load_file

    assert same(load_file(torchrun(config, tmp_path / "two") / "model.safetensors"), run.weights)


# -- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["task.multi_label=true"], "multi_label is true: it fits one label a case"),
        (["task.tree.head=cascade"], "tree.head is cascade: with joint"),
        (["task.add_to=somewhere"], "add_to is given: new labels are learned step by step"),
        (["task.vision.freeze.kind=none"], r"vision.freeze.kind is none: it needs a tower that stays \(kind: tower\)"),
        (["task.loss.label_smoothing=0.1"], "loss is no plain cross entropy"),
        (["task.loss={kind: focal}"], "loss is no plain cross entropy"),
        (["task.head.dropout=0.1"], "`dropout` is not a key of `task.head`"),
        (
            ["data.augmentation.horizontal_flip_prob=0.5"],
            r"data.augmentation \(horizontal_flip_prob\) changes its images",
        ),
        (["trainer.cache_features=false"], "trainer.cache_features is false.*or choose task.head.kind: linear"),
        (["trainer.ema={decay: 0.9}"], "trainer.ema averages the weights of many steps"),
        (["trainer.wise_ft=0.5"], "trainer.wise_ft averages with a beginning"),
    ],
)
def test_what_does_not_fit_a_fit_is_refused(overrides: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"(?s){says}"):
        tiny_experiment(tmp_path, tmp_path, *HEAD, *overrides)


@pytest.mark.parametrize(
    ("leave_out", "says"),
    [
        ("sit", "task.head.leave_out names the column 'sit'; did you mean `site`"),
        ("source", "and all 36 training cases have one: 'table'. Name another column in task.head.leave_out, or group"),
    ],
)
def test_a_column_that_is_missing_or_has_one_value(leave_out: str, says: str, rows: list[Row], tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=says):
        fitted(tmp_path, rows, f"task.head.leave_out={leave_out}")


def test_one_group_in_all_is_refused_with_what_to_do(rows: list[Row], tmp_path: Path) -> None:
    alone = [{**row, "patient": "p" if row["split"] == "train" else row["image"]} for row in rows]
    source = write_table(tmp_path, alone).removesuffix("}]") + ', "columns": {"group": "patient"}}]'
    with pytest.raises(DataError, match=r"all 36 training cases have one: 'p'. Name the column of the patient"):
        train(
            tiny_experiment(tmp_path, tmp_path / "runs", *JOINT, "task.head.leave_out=group", source),
            reporter=Recorder(),
        )
