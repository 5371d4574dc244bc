"""A bundle: what is in it, what it answers, and how it says that it is not whole."""

from __future__ import annotations

import json
import pickletools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import consilium
from consilium.core.errors import BundleError, ImageError
from consilium.core.evaluation import Outputs
from consilium.evaluation.config import AveragingConfig
from consilium.experiment import Experiment
from consilium.manifest import read_manifest
from consilium.predictor import Predictor, case_outputs
from consilium.tasks.family import family_of
from tests.conftest import write_images
from tests.labelled import load_labelled
from tests.tiny import Run, TrainTiny, same


@pytest.fixture(scope="module")
def predictor(tiny_run: Run) -> Predictor:
    return consilium.load(tiny_run.folder)


@pytest.fixture
def bundle(tiny_run: Run, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "bundle"))


# -- What it answers ----------------------------------------------------------------------------------------------


def test_a_loaded_bundle_answers_as_training_was_judged(tiny_run: Run, predictor: Predictor) -> None:
    experiment = Experiment.load(tiny_run.folder / "config.yaml")
    studied = load_labelled(experiment.data, splits=("test",)).studied
    cases, task = studied.cases, experiment.task
    evaluator = family_of(task).evaluator(task, predictor.knowledge, evaluation=experiment.evaluation)
    for split in ("val", "test"):
        outputs = case_outputs(predictor, studied, split)
        assert evaluator.quick(outputs) == tiny_run.metrics[split]
        files = [cases.table.images(row)[0] for row in cases.rows[split].tolist()]
        records = predictor.predict(files)
        told = np.array([list(record["probabilities"].values()) for record in records])
        np.testing.assert_allclose(told, outputs.arrays["probabilities"], atol=1e-6)


def test_images_come_as_paths_and_bytes(predictor: Predictor, tiny_images: Path) -> None:
    path = tiny_images / "test" / "ct" / "000.jpg"
    (expected,) = predictor.predict(path)
    for given in (str(path), [path], [str(path)], (path,), path.read_bytes(), [path.read_bytes()], iter([path])):
        (record,) = predictor.predict(given)  # type: ignore[arg-type]
        assert {key: value for key, value in record.items() if key != "image"} == {
            key: value for key, value in expected.items() if key != "image"
        }
    assert expected["image"] == str(path)
    assert predictor.predict([]) == []
    assert predictor.predict(path.read_bytes())[0]["image"] == f"bytes[{path.stat().st_size}]"


