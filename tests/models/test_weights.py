"""Weights files: what may be read, what must fit, what learns."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from consilium.core.errors import ConfigError, WeightsError
from consilium.models.config import FreezeConfig, LoraConfig, VisionConfig
from consilium.models.weights import (
    PartCount,
    freeze_tower,
    load_state,
    load_strict,
    parameter_counts,
    train_unfrozen,
    weights_hash,
)

STATE = {"a": torch.arange(3.0), "b.c": torch.ones(2, 2)}


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def assert_is_state(found: dict[str, Tensor]) -> None:
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


# --- load_state ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": STATE},
        {f"module.{name}": tensor for name, tensor in STATE.items()},
        {f"_orig_mod.module.{name}": tensor for name, tensor in STATE.items()},
        {f"module._orig_mod.{name}": tensor for name, tensor in STATE.items()},
    ],
    ids=["plain", "state_dict", "model", "ddp", "compiled ddp", "ddp compiled"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_file_is_read(tmp_path: Path, content: dict[str, Any], zipped: bool) -> None:
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    assert_is_state(load_state(tmp_path / "w.pt"))


def test_safetensors_file_is_read_also_through_a_link_to_a_nameless_blob(tmp_path: Path) -> None:
    """Hub caches keep files under their hash and link the name to them."""
    (tmp_path / "blobs").mkdir()
    save_file(STATE, tmp_path / "blobs" / "3fa9")
    (tmp_path / "model.safetensors").symlink_to(Path("blobs") / "3fa9")
    assert_is_state(load_state(tmp_path / "model.safetensors"))


def test_prefix_that_only_some_names_have_stays(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pt")
    assert set(load_state(tmp_path / "w.pt")) == {"module.a", "b"}


def test_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    path, target = tmp_path / "w.pt", tmp_path / "written"
    torch.save({"a": torch.ones(1), "x": Malicious(target)}, path)
    with pytest.raises(WeightsError, match=r"w\.pt is refused: .*mkdir.*could run code.*\.safetensors"):
        load_state(path)
    assert not target.exists()


def test_plain_pickle_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    path, target = tmp_path / "w.pt", tmp_path / "written"
    path.write_bytes(pickle.dumps({"x": Malicious(target)}, protocol=2))
    with pytest.raises(WeightsError, match=r"w\.pt is damaged or not a weights file"):
        load_state(path)
    assert not target.exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("damage", ["empty", "text", "half"])
def test_damaged_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"hello, I am no weights file", "half": whole[: len(whole) // 2]}[damage])
    with pytest.raises(WeightsError, match=rf"{name} is damaged or not a weights file"):
        load_state(path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_missing_file_and_folder_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match=rf"{name} does not exist"):
        load_state(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(WeightsError, match=rf"{name} is a folder"):
        load_state(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "what"), [([1, 2], "a list"), ({"epoch": 3, "lr": 0.1}, r"`epoch` \(int\), `lr` \(float\)")]
)
def test_torch_file_of_other_things_is_refused(tmp_path: Path, content: Any, what: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=rf"holds .*{what}; expected a state_dict"):
        load_state(tmp_path / "w.pt")


# --- load_strict -----------------------------------------------------------------------------------------------------


def test_strict_load_copies_every_tensor() -> None:
    source, target = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    source(torch.randn(8, 3))
    load_strict(target, source.state_dict(), origin="x")
    assert all(torch.equal(target.state_dict()[name], tensor) for name, tensor in source.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": None}, r"missing +1  weight"),
        ({"bias": None, "weight": None}, r"missing +2  weight, bias"),
        ({"extra": torch.ones(1)}, r"fits +2  weight, bias\n.*not of the model +1  extra"),
        ({"weight": torch.ones(2, 5)}, r"of another shape +1  weight is \[2, 5\], the model's \[2, 3\]"),
        ({f"k{i}": torch.ones(1) for i in range(7)}, r"not of the model +7  k0, k1 and 5 more"),
    ],
)
def test_strict_load_names_what_does_not_fit_and_changes_nothing(
    change: dict[str, Tensor | None], message: str
) -> None:
    module = nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), **change}
    with pytest.raises(WeightsError, match=rf"(?s)weights in here\.pt do not fit the model.*{message}"):
        load_strict(module, {name: tensor for name, tensor in state.items() if tensor is not None}, origin="here.pt")
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())


# --- counting and freezing -------------------------------------------------------------------------------------------


class Tower(nn.Module):
    """Three blocks and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)) for _ in range(3)
        )

    def blocks(self) -> list[list[nn.Parameter]]:
        return [list(layer.parameters()) for layer in self.layers]

    def learning(self) -> list[bool]:
        states = [{parameter.requires_grad for parameter in block} for block in self.blocks()]
        assert all(len(state) == 1 for state in states)
        return [state.pop() for state in states]


