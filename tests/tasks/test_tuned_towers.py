"""Towers of transformers and of open_clip that a task tunes: two steps, then a bundle that needs their folder no
more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import transformers
from torch import Tensor

import consilium
from consilium.data.batches.rows import Query
from consilium.models.checkpoints.find import find_text
from consilium.models.config import TextConfig, VisionConfig
from consilium.models.vision import build_vision
from consilium.tasks.align.task import Align
from tests.models.checkpoints.writers import clip_hf, clip_open, shaken, siglip_hf
from tests.tasks.test_align_contract import square, train_pairs
from tests.tiny import Run, changed, train_tiny

FINISH = import_module("consilium.session.finish")
IMAGES: list[Any] = [square("red"), square("blue")]
QUERIES: list[Any] = [Query(IMAGES[0], "A square that is red"), Query(IMAGES[1], "A blue one")]


def dino_hf(folder: Path) -> Any:
    """A DINOv2 without a file on how images are prepared."""
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=16
    )
    shaken(transformers.Dinov2Model(config)).save_pretrained(folder)


TOWERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "CLIP": ("hf", clip_hf), "SigLIP": ("hf", siglip_hf), "DINO": ("hf", dino_hf), "open_clip": ("open_clip", clip_open)
}  # fmt: skip


@pytest.fixture
def before_saving(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a training's own model, which is not yet a bundle, answers to the queries."""
    found: list[Any] = []
    judged = FINISH.predict_splits

    def ask(predictor: consilium.Predictor, *given: Any, **options: Any) -> Any:
        found.extend(predictor.predict(QUERIES if isinstance(predictor.task, Align) else IMAGES))
        return judged(predictor, *given, **options)

    monkeypatch.setattr(FINISH, "predict_splits", ask)
    return found


def after(run: Run, *, prefix: str) -> dict[str, Tensor]:
    """The tensors of a tower in a bundle."""
    return {name.removeprefix(prefix): tensor for name, tensor in run.weights.items() if name.startswith(prefix)}


def assert_answers(run: Run, expected: list[Any], queries: list[Any]) -> None:
    assert len(expected) == len(queries)
    assert consilium.load(run.folder, device="cpu").predict(queries) == expected


@pytest.mark.parametrize("name", TOWERS)
def test_a_classifier_tunes_an_image_tower(
    name: str, before_saving: list[Any], tiny_images: Path, tmp_path: Path
) -> None:
    kind, write = TOWERS[name]
    write(folder := tmp_path / "model")
    config = VisionConfig(kind=kind, name=str(folder))  # type: ignore[arg-type]
    first = build_vision(config, image_size=(32, 32)).model.state_dict()
    own = [
        f"task.vision={{kind: {kind}, name: {json.dumps(str(folder))}}}",
        "task.answers.calibrate=false",
        f"data.store.root={tmp_path / 'stores'}",
    ]
    run = train_tiny(tiny_images, tmp_path / "runs", *own)
    assert len(run.steps("train_loss")) == 2
    assert len(changed(first, after(run, prefix="tower.model."))) > 0.9 * len(first)
    shutil.rmtree(folder)
    assert_answers(run, before_saving, IMAGES)


def test_an_expert_tunes_the_text_tower_of_open_clip(before_saving: list[Any], tmp_path: Path) -> None:
    folder = clip_open(tmp_path / "model").folder
    first = find_text(TextConfig(kind="open_clip", name=str(folder))).load().model.state_dict()
    text = {"kind": "open_clip", "name": str(folder), "context_length": 32}
    run = train_pairs(tmp_path, f"task.text={json.dumps(text)}", "trainer.max_steps=2")
    assert len(run.steps("train_loss")) == 2
    assert len(changed(first, after(run, prefix="text.model."))) > 0.9 * len(first)
    shutil.rmtree(folder)
    assert_answers(run, before_saving, QUERIES)
