"""``optimizer.groups``: every group of parameters learns by its own settings, its own kind of optimizer too."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from consilium.core.contracts import ParameterGroup
from consilium.core.errors import ConfigError
from consilium.training.config import AdamConfig, CosineConfig, GroupConfig, PlateauConfig, ScheduleConfig, SGDConfig
from consilium.training.optim import Schedule, SeveralOptimizers, build_optimizer

BOTH = AdamConfig(
    kind="adamw",
    learning_rate=0.01,
    weight_decay=0.1,
    groups={"tower": GroupConfig(kind="sgd", learning_rate=0.1, momentum=0.8, nesterov=True)},
)


class Net(nn.Module):
    """A tower of two layers, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tower = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """The mean square of the output: something to lower."""
        output: torch.Tensor = self.head(self.tower(rows)).square().mean()
        return output

    def groups(self) -> list[ParameterGroup]:
        """As a task gives them."""
        tower = list(self.tower.parameters())
        return [
            ParameterGroup("tower", tower, depths=lambda: [1, 1, 0, 0]),
            ParameterGroup("head", list(self.head.parameters())),
        ]


def decayed(parameters: Iterable[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    own = list(parameters)
    return [
        {"params": [p for p in own if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in own if p.ndim == 1], "weight_decay": 0.0},
    ]


def learn(net: nn.Module, optimizers: Iterable[Any], *, steps: range) -> None:
    for step in steps:
        net(torch.randn(5, 3, generator=torch.Generator().manual_seed(step))).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def assert_equal(left: nn.Module, right: nn.Module) -> None:
    for (name, one), other in zip(left.state_dict().items(), right.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_two_kinds_step_as_two_optimizers_do() -> None:
    net = Net()
    plain = copy.deepcopy(net)
    built = build_optimizer(BOTH, groups=net.groups())
    assert isinstance(built, SeveralOptimizers)
    tower = torch.optim.SGD(decayed(plain.tower.parameters(), 0.1), lr=0.1, momentum=0.8, nesterov=True, fused=True)
    head = torch.optim.AdamW(decayed(plain.head.parameters(), 0.1), lr=0.01, fused=True)
    learn(net, [built], steps=range(4))
    learn(plain, [tower, head], steps=range(4))
    assert_equal(net, plain)


@pytest.mark.parametrize("nesterov", [False, True])
def test_layers_of_one_group_that_begin_in_turn_step_as_each_by_itself(nesterov: bool) -> None:
    """Fused SGD with momentum and a layer that learns from the third step on."""
    net = Net()
    plain = copy.deepcopy(net)
    built = build_optimizer(SGDConfig(kind="sgd", learning_rate=0.1, nesterov=nesterov), groups=net.groups())
    late, parameters = plain.tower[0], [*plain.tower[2].parameters(), *plain.head.parameters()]
    kinds = [
        torch.optim.SGD(decayed(own, 0.01), lr=0.1, momentum=0.9, nesterov=nesterov, fused=True)
        for own in (parameters, list(late.parameters()))
    ]
    for step in range(5):
        for own in (net.tower[0], late):
            own.requires_grad_(step > 1)
        learn(net, [built], steps=range(step, step + 1))
        learn(plain, kinds, steps=range(step, step + 1))
    assert_equal(net, plain)


def test_groups_of_one_kind_are_one_optimizer_with_settings_of_their_own() -> None:
    net = Net()
    plain = copy.deepcopy(net)
    config = AdamConfig(
        kind="adam",
        betas=(0.8, 0.9),
        weight_decay=0.1,
        groups={"head": GroupConfig(betas=(0.5, 0.6), eps=0.1, weight_decay=0.3, learning_rate=0.05)},
    )
    built = build_optimizer(config, groups=net.groups())
    assert type(built) is torch.optim.Adam
    tower = torch.optim.Adam(decayed(plain.tower.parameters(), 0.1), lr=1e-3, betas=(0.8, 0.9), fused=True)
    head = torch.optim.Adam(decayed(plain.head.parameters(), 0.3), lr=0.05, betas=(0.5, 0.6), eps=0.1, fused=True)
    learn(net, [built], steps=range(3))
    learn(plain, [tower, head], steps=range(3))
    assert_equal(net, plain)


def test_a_plain_config_builds_what_torch_builds() -> None:
    """Names and number of the saved groups too: checkpoints of earlier versions fit."""
    net = Net()
    built = build_optimizer(SGDConfig(kind="sgd", momentum=0.5), groups=net.groups())
    parts = [
        {**part, "name": name} for name in ("tower", "head") for part in decayed(getattr(net, name).parameters(), 0.01)
    ]
    expected = torch.optim.SGD(parts, lr=1e-3, momentum=0.5, fused=True)
    assert type(built) is torch.optim.SGD
    assert built.state_dict() == expected.state_dict()


def test_two_kinds_are_saved_and_taken_up_with_their_rates() -> None:
    def start() -> tuple[Net, Any, Schedule]:
        net = Net()
        optimizer = build_optimizer(BOTH, groups=net.groups())
        schedule = Schedule(
            CosineConfig(), optimizer=optimizer, total_steps=9, steps_per_epoch=3, floors={"tower": 0.5}
        )
        return net, Accelerator(cpu=True).prepare(optimizer), schedule

    def go_on(net: Net, optimizer: Any, schedule: Schedule, steps: range) -> None:
        for step in steps:
            learn(net, [optimizer], steps=range(step, step + 1))
            schedule.step()

    whole, first, second = start(), start(), start()
    go_on(*whole, range(9))
    go_on(*first, range(4))
    file = io.BytesIO()
    torch.save([first[0].state_dict(), first[1].state_dict(), first[2].state_dict()], file)
    file.seek(0)
    for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert second[2].rates() == first[2].rates()
    go_on(*second, range(4, 9))
    assert_equal(second[0], whole[0])
    assert whole[2].rates() == pytest.approx({"tower": 0.05, "head": 0.0})


@pytest.mark.parametrize("config", [CosineConfig(floor=0.2), PlateauConfig(patience=0, factor=0.1, floor=0.2)])
def test_a_group_has_a_floor_of_its_own(config: ScheduleConfig) -> None:
    optimizer = build_optimizer(AdamConfig(kind="adamw", learning_rate=1.0), groups=Net().groups())
    schedule = Schedule(config, optimizer=optimizer, total_steps=10, steps_per_epoch=5, floors={"head": 0.05})
    for _ in range(9):
        optimizer.step()
        schedule.step()
        schedule.on_evaluation(gained=False)
    assert schedule.rates() == pytest.approx({"tower": 0.2, "head": 0.05})


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_layers_below_the_top_learn_less_and_the_rate_shown_is_that_of_the_top(kind: str) -> None:
    net = Net()
    own = {"tower": GroupConfig(layer_decay=0.5, learning_rate=0.1)}
    config = SGDConfig(kind="sgd", groups=own) if kind == "sgd" else AdamConfig(kind="adamw", groups=own)
    optimizer = build_optimizer(config, groups=net.groups())
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert {rates[parameter] for parameter in net.tower[0].parameters()} == {0.05}
    assert {rates[parameter] for parameter in net.tower[2].parameters()} == {0.1}
    assert {rates[parameter] for parameter in net.head.parameters()} == {1e-3}
    schedule = Schedule(CosineConfig(), optimizer=optimizer, total_steps=2, steps_per_epoch=1, floors={})
    assert schedule.rates() == {"tower": 0.1, "head": 1e-3}


def test_a_group_without_layers_refuses_their_decay() -> None:
    config = AdamConfig(kind="adamw", groups={"head": GroupConfig(layer_decay=0.5)})
    with pytest.raises(ConfigError, match=r"optimizer\.groups\.head\.layer_decay is 0\.5, but head has no layers"):
        build_optimizer(config, groups=Net().groups())
