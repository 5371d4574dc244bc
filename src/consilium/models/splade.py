"""Sparse text vectors: a weight for every term of the vocabulary, as SPLADE makes them.

Axes in names: B text in a batch, T token, E number of a hidden state, V term of the vocabulary, C term of a chunk,
P place of a weight above 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from consilium.core.errors import ConfigError

_CHUNK = 2**24  # scores that are in memory at once: 64 MiB
_PLACES = 512  # weights of a text whose gradients are computed at once, few enough for the cache of a core


class Terms(nn.Module):
    """The last layer of a masked language model, read out over a text: the weight of each term.

    log(1 + ReLU(score)) at its highest over the tokens of the text (Formal et al., SPLADE v2, 2021, arXiv:2109.10086).
    """

    def __init__(self, decoder: nn.Linear) -> None:
        """``decoder`` gives the scores of all terms, and may share its weight with the word embeddings."""
        super().__init__()
        self.decoder = decoder

    def forward(self, hidden_BTE: Tensor, attention_BT: Tensor) -> Tensor:
        """Weights [B, V] from 0 on; ``attention_BT`` is 1 for tokens and 0 for padding."""
        bias_V = self.decoder.bias if self.decoder.bias is not None else hidden_BTE.new_zeros(self.decoder.out_features)
        return term_weights(hidden_BTE, attention_BT, self.decoder.weight, bias_V)


def term_weights(hidden_BTE: Tensor, attention_BT: Tensor, weight_VE: Tensor, bias_V: Tensor) -> Tensor:
    """The highest log(1 + ReLU(hidden . weight + bias)) over the tokens of each text, [B, V].

    The scores of all terms at all tokens are never in memory together: they are computed for a chunk of the vocabulary
    at a time, of which the highest and its token are kept. Only that token has a gradient, so that the backward pass
    needs no scores either. The gradients are those of the plain form; of equal scores the first token has it.
    """
    with torch.autocast(hidden_BTE.device.type, enabled=False):
        weights_BV: Tensor = _Highest.apply(hidden_BTE.to(weight_VE.dtype), attention_BT, weight_VE, bias_V)
    return weights_BV


def split_terms(model: Any) -> Terms:
    """Take the last layer off a masked language model, which then gives what that layer would read.

    A model without such a layer is a ConfigError.
    """
    decoder = model.get_output_embeddings()
    if not isinstance(decoder, nn.Linear):
        raise ConfigError(
            f"task.text.pooling is splade, but a model of type {model.config.model_type} has no layer that gives a "
            "score to each term; name a masked language model (a BERT or DistilBERT of SPLADE)."
        )
    (name,) = (name for name, module in model.named_modules() if module is decoder)
    model.set_submodule(name, nn.Identity())
    return Terms(decoder)


class _Highest(torch.autograd.Function):
    """The highest score of each term over the tokens of a text, and log(1 + it)."""

    @staticmethod
    def forward(ctx: Any, hidden_BTE: Tensor, attention_BT: Tensor, weight_VE: Tensor, bias_V: Tensor) -> Tensor:
        batch, tokens, _ = hidden_BTE.shape
        padding_BT1 = attention_BT[:, :, None] == 0
        highest_BV = hidden_BTE.new_empty(batch, len(weight_VE))
        token_BV = torch.empty(batch, len(weight_VE), dtype=torch.int32, device=hidden_BTE.device)
        chunk = max(1, _CHUNK // (batch * tokens))
        for start in range(0, len(weight_VE), chunk):
            own = slice(start, start + chunk)
            scores_BTC = nn.functional.linear(hidden_BTE, weight_VE[own], bias_V[own])
            scores_BTC.masked_fill_(padding_BT1, 0.0)
            highest_BC, token_BC = scores_BTC.max(dim=1)
            highest_BV[:, own], token_BV[:, own] = highest_BC, token_BC
        highest_BV.clamp_(min=0.0)
        ctx.save_for_backward(hidden_BTE, weight_VE, highest_BV, token_BV)
        return highest_BV.log1p()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_BTE, weight_VE, highest_BV, token_BV = ctx.saved_tensors
        to_scores_BV = torch.where(highest_BV > 0, gradients[0] / (1 + highest_BV), 0.0)
        to_hidden_BTE, to_weight_VE = torch.zeros_like(hidden_BTE), torch.zeros_like(weight_VE)
        for text in range(len(hidden_BTE)):
            for terms_P in torch.split(to_scores_BV[text].nonzero()[:, 0], _PLACES):
                tokens_P, gradient_P1 = token_BV[text, terms_P].long(), to_scores_BV[text, terms_P, None]
                to_hidden_BTE[text].index_add_(0, tokens_P, gradient_P1 * weight_VE[terms_P])
                to_weight_VE[terms_P] += gradient_P1 * hidden_BTE[text, tokens_P]
        return to_hidden_BTE, None, to_weight_VE, to_scores_BV.sum(0)
