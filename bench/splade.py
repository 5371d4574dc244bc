"""Memory and processor time of the weights of terms (SPLADE) against the plain form, with gradients.

    python bench/splade.py [--batch 64] [--tokens 128] [--terms 30522] [--width 768] [--rounds 3]

Plain is what a careful person writes: the scores of all terms at all tokens, ReLU, logarithm, the highest, automatic
differentiation. Each round is a process of its own for each side, in turn, one thread. Memory is the peak of the
process during values and gradients beyond what it had before, less the gradients of hidden states and of the
vocabulary. Linux only.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import Tensor

from bench._in_turn import in_turn
from bench._machine import describe_machine, peak
from consilium.models.splade import term_weights

SIZES = {"batch": 64, "tokens": 128, "terms": 30522, "width": 768}


def main() -> None:
    """Measure and print; a side of a round runs this file again with ``--side``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=["plain", "ours"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = {name: getattr(arguments, name) for name in SIZES}
    if arguments.side:
        print(*one(arguments.side, **sizes))
        return
    print(describe_machine())
    print(", ".join(f"{count} {name}" for name, count in sizes.items()))
    given = [text for name, count in sizes.items() for text in (f"--{name}", str(count))]
    in_turn([__file__, *given], rounds=arguments.rounds)


def one(side: str, *, batch: int, tokens: int, terms: int, width: int) -> tuple[float, float]:
    """Megabytes and seconds, after a small batch that loads what is needed."""
    torch.set_num_threads(1)
    form = plain if side == "plain" else term_weights
    for texts, length, words in ((2, 4, 8), (batch, tokens, terms)):
        random = torch.Generator().manual_seed(0)
        hidden_BTE = torch.randn(texts, length, width, generator=random).requires_grad_()
        weight_VE = (torch.randn(words, width, generator=random) / width**0.5).requires_grad_()
        bias_V, attention_BT = torch.zeros(words, requires_grad=True), torch.ones(texts, length)
        before, start = peak(), time.process_time()
        form(hidden_BTE, attention_BT, weight_VE, bias_V).mean().backward()
        seconds = time.process_time() - start
    gradients = 4 * (hidden_BTE.numel() + weight_VE.numel())
    return (peak() - before - gradients) / 1e6, seconds


def plain(hidden_BTE: Tensor, attention_BT: Tensor, weight_VE: Tensor, bias_V: Tensor) -> Tensor:
    """The weights by their definition."""
    scores_BTV = torch.nn.functional.linear(hidden_BTE, weight_VE, bias_V)
    return torch.log1p(torch.relu(scores_BTV * attention_BT[:, :, None])).amax(dim=1)


if __name__ == "__main__":
    main()
