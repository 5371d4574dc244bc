"""Plans are exact, schedules do what their formula says."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from consilium.core.contracts import ParameterGroup
from consilium.core.errors import ConfigError
from consilium.training.config import (
    AdamConfig,
    ConstantConfig,
    CosineConfig,
    GroupConfig,
    LinearConfig,
    PlateauConfig,
    ScheduleConfig,
    SGDConfig,
    StepConfig,
    TrainerConfig,
)
from consilium.training.optim import Schedule, build_optimizer
from consilium.training.plan import make_plan


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 5), st.sampled_from([0.1, 0.25, 0.5, 1.0, 2.0])
)
def test_every_batch_belongs_to_a_step_and_the_last_step_validates(
    batches: list[int], accumulate: int, every: float
) -> None:
    plan = make_plan(batches, config=TrainerConfig(accumulate=accumulate, validate_every=every))
    assert plan.total_steps == sum(math.ceil(count / accumulate) for count in batches)
    assert plan.total_steps in plan.validate_after
    assert all(0 < step <= plan.total_steps for step in plan.validate_after)
    assert plan.batches == tuple(batches)


def test_batches_after_max_steps_are_not_trained_on() -> None:
    plan = make_plan([5, 4, 6, 6], config=TrainerConfig(accumulate=2, max_steps=7))
    assert plan.steps == (3, 2, 3, 3)
    assert plan.batches == (5, 4, 4, 0)


def test_whole_epochs_end_with_their_step() -> None:
    plan = make_plan([3, 5, 4], config=TrainerConfig(validate_every=1.0, save_every=2.0))
    assert plan.validate_after == {3, 8, 12}
    assert plan.save_after == {8, 12}


def test_fractions_of_an_epoch_and_max_steps() -> None:
    plan = make_plan([10, 10], config=TrainerConfig(validate_every=0.5, max_steps=12))
    assert plan.total_steps == 12
    assert plan.validate_after == {5, 10, 12}


def test_intervals_with_a_unit() -> None:
    config = TrainerConfig(validate_every="7 steps", save_every="25 %", log_every="0.5 epochs")
    plan = make_plan([10, 8], config=config)
    assert plan.validate_after == {7, 14, 18}
    assert plan.save_after == {4, 9, 14, 18}  # of 18 steps: 4.5, 9, 13.5, 18
    assert plan.log_every == 5
    assert make_plan([2], config=TrainerConfig(save_every="10 %", log_every="1 %")).save_after == {1, 2}


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=6),
    st.one_of(
        st.integers(1, 99).map("{} steps".format),
        st.integers(1, 9).map("{} epochs".format),
        st.integers(1, 100).map("{} %".format),
    ),
)
def test_intervals_lie_in_the_training_and_end_with_it(batches: list[int], every: str) -> None:
    plan = make_plan(batches, config=TrainerConfig(save_every=every))
    assert plan.total_steps in plan.save_after
    assert all(0 < step <= plan.total_steps for step in plan.save_after)


def test_epochs_with_a_unit_are_those_without() -> None:
    plans = [make_plan([3, 5, 4], config=TrainerConfig(save_every=given)) for given in (0.5, "0.5 epochs")]
    assert plans[0] == plans[1]


def schedule(
    config: ScheduleConfig, *, total: int = 100, floors: dict[str, float] | None = None
) -> tuple[Schedule, torch.optim.Optimizer]:
    model = nn.Linear(2, 2)
    groups = [ParameterGroup("tower", [model.weight]), ParameterGroup("head", [model.bias])]
    own = {"head": GroupConfig(learning_rate=1.0)}
    optimizer = build_optimizer(AdamConfig(kind="adamw", learning_rate=0.1, groups=own), groups=groups)
    built = Schedule(config, optimizer=optimizer, total_steps=total, steps_per_epoch=10, floors=floors or {})
    return built, optimizer


def run(built: Schedule, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(built.rates()["head"])
        optimizer.step()
        built.step()
    return rates


def test_cosine_warms_up_reaches_the_rate_and_ends_at_the_floor() -> None:
    built, optimizer = schedule(CosineConfig(warmup=0.1, floor=0.01))
    rates = run(built, optimizer, 100)
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_linear_falls_by_the_same_in_every_step() -> None:
    rates = run(*schedule(LinearConfig(warmup="9 steps", floor=0.1)), 100)
    assert rates[:9] == pytest.approx([step / 10 for step in range(1, 10)])
    assert rates[9] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(0.1)
    falls = [before - after for before, after in pairwise(rates[9:])]
    assert falls == pytest.approx([0.01] * 90)


@pytest.mark.parametrize(("warmup", "steps"), [("20 steps", 20), ("2 epochs", 20), ("20 %", 20), (20, 20), (0.2, 20)])
def test_a_warm_up_is_as_long_in_every_unit(warmup: str | float, steps: int) -> None:
    rates = run(*schedule(ConstantConfig(warmup=warmup)), 30)
    assert rates[steps - 1] < 1.0 == rates[steps]


def test_constant_and_step() -> None:
    assert set(run(*schedule(ConstantConfig()), 20)) == {1.0}
    rates = run(*schedule(StepConfig(every_epochs=2, factor=0.5)), 50)
    assert rates[0] == 1.0
    assert rates[20] == pytest.approx(0.5)
    assert rates[40] == pytest.approx(0.25)


def test_tower_and_head_keep_their_ratio() -> None:
    built, optimizer = schedule(CosineConfig())
    for _ in range(50):
        assert built.rates()["head"] == pytest.approx(10 * built.rates()["tower"])
        optimizer.step()
        built.step()


@pytest.mark.parametrize("earlier", [False, True], ids=["own", "of an earlier version"])
def test_plateau_lowers_after_patience_and_survives_a_checkpoint(earlier: bool) -> None:
    config = PlateauConfig(patience=1, factor=0.1)
    built, optimizer = schedule(config)
    for gained in (True, True, False):
        built.on_evaluation(gained=gained)
    saved, weights = built.state_dict(), optimizer.state_dict()
    if earlier:
        saved["tracker"] = {"num_bad_epochs": saved.pop("rests"), "best": 2.0}
    other, other_optimizer = schedule(config)
    other_optimizer.load_state_dict(weights)
    other.load_state_dict(saved)
    for one in (built, other):
        optimizer.step() if one is built else other_optimizer.step()
        one.on_evaluation(gained=False)  # the second validation
        one.step()
        assert one.rates()["head"] == pytest.approx(0.1)


def test_a_warm_up_longer_than_the_training_is_refused() -> None:
    for warmup in (500, "500 steps", "50 epochs"):
        with pytest.raises(ConfigError, match="warmup is 500 steps but the whole training has only 100"):
            schedule(CosineConfig(warmup=warmup))
    with pytest.raises(ConfigError, match="warmup is 100 steps but the whole training has only 100"):
        schedule(CosineConfig(warmup="100 %"))


def test_biases_and_norms_are_not_decayed() -> None:
    _, optimizer = schedule(ConstantConfig())
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"tower": 0.01, "head": 0.0}


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_every_optimizer_learns(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    config = SGDConfig(kind="sgd", learning_rate=0.05) if kind == "sgd" else AdamConfig(kind=kind, learning_rate=0.05)  # type: ignore[arg-type]
    optimizer = build_optimizer(config, groups=[ParameterGroup("head", list(model.parameters()))])
    inputs = torch.randn(64, 4)
    targets = inputs.sum(1, keepdim=True)
    losses = []
    for _ in range(60):
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        (AdamConfig(kind="adamw", weight_decay=0.1), torch.optim.AdamW),
        (AdamConfig(kind="adam", weight_decay=0.1), torch.optim.Adam),
        (SGDConfig(kind="sgd", weight_decay=0.1), partial(torch.optim.SGD, momentum=0.9)),
    ],
)
def test_a_tower_in_channels_last_order_learns_as_by_the_plain_formula(
    config: AdamConfig | SGDConfig, plain: Callable[..., torch.optim.Optimizer]
) -> None:
    def trained(fused: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 2))
        net.to(memory_format=torch.channels_last)
        weights = [parameter for parameter in net.parameters() if parameter.ndim > 1]
        assert not weights[0].is_contiguous()

        def built() -> torch.optim.Optimizer:
            if fused:
                return build_optimizer(config, groups=[ParameterGroup("all", list(net.parameters()))])
            biases = [parameter for parameter in net.parameters() if parameter.ndim == 1]
            groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
            return plain(groups, lr=config.learning_rate, foreach=False, fused=False)

        optimizer = built()
        for step in range(6):
            if step == 3:  # as a run that is resumed
                state = io.BytesIO()
                torch.save(optimizer.state_dict(), state)
                optimizer = built()
                optimizer.load_state_dict(torch.load(io.BytesIO(state.getvalue()), weights_only=True))
            images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(step))
            net(images.to(memory_format=torch.channels_last)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return [parameter.detach() for parameter in net.parameters()]

    for ours, theirs in zip(trained(True), trained(False), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
