"""Licences of starting weights: said before the first step, kept in all that a run leaves, inherited from then on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save_file

from consilium.core.config import apply_overrides, build
from consilium.core.errors import ConfigError
from consilium.evaluating import evaluate
from consilium.experiment import Experiment
from consilium.session import train
from tests.models.checkpoints.writers import clip_hf, clip_open
from tests.models.texts import write_encoder
from tests.session.tables import coloured_rows, write_table
from tests.tasks.test_align_contract import experiment_of
from tests.tasks.test_whole_models import experiment_of as whole_model
from tests.tiny import TREE, Recorder, Run, TrainTiny, train_tiny

MODEL = "test_resnet"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights with a card."""
    folder = tmp_path_factory.mktemp("weights")
    save_file(timm.create_model(MODEL, num_classes=0).state_dict(), folder / "model.safetensors")
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-nd-4.0\n---\n")
    return folder


@pytest.fixture(scope="module")
def first(tiny_images: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run from these weights; no test changes it."""
    return train_tiny(tiny_images, tmp_path_factory.mktemp("first"), f"task.vision.pretrained={weights}")


def licenses(folder: Path) -> Any:
    return json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["licenses"]


def warned(lines: list[str]) -> list[str]:
    """The warnings of licences; they come before the first step."""
    trial = next(number for number, line in enumerate(lines) if line.startswith("trial step"))
    found = [line for line in lines if line.startswith("warning: ") and "starting weights" in line]
    assert all(line in lines[:trial] for line in found)
    return found


def without_licences(bundle: Path, folder: Path) -> Path:
    """A copy of a bundle, as earlier versions wrote it."""
    folder.mkdir()
    for name in ("bundle.json", "model.safetensors", "config.yaml"):
        (folder / name).write_bytes((bundle / name).read_bytes())
    manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    del manifest["licenses"]
    (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def test_a_licence_is_said_before_the_training_and_kept_in_all_that_it_leaves(first: Run, weights: Path) -> None:
    own = {"source": str(weights), "name": "cc-by-nc-nd-4.0", "read_from": "README.md"}
    assert licenses(first.folder) == [own]
    (warning,) = warned(first.reporter.lines)
    assert "commercial use" in warning
    assert "changed versions" in warning
    assert warning in first.log
    page, card = ((first.folder / name).read_text(encoding="utf-8") for name in ("report.html", "MODEL_CARD.md"))
    for text in (page, card):
        assert "Licences of the starting weights" in text
        assert "commercial use" in text
    assert "<td>cc-by-nc-nd-4.0</td><td>README.md</td>" in page
    assert "| cc-by-nc-nd-4.0 | README.md |" in card


def test_weights_from_scratch_have_no_licence_and_nothing_is_said(tiny_run: Run) -> None:
    assert licenses(tiny_run.folder) == []
    assert warned(tiny_run.reporter.lines) == []
    for name in ("report.html", "MODEL_CARD.md"):
        assert "licence" not in (tiny_run.folder / name).read_text(encoding="utf-8").lower()


def test_a_free_licence_is_kept_without_a_warning(tiny: TrainTiny, weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "own" / "model.safetensors"
    file.parent.mkdir()
    file.write_bytes((weights / "model.safetensors").read_bytes())
    run = tiny(f"task.vision.pretrained={file}", "task.vision.license=apache-2.0")
    assert licenses(run.folder) == [{"source": str(file), "name": "apache-2.0", "read_from": "task.vision.license"}]
    assert warned(run.reporter.lines) == []


def test_a_run_that_was_stopped_for_an_unknown_licence_goes_on_with_one_that_is_stated(
    weights: Path, tiny_images: Path, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    file = tmp_path / "own" / "model.safetensors"
    file.write_bytes((weights / "model.safetensors").read_bytes())
    options, stopped = f"task.vision.pretrained={file}", Recorder(stop_at=1)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tiny_images, tmp_path, options, reporter=stopped)
    assert "is unknown (no README.md lies beside it)" in warned(stopped.lines)[0]
    run = train_tiny(tiny_images, tmp_path, options, "task.vision.license=mit", resume=True)
    assert [own["name"] for own in licenses(run.folder)] == ["mit"]


def test_what_is_built_from_a_bundle_inherits_its_licences_over_generations(
    first: Run, tiny: TrainTiny, tiny_images: Path, tmp_path: Path
) -> None:
    """By its weights, by its tower, and by labels that are added."""
    kept = licenses(first.folder)
    second = tiny(f"trainer.init_from={first.folder}")
    assert licenses(second.folder) == kept
    assert warned(second.reporter.lines) == warned(first.reporter.lines)
    third = tiny(f"task.vision.pretrained={second.folder}")
    assert licenses(third.folder) == kept
    of_checkpoint = next((third.folder / "checkpoints").glob("best-*")) / "model.safetensors"
    fourth = tiny(f"trainer.init_from={of_checkpoint}")
    assert licenses(fourth.folder) == kept
    rows = coloured_rows(tmp_path, ["ct", "mri", "us", "xray"], {"train": 4, "val": 2, "test": 2})
    source = write_table(tmp_path, rows)
    grown = train_tiny(tmp_path, tmp_path / "runs", source, f"task.add_to={fourth.folder}")
    assert licenses(grown.folder) == kept
    assert warned(grown.reporter.lines) == warned(first.reporter.lines)


def test_an_expert_has_those_of_both_towers_and_a_classifier_with_its_tower_inherits_them(
    tiny: TrainTiny, tmp_path: Path
) -> None:
    vision, text = tmp_path / "vision", write_encoder(tmp_path / "text")
    vision.mkdir()
    save_file(timm.create_model("test_vit", num_classes=0, img_size=32).state_dict(), vision / "model.safetensors")
    (vision / "README.md").write_text("---\nlicense: mit\n---\n")
    (text / "README.md").write_text("---\nlicense: other\nlicense_name: terms-of-text\n---\n")
    options = [f"task.vision.pretrained={vision}", f"task.text={{name: '{text}', context_length: 16}}"]
    reporter = Recorder()
    result = train(experiment_of(tmp_path, *options, "trainer.max_steps=1"), reporter=reporter)
    assert result is not None
    kept = licenses(result.bundle)
    assert [(own["source"], own["name"]) for own in kept] == [(str(vision), "mit"), (str(text), "terms-of-text")]
    (warning,) = warned(reporter.lines)
    assert "terms-of-text" in warning
    router = tiny("task.vision.name=test_vit", f"task.vision.pretrained={result.bundle}")
    assert licenses(router.folder) == kept


@pytest.mark.parametrize("write_model", [clip_open, clip_hf])
def test_a_whole_model_has_its_licence_once_and_hands_it_on_with_its_towers(
    write_model: Any, tiny: TrainTiny, tmp_path: Path
) -> None:
    folder, reporter = write_model(tmp_path / "model").folder, Recorder()
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    result = train(whole_model(tmp_path, str(folder)), reporter=reporter)
    assert result is not None
    kept = licenses(result.bundle)
    assert kept == [{"source": str(folder), "name": "cc-by-nc-4.0", "read_from": "README.md"}]
    (warning,) = warned(reporter.lines)
    assert "commercial use" in warning
    router = tiny("task.vision.kind=bundle", f"task.vision.name={result.bundle}", "task.vision.pretrained=true")
    assert licenses(router.folder) == kept
    assert warned(router.reporter.lines) == [warning]
    text = f"task.text={{kind: bundle, name: '{result.bundle}'}}"
    again = train(experiment_of(tmp_path, text, "trainer.max_steps=1"), reporter=Recorder())
    assert again is not None
    assert licenses(again.bundle) == kept


def test_the_licence_of_a_whole_model_may_be_stated_and_not_those_of_its_towers(tmp_path: Path) -> None:
    folder, stopped = str(clip_open(tmp_path / "model").folder), Recorder(stop_at=1)
    with pytest.raises(KeyboardInterrupt):
        train(whole_model(tmp_path, folder), reporter=stopped)
    assert "is unknown (no README.md lies beside it)" in warned(stopped.lines)[0]
    result = train(whole_model(tmp_path, {"name": folder, "license": "mit"}), resume=True, reporter=Recorder())
    assert result is not None
    assert licenses(result.bundle) == [{"source": folder, "name": "mit", "read_from": "task.model.license"}]
    with pytest.raises(ConfigError, match=r"vision\.license cannot be given as well"):
        whole_model(tmp_path, folder, vision={"license": "mit"})


def test_the_licence_of_a_borrowed_tower_may_be_stated_where_its_bundle_recorded_none(
    first: Run, tiny: TrainTiny, tmp_path: Path
) -> None:
    old = without_licences(first.folder, tmp_path / "old")
    borrowed = ["task.vision.kind=bundle", f"task.vision.name={old}", "task.vision.pretrained=true"]
    assert [own["name"] for own in licenses(tiny(*borrowed).folder)] == [None]
    run = tiny(*borrowed, "task.vision.license=mit")
    assert [(own["name"], own["read_from"]) for own in licenses(run.folder)] == [("mit", "task.vision.license")]


def test_weights_that_replace_others_leave_nothing_of_their_licence(
    tiny: TrainTiny, tiny_run: Run, weights: Path
) -> None:
    run = tiny(f"task.vision.pretrained={weights}", f"trainer.init_from={tiny_run.folder}")
    assert licenses(run.folder) == []


def test_a_bundle_of_a_version_that_recorded_none_is_unknown(
    first: Run, tiny: TrainTiny, tmp_path: Path, tiny_images: Path
) -> None:
    old = without_licences(first.folder, tmp_path / "old")
    run = tiny(f"trainer.init_from={old}")
    (kept,) = licenses(run.folder)
    assert kept["name"] is None
    assert "did not record" in kept["read_from"]
    (warning,) = warned(run.reporter.lines)
    assert "is unknown" in warning
    evaluate(old, out=tmp_path / "judged", device="cpu", reporter=Recorder())
    assert "<td>unknown</td>" in (tmp_path / "judged" / "report.html").read_text(encoding="utf-8")


def test_a_report_of_other_data_says_it_too(first: Run, tmp_path: Path) -> None:
    evaluate(first.folder, out=tmp_path, device="cpu", reporter=Recorder())
    assert "<td>cc-by-nc-nd-4.0</td>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_cascade_has_those_of_its_networks(weights: Path, tmp_path: Path) -> None:
    rows = coloured_rows(tmp_path, ["ct.chest", "ct.head", "xray"], {"train": 4, "val": 2, "test": 2})
    source = write_table(tmp_path, rows)
    options = [source, "task.tree.head=cascade", f"task.vision.pretrained={weights}"]
    run = train_tiny(tmp_path, tmp_path / "runs", *options)
    (own,) = licenses(run.folder)
    assert own["name"] == "cc-by-nc-nd-4.0"
    stages = next(number for number, line in enumerate(run.reporter.lines) if line.startswith("stage 1"))
    assert [line for line in run.reporter.lines[:stages] if "starting weights" in line], "before hours are spent"


def test_a_trial_says_it_as_well(tiny_images: Path, weights: Path, tmp_path: Path) -> None:
    places = [f"data.sources.0.path={tiny_images}", f"data.store.root={tmp_path}", f"output.root={tmp_path}"]
    tree = apply_overrides(TREE, [*places, f"task.vision.pretrained={weights}"])
    reporter = Recorder()
    train(build(Experiment, tree, origin="tests"), dry_run=True, reporter=reporter)
    assert len(warned(reporter.lines)) == 1
