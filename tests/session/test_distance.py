"""Distances in feature space, from the training cases to the answers of a bundle."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import oas

import consilium
from consilium.core.errors import ConfigError
from consilium.export.run import export
from consilium.predictions import predict_files
from consilium.predictor import Predictor
from consilium.tasks.classify.task import Classify
from tests.conftest import write_images
from tests.tiny import Recorder, Run, TrainTiny, tiny_experiment, train_tiny

SHARE = 0.75
FROZEN = "task.vision.freeze.kind=tower"
DISTANCE = f"task.answers.distance={{share: {SHARE}}}"


@pytest.fixture(scope="module")
def measured(tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny run with a frozen tower, in a way that draws only some of the training cases."""
    return train_tiny(
        tiny_images, tmp_path_factory.mktemp("distance") / "runs", FROZEN, DISTANCE, "trainer.max_steps=1"
    )


def features_of(predictor: Predictor, files: list[Path]) -> np.ndarray:
    """What the head sees of images."""
    task = predictor.task
    assert isinstance(task, Classify)
    seen: list[torch.Tensor] = []
    hook = task.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    predictor.predict(files)
    hook.remove()
    return torch.cat(seen).double().numpy()


def table_of(run: Run, name: str) -> list[dict[str, str]]:
    with (run.folder / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_answers_stop_where_numpy_says_that_they_are_too_far(measured: Run, tiny_images: Path) -> None:
    predictor = consilium.load(measured.folder)
    names = predictor.task.labels.names
    files = {split: sorted(tiny_images.glob(f"{split}/*/*.jpg")) for split in ("train", "val", "test")}
    features = {split: features_of(predictor, own) for split, own in files.items()}
    truth_N = np.array([names.index(path.parent.name) for path in files["train"]])
    means_KF = np.stack([features["train"][truth_N == label].mean(0) for label in range(len(names))])
    inverse_FF = np.linalg.inv(oas(features["train"] - means_KF[truth_N], assume_centered=True)[0])

    def distances(split: str) -> np.ndarray:
        answers = predictor.predict(files[split])
        said = [names.index(record["path"][-1]["label"]) for record in answers]
        own = zip(features[split], said, strict=True)
        return np.array([mahalanobis(feature, means_KF[label], inverse_FF) for feature, label in own])

    (limit,) = predictor.task.calibration.distances
    val_N = np.sort(distances("val"))
    inside = int(np.ceil(SHARE * len(val_N)))
    assert val_N[inside - 1] < limit < val_N[inside]
    answers = predictor.predict(files["test"])
    expected = distances("test")
    assert [record["distance"] for record in answers] == pytest.approx(expected.tolist(), rel=1e-3)
    assert set(measured.manifest["gives"]) == answers[0].keys() - {"image"}
    assert [record["path"][-1]["distance"] for record in answers] == [record["distance"] for record in answers]
    assert [record["label"] == "unknown" for record in answers] == (expected > limit).tolist()
    assert {record["label"] == "unknown" for record in answers} == {True, False}


def test_the_bundle_answers_as_training_was_judged(measured: Run, tmp_path: Path) -> None:
    evaluation = consilium.evaluate(measured.folder, split="test", out=tmp_path / "again")
    assert evaluation.metrics == pytest.approx(measured.metrics["test"], abs=1e-6)
    assert measured.metrics["test"]["coverage"] < 1  # type: ignore[operator]
    (row,) = [row for row in evaluation.tables["levels"] if row["level"] == 1]
    assert row["distance"] == measured.knowledge["calibration"]["distances"][0]


def test_features_from_the_cache_and_from_images_measure_the_same(
    measured: Run, tiny_images: Path, tmp_path: Path
) -> None:
    plain = train_tiny(
        tiny_images, tmp_path / "runs", FROZEN, DISTANCE, "trainer.max_steps=1", "trainer.cache_features=false"
    )
    for name in ("distance.means_MF", "distance.whitening_FF", "distance.centre_F"):
        torch.testing.assert_close(plain.weights[name], measured.weights[name], rtol=1e-2, atol=1e-4)
    found, expected = (run.knowledge["calibration"]["distances"] for run in (plain, measured))
    assert found == pytest.approx(expected, rel=1e-3)
    bf16 = train_tiny(tiny_images, tmp_path / "bf16", FROZEN, DISTANCE, "trainer.max_steps=1", "trainer.precision=bf16")
    torch.testing.assert_close(bf16.weights["distance.means_MF"], measured.weights["distance.means_MF"])


def test_tables_of_predictions_have_a_column_for_each_sign(measured: Run, tiny_images: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(measured.folder, tmp_path / "bundle"))
    tree = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    tree["looks"] = {"mirror": True}
    (bundle / "bundle.json").write_text(json.dumps(tree), encoding="utf-8")
    (tmp_path / "no.png").write_bytes(b"no png")
    files = [str(tiny_images / "test" / "ct"), str(tmp_path / "no.png")]
    for name in ("a.csv", "a.jsonl"):
        predict_files(bundle, files, out=tmp_path / name, batch_size=2, device="cpu", reporter=Recorder())
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert list(rows[0])[:6] == ["image", "label", "probability", "error", "distance", "disagreement"]
    for row, record in zip(rows[:-1], records[:-1], strict=True):
        for sign in ("distance", "disagreement"):
            assert float(row[sign]) == record[sign]
    assert rows[-1]["error"]
    assert rows[-1]["distance"] == ""


def test_an_exported_model_says_that_it_measures_no_distance(measured: Run, tmp_path: Path) -> None:
    found = export(measured.folder, to="safetensors", out=tmp_path / "out", reporter=Recorder())
    assert any("task.answers.distance" in note for note in found.notes)


def test_distances_change_no_weight_and_are_off_by_default(measured: Run, tiny: TrainTiny) -> None:
    plain = tiny(FROZEN, "trainer.max_steps=1")
    assert {name for name in measured.weights if name not in plain.weights} == {
        f"distance.{name}" for name in ("centre_F", "whitening_FF", "means_MF", "has_mean_M")
    }
    assert all(torch.equal(tensor, measured.weights[name]) for name, tensor in plain.weights.items())
    assert plain.knowledge["calibration"]["distances"] == []


def test_the_report_sets_signs_of_doubt_side_by_side_also_on_new_sources(
    tiny: TrainTiny, tiny_images: Path, tmp_path: Path
) -> None:
    files = sorted(tiny_images.rglob("*.jpg"))
    table = tmp_path / "cases.csv"
    rows = []
    for number, path in enumerate(files):
        split = path.parent.parent.name
        scanner = "new" if split == "test" and number % 2 else "old"
        rows.append(f"{path},{path.parent.name},{split},{scanner}")
    table.write_text("\n".join(["image,label,split,scanner", *rows]) + "\n", encoding="utf-8")
    run = tiny(
        DISTANCE,
        f"data.sources=[{{kind: csv, name: cases, path: '{table}'}}]",
        f"data.store.root={tmp_path / 'stores'}",
        "evaluation={columns: [source, scanner], bootstrap_samples: 20, averaging: {mirror: true}}",
    )
    assert run.knowledge["seen"] == {"source": ["cases"], "scanner": ["old"]}
    found = table_of(run, "test_doubt")
    signs = ("probability", "distance", "disagreement")
    assert [(row["sign"], row["never_seen"], row["cases"]) for row in found] == [
        *((sign, "", "12") for sign in signs), *((sign, "scanner", "6") for sign in signs),
    ]  # fmt: skip
    assert float(found[0]["aurc"]) == pytest.approx(run.metrics["test"]["aurc"])
    curves = table_of(run, "test_doubt_curves")
    assert {(row["sign"], row["never_seen"]) for row in curves} == {(row["sign"], row["never_seen"]) for row in found}
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "with a scanner that training never saw" in page
    assert "After strong fine-tuning" in page  # the tower learned
    (record,) = consilium.load(run.folder).predict(files[0])
    assert {"distance", "disagreement"} <= record.keys()


def test_weights_with_distances_begin_another_training(measured: Run, tiny: TrainTiny) -> None:
    run = tiny(f"trainer.init_from={json.dumps(str(measured.folder))}")
    assert not [name for name in run.weights if name.startswith("distance.")]


def test_a_router_that_grows_keeps_its_distances_and_its_thresholds(measured: Run, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", labels=["ct", "mri", "xray", "pet"], seed=5)

    def grown(*overrides: str) -> Run:
        origin = f"task.add_to={json.dumps(str(measured.folder))}"
        return train_tiny(images, tmp_path / "runs", origin, *overrides)

    with pytest.raises(ConfigError, match=r"task\.answers\.distance\.share is 0\.5, the bundle's is 0\.75"):
        grown("task.answers.distance={share: 0.5}")
    run = grown()
    assert run.knowledge["labels"] == ["ct", "mri", "xray", "pet"]
    assert run.knowledge["calibration"]["distances"] == measured.knowledge["calibration"]["distances"]
    before, after = measured.weights, run.weights
    assert torch.equal(after["distance.means_MF"][:3], before["distance.means_MF"])
    assert torch.equal(after["distance.whitening_FF"], before["distance.whitening_FF"])
    assert after["distance.has_mean_M"].tolist() == [True] * 4
    file = images / "test" / "ct" / "000.jpg"
    old, new = (consilium.load(own.folder).predict(file)[0] for own in (measured, run))
    assert new["label"] in (old["label"], "unknown", "pet")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["task.multi_label=true"], "does not go with multi_label"),
        (["task.tree.head=cascade"], "does not go with tree.head: cascade"),
        (["task.answers.distance.share=1.5"], "share"),
        (["task.answers.distance.share=0"], "share"),
        (["task.answers.distance.shares=0.9"], "did you mean `share`"),
    ],
)
def test_what_cannot_be_measured_is_refused(tiny_images: Path, tmp_path: Path, overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        tiny_experiment(tiny_images, tmp_path, "task.answers.distance={}", *overrides)


def test_a_zoomed_mean_of_looks_is_the_mean_of_their_distances(measured: Run, tiny_images: Path) -> None:
    predictor = consilium.load(measured.folder)
    task = predictor.task
    assert isinstance(task, Classify)
    file = tiny_images / "test" / "ct" / "001.jpg"
    found: list[Mapping[str, Any]] = []
    combined = task.combine
    predictor.looks = predictor.looks.model_copy(update={"mirror": True, "zooms": [0.25]})

    def combine(looks: Any) -> Any:
        found.extend(own.arrays for _, own in looks)
        return combined(looks)

    task.combine = combine  # type: ignore[method-assign]
    (record,) = predictor.predict(file)
    assert len(found) == 4
    label = task.labels.index(record["path"][-1]["label"])
    assert record["distance"] == pytest.approx(float(np.mean([own["distances"][0, label] for own in found])), rel=1e-4)
