"""Projections: embeddings of length 1 in float32, by either kind."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn
from torch.nn import functional

from consilium.models.config import LinearProjectionConfig, MLPProjectionConfig, ProjectionConfig
from consilium.models.projection import build_projection

FEATURES = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
CONFIGS = [
    LinearProjectionConfig(),
    LinearProjectionConfig(bias=True),
    MLPProjectionConfig(),
    MLPProjectionConfig(hidden_size=7, activation="relu", dropout=0.5, bias=True),
]


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_embeddings_have_length_one_and_every_parameter_learns(config: LinearProjectionConfig) -> None:
    projection = build_projection(config, in_features=12, width=8)
    embeddings_BD = projection(FEATURES)
    assert embeddings_BD.shape == (5, 8)
    torch.testing.assert_close(embeddings_BD.norm(dim=1), torch.ones(5))
    embeddings_BD[:, 0].sum().backward()
    assert all(parameter.grad is not None for parameter in projection.parameters())
    assert any("bias" in name for name, _ in projection.named_parameters()) is config.bias


def test_linear_is_one_matrix() -> None:
    projection = build_projection(LinearProjectionConfig(), in_features=12, width=8)
    (weight_DF,) = projection.parameters()
    torch.testing.assert_close(projection(FEATURES), functional.normalize(FEATURES @ weight_DF.T))


def test_mlp_has_the_shape_of_biomedclip() -> None:
    projection = build_projection(MLPProjectionConfig(), in_features=768, width=512)
    assert [tuple(parameter.shape) for parameter in projection.parameters()] == [(640, 768), (512, 640)]
    assert isinstance(projection.layers, nn.Sequential)
    assert isinstance(projection.layers[1], nn.GELU)


def test_embeddings_are_float32_whatever_autocast_says() -> None:
    projection = build_projection(LinearProjectionConfig(), in_features=12, width=8)
    with torch.autocast("cpu", torch.bfloat16):
        embeddings_BD = projection(FEATURES)
    assert embeddings_BD.dtype == torch.float32
    torch.testing.assert_close(embeddings_BD.norm(dim=1), torch.ones(5))


def test_kind_chooses() -> None:
    adapter: TypeAdapter[ProjectionConfig] = TypeAdapter(ProjectionConfig)
    assert isinstance(adapter.validate_python({"kind": "mlp"}), MLPProjectionConfig)
