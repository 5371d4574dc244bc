"""The distance of features to those of the start, against plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from consilium.losses.config import DistillationConfig
from consilium.losses.distillation import FeatureDistillation

KINDS = ("mse", "cosine", "similarity_matrix")


def distance(kind: Any, features: Tensor, start: Tensor) -> Tensor:
    found: Tensor = FeatureDistillation(DistillationConfig(kind=kind))(features, start)
    return found


def plain(kind: str, features: np.ndarray, start: np.ndarray) -> float:
    """The same by its words, one case after the other."""

    def cosine(left: np.ndarray, right: np.ndarray) -> float:
        return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))

    cases = range(len(features))
    if kind == "mse":
        return float(np.mean([np.mean((features[case] - start[case]) ** 2) for case in cases]))
    if kind == "cosine":
        return float(np.mean([1 - cosine(features[case], start[case]) for case in cases]))
    pairs = [(left, right) for left in cases for right in cases]
    return float(np.mean([(cosine(features[a], features[b]) - cosine(start[a], start[b])) ** 2 for a, b in pairs]))


@given(cases=st.integers(1, 6), width=st.integers(1, 9), seed=st.integers(0, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_its_words_say(kind: str, cases: int, width: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    features, start = (torch.randn(cases, width, generator=random) for _ in range(2))
    expected = plain(kind, features.double().numpy(), start.double().numpy())
    assert float(distance(kind, features, start)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_start_it_is_zero_and_pulls_nowhere(kind: str) -> None:
    start = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    features = start.clone().requires_grad_()
    found = distance(kind, features, start)
    found.backward()  # type: ignore[no-untyped-call]
    assert float(found.detach()) == pytest.approx(0, abs=1e-6)
    assert features.grad is not None
    torch.testing.assert_close(features.grad, torch.zeros(5, 4), atol=1e-6, rtol=0)


def test_features_may_turn_together_where_similarities_are_held() -> None:
    random = torch.Generator().manual_seed(0)
    start = torch.randn(5, 4, generator=random)
    turned = 2 * start @ torch.linalg.qr(torch.randn(4, 4, generator=random))[0]
    assert float(distance("similarity_matrix", turned, start)) == pytest.approx(0, abs=1e-6)
    assert float(distance("cosine", turned, start)) > 0.1
    assert float(distance("cosine", 3 * start, start)) == pytest.approx(0, abs=1e-6)
    assert float(distance("mse", 3 * start, start)) > 0.1


def test_everything_inside_is_float32() -> None:
    start = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    for kind in KINDS:
        with torch.autocast("cpu", torch.bfloat16):
            found = distance(kind, (start + 0.1).bfloat16(), start)
        assert found.dtype == torch.float32
        assert float(found) == pytest.approx(float(distance(kind, (start + 0.1).bfloat16().float(), start)), rel=1e-6)