def test_the_views_of_a_case_make_one_answer(predictor: Predictor, tiny_images: Path) -> None:
    left, right = tiny_images / "test" / "ct" / "000.jpg", tiny_images / "test" / "mri" / "000.jpg"
    alone, both, twice, mixed = predictor.predict([left, [left, right], [left, left], [right.read_bytes(), left]])
    assert both["image"] == [str(left), str(right)]
    assert twice["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
    assert both["probabilities"] != pytest.approx(alone["probabilities"], abs=1e-3)
    assert mixed["probabilities"] == pytest.approx(both["probabilities"], abs=1e-5)  # the order does not matter


def test_answers_depend_neither_on_neighbours_nor_on_batches(tiny_run: Run, tiny_images: Path) -> None:
    files = sorted((tiny_images / "test").rglob("*.jpg"))
    together = consilium.load(tiny_run.folder, batch_size=64).predict(files)
    apart = consilium.load(tiny_run.folder, batch_size=1).predict(files)
    workers = Predictor.load(tiny_run.folder, batch_size=5, workers=2).predict(files)
    assert [record["image"] for record in together] == [str(file) for file in files]
    for one, other in ((together, apart), (together, workers)):
        for left, right in zip(one, other, strict=True):
            assert left["probabilities"] == pytest.approx(right["probabilities"], abs=1e-5)


def test_an_unreadable_image_is_an_entry_among_answers(predictor: Predictor, tiny_images: Path, tmp_path: Path) -> None:
    good = tiny_images / "test" / "ct" / "000.jpg"
    records = predictor.predict([tmp_path / "none.jpg", good, b"no image", [good, tmp_path / "none.jpg"], b"", []])
    assert ["error" in record for record in records] == [True, False, True, True, True, True]
    assert records[0]["image"] == str(tmp_path / "none.jpg")
    assert "does not exist" in records[0]["error"]
    assert "label" not in records[0]


def test_an_unreadable_image_is_left_out_of_an_evaluation(tiny_run: Run, predictor: Predictor, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    experiment = Experiment.load(
        tiny_run.folder / "config.yaml",
        overrides=[f"data.sources.0.path={images}", f"data.store.root={tmp_path / 'stores'}"],
    )
    cases = load_labelled(experiment.data, splits=("test",)).studied
    (images / "test" / "ct" / "000.jpg").unlink()
    outputs = case_outputs(predictor, cases, "test")
    assert "does not exist" in outputs.unread.pop("images:test/ct/000.jpg")
    assert not outputs.unread
    assert len(outputs.ids) == len(outputs.known_targets) == len(outputs.arrays["probabilities"]) == 11
    shutil.rmtree(images / "test")
    with pytest.raises(ImageError, match=r"does not exist"):
        case_outputs(predictor, cases, "test")


def test_an_embedded_image_is_read_from_its_store(tiny: TrainTiny) -> None:
    run = tiny("data.store.images=embed")
    experiment = Experiment.load(run.folder / "config.yaml")
    cases = load_labelled(experiment.data, splits=("test",)).studied
    outputs: Outputs = case_outputs(consilium.load(run.folder), cases, "test")
    assert isinstance(cases.cases.table.images(0)[0], bytes)
    assert outputs.arrays["probabilities"].shape == (12, 3)


def test_the_task_is_ready_to_answer_and_stays_so(predictor: Predictor, tiny_images: Path) -> None:
    before = {name: tensor.clone() for name, tensor in predictor.task.state_dict().items()}
    assert not predictor.task.training
    predictor.predict(tiny_images / "test" / "ct" / "000.jpg")
    assert not predictor.task.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in predictor.task.state_dict().items())


def test_a_bundle_may_be_moved(tiny_run: Run, bundle: Path, tiny_images: Path) -> None:
    image = tiny_images / "test" / "xray" / "000.jpg"
    assert consilium.load(bundle).predict(image) == consilium.load(tiny_run.folder).predict(image)


def test_a_bundle_of_given_weights_and_options_comes_back(tiny: TrainTiny, tiny_images: Path) -> None:
    run = tiny(
        "task.vision.pooling=concat",
        "task.head={kind: mlp, hidden_sizes: [8]}",
        "task.loss={kind: focal, class_weights: balanced}",
        "task.multi_label=true",
        "data.image.size=[64, 32]",
        "data.image.statistics=data",
        "task.answers.threshold=0.3",
    )
    predictor = consilium.load(run.folder)
    assert predictor.image.size == (64, 32)
    assert predictor.task.threshold == 0.3
    (record,) = predictor.predict(tiny_images / "test" / "ct" / "000.jpg")
    assert record["labels"] == [label for label, value in record["probabilities"].items() if value >= 0.3]


# -- Averaging ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def averaged(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the tiny run, as if its config had asked for a mirror image and two centres."""
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path_factory.mktemp("averaged") / "bundle"))
    manifest = read_manifest(folder)
    chosen = {"looks": AveragingConfig(mirror=True, crops=[0.75, 0.5])}
    (folder / "bundle.json").write_text(manifest.model_copy(update=chosen).model_dump_json(), encoding="utf-8")
    return folder


