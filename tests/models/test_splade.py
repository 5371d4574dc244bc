"""Weights of terms: those of the plain form, and its gradients, in a small part of its memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from consilium.core.errors import ConfigError, WeightsError
from consilium.losses.sparsity import flops_penalty
from consilium.models import splade
from consilium.models.config import TextConfig
from consilium.models.splade import term_weights
from consilium.models.text import TextTower, build_text, build_tokenizer
from consilium.models.tokenizer import Tokenizer
from tests.models.texts import CAPTIONS, write_encoder


def plain(hidden_BTE: Tensor, attention_BT: Tensor, weight_VE: Tensor, bias_V: Tensor) -> Tensor:
    """As the paper writes it."""
    scores_BTV = hidden_BTE @ weight_VE.T + bias_V
    return torch.log1p(torch.relu(scores_BTV * attention_BT[:, :, None])).amax(dim=1)


@settings(deadline=None)
@given(
    batch=st.integers(1, 4), tokens=st.integers(1, 6), terms=st.integers(1, 40), chunk=st.integers(1, 200),
    places=st.integers(1, 50), seed=st.integers(0, 99),
)  # fmt: skip
def test_values_and_gradients_are_those_of_the_plain_form(
    batch: int, tokens: int, terms: int, chunk: int, places: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    parts = [(batch, tokens, 5), (terms, 5), (terms,)]
    tensors = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in parts]
    lengths_B = torch.randint(1, tokens + 1, (batch,), generator=random)
    attention_BT = (torch.arange(tokens) < lengths_B[:, None]).long()
    towards_BV = torch.randn(batch, terms, generator=random, dtype=torch.float64)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splade, "_CHUNK", chunk)
        patch.setattr(splade, "_PLACES", places)
        for form in (plain, term_weights):
            own = [tensor.clone().requires_grad_() for tensor in tensors]
            weights_BV = form(own[0], attention_BT, own[1], own[2])
            (weights_BV * towards_BV).sum().backward()
            found.append([weights_BV.detach(), *(tensor.grad for tensor in own)])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


def test_padding_says_nothing() -> None:
    hidden_BTE, weight_VE, bias_V = torch.randn(2, 3, 4), torch.randn(7, 4), torch.randn(7)
    whole = term_weights(hidden_BTE, torch.ones(2, 3), weight_VE, bias_V)
    padded = torch.cat([hidden_BTE, torch.full((2, 5, 4), 9.0)], dim=1)
    attention = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0]] * 2)
    torch.testing.assert_close(term_weights(padded, attention, weight_VE, bias_V), whole)


# -- Towers -------------------------------------------------------------------------------------------------------


HEADED: dict[str, dict[str, Any]] = {
    "bert": {},
    "distilbert": {"dim": 32, "hidden_dim": 37, "n_layers": 3, "n_heads": 4},
    "roberta": {"pad_id": 1, "vocabulary": 300},
    "modernbert": {},
}


def tower_of(**options: Any) -> tuple[TextTower, Tokenizer]:
    config = TextConfig(**{"context_length": 32, "pooling": "splade", **options})
    tokenizer = build_tokenizer(config, texts=CAPTIONS)
    return build_text(config, tokenizer=tokenizer).eval(), tokenizer


@pytest.mark.parametrize("kind", HEADED)
def test_a_tower_gives_what_the_library_s_scores_say(kind: str, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, kind=kind, head="AutoModelForMaskedLM", **HEADED[kind])
    tower, tokenizer = tower_of(name=str(folder))
    padded = tokenizer.pad(tokenizer.encode(CAPTIONS))
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        scores_BTV = model(input_ids=padded.tokens_BT, attention_mask=padded.attention_BT).logits
        expected = torch.log1p(torch.relu(scores_BTV * padded.attention_BT[:, :, None])).amax(dim=1)
        found = tower(padded.tokens_BT, padded.attention_BT)
    assert found.shape == (len(CAPTIONS), tower.num_features)
    assert float(found.max()) > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_all_parameters_learn_and_lie_in_a_layer(kind: str, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, kind=kind, head="AutoModelForMaskedLM", **HEADED[kind])
    tower, tokenizer = tower_of(name=str(folder))
    padded = tokenizer.pad(tokenizer.encode(CAPTIONS))
    tower(padded.tokens_BT, padded.attention_BT).square().sum().backward()
    assert all(parameter.grad is not None for parameter in tower.parameters())
    assert len(tower.depths()) == len(list(tower.parameters()))
    assert {id(parameter) for layer in tower.blocks() for parameter in layer} == {id(own) for own in tower.parameters()}


def test_an_encoder_without_its_head_is_refused(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path)
    with pytest.raises(WeightsError, match=r"pooling is splade, but the weights of .* lack layers that give each term"):
        tower_of(name=str(folder))


def test_a_model_that_scores_no_terms_is_refused(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, kind="gpt2")
    with pytest.raises((ConfigError, WeightsError), match=r"GPT2Config|gpt2"):
        tower_of(name=str(folder))


def test_a_penalty_needs_terms() -> None:
    with pytest.raises(ValidationError, match=r"flops is 0.1, but pooling is cls"):
        TextConfig(pooling="cls", flops=0.1)


def test_the_penalty_is_the_sum_of_squared_means() -> None:
    weights_BV = torch.rand(6, 9, requires_grad=True)
    torch.testing.assert_close(flops_penalty(weights_BV), (weights_BV.mean(0) ** 2).sum())
