"""Towers of a trained bundle in another task."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

import consilium
from consilium.core.errors import ConfigError
from consilium.data.batches.rows import Query
from consilium.models.config import TextConfig, VisionConfig
from consilium.session import train
from tests.conftest import write_images
from tests.tasks.test_align_contract import experiment_of, square
from tests.tasks.test_fuse_contract import experiment_of as fused
from tests.tiny import Recorder, tiny_experiment


@pytest.fixture(scope="module")
def expert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained expert of captioned squares."""
    result = train(experiment_of(tmp_path_factory.mktemp("expert")), reporter=Recorder())
    assert result is not None
    return result.folder


def weights(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    found = load_file(folder / "model.safetensors")
    return {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}


def own(folder: Path, bundle: Path, *overrides: str) -> Any:
    """A router upon the image tower of a bundle; what the tiny experiment says of towers and images is left out."""
    images = write_images(folder / "images")
    tree = tiny_experiment(images, folder / "runs", *overrides).model_dump(mode="json", exclude_unset=True)
    tree["task"]["vision"] = {"kind": "bundle", "name": str(bundle), **tree["task"]["vision"]}
    tree["task"]["vision"] |= {"kind": "bundle", "name": str(bundle)}
    tree["task"]["vision"].pop("pretrained", None)
    tree["data"].pop("image", None)
    return tree


@pytest.mark.parametrize("freeze", ["tower", "none"])
def test_a_router_takes_the_image_tower_of_an_expert(freeze: str, expert: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(expert, tmp_path / "bundle")
    tree = own(tmp_path, bundle, f"task.vision.freeze.kind={freeze}")
    result = train(consilium.Experiment.model_validate(tree), reporter=(seen := Recorder()))
    assert result is not None
    taken, given = weights(result.folder, "tower.model."), weights(expert, "vision.model.")
    assert taken.keys() == given.keys()
    assert all(torch.equal(taken[name], given[name]) for name in taken) == (freeze == "tower")
    assert ("are cached in" in "\n".join(seen.lines)) == (freeze == "tower")
    shutil.rmtree(bundle)
    model = consilium.load(result.folder, device="cpu")
    assert model.manifest.image.size == (32, 32)
    assert model.predict([square("red")])[0]["label"]


def test_an_expert_takes_the_text_tower_of_another(expert: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(expert, tmp_path / "bundle")
    text = {"kind": "bundle", "name": str(bundle), "freeze": {"kind": "tower"}}
    tree = experiment_of(tmp_path).model_dump(mode="json", exclude_unset=True)
    tree["task"]["text"] = text
    result = train(consilium.Experiment.model_validate(tree), reporter=Recorder())
    assert result is not None
    taken, given = weights(result.folder, "text."), weights(expert, "text.")
    assert taken.keys() == given.keys()
    assert all(torch.equal(taken[name], given[name]) for name in taken)
    shutil.rmtree(bundle)
    model, first = consilium.load(result.folder, device="cpu"), consilium.load(expert, device="cpu")
    assert model.manifest.task.text.context_length == 16
    assert model.task.tokenizer == first.task.tokenizer
    assert len(model.predict([Query(text="A square")])[0]["text_embedding"]) == 16


@pytest.mark.parametrize("freeze", ["tower", "none"])
def test_fuse_takes_both_towers_and_the_tokenizer_of_an_expert(freeze: str, expert: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(expert, tmp_path / "bundle")
    tree = fused(tmp_path).model_dump(mode="json", exclude_unset=True)
    tower = {"kind": "bundle", "name": str(bundle), "freeze": {"kind": freeze}}
    tree["task"] |= {"vision": tower, "text": tower}
    tree["data"].pop("image", None)
    result = train(consilium.Experiment.model_validate(tree), reporter=Recorder())
    assert result is not None
    for side in ("text.", "vision."):
        taken, given = weights(result.folder, side), weights(expert, side)
        assert taken.keys() == given.keys()
        assert all(torch.equal(taken[name], given[name]) for name in taken) == (freeze == "tower")
    shutil.rmtree(bundle)
    model, first = consilium.load(result.folder, device="cpu"), consilium.load(expert, device="cpu")
    assert model.task.tokenizer == first.task.tokenizer
    assert model.task.text.pooling == first.task.text.pooling
    assert model.manifest.task.text.context_length == 16
    assert model.predict([Query(text="it is round")])[0]["modalities"] == ["text"]


def test_a_text_tower_of_fuse_goes_into_another_and_reads_shorter(tmp_path: Path) -> None:
    first = train(fused(tmp_path / "a", "trainer.max_steps=1"), reporter=Recorder())
    assert first is not None
    tree = fused(tmp_path / "b", "trainer.max_steps=1").model_dump(mode="json", exclude_unset=True)
    tree["task"]["text"] = {"kind": "bundle", "name": str(first.folder), "context_length": 5}
    again = train(consilium.Experiment.model_validate(tree), reporter=(seen := Recorder()))
    assert again is not None
    model = consilium.load(again.folder, device="cpu")
    assert model.task.tokenizer.context_length == 5
    assert any("training texts are longer than the text tower reads" in line for line in seen.lines)


@pytest.mark.parametrize("pretrained", [False, "weights.pt"])
@pytest.mark.parametrize("config", [VisionConfig, TextConfig])
def test_a_bundle_has_weights(config: Any, pretrained: bool | str) -> None:
    with pytest.raises(ValidationError, match="a tower of a bundle has the weights of the bundle"):
        config(kind="bundle", name="bundle", pretrained=pretrained)


def test_what_a_bundle_does_not_have_is_refused(expert: Path, tmp_path: Path) -> None:
    tree = own(tmp_path, expert, "task.vision.pooling=avg")
    with pytest.raises(ConfigError, match=r"pooling is avg, but the tower of .* with default; leave it out"):
        train(consilium.Experiment.model_validate(tree), reporter=Recorder())
    images = write_images(tmp_path / "images")
    router = train(tiny_experiment(images, tmp_path / "runs", "trainer.max_steps=1"), reporter=Recorder())
    assert router is not None
    tree = experiment_of(tmp_path).model_dump(mode="json", exclude_unset=True)
    tree["task"]["text"] = {"kind": "bundle", "name": str(router.folder)}
    with pytest.raises(ConfigError, match=r"is a bundle without a text tower; name one of kind align"):
        train(consilium.Experiment.model_validate(tree), reporter=Recorder())