def test_averaged_answers_are_the_mean_of_those_to_each_look(
    predictor: Predictor, averaged: Path, tmp_path: Path
) -> None:
    # Of the model's own size and without loss, so that each look can be a file of its own.
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    cuts = [image, image.crop((4, 4, 28, 28)), image.crop((8, 8, 24, 24))]
    files = []
    for number, cut in enumerate(cuts):
        for name, look in (("own", cut), ("mirrored", cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT))):
            files.append(tmp_path / f"{number}-{name}.png")
            look.save(files[-1])
    records = predictor.predict(files)
    expected = np.mean([list(record["probabilities"].values()) for record in records], axis=0)
    (found,) = consilium.load(averaged).predict(files[0])
    # A centre that is enlarged before it is rounded to levels differs by less than a level.
    assert list(found["probabilities"].values()) == pytest.approx(expected.tolist(), abs=2e-3)
    assert list(found["probabilities"].values()) != pytest.approx(list(records[0]["probabilities"].values()), abs=2e-3)


def test_a_zoom_is_an_answer_to_the_centre_of_the_file_and_looks_that_differ_disagree(
    tiny_run: Run, tmp_path: Path
) -> None:
    def loaded(looks: AveragingConfig) -> Predictor:
        folder = Path(shutil.copytree(tiny_run.folder, tmp_path / str(looks.looks)))
        manifest = read_manifest(folder)
        changes = {"looks": looks, "knowledge": {**manifest.knowledge, "calibration": {}}}  # what is averaged is raw
        (folder / "bundle.json").write_text(manifest.model_copy(update=changes).model_dump_json(), encoding="utf-8")
        return consilium.load(folder)

    def entropy(shares: np.ndarray) -> Any:
        return -(shares * np.log(shares)).sum(-1)

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8))
    for name, look in (("whole", image), ("centre", image.crop((40, 24, 120, 72)))):
        look.save(tmp_path / f"{name}.png")
    looks = loaded(AveragingConfig()).predict([tmp_path / "whole.png", tmp_path / "centre.png"])
    shares_SK = np.array([list(record["probabilities"].values()) for record in looks])
    (found,) = loaded(AveragingConfig(zooms=[0.25])).predict(tmp_path / "whole.png")
    assert list(found["probabilities"].values()) == pytest.approx(shares_SK.mean(0).tolist(), abs=2e-6)
    assert found["disagreement"] == pytest.approx(entropy(shares_SK.mean(0)) - entropy(shares_SK).mean(), abs=2e-6)
    assert found["disagreement"] > 1e-5
    assert "disagreement" not in looks[0]


def test_averaging_judges_and_is_saved_but_trains_and_validates_as_ever(
    tiny: TrainTiny, tiny_run: Run, tiny_images: Path
) -> None:
    run = tiny("evaluation.averaging={mirror: true, crops: [0.8]}")
    assert same(run.weights, tiny_run.weights)
    assert run.validations("val_log_loss") == tiny_run.validations("val_log_loss")
    assert any("sees each image 4 times" in line for line in run.reporter.lines)
    assert not any("sees each image" in line for line in tiny_run.reporter.lines)
    assert run.metrics["test"]["log_loss"] != pytest.approx(tiny_run.metrics["test"]["log_loss"], abs=1e-6)
    predictor = consilium.load(run.folder)
    assert predictor.looks == AveragingConfig(mirror=True, crops=[0.8])
    evaluation = consilium.evaluate(run.folder, split="test", out=run.folder / "again")
    assert evaluation.metrics == pytest.approx(run.metrics["test"], abs=1e-6)


def test_a_bundle_from_before_averaging_is_read(bundle: Path, tiny_run: Run) -> None:
    tree = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    del tree["looks"]
    (bundle / "bundle.json").write_text(json.dumps(tree), encoding="utf-8")
    assert consilium.load(bundle).looks.looks == 1


# -- What is in it ------------------------------------------------------------------------------------------------


def is_pickle(path: Path) -> bool:
    data = path.read_bytes()
    try:
        return sum(1 for _ in pickletools.genops(data)) > 3
    except Exception:  # any byte string that is no pickle
        return data.startswith(b"PK") and b".pkl" in data  # what torch.save writes


