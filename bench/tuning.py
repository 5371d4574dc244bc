"""Memory and time of a training step of an image tower, by how it learns.

    python bench/tuning.py [--tower vit_b_16] [--batch 8] [--rounds 3]

Each way in each round is a process of its own, in turn, in fp32 on one thread, with random weights. Memory is the peak
of the process beyond what it had with the tower built: activations, gradients, and what kernels need. Linux only.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from bench._machine import describe_machine
from bench.contrastive import peak
from consilium.models.config import VisionConfig
from consilium.models.tuning import tune
from consilium.models.vision import build_vision
from consilium.models.weights import freeze_tower

WAYS: dict[str, dict[str, Any]] = {
    "all of it": {},
    "patch_dropout 0.5": {"patch_dropout": 0.5},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "lora": {"lora": {}},
    "lora, checkpointing": {"lora": {}, "gradient_checkpointing": True},
}


def main() -> None:
    """Measure and print; a way of a round runs this file again with ``--way``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", default="vit_b_16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(*step(arguments.way, tower=arguments.tower, batch=arguments.batch, size=arguments.size))
        return
    print(describe_machine())
    print(f"a step of {arguments.batch} images of {arguments.size} pixels, {arguments.tower}:")
    found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way, rounds in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            rounds.append([float(value) for value in printed.split()])
    for way, rounds in found.items():
        memory, seconds = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"  {way:24}{memory:6.2f} GiB{seconds:7.1f} s")


def step(way: str, *, tower: str, batch: int, size: int) -> tuple[float, float]:
    """GiB and seconds of one step."""
    config = VisionConfig.model_validate({"name": tower, "pretrained": False, **WAYS[way]})
    built = build_vision(config, image_size=(size, size))
    tune(built, config, key="task.vision")
    freeze_tower(built, config.freeze, epoch=0)
    built.train()
    images = torch.randn(batch, 3, size, size)
    before, start = peak(), time.perf_counter()
    built(images).square().mean().backward()
    return (peak() - before) / 2**30, time.perf_counter() - start


if __name__ == "__main__":
    main()
