from __future__ import annotations

import pytest
import torch
from torch import nn

from consilium.models.config import LinearHeadConfig, MLPHeadConfig
from consilium.models.heads import build_head


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
