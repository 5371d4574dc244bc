"""The encoder of metadata: each column by itself, what is missing, and what no training case had."""

from __future__ import annotations

import torch

from consilium.core.contracts import Meta
from consilium.models.metadata import MetadataEncoder


def test_columns_stand_side_by_side() -> None:
    encoder = MetadataEncoder([3, 0], width=4)
    assert encoder.num_features == 8
    meta = Meta(
        there_BM=torch.tensor([[True, True], [False, True], [True, False], [False, False]]),
        values_BM=torch.tensor([[1.0, 0.5], [0.0, 0.5], [1.0, 0.0], [0.0, 0.0]]),
    )
    features_BMF = encoder(meta).reshape(4, 2, 4)
    assert torch.equal(features_BMF[0, 0], features_BMF[2, 0])
    assert torch.equal(features_BMF[0, 1], features_BMF[1, 1])
    assert torch.equal(features_BMF[3], encoder.missing_MF)
    other = Meta(meta.there_BM, torch.where(meta.there_BM, meta.values_BM, torch.full((4, 2), 2.0)))
    assert torch.equal(encoder(other), encoder(meta))  # what is not there has no say


def test_another_value_is_0_and_stays_it() -> None:
    encoder = MetadataEncoder([2], width=4)
    meta = Meta(torch.ones(1, 1, dtype=torch.bool), torch.tensor([[2.0]]))
    assert not encoder(meta).any()
    encoder(meta).sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in encoder.parameters())
