"""A tower's weights in files as training frameworks save them: below a prefix, in copies, beside other things."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from consilium.core.errors import WeightsError
from consilium.models.config import VisionConfig
from consilium.models.parts import first_names
from consilium.models.vision import VisionTower, build_vision

NAME, SIZE = "test_resnet", (32, 32)


def built(file: Path, name: str = NAME) -> VisionTower:
    return build_vision(VisionConfig(name=name, pretrained=str(file)), image_size=SIZE)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return dict(timm.create_model(NAME, num_classes=7).state_dict())


def below(prefix: str, weights: dict[str, Tensor], *, value: float | None = None) -> dict[str, Tensor]:
    """The weights with a prefix; filled with ``value`` for a copy that is not the one to use."""
    return {
        prefix + name: tensor if value is None else torch.full_like(tensor, value) for name, tensor in weights.items()
    }


def assert_loaded(tower: VisionTower, weights: dict[str, Tensor]) -> None:
    own = tower.model.state_dict()
    assert len(own) == len(weights) - 2  # without the classifier
    assert all(torch.equal(tensor, weights[name]) for name, tensor in own.items())


@pytest.mark.parametrize(
    "prefix",
    [
        "model.", "backbone.", "encoder.", "module.encoder.", "module.", "_orig_mod.model.", "net.", "student.",
        "teacher.backbone.", "image_encoder.", "visual.trunk.", "0.", "model.model.", "tower.model.",
    ],
)  # fmt: skip
@pytest.mark.parametrize("container", ["state_dict", "model", "params", None])
def test_a_prefix_that_all_fitting_names_share_is_taken_off_and_said(
    tmp_path: Path, weights: dict[str, Tensor], prefix: str, container: str | None
) -> None:
    file, state = tmp_path / "w.ckpt", below(prefix, weights)
    settings = {"epoch": 3, "name": "x", "hyper_parameters": {"lr": 1e-3}, "loops": [1, {"a": None}]}
    torch.save({**settings, **({container: state} if container else state)}, file)
    tower = built(file)
    assert_loaded(tower, weights)
    whole = f"{container}.{prefix}" if container else prefix
    assert f"w.ckpt: the weights below `{whole}` are used; left out, as not the tower's: " in tower.weights_note


@pytest.mark.parametrize(
    ("used", "other"),
    [
        ("teacher.backbone.", "student.module.backbone."),
        ("state_dict_ema.", "state_dict."),
        ("ema_model.", "model."),
        ("model_ema.module.", "model."),
        ("state_dict.encoder_q.", "state_dict.encoder_k."),  # no average among them: the first
    ],
)
def test_of_copies_the_average_is_used_and_the_other_named(
    tmp_path: Path, weights: dict[str, Tensor], used: str, other: str
) -> None:
    copies = [below(used, weights), below(other, weights, value=0)]
    ordered = copies if "_q" in used else copies[::-1]
    torch.save({name: tensor for copy in ordered for name, tensor in copy.items()}, tmp_path / "w.pt")
    tower = built(tmp_path / "w.pt")
    assert_loaded(tower, weights)
    assert f"below `{used}` are used; those below `{other}` fit, too, but are not used" in tower.weights_note


def test_a_copy_that_fits_is_used_rather_than_an_average_that_does_not(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    larger = {**below("teacher.", weights), "teacher.stages.9.weight": torch.ones(3)}
    torch.save({**larger, **below("student.", weights)}, tmp_path / "w.pt")
    assert "below `student.` are used" in built(tmp_path / "w.pt").weights_note


def test_heads_and_other_tensors_are_left_out_with_a_word(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    head = {"fc.0.weight": torch.ones(2, 2), "fc.2.weight": torch.ones(2, 2)}
    plain = {name: tensor for name, tensor in weights.items() if not name.startswith("fc.")}
    torch.save({**below("encoder.", {**plain, **head}), "queue": torch.ones(3)}, tmp_path / "w.pt")
    tower = built(tmp_path / "w.pt")
    assert_loaded(tower, weights)
    assert "left out, as not the tower's: encoder.fc.0.weight, encoder.fc.2.weight, queue" in tower.weights_note


def test_settings_beside_the_weights_run_no_code_and_do_no_harm(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    settings: dict[str, Any] = {
        "args": argparse.Namespace(lr=np.float64(0.1), out=Path("x"), when=datetime.datetime(2026, 1, 2)),
        "best": np.float32(0.5),
        "step": np.int64(3),
        "optimizer": torch.optim.Adam(timm.create_model(NAME).parameters()).state_dict(),
    }
    for zipped in (True, False):
        torch.save(
            {"state_dict": below("model.", weights), **settings},
            tmp_path / "w.pt",
            _use_new_zipfile_serialization=zipped,
        )
        assert_loaded(built(tmp_path / "w.pt"), weights)


def test_weights_of_another_model_are_refused_with_what_the_file_holds(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    torch.save({"state_dict": below("model.", weights)}, tmp_path / "w.pt")
    told = (
        r"The file holds \d+ tensors, all below `state_dict\.model\.`: .* most of those of test_vit are not among them"
    )
    with pytest.raises(WeightsError, match=told):
        built(tmp_path / "w.pt", "test_vit")


def test_weights_of_a_smaller_model_are_refused_below_a_prefix_too(tmp_path: Path) -> None:
    torch.save(below("model.", dict(timm.create_model("resnet34").state_dict())), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"Unexpected key.*Those below `model\.` fit best"):
        built(tmp_path / "w.pt", "resnet18")


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"epoch": 3}])
def test_a_file_without_weights_says_what_it_holds(tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"holds (nothing|other things than tensors: `epoch` \(int\)); expected"):
        built(tmp_path / "w.pt")


def test_what_a_file_holds_in_a_few_words() -> None:
    assert first_names(["a.b.x.w", "a.b.y", "a.b.x.v"]) == "all below `a.b.`: x (2), y (1)"
    assert first_names(["a.b", "c", "a.d"]) == "a (2), c (1)"
    assert first_names(["w"]) == "w (1)"
