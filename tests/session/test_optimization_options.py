"""Losses, optimizers, schedules, clipping and accumulation, against a plain loop over a frozen tower's features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.session.conftest import COUNTS, Probe
from tests.tiny import FULL_BATCH, Run, TrainTiny, assert_close, same

RATE = 0.01
LOG_SUM = math.log(math.e + 2)  # of the scores [1, 0, 0]
SHARES = [count / 24 for count in COUNTS.values()]
SCORES = [1.0, 0.0, 0.0]


def head(run: Run) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in run.weights.items() if name.startswith("head.")}


def plain_loop(
    probe: Probe,
    build: Callable[[list[Tensor], list[Tensor]], torch.optim.Optimizer],
    *,
    factors: Sequence[float] = (1.0, 1.0),
    clip: float | None = None,
) -> dict[str, Tensor]:
    """The head after steps over all cases, written as anyone would; ``factors`` scale the rate step by step."""
    weight = torch.zeros(3, probe.features_NF.shape[1], requires_grad=True)
    bias = torch.tensor(SCORES, requires_grad=True)
    optimizer = build([weight], [bias])
    rates = [group["lr"] for group in optimizer.param_groups]
    for factor in factors:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        optimizer.zero_grad()
        functional.cross_entropy(probe.features_NF @ weight.T + bias, probe.targets_N).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([weight, bias], clip)
        optimizer.step()
    return {"head.1.weight": weight.detach(), "head.1.bias": bias.detach()}


def sgd(weights: list[Tensor], biases: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD([*weights, *biases], lr=RATE)


PLAIN = ["optimizer.kind=sgd", f"optimizer.learning_rate={RATE}", "optimizer.momentum=0", "optimizer.weight_decay=0"]


@pytest.mark.parametrize(
    ("overrides", "build"),
    [
        (["optimizer.kind=sgd", "optimizer.momentum=0"], lambda p: torch.optim.SGD(p, lr=RATE)),
        (["optimizer.kind=sgd", "optimizer.momentum=0.5"], lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.5)),
        (
            ["optimizer.kind=sgd", "optimizer.momentum=0.5", "optimizer.nesterov=true"],
            lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.5, nesterov=True),
        ),
        (
            ["optimizer.kind=adam", "optimizer.betas=[0.5, 0.6]", "optimizer.eps=0.1"],
            lambda p: torch.optim.Adam(p, lr=RATE, betas=(0.5, 0.6), eps=0.1),
        ),
        (
            ["optimizer.kind=adamw", "optimizer.betas=[0.5, 0.6]", "optimizer.eps=0.1"],
            lambda p: torch.optim.AdamW(p, lr=RATE, betas=(0.5, 0.6), eps=0.1),
        ),
    ],
    ids=["sgd", "momentum", "nesterov", "adam", "adamw"],
)
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_optimizers_do_what_torch_does(
    tiny: TrainTiny,
    probe: Probe,
    overrides: list[str],
    build: Callable[[list[dict[str, object]]], torch.optim.Optimizer],
    decay: float,
) -> None:
    run = tiny(
        *probe.overrides,
        *overrides,
        f"optimizer.learning_rate={RATE}",
        f"optimizer.weight_decay={decay}",
        images=probe.images,
    )
    expected = plain_loop(  # biases do not decay
        probe,
        lambda weights, biases: build(
            [{"params": weights, "weight_decay": decay}, {"params": biases, "weight_decay": 0.0}]
        ),
    )
    assert_close(head(run), expected)


def test_the_head_has_a_rate_of_its_own(tiny: TrainTiny, probe: Probe) -> None:
    run = tiny(*probe.overrides, *PLAIN, "optimizer.groups.head.learning_rate=0.05", images=probe.images)
    assert_close(head(run), plain_loop(probe, sgd, factors=(5.0, 5.0)))
    assert run.steps("learning_rate_head") == pytest.approx([0.05, 0.05])
    assert run.steps("learning_rate_tower") == pytest.approx([RATE, RATE])


def test_clipping_scales_the_gradient_down_to_its_norm(tiny: TrainTiny, probe: Probe) -> None:
    run = tiny(*probe.overrides, *PLAIN, "trainer.clip_norm=0.01", images=probe.images)
    assert_close(head(run), plain_loop(probe, sgd, clip=0.01))
    assert min(run.steps("gradient_norm")) > 0.01  # as it was before clipping


# -- Losses -------------------------------------------------------------------------------------------------------


def cross_entropies(smoothing: float = 0.0) -> list[float]:
    """The loss of a case of each class whose scores are [1, 0, 0]."""
    uniform = LOG_SUM - sum(SCORES) / 3
    return [(1 - smoothing) * (LOG_SUM - score) + smoothing * uniform for score in SCORES]


def focal(gamma: float) -> list[float]:
    return [(1 - math.exp(score - LOG_SUM)) ** gamma * (LOG_SUM - score) for score in SCORES]


def mean(losses: Sequence[float], weights: Sequence[float] = (1.0, 1.0, 1.0)) -> float:
    """Over the cases of train, each weighted by its class."""
    mass = [share * weight for share, weight in zip(SHARES, weights, strict=True)]
    return sum(m * loss for m, loss in zip(mass, losses, strict=True)) / sum(mass)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], mean(cross_entropies())),
        (["task.loss.label_smoothing=0.3"], mean(cross_entropies(0.3))),
        (["task.loss.kind=focal"], mean(focal(2.0))),
        (["task.loss.kind=focal", "task.loss.gamma=0.5"], mean(focal(0.5))),
        (["task.loss.kind=focal", "task.loss.gamma=0"], mean(cross_entropies())),
        (["task.loss.class_weights=balanced"], mean(cross_entropies(), [2 / 3, 4 / 3, 4 / 3])),
        (["task.loss.class_weights={ct: 1, mri: 2, xray: 7}"], mean(cross_entropies(), [1, 2, 7])),
        (["task.loss.kind=focal", "task.loss.class_weights=balanced"], mean(focal(2.0), [2 / 3, 4 / 3, 4 / 3])),
        (["task.multi_label=true"], None),
        (["task.multi_label=true", "task.loss.kind=focal", "task.loss.class_weights=balanced"], None),
        (["task.multi_label=true", "task.loss.label_smoothing=0.2"], None),
    ],
    ids=[
        "cross_entropy",
        "smoothing",
        "focal",
        "focal_gamma",
        "focal_gamma_0",
        "balanced",
        "given_weights",
        "focal_balanced",
        "multi_label",
        "multi_label_focal_balanced",
        "multi_label_smoothing",
    ],
)
def test_the_first_loss_is_the_one_computed_by_hand(
    tiny: TrainTiny, probe: Probe, overrides: list[str], expected: float | None
) -> None:
    run = tiny(*probe.overrides, *overrides, images=probe.images)
    expected = binary(overrides) if expected is None else expected
    first, second = run.steps("train_loss")
    assert first == pytest.approx(expected, rel=1e-5)
    assert second < first


def binary(overrides: Sequence[str]) -> float:
    """The mean of all labels' losses: a case is positive for its own label, negative for the others."""
    smoothing = 0.2 if any("smoothing" in text for text in overrides) else 0.0
    gamma = 2.0 if any("focal" in text for text in overrides) else 0.0
    balanced = any("balanced" in text for text in overrides)
    total = 0.0
    for score, share in zip(SCORES, SHARES, strict=True):
        p, weight = 1 / (1 + math.exp(-score)), (1 - share) / share if balanced else 1.0
        for target, mass in ((1.0, share), (0.0, 1 - share)):
            moved = target * (1 - smoothing) + 0.5 * smoothing
            loss = -(weight * moved * math.log(p) + (1 - moved) * math.log(1 - p))
            total += mass * loss * (1 - (p if target else 1 - p)) ** gamma
    return total / 3


