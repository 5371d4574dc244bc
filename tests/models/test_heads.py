from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from consilium.models.config import LinearHeadConfig, MLPHeadConfig
from consilium.models.heads import build_head, grown_head


def kinds(head: nn.Module) -> list[type]:
    return [type(module) for module in head.modules() if not isinstance(module, nn.Sequential)]


def test_linear_head_is_dropout_then_one_linear_layer() -> None:
    head = build_head(LinearHeadConfig(dropout=0.25), in_features=6, classes=4)
    assert kinds(head) == [nn.Dropout, nn.Linear]
    assert head(torch.randn(5, 6)).shape == (5, 4)
    assert sum(parameter.numel() for parameter in head.parameters()) == 6 * 4 + 4


def test_mlp_head_has_the_layers_of_the_config() -> None:
    head = build_head(MLPHeadConfig(kind="mlp", hidden_sizes=[8, 3], activation="silu"), in_features=6, classes=4)
    assert kinds(head) == [nn.Linear, nn.SiLU, nn.Dropout, nn.Linear, nn.SiLU, nn.Dropout, nn.Linear]
    assert [module.weight.shape for module in head.modules() if isinstance(module, nn.Linear)] == [
        (8, 6),
        (3, 8),
        (4, 3),
    ]
    assert head(torch.randn(5, 6)).shape == (5, 4)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
def test_activation_is_the_one_named(activation: str) -> None:
    config = MLPHeadConfig(kind="mlp", hidden_sizes=[7], activation=activation, dropout=0.0)
    head = build_head(config, in_features=6, classes=4)
    features_BF = torch.randn(5, 6)
    assert isinstance(head, nn.Sequential)
    function = getattr(torch.nn.functional, activation) if activation != "tanh" else torch.tanh
    torch.testing.assert_close(head(features_BF), head[-1](function(head[0](features_BF))))


@pytest.mark.parametrize("config", [LinearHeadConfig(dropout=0.5), MLPHeadConfig(kind="mlp", dropout=0.5)])
def test_dropout_acts_in_training_only(config: LinearHeadConfig | MLPHeadConfig) -> None:
    head = build_head(config, in_features=64, classes=4)
    features_BF = torch.ones(2, 64)
    torch.manual_seed(0)
    assert not torch.equal(head(features_BF)[0], head(features_BF)[1])
    head.eval()
    assert torch.equal(head(features_BF), head(features_BF))


# -- A head with further outputs ----------------------------------------------------------------------------------


@st.composite
def growths(draw: st.DrawFn) -> tuple[int, int, list[int]]:
    """Outputs before, outputs in all, and which of them learn: all new ones and some old ones."""
    old = draw(st.integers(1, 5))
    classes = old + draw(st.integers(1, 3))
    return old, classes, [*sorted(draw(st.sets(st.integers(0, old - 1)))), *range(old, classes)]


def head_of(kind: str, *, classes: int) -> nn.Module:
    config = LinearHeadConfig() if kind == "linear" else MLPHeadConfig(kind="mlp", hidden_sizes=[7], dropout=0.0)
    return build_head(config, in_features=6, classes=classes)


@given(growth=growths(), kind=st.sampled_from(["linear", "mlp"]))
def test_a_grown_head_starts_as_the_old_one_and_is_saved_as_a_plain_one(
    growth: tuple[int, int, list[int]], kind: str
) -> None:
    old, classes, learning = growth
    head = head_of(kind, classes=old)
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    grown, features_BF = grown_head(head, classes=classes, learning=learning), torch.randn(5, 6)
    state = grown.state_dict()
    for name, tensor in before.items():
        assert torch.equal(state[name][: len(tensor)], tensor), name
        assert not state[name][len(tensor) :].any(), name
    plain = head_of(kind, classes=classes)
    assert plain.state_dict().keys() == state.keys()
    other = {name: torch.randn_like(tensor) for name, tensor in state.items()}
    for module in (plain, grown):
        module.load_state_dict(other)
    assert all(torch.equal(tensor, other[name]) for name, tensor in grown.state_dict().items())
    assert torch.equal(grown(features_BF), plain(features_BF))


def test_weights_on_another_device_than_the_head_are_loaded() -> None:
    """As on a GPU, where weights come from files on the CPU; what is on the meta device has no values."""
    grown = grown_head(head_of("linear", classes=2), classes=4, learning=[0, 2, 3])
    other = {name: torch.randn_like(tensor) for name, tensor in grown.state_dict().items()}
    *_, last = grown.children()
    order, last.order = last.order, last.order.to("meta")
    grown.load_state_dict(other)
    last.order = order
    assert all(torch.equal(tensor, other[name]) for name, tensor in grown.state_dict().items())


@given(growth=growths(), kind=st.sampled_from(["linear", "mlp"]))
def test_only_the_outputs_that_shall_learn_do_and_as_in_a_plain_head(
    growth: tuple[int, int, list[int]], kind: str
) -> None:
    old, classes, learning = growth
    grown = grown_head(head_of(kind, classes=old), classes=classes, learning=learning)
    plain = head_of(kind, classes=classes)
    plain.load_state_dict(grown.state_dict())
    features_BF, targets_B = torch.randn(9, 6), torch.randint(classes, (9,))
    for module in (grown, plain):
        nn.functional.cross_entropy(module(features_BF), targets_B).backward()
    before, gradients = grown.state_dict(), {name: tensor.grad for name, tensor in plain.named_parameters()}
    torch.optim.SGD(grown.parameters(), lr=0.5).step()
    after = grown.state_dict()
    *hidden, weight, bias = before
    for name in hidden:
        assert torch.equal(after[name], before[name]), name
    staying = [row for row in range(classes) if row not in learning]
    for name in (weight, bias):
        gradient = gradients[name]
        assert gradient is not None
        assert torch.equal(after[name][staying], before[name][staying])
        torch.testing.assert_close(after[name][learning], (before[name] - 0.5 * gradient)[learning])


def test_weight_decay_leaves_what_does_not_learn_alone() -> None:
    head = head_of("linear", classes=3)
    grown = grown_head(head, classes=4, learning=[1, 3])
    before = grown.state_dict()["1.weight"]
    optimizer = torch.optim.AdamW(grown.parameters(), lr=0.1, weight_decay=1.0)
    grown(torch.zeros(2, 6)).sum().backward()  # no gradient but the bias's
    optimizer.step()
    after = grown.state_dict()["1.weight"]
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    torch.testing.assert_close(after[1], before[1] * 0.9)