def test_nothing_in_a_bundle_needs_unpickling(tiny_run: Run, tmp_path: Path) -> None:
    torch.save({"a": 1}, tmp_path / "a.pt")
    assert is_pickle(tmp_path / "a.pt")
    files = [path for path in tiny_run.folder.rglob("*") if path.is_file()]
    # The checkpoints are for resuming, are read with weights_only=True and are no part of what is loaded.
    pickles = [
        path for path in files if is_pickle(path) and "checkpoints" not in path.relative_to(tiny_run.folder).parts
    ]
    assert not pickles
    needed = tmp_path / "needed"
    needed.mkdir()
    for name in ("bundle.json", "model.safetensors"):
        shutil.copy(tiny_run.folder / name, needed / name)
    assert consilium.load(needed).task.labels.leaves == ("ct", "mri", "xray")


def test_the_manifest_says_what_was_trained(tiny_run: Run) -> None:
    manifest = read_manifest(tiny_run.folder)
    assert manifest.consilium_version == consilium.__version__
    assert manifest.knowledge["labels"] == ["ct", "mri", "xray"]
    assert manifest.knowledge["class_counts"] == [8, 8, 8]
    assert manifest.knowledge["training_cases"] == 24
    assert (manifest.reads, manifest.gives[0]) == (["image"], "label")
    assert manifest.metrics == tiny_run.metrics
    assert manifest.task.vision.name == "test_resnet"


# -- What is wrong with it ----------------------------------------------------------------------------------------


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tree = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    change(tree)
    (bundle / "bundle.json").write_text(json.dumps(tree), encoding="utf-8")


def test_a_missing_folder_and_an_unfinished_run(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(BundleError, match="does not exist; give the folder of a finished run"):
        consilium.load(tmp_path / "none")
    (bundle / "bundle.json").unlink()
    with pytest.raises(BundleError, match=r"has no bundle.json, so it is not a finished run"):
        consilium.load(bundle)


@pytest.mark.parametrize("how", ["cut", "flipped", "missing", "other", "empty"])
def test_weights_that_are_not_the_ones_written(bundle: Path, how: str) -> None:
    weights = bundle / "model.safetensors"
    data = bytearray(weights.read_bytes())
    if how == "missing":
        weights.unlink()
    elif how == "other":
        save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    else:
        data[-1] ^= 1
        weights.write_bytes({"cut": data[:-10], "flipped": data, "empty": b""}[how])
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        consilium.load(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format_version": "x"}', "{}"])
def test_a_damaged_manifest(bundle: Path, text: str) -> None:
    (bundle / "bundle.json").write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=r"bundle.json is damaged: .*Copy the bundle again"):
        consilium.load(bundle)


@pytest.mark.parametrize(
    "key", ["consilium_version", "task", "image", "knowledge", "knowledge.labels", "knowledge.class_counts", "metrics"]
)
def test_a_manifest_without_a_key_names_it(bundle: Path, key: str) -> None:
    *section, name = key.split(".")
    edit_manifest(bundle, lambda tree: (tree[section[0]] if section else tree).pop(name))
    with pytest.raises(BundleError, match=rf"bundle.json is damaged: {key}: "):
        consilium.load(bundle)


def test_a_manifest_of_another_model(bundle: Path) -> None:
    edit_manifest(
        bundle, lambda tree: tree["knowledge"].update(labels=["ct", "mri", "pet", "xray"], class_counts=[8] * 4)
    )
    with pytest.raises(BundleError, match=r"cannot be loaded: the weights in .* do not fit the model"):
        consilium.load(bundle)


def test_a_tower_that_this_timm_does_not_know(bundle: Path) -> None:
    edit_manifest(bundle, lambda tree: tree["task"]["vision"].update(name="resnet_of_tomorrow"))
    with pytest.raises(BundleError, match="resnet_of_tomorrow"):
        consilium.load(bundle)


def test_a_bundle_of_a_newer_version(bundle: Path) -> None:
    edit_manifest(bundle, lambda tree: tree.update(format_version=99, consilium_version="9.0", unheard_of=True))
    with pytest.raises(BundleError, match=r"written by Consilium 9.0 in bundle format 99; .*reads up to 3. Update"):
        consilium.load(bundle)