def test_class_balanced_sampling_draws_classes_equally(tiny: TrainTiny, probe: Probe) -> None:
    long = [*probe.overrides, "data.mixture.stop=steps", "data.mixture.steps=2", "data.loader.batch_size=240"]
    shuffled = tiny(*long, images=probe.images)
    balanced = tiny(*long, "data.mixture.sampling=class_balanced", images=probe.images)
    # The loss of the first step tells which share of its cases was ct.
    shares = [LOG_SUM - run.steps("train_loss")[0] for run in (shuffled, balanced)]
    assert shares == pytest.approx([1 / 2, 1 / 3], abs=0.08)
    assert shares[0] == pytest.approx(1 / 2, abs=1e-5)  # ten passes over all rows


# -- Schedules ----------------------------------------------------------------------------------------------------

SIX_STEPS = ["trainer.max_steps=6", "trainer.max_epochs=6", "optimizer.learning_rate=0.01"]


@pytest.mark.parametrize(
    ("overrides", "factors"),
    [
        (["schedule.kind=constant"], [1, 1, 1, 1, 1, 1]),
        (["schedule.kind=constant", "schedule.warmup=3"], [1 / 4, 2 / 4, 3 / 4, 1, 1, 1]),
        (["schedule.kind=constant", "schedule.warmup=0.5"], [1 / 4, 2 / 4, 3 / 4, 1, 1, 1]),
        (
            ["schedule.kind=cosine", "schedule.floor=0.2"],
            [0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * step / 5)) for step in range(6)],
        ),
        (
            ["schedule.kind=cosine", "schedule.warmup=2"],
            [1 / 3, 2 / 3, *(0.5 * (1 + math.cos(math.pi * step / 3)) for step in range(4))],
        ),
        (["schedule.kind=step", "schedule.every_epochs=2", "schedule.factor=0.5"], [1, 1, 0.5, 0.5, 0.25, 0.25]),
        (
            ["schedule.kind=step", "schedule.every_epochs=2", "schedule.factor=0.5", "schedule.warmup=1"],
            [1 / 2, 1, 0.5, 0.5, 0.25, 0.25],
        ),
    ],
    ids=["constant", "warmup_steps", "warmup_share", "cosine_floor", "cosine_warmup", "step", "step_warmup"],
)
def test_rates_follow_the_schedule(
    tiny: TrainTiny, probe: Probe, overrides: list[str], factors: Sequence[float]
) -> None:
    run = tiny(*probe.overrides, *PLAIN, *SIX_STEPS, *overrides, images=probe.images)
    assert run.steps("learning_rate_head") == pytest.approx([RATE * factor for factor in factors])
    assert_close(head(run), plain_loop(probe, sgd, factors=factors))


