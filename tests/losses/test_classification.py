"""The losses against torch, torchvision, scikit-learn and the formulas written out."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from consilium.core.errors import ConfigError, DataError
from consilium.core.labels import LabelTree
from consilium.losses.classification import ClassificationLoss, build_loss
from consilium.losses.config import ClassificationLossConfig, CrossEntropyConfig, FocalConfig

LABELS = LabelTree(["ct", "mri", "xray"])
COUNTS = [60, 30, 10]
GIVEN = {"ct": 0.5, "mri": 1.0, "xray": 3.0}


def loss_of(
    config: ClassificationLossConfig, *, multi_label: bool = False, cases: int = sum(COUNTS)
) -> ClassificationLoss:
    return build_loss(config, labels=LABELS, multi_label=multi_label, class_counts=COUNTS, cases=cases)


def logits_and_classes(seed: int = 0, cases: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(cases, 3, generator=generator) * 3, torch.randint(0, 3, (cases,), generator=generator)


def logits_and_sets(seed: int = 0, cases: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(cases, 3, generator=generator) * 3, (torch.rand(cases, 3, generator=generator) > 0.5).float()


# --- one label a case ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", ["none", "balanced", GIVEN], ids=["none", "balanced", "given"])
def test_cross_entropy_is_torch_s(smoothing: float, weights: Any) -> None:
    logits_BK, targets_B = logits_and_classes()
    loss = loss_of(CrossEntropyConfig(label_smoothing=smoothing, class_weights=weights))
    expected = functional.cross_entropy(
        logits_BK, targets_B, weight=loss.weights_K, label_smoothing=smoothing, reduction="none"
    )
    torch.testing.assert_close(loss(logits_BK, targets_B), expected.mean())


@pytest.mark.parametrize("weights", ["balanced", GIVEN], ids=["balanced", "given"])
def test_over_all_of_train_weighted_cross_entropy_is_torch_s_weighted_mean(weights: Any) -> None:
    targets_N = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
    logits_NK, _ = logits_and_classes(cases=len(targets_N))
    given = torch.tensor([sum(COUNTS) / (3 * n) for n in COUNTS] if weights == "balanced" else list(GIVEN.values()))
    expected = functional.cross_entropy(logits_NK, targets_N, weight=given)
    torch.testing.assert_close(loss_of(CrossEntropyConfig(class_weights=weights))(logits_NK, targets_N), expected)


@given(st.integers(0, 1000), st.integers(1, 11), st.booleans())
def test_the_loss_of_a_batch_is_the_mean_of_its_parts(seed: int, first: int, multi_label: bool) -> None:
    logits_BK, targets = logits_and_sets(seed, 12) if multi_label else logits_and_classes(seed, 12)
    loss = loss_of(FocalConfig(class_weights=GIVEN, label_smoothing=0.1), multi_label=multi_label)
    parts = first * loss(logits_BK[:first], targets[:first]) + (12 - first) * loss(logits_BK[first:], targets[first:])
    torch.testing.assert_close(parts / 12, loss(logits_BK, targets))


@pytest.mark.parametrize(
    ("multi_label", "smoothing", "weights"), list(itertools.product([False, True], [0.0, 0.2], ["none", GIVEN]))
)
def test_focal_with_gamma_0_is_exactly_cross_entropy(multi_label: bool, smoothing: float, weights: Any) -> None:
    logits_BK, targets = logits_and_sets() if multi_label else logits_and_classes()
    options = {"label_smoothing": smoothing, "class_weights": weights}
    focal = loss_of(FocalConfig(gamma=0.0, **options), multi_label=multi_label)
    plain = loss_of(CrossEntropyConfig(**options), multi_label=multi_label)
    assert focal(logits_BK, targets) == plain(logits_BK, targets)


@pytest.mark.parametrize(("gamma", "smoothing"), [(0.5, 0.0), (2.0, 0.0), (2.0, 0.1)])
def test_focal_is_the_formula_of_the_paper(gamma: float, smoothing: float) -> None:
    logits_BK, targets_B = logits_and_classes()
    weights_K = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    norm = len(targets_B) * sum(w * n for w, n in zip(weights_K.tolist(), COUNTS, strict=True)) / sum(COUNTS)
    total = 0.0
    for logits_K, target in zip(logits_BK.double(), targets_B.tolist(), strict=True):
        p_K = logits_K.exp() / logits_K.exp().sum()
        smoothed_K = torch.full((3,), smoothing / 3, dtype=torch.float64)
        smoothed_K[target] += 1 - smoothing
        total += float((1 - p_K[target]) ** gamma * -(smoothed_K * weights_K * p_K.log()).sum())
    loss = loss_of(FocalConfig(gamma=gamma, label_smoothing=smoothing, class_weights=GIVEN))
    assert loss(logits_BK, targets_B).item() == pytest.approx(total / norm, rel=1e-5)


@given(st.integers(0, 1000))
def test_focal_of_two_classes_is_torchvision_s_sigmoid_focal(seed: int) -> None:
    logits_BK, targets_B = logits_and_classes(seed)
    logits_BK[:, 2] = -torch.inf  # leaves a softmax over two classes: a sigmoid of their difference
    targets_B = targets_B % 2
    expected = sigmoid_focal_loss(logits_BK[:, 1] - logits_BK[:, 0], targets_B.float(), alpha=-1, gamma=2)
    actual = loss_of(FocalConfig(gamma=2.0))(logits_BK, targets_B)
    torch.testing.assert_close(actual, expected.mean(), rtol=1e-4, atol=1e-6)


def test_only_the_ratios_of_given_weights_count() -> None:
    logits_BK, targets_B = logits_and_classes()
    tenfold = {label: 10 * weight for label, weight in GIVEN.items()}
    losses = [loss_of(CrossEntropyConfig(class_weights=given))(logits_BK, targets_B) for given in (GIVEN, tenfold)]
    torch.testing.assert_close(*losses)
    equal = loss_of(CrossEntropyConfig(class_weights=dict.fromkeys(GIVEN, 7.0)))(logits_BK, targets_B)
    torch.testing.assert_close(equal, loss_of(CrossEntropyConfig())(logits_BK, targets_B))


# --- several labels a case -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["none", GIVEN], ids=["none", "given"])
def test_binary_cross_entropy_is_torch_s(weights: Any) -> None:
    logits_BK, targets_BK = logits_and_sets()
    loss = loss_of(CrossEntropyConfig(class_weights=weights), multi_label=True)
    expected = functional.binary_cross_entropy_with_logits(logits_BK, targets_BK, pos_weight=loss.weights_K)
    torch.testing.assert_close(loss(logits_BK, targets_BK), expected)


def test_binary_smoothing_moves_targets_towards_one_half() -> None:
    logits_BK, targets_BK = logits_and_sets()
    loss = loss_of(CrossEntropyConfig(label_smoothing=0.2), multi_label=True)
    expected = functional.binary_cross_entropy_with_logits(logits_BK, torch.where(targets_BK == 1, 0.9, 0.1))
    torch.testing.assert_close(loss(logits_BK, targets_BK), expected)


@given(st.integers(0, 1000), st.sampled_from([0.5, 1.0, 2.0, 5.0]))
def test_binary_focal_is_torchvision_s(seed: int, gamma: float) -> None:
    logits_BK, targets_BK = logits_and_sets(seed)
    expected = sigmoid_focal_loss(logits_BK, targets_BK, alpha=-1, gamma=gamma, reduction="mean")
    actual = loss_of(FocalConfig(gamma=gamma), multi_label=True)(logits_BK, targets_BK)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


# --- class weights ---------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 20), min_size=2, max_size=6))
def test_balanced_weights_are_scikit_learn_s(counts: list[int]) -> None:
    labels = LabelTree([f"class {k}" for k in range(len(counts))])
    loss = build_loss(
        CrossEntropyConfig(class_weights="balanced"),
        labels=labels,
        multi_label=False,
        class_counts=counts,
        cases=sum(counts),
    )
    targets_N = np.repeat(np.arange(len(counts)), counts)
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=targets_N)
    assert loss.weights_K is not None
    np.testing.assert_allclose(loss.weights_K.numpy(), expected, rtol=1e-6)


def test_balanced_weights_of_several_labels_are_negatives_per_positive() -> None:
    loss = loss_of(CrossEntropyConfig(class_weights="balanced"), multi_label=True, cases=80)
    assert loss.weights_K is not None
    np.testing.assert_allclose(loss.weights_K.numpy(), [20 / 60, 50 / 30, 70 / 10])


def test_given_weights_follow_the_order_of_the_labels() -> None:
    loss = loss_of(CrossEntropyConfig(class_weights={"xray": 3.0, "ct": 1.0, "mri": 2.0}))
    assert loss.weights_K is not None
    assert (loss.weights_K / loss.weights_K[0]).tolist() == pytest.approx([1.0, 2.0, 3.0])
    assert sum(loss.weights_K * torch.tensor(COUNTS)) == pytest.approx(sum(COUNTS))  # their mean over train is 1


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({**GIVEN, "xrai": 1.0}, "'xrai' is not a label; did you mean `xray`"),
        ({"ct": 1.0}, "no weight for mri, xray"),
    ],
)
def test_weights_for_other_labels_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loss_of(CrossEntropyConfig(class_weights=weights))


@pytest.mark.parametrize(
    ("counts", "multi_label", "message"),
    [
        ([5, 0, 5], True, "'mri': it has no training case"),
        ([5, 10, 5], True, "'mri': it has no training case without it"),
        ([5, 5], False, "2 class counts came for 3 labels"),
    ],
)
def test_classes_that_cannot_be_balanced_are_refused(counts: list[int], multi_label: bool, message: str) -> None:
    config = CrossEntropyConfig(class_weights="balanced")
    with pytest.raises(DataError, match=message):
        build_loss(config, labels=LABELS, multi_label=multi_label, class_counts=counts, cases=10)


def test_unweighted_loss_does_not_need_every_class_to_occur() -> None:
    config = CrossEntropyConfig()
    assert build_loss(config, labels=LABELS, multi_label=False, class_counts=[5, 0, 5], cases=10).weights_K is None


def test_class_weights_are_the_runs_own_and_no_part_of_the_state() -> None:
    balanced, given_ = (loss_of(CrossEntropyConfig(class_weights=weights)) for weights in ("balanced", GIVEN))
    given_.load_state_dict(balanced.state_dict())
    assert given_.weights_K is not None
    np.testing.assert_allclose(given_.weights_K.numpy() * 0.9, list(GIVEN.values()), rtol=1e-6)
    assert loss_of(CrossEntropyConfig()).load_state_dict(balanced.state_dict()).missing_keys == []


# --- numbers ---------------------------------------------------------------------------------------------------------

ALL = [
    CrossEntropyConfig(label_smoothing=0.1, class_weights=GIVEN),
    FocalConfig(gamma=2.0, class_weights=GIVEN),
    FocalConfig(gamma=0.5, label_smoothing=0.1),
]


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("config", ALL, ids=["cross entropy", "focal", "focal, root"])
def test_loss_and_gradient_stay_finite_for_certain_models(config: ClassificationLossConfig, multi_label: bool) -> None:
    """Right and wrong beyond doubt: where p is 1 or 0 in float32."""
    logits_BK = torch.tensor([[200.0, -200.0, -200.0], [-200.0, 200.0, -200.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]]) if multi_label else torch.tensor([0, 0])
    value = loss_of(config, multi_label=multi_label)(logits_BK, targets)
    value.backward()
    assert torch.isfinite(value)
    assert value > 0
    assert logits_BK.grad is not None
    assert torch.isfinite(logits_BK.grad).all()


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("config", ALL, ids=["cross entropy", "focal", "focal, root"])
def test_inside_is_float32_whatever_comes_and_whatever_autocast_says(
    config: ClassificationLossConfig, multi_label: bool
) -> None:
    logits_BK, targets = logits_and_sets() if multi_label else logits_and_classes()
    logits_BK = logits_BK.bfloat16()
    loss = loss_of(config, multi_label=multi_label)
    expected = loss(logits_BK.float(), targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = loss(logits_BK, targets)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("config", ALL, ids=["cross entropy", "focal", "focal, root"])
def test_gradient_is_the_slope(config: ClassificationLossConfig, multi_label: bool) -> None:
    logits_BK, targets = logits_and_sets(cases=3) if multi_label else logits_and_classes(cases=3)
    logits_BK.requires_grad_()
    loss = loss_of(config, multi_label=multi_label)
    (gradient_BK,) = torch.autograd.grad(loss(logits_BK, targets), logits_BK)
    step = 1e-2
    for b, k in itertools.product(range(3), range(3)):
        nudge_BK = torch.zeros_like(logits_BK)
        nudge_BK[b, k] = step
        with torch.no_grad():
            slope = (loss(logits_BK + nudge_BK, targets) - loss(logits_BK - nudge_BK, targets)) / (2 * step)
        assert gradient_BK[b, k].item() == pytest.approx(slope.item(), abs=2e-3)


# --- a label tree ----------------------------------------------------------------------------------------------------

TREE = LabelTree(
    ["ct", "mri", "ct.head", "ct.chest", "mri.t1", "mri.t2", "ct.chest.lung", "ct.chest.heart"], nested=True
)
TREE_COUNTS = [12, 6, 4, 8, 3, 3, 5, 1]  # of a node: at it or below it; two stop at ct.chest
PATHS = {name: [name[:place] for place, c in enumerate(f"{name}.") if c == "."] for name in TREE.names}


def tree_loss(config: ClassificationLossConfig, counts: list[int] = TREE_COUNTS) -> ClassificationLoss:
    return build_loss(config, labels=TREE, multi_label=False, class_counts=counts, cases=18)


def by_hand(
    logits_BK: Tensor, targets: list[str], *, gamma: float = 0.0, smoothing: float = 0.0, weights: dict[str, float]
) -> float:
    """For each case, for each level down to its label: the terms of its siblings, in plain Python."""
    total = 0.0
    for scores, target in zip(logits_BK.double().tolist(), targets, strict=True):
        score_of = dict(zip(TREE.names, scores, strict=True))
        for name in PATHS[target]:
            siblings = [n for n in TREE.names if n.rpartition(".")[0] == name.rpartition(".")[0]]
            norm = math.log(sum(math.exp(score_of[n]) for n in siblings))
            term = 0.0
            for other in siblings:
                share = smoothing / len(siblings) + (1 - smoothing if other == name else 0)
                term -= share * weights.get(other, 1.0) * (score_of[other] - norm)
            total += term * (1 - math.exp(score_of[name] - norm)) ** gamma
    return total / len(targets)


def logits_and_nodes(seed: int = 0, cases: int = 9) -> tuple[Tensor, list[str], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets_B = torch.randint(0, len(TREE), (cases,), generator=generator)
    targets_B[: len(TREE)] = torch.arange(len(TREE))[:cases]  # every node at least once
    return torch.randn(cases, len(TREE), generator=generator) * 3, [TREE.names[n] for n in targets_B], targets_B


OWN_WEIGHTS = {name: 0.5 + 0.25 * number for number, name in enumerate(TREE.names)}


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", ["none", "balanced", OWN_WEIGHTS], ids=["none", "balanced", "given"])
def test_the_loss_of_a_tree_is_a_sum_over_levels(gamma: float, smoothing: float, weights: Any) -> None:
    logits_BK, targets, targets_B = logits_and_nodes()
    loss = tree_loss(FocalConfig(gamma=gamma, label_smoothing=smoothing, class_weights=weights))
    given_ = {} if loss.weights_K is None else dict(zip(TREE.names, loss.weights_K.tolist(), strict=True))
    assert bool(given_) == (weights != "none")
    expected = by_hand(logits_BK, targets, gamma=gamma, smoothing=smoothing, weights=given_)
    assert loss(logits_BK, targets_B).item() == pytest.approx(expected, rel=1e-5)


@given(st.integers(0, 1000))
def test_it_is_minus_the_log_of_the_probability_of_the_path(seed: int) -> None:
    logits_BK, targets, targets_B = logits_and_nodes(seed)
    expected = 0.0
    for scores, target in zip(logits_BK.double(), targets, strict=True):
        share_of = {}
        for group in TREE.siblings:
            shares = torch.softmax(scores[list(group.ids)], 0).tolist()
            share_of |= {TREE.names[node]: share for node, share in zip(group.ids, shares, strict=True)}
        expected -= math.log(math.prod(share_of[name] for name in PATHS[target]))
    actual = tree_loss(CrossEntropyConfig())(logits_BK, targets_B)
    assert actual.item() == pytest.approx(expected / len(targets), rel=1e-4)


@pytest.mark.parametrize("config", ALL[1:], ids=["focal", "focal, root"])
def test_a_tree_of_one_level_is_flat(config: FocalConfig) -> None:
    logits_BK, targets_B = logits_and_classes()
    nested = LabelTree(LABELS.names, nested=True)
    losses = [
        build_loss(config, labels=labels, multi_label=False, class_counts=COUNTS, cases=100)(logits_BK, targets_B)
        for labels in (nested, LABELS)
    ]
    assert losses[0] == losses[1]
    plain = build_loss(CrossEntropyConfig(), labels=nested, multi_label=False, class_counts=COUNTS, cases=100)
    torch.testing.assert_close(plain(logits_BK, targets_B), functional.cross_entropy(logits_BK, targets_B))


@pytest.mark.parametrize("name", TREE.names)
@pytest.mark.parametrize(
    "config",
    [FocalConfig(gamma=2.0, label_smoothing=0.1, class_weights="balanced"), CrossEntropyConfig()],
    ids=["focal", "cross entropy"],
)
def test_a_label_teaches_the_levels_that_it_reaches_and_no_other(name: str, config: ClassificationLossConfig) -> None:
    logits_BK = torch.randn(1, len(TREE), generator=torch.Generator().manual_seed(1)).requires_grad_()
    tree_loss(config)(logits_BK, torch.tensor([TREE.index(name)])).backward()
    assert logits_BK.grad is not None
    moved = {TREE.names[node] for node in logits_BK.grad[0].nonzero().flatten().tolist()}
    parents = {step.rpartition(".")[0] for step in PATHS[name]}
    assert moved == {other for other in TREE.names if other.rpartition(".")[0] in parents}


@pytest.mark.parametrize(
    "config",
    [ALL[2], CrossEntropyConfig(label_smoothing=0.1, class_weights="balanced")],
    ids=["focal, root", "cross entropy"],
)
def test_the_gradient_of_a_tree_is_the_slope_and_stays_float32(config: ClassificationLossConfig) -> None:
    logits_BK, _, targets_B = logits_and_nodes()
    loss = tree_loss(config)
    expected = loss(logits_BK.bfloat16().float(), targets_B)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = loss(logits_BK.bfloat16(), targets_B)
    assert actual.dtype == torch.float32
    assert actual == expected
    logits_BK.requires_grad_()
    (gradient_BK,) = torch.autograd.grad(loss(logits_BK, targets_B), logits_BK)
    random_BK = torch.randn(logits_BK.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        slope = (loss(logits_BK + 1e-2 * random_BK, targets_B) - loss(logits_BK - 1e-2 * random_BK, targets_B)) / 2e-2
    assert (gradient_BK * random_BK).sum().item() == pytest.approx(slope.item(), rel=5e-3, abs=1e-3)


@given(st.lists(st.integers(0, 9), min_size=8, max_size=8).filter(any))
def test_balanced_weights_are_those_of_the_siblings_that_occur(at_node: list[int]) -> None:
    counts = (np.array(at_node) @ TREE.ancestry_MM).tolist()
    weights = tree_loss(CrossEntropyConfig(class_weights="balanced"), counts).weights_K
    assert weights is not None
    for group in TREE.siblings:
        there = {node: counts[node] for node in group.ids if counts[node]}
        assert all(weights[node] == 1 for node in group.ids if node not in there)
        if there:
            targets = np.repeat(list(there), list(there.values()))
            expected = compute_class_weight("balanced", classes=np.array(list(there)), y=targets)
            np.testing.assert_allclose(weights[list(there)].numpy(), expected, rtol=1e-6)
            assert (weights[targets]).mean().item() == pytest.approx(1.0, rel=1e-5)


def test_given_weights_have_a_mean_of_1_among_siblings() -> None:
    weights = tree_loss(CrossEntropyConfig(class_weights=OWN_WEIGHTS)).weights_K
    assert weights is not None
    for group in TREE.siblings:
        ids = list(group.ids)
        counts = torch.tensor([float(TREE_COUNTS[node]) for node in ids])
        assert ((weights[ids] * counts).sum() / counts.sum()).item() == pytest.approx(1.0, rel=1e-6)
        own = torch.tensor([OWN_WEIGHTS[TREE.names[node]] for node in ids])
        torch.testing.assert_close(weights[ids] / weights[ids][0], own / own[0])
    with pytest.raises(ConfigError, match=r"no weight for ct\.chest\.heart; give every label one"):
        tree_loss(CrossEntropyConfig(class_weights={n: 1.0 for n in TREE.names if n != "ct.chest.heart"}))
