"""Memory and time of the contrastive losses against the plain square of similarities.

    python bench/contrastive.py [--batch 4096] [--width 512] [--rounds 5]

Plain is what a careful person writes: all similarities, cross entropy both ways (or log sigmoid), automatic
differentiation. Each round is a process of its own for each side, in turn, one thread. Memory is the peak of the
process during loss and gradient beyond what it had before, less the gradients of the embeddings. Linux only.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import Tensor
from torch.nn import functional

from bench._in_turn import in_turn
from bench._machine import describe_machine, peak
from consilium.losses.config import SigmoidContrastiveConfig, SoftmaxContrastiveConfig
from consilium.losses.contrastive import build_contrastive

CONFIGS: dict[str, SoftmaxContrastiveConfig | SigmoidContrastiveConfig] = {
    "softmax": SoftmaxContrastiveConfig(),
    "sigmoid": SigmoidContrastiveConfig(),
}


def main() -> None:
    """Measure and print; a side of a round runs this file again with ``--side``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kind", choices=list(CONFIGS), help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=["plain", "ours"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(*one(arguments.side, arguments.kind, batch=arguments.batch, width=arguments.width))
        return
    print(describe_machine())
    for kind in CONFIGS:
        print(f"{kind}, {arguments.batch} pairs of {arguments.width} numbers:")
        sizes = ["--batch", str(arguments.batch), "--width", str(arguments.width)]
        in_turn([__file__, *sizes, "--kind", kind], rounds=arguments.rounds)


def one(side: str, kind: str, *, batch: int, width: int) -> tuple[float, float]:
    """Megabytes and seconds of a loss and its gradient, after a small one that loads what is needed."""
    torch.set_num_threads(1)
    loss = build_contrastive(CONFIGS[kind])
    step = loss if side == "ours" else lambda images, texts: plain(images, texts, loss)
    for count in (64, batch):
        random = torch.Generator().manual_seed(0)
        images, texts = (functional.normalize(torch.randn(count, width, generator=random), dim=1) for _ in range(2))
        images.requires_grad_()
        texts.requires_grad_()
        before, start = peak(), time.perf_counter()
        step(images, texts).backward()
        seconds = time.perf_counter() - start
    gradients = 2 * images.numel() * 4
    return (peak() - before - gradients) / 1e6, seconds


def plain(images: Tensor, texts: Tensor, loss: Any) -> Tensor:
    """The loss by its definition."""
    logits = loss.log_scale.exp() * images @ texts.T
    if hasattr(loss, "bias"):
        signs = 2 * torch.eye(len(images)) - 1
        return -functional.logsigmoid(signs * (logits + loss.bias)).sum() / len(images)
    truth = torch.arange(len(images))
    return (functional.cross_entropy(logits, truth) + functional.cross_entropy(logits.T, truth)) / 2


if __name__ == "__main__":
    main()