def test_counts_are_per_part_and_leave_out_parts_without_parameters() -> None:
    module = nn.ModuleDict({"tower": nn.Linear(3, 2), "act": nn.ReLU(), "head": nn.Linear(2, 5)})
    module["tower"].requires_grad_(False)
    assert parameter_counts(module) == [PartCount("tower", 8, 0), PartCount("head", 15, 15)]


@pytest.mark.parametrize(
    ("config", "epoch", "learning"),
    [
        (FreezeConfig(), 0, [True, True, True]),
        (FreezeConfig(kind="tower"), 5, [False, False, False]),
        (FreezeConfig(kind="all_but_last_blocks", blocks=1), 0, [False, False, True]),
        (FreezeConfig(kind="all_but_last_blocks", blocks=3), 0, [True, True, True]),
        (FreezeConfig(warmup_epochs=2), 1, [False, False, False]),
        (FreezeConfig(warmup_epochs=2), 2, [True, True, True]),
        (FreezeConfig(kind="all_but_last_blocks", blocks=2, warmup_epochs=1), 0, [False, False, False]),
        (FreezeConfig(kind="all_but_last_blocks", blocks=2, warmup_epochs=1), 1, [False, True, True]),
        (FreezeConfig(kind="tower", warmup_epochs=1), 1, [False, False, False]),
        (FreezeConfig(unfreeze_every=2), 1, [False, False, True]),
        (FreezeConfig(unfreeze_every=2), 2, [False, True, True]),
        (FreezeConfig(unfreeze_every=2), 9, [True, True, True]),
        (FreezeConfig(unfreeze_every=1, warmup_epochs=2), 1, [False, False, False]),
        (FreezeConfig(unfreeze_every=1, warmup_epochs=2), 2, [False, False, True]),
        (FreezeConfig(kind="all_but_last_blocks", blocks=2, unfreeze_every=1), 0, [False, False, True]),
        (FreezeConfig(kind="all_but_last_blocks", blocks=2, unfreeze_every=1), 9, [False, True, True]),
    ],
)
def test_what_learns_in_an_epoch(config: FreezeConfig, epoch: int, learning: list[bool]) -> None:
    tower = Tower()
    for earlier in range(epoch + 1):  # as in a training: one epoch after the other
        freeze_tower(tower, config, epoch=earlier)
    assert tower.learning() == learning


def test_blocks_that_begin_one_after_the_other_need_a_tower_that_learns() -> None:
    with pytest.raises(ValueError, match="with kind: tower none does"):
        FreezeConfig(kind="tower", unfreeze_every=1)
    with pytest.raises(ValueError, match=r"freeze\.unfreeze_every is for blocks that learn, and lora"):
        VisionConfig(freeze=FreezeConfig(unfreeze_every=1), lora=LoraConfig())


def test_more_blocks_than_the_tower_has_are_refused_before_the_warmup_ends() -> None:
    config = FreezeConfig(kind="all_but_last_blocks", blocks=4, warmup_epochs=1)
    with pytest.raises(ConfigError, match=r"freeze\.blocks is 4, but the tower has 3 blocks"):
        freeze_tower(Tower(), config, epoch=0)


def test_frozen_parts_neither_move_their_statistics_nor_drop_units() -> None:
    tower = Tower()
    freeze_tower(tower, FreezeConfig(kind="all_but_last_blocks", blocks=1), epoch=0)
    train_unfrozen(tower)
    assert [[module.training for module in layer] for layer in tower.layers] == [[False] * 3, [False] * 3, [True] * 3]
    assert tower.training


def test_frozen_norm_inside_a_learning_part_keeps_its_statistics() -> None:
    layer = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    layer[1].requires_grad_(False)
    train_unfrozen(layer)
    assert [module.training for module in layer] == [True, False, True]


def test_the_hash_of_weights_is_of_every_value_and_name() -> None:
    def module(*, kind: torch.dtype = torch.float32) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)).to(kind)

    whole = weights_hash(module())
    assert weights_hash(module().to(memory_format=torch.channels_last).eval().requires_grad_(False)) == whole  # type: ignore[call-overload]
    assert weights_hash(nn.Sequential(*module().children(), nn.ReLU())) == whole
    others = {whole, weights_hash(module(kind=torch.bfloat16)), weights_hash(nn.ModuleDict({"a": module()}))}
    for name in module().state_dict():
        changed = module()
        value = changed.state_dict()[name].reshape(-1)
        value[-1] += 1
        others.add(weights_hash(changed))
    assert len(others) == 3 + len(module().state_dict())