def test_a_plateau_lowers_the_rate_down_to_its_floor(tiny: TrainTiny, probe: Probe) -> None:
    run = tiny(
        *probe.overrides,
        *SIX_STEPS,
        "optimizer.learning_rate=1e-9",  # nothing can improve
        "trainer.validate_every=1",
        "schedule={kind: plateau, patience: 0, factor: 0.1, floor: 0.05}",
        images=probe.images,
    )
    # The first validation is the best; the second, after step 2, lowers the rate of step 3.
    factors = [rate / 1e-9 for rate in run.steps("learning_rate_head")]
    assert factors == pytest.approx([1, 1, 0.1, 0.05, 0.05, 0.05])


# -- Accumulation -------------------------------------------------------------------------------------------------

# No batch statistics, so that a batch in parts is the same as a whole one.
NO_BATCH_STATISTICS = [
    "task.vision.name=test_convnext",
    "optimizer={kind: sgd, learning_rate: 0.1, momentum: 0.9}",
    "trainer.max_steps=4",
    "trainer.max_epochs=4",
    "trainer.validate_every=4",
]


@pytest.mark.parametrize(
    ("size", "accumulate", "whole"),
    [
        (4, 2, 8),  # 24 cases: equal windows
        (10, 2, 20),  # 10 + 10, then a window of a single short batch
        (10, 3, 24),  # 10 + 10 + 4: a window whose batches differ
        (5, 2, 10),  # 5 + 5, 5 + 5, 4
    ],
)
def test_accumulation_equals_a_larger_batch(
    tiny: TrainTiny, uneven_images: Path, size: int, accumulate: int, whole: int
) -> None:
    tiny = partial(tiny, *NO_BATCH_STATISTICS, "task.loss.class_weights=balanced", images=uneven_images)
    parts = tiny(f"data.loader.batch_size={size}", f"trainer.accumulate={accumulate}")
    once = tiny(f"data.loader.batch_size={whole}")
    assert parts.steps("cases") == once.steps("cases")
    assert parts.steps("train_loss") == pytest.approx(once.steps("train_loss"), rel=1e-4)
    assert_close(parts.weights, once.weights)
    assert not same(parts.weights, tiny(f"data.loader.batch_size={size}").weights)


def test_a_full_batch_is_all_of_train(tiny: TrainTiny) -> None:
    assert tiny(FULL_BATCH, "trainer.max_epochs=2").steps("cases") == [24, 48]
