"""``ensemble``: several bundles as one, which says the mean of what they say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import consilium
from consilium.calibrating import calibrate
from consilium.core.errors import BundleError, ConfigError, DataError
from consilium.ensembling import ensemble
from consilium.evaluating import evaluate
from consilium.manifest import read_manifest
from tests.cli.conftest import Cli, cli
from tests.conftest import ImageFolder
from tests.test_calibrating import BUNDLES, cases
from tests.tiny import Run, train_tiny

__all__ = ["cases", "cli"]


@pytest.fixture(scope="module")
def seeds(tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of one training; no test changes them."""
    folder = tmp_path_factory.mktemp("seeds")
    run = train_tiny(tiny_images, folder, "trainer.num_runs=2", "task.answers.wanted_accuracy=0.4")
    return [result.folder for result in run.result.runs]


@pytest.fixture(scope="module")
def folds(tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folds of the same data, each with its own mean and standard deviation of images."""
    folder = tmp_path_factory.mktemp("folds")
    own = ["data.split.folds=2", "data.image.statistics=data"]
    return [
        train_tiny(tiny_images, folder, *own, f"data.split.fold={fold}", f"output.variation=fold-{fold}").folder
        for fold in range(2)
    ]


def pictures() -> list[np.ndarray]:
    random = np.random.default_rng(4)
    return [random.integers(0, 256, (40, 36, 3), dtype=np.uint8) for _ in range(5)]


def probabilities(bundle: Path) -> np.ndarray:
    records = consilium.load(bundle, device="cpu").predict(pictures())
    return np.array([list(record["probabilities"].values()) for record in records])


def test_it_says_the_mean_of_its_members_whatever_images_each_takes(
    seeds: list[Path], folds: list[Path], tmp_path: Path
) -> None:
    for number, members in enumerate((seeds, folds)):
        together = ensemble(members, out=tmp_path / str(number), quiet=True)
        expected = np.mean([probabilities(member) for member in members], axis=0)
        np.testing.assert_allclose(probabilities(together), expected, atol=2e-6)


def test_disagreement_is_the_information_between_member_and_answer(seeds: list[Path], tmp_path: Path) -> None:
    together = ensemble(seeds, out=tmp_path / "both", quiet=True)
    members_SNK = np.array([probabilities(member) for member in seeds])

    def entropy(p: np.ndarray) -> np.ndarray:
        return -(p * np.log(p)).sum(-1)

    expected_N = entropy(members_SNK.mean(0)) - entropy(members_SNK).mean(0)
    records = consilium.load(together, device="cpu").predict(pictures())
    assert [record["disagreement"] for record in records] == pytest.approx(expected_N.tolist(), abs=2e-5)
    assert max(expected_N) > 1e-4, "the members of this test must differ"


@pytest.mark.parametrize("name", ["format2_joint", "format2_cascade", "format2_multi_label"])
def test_trees_cascades_and_several_labels(name: str, tmp_path: Path) -> None:
    """A bundle and one that differs from it in its last layer alone."""
    other = altered(BUNDLES / f"{name}.zip", tmp_path / "other")
    together = ensemble([BUNDLES / f"{name}.zip", other], out=tmp_path / "both", quiet=True)
    expected = np.mean([probabilities(BUNDLES / f"{name}.zip"), probabilities(other)], axis=0)
    looks = read_manifest(together).looks.looks  # of several, scores of each look are averaged first
    np.testing.assert_allclose(probabilities(together), expected, atol=2e-6 if looks == 1 else 2e-3)
    for record in consilium.load(together, device="cpu").predict(pictures()):
        assert set(read_manifest(together).gives) <= set(record)
        assert record["disagreement"] > 0
        if name != "format2_multi_label":
            named = record["probabilities"]
            assert named["cold"] == pytest.approx(named["cold.blue"] + named["cold.green"], abs=3e-6)


def altered(bundle: Path, folder: Path) -> Path:
    """A copy of a bundle whose heads are other ones, with the checksums that go with them."""
    from safetensors.torch import load_file, save_file

    from consilium.core.files import sha256_of

    shutil.unpack_archive(bundle, folder)
    for weights in folder.rglob("model.safetensors"):
        state = load_file(weights)
        save_file({key: -5 * own if "head" in key else own for key, own in state.items()}, weights)
    for manifest in sorted(folder.rglob("bundle.json"), key=lambda path: -len(path.parts)):
        tree = json.loads(manifest.read_text(encoding="utf-8"))
        if (manifest.parent / "model.safetensors").is_file():
            tree["weights_sha256"] = sha256_of(manifest.parent / "model.safetensors")
        nodes = tree.get("nodes", {})
        tree["nodes"] = {node: sha256_of(folder / "nodes" / node / "bundle.json") for node in nodes}
        manifest.write_text(json.dumps(tree), encoding="utf-8")
    return folder


def test_it_is_used_like_any_bundle(seeds: list[Path], tmp_path: Path, cli: Cli, tiny_images: Path) -> None:
    answer = cli("ensemble", *seeds, "--out", tmp_path / "both", "--name", "two seeds")
    assert answer.code == 0, answer.err
    assert "thresholds are the means of the members'" in answer.out
    both = Path(shutil.move(tmp_path / "both", tmp_path / "moved"))
    assert read_manifest(both).name == "two seeds"
    assert cli("predict", both, tiny_images / "test", "--out", tmp_path / "answers.csv").code == 0
    head = (tmp_path / "answers.csv").read_text(encoding="utf-8").splitlines()[0]
    assert head == "image,label,probability,error,disagreement,p_ct,p_mri,p_xray"
    found = evaluate(both, out=tmp_path / "judged", device="cpu", quiet=True)
    assert found.cases == 12
    assert {row["sign"] for row in found.tables["doubt"]} == {"probability", "disagreement"}
    archive = shutil.make_archive(str(tmp_path / "both"), "zip", both)
    np.testing.assert_array_equal(probabilities(Path(archive)), probabilities(both))


def test_thresholds_begin_as_means_and_are_chosen_by_calibrate(
    seeds: list[Path], tmp_path: Path, image_folder: ImageFolder
) -> None:
    both = ensemble(seeds, out=tmp_path / "both", quiet=True)
    own = [read_manifest(member).knowledge["calibration"]["thresholds"][0] for member in seeds]
    calibration = read_manifest(both).knowledge["calibration"]
    assert calibration["thresholds"] == [None if None in own else pytest.approx(sum(own) / 2)]
    assert calibration["wanted_accuracy"] == 0.4
    images = image_folder(splits={"site": 10}, seed=8) / "site"
    found = calibrate(both, data=images, out=tmp_path / "new", device="cpu", quiet=True)
    new = read_manifest(found.bundle)
    assert new.ensemble
    assert new.knowledge["calibration"]["temperatures"]["root"] != 1.0
    assert len(consilium.load(found.bundle, device="cpu").predict(pictures())) == 5


def test_folds_are_not_judged_on_what_some_of_them_learned_from(folds: list[Path], tmp_path: Path, cli: Cli) -> None:
    answer = cli("ensemble", *folds, "--out", tmp_path / "both")
    assert "no case of these data is new to all of them" in answer.out
    with pytest.raises(ConfigError, match=r"learned from different cases .*each case taught some of them"):
        evaluate(tmp_path / "both", out=tmp_path / "judged", device="cpu", quiet=True)
    data = tmp_path / "both" / "config.yaml"
    for split in ("val", "test"):
        with pytest.raises(ConfigError, match="taught the bundle its weights"):
            calibrate(tmp_path / "both", data=data, split=split, out=tmp_path / "new", device="cpu", quiet=True)


def test_licences_are_those_of_all_members(seeds: list[Path], tmp_path: Path) -> None:
    licenses = [[{"source": name, "name": "mit", "read_from": "its card"}] for name in "ab"]
    copies = []
    for number, own in enumerate(licenses):
        copies.append(Path(shutil.copytree(seeds[number], tmp_path / str(number))))
        edited(copies[-1], licenses=own)
    both = ensemble(copies, out=tmp_path / "both", quiet=True)
    found = read_manifest(both).licenses
    assert found is not None
    assert [own.source for own in found] == ["a", "b"]
    assert {own.source for own in consilium.load(both, device="cpu").task.licenses} == {"a", "b"}


def edited(bundle: Path, **changes: Any) -> None:
    path = bundle / "bundle.json"
    tree = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps(tree), encoding="utf-8")


# -- Bad input ----------------------------------------------------------------------------------------------------


def test_members_that_do_not_go_together(
    seeds: list[Path], tiny_run: Run, tmp_path: Path, cli: Cli, tiny_images: Path
) -> None:
    twin = Path(shutil.copytree(seeds[0], tmp_path / "twin"))
    order = ["task.tree.nodes=[xray, mri, ct]"]
    turned = train_tiny(tiny_images, tmp_path / "runs", *order).folder
    larger = train_tiny(tiny_images, tmp_path / "larger", "data.image.size=[40, 40]").folder
    both = ensemble(seeds, out=tmp_path / "inner", quiet=True)
    for members, error, message in (
        ([seeds[0]], ConfigError, "two members or more, but 1 bundle came"),
        ([seeds[0], seeds[0]], ConfigError, "is given twice"),
        ([seeds[0], twin], ConfigError, r"one bundle twice \(their weights are the same\)"),
        ([seeds[0], BUNDLES / "format2_flat.zip"], DataError, r"only .*seed-0 has ct.*only .* has cold"),
        ([seeds[0], turned], DataError, "different labels: their order is ct, mri, xray in the one and xray, mri, ct"),
        ([BUNDLES / "format2_flat.zip", BUNDLES / "format2_multi_label.zip"], DataError, "task.multi_label is False"),
        ([seeds[0], larger], DataError, "take different images"),
        ([seeds[0], both], BundleError, "is an ensemble; give its 2 members one by one"),
        ([seeds[0], BUNDLES / "format3_fuse.zip"], ConfigError, "are of different kinds"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            ensemble(members, out=tmp_path / "both", quiet=True)
    assert not (tmp_path / "both").exists()
    (tmp_path / "both").mkdir()
    answer = cli("ensemble", *seeds, "--out", tmp_path / "both")
    assert (answer.code, "exists already" in answer.err) == (2, True)


def test_a_member_that_has_changed_is_noticed(seeds: list[Path], tmp_path: Path) -> None:
    changed = Path(shutil.copytree(seeds[1], tmp_path / "changed"))
    with (changed / "model.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(BundleError, match=r"model\.safetensors is not the file that bundle\.json names"):
        ensemble([seeds[0], changed], out=tmp_path / "both", quiet=True)
    both = ensemble(seeds, out=tmp_path / "both", quiet=True)
    edited(both / "members" / "1", name="another")
    with pytest.raises(BundleError, match=r"members/1/bundle\.json is not the file that bundle\.json names"):
        consilium.load(both)
    shutil.rmtree(both / "members" / "1")
    with pytest.raises(BundleError, match="is missing"):
        consilium.load(both)


def test_the_config_of_an_ensemble_is_that_of_its_first_member(seeds: list[Path], tmp_path: Path) -> None:
    both = ensemble(seeds, out=tmp_path / "both", quiet=True)
    first, own = (yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) for folder in (seeds[0], both))
    assert own == {**first, "name": "tiny-ensemble"}
