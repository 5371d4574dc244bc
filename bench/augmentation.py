"""What augmentation costs, beside a training step of a ResNet-18.

    python bench/augmentation.py [--sizes 64 224] [--rounds 5]

Milliseconds an image, median of the rounds: normalisation alone, what each augmentation adds to it, and all together.
Compression is what the worker adds for it. The step is forward and backward in the faster of fp32 and bf16.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import timm
import torch

from bench._machine import describe_machine
from consilium.core.contracts import Batch, Views
from consilium.core.reporter import format_table
from consilium.data.batches.acquisition import recompressed
from consilium.data.batches.config import AugmentationConfig
from consilium.data.batches.transforms import DeviceTransform
from consilium.data.config import ImageConfig

ALL: dict[str, dict[str, Any]] = {
    "flips": {"horizontal_flip_prob": 0.5, "vertical_flip_prob": 0.3},
    "quarter_turn": {"quarter_turn_prob": 0.5},
    "rotation, scale, translate": {"rotation_degrees": 15, "scale": [0.9, 1.1], "translate": 0.1},
    "jitter, hue, grey": {
        "brightness_jitter": 0.4, "contrast_jitter": 0.4, "saturation_jitter": 0.4, "hue_jitter": 0.15,
        "grayscale_prob": 0.3,
    },
    "channel_shift": {"channel_shift": 0.1},
    "gamma": {"gamma": [0.6, 1.7]},
    "invert": {"invert_prob": 0.1},
    "blur": {"blur": 1.5},
    "resolution": {"resolution": [0.25, 1.0], "resolution_prob": 0.5},
    "noise": {"noise": 0.05},
    "border": {"border_prob": 0.3},
}  # fmt: skip


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(describe_machine())
    columns = {f"{size} px": costs(size, rounds=arguments.rounds) for size in arguments.sizes}
    names = next(iter(columns.values()))
    rows = [{"ms an image": name} | {size: column[name] for size, column in columns.items()} for name in names]
    print(format_table(rows))


def costs(size: int, *, rounds: int) -> dict[str, float]:
    """Milliseconds an image by what is done."""
    count = max(8, 64 * 64 * 64 // size**2)
    images_BVHWC = np.random.default_rng(0).integers(0, 256, (count, 1, size, size, 3), dtype=np.uint8)
    batch = Batch(
        images=Views(torch.ones(count, 1, dtype=torch.bool), torch.from_numpy(images_BVHWC).permute(0, 1, 4, 2, 3)),
        rows_B=torch.arange(count),
        draws_B=torch.arange(count),
    )
    together = {key: value for part in ALL.values() for key, value in part.items()}
    chosen = {"normalisation": {}, **ALL, "all of these": together}
    transforms = {
        name: DeviceTransform(
            ImageConfig(size=(size, size)), augmentation=AugmentationConfig.model_validate(part), seed=0
        )
        for name, part in chosen.items()
    }
    actions: dict[str, Callable[[], Any]] = {
        name: partial(transform, batch, train=True) for name, transform in transforms.items()
    }
    actions["compression"] = lambda: [recompressed(image, quality=70) for image in images_BVHWC[:, 0]]
    ready = transforms["normalisation"](batch, train=False).views.pixels[:, 0]
    actions |= {f"step, {name}": step_of(ready, bf16=name == "bf16") for name in ("fp32", "bf16")}
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):  # in turn, so that a busy neighbour disturbs all alike
        for name, action in actions.items():
            action()  # what was measured before it must not decide what lies in the cache
            start = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - start)
    found = {name: 1000 * statistics.median(own) / count for name, own in seconds.items()}
    steps = [found.pop(f"step, {name}") for name in ("fp32", "bf16")]
    for name in ALL:
        found[name] -= found["normalisation"]
    return {**found, "ResNet-18, forward and backward": min(steps)}


def step_of(images_NCHW: torch.Tensor, *, bf16: bool) -> Callable[[], None]:
    """Forward and backward of a ResNet-18."""
    model = timm.create_model("resnet18", num_classes=13).to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(images_NCHW).logsumexp(1).mean()
        loss.backward()
        model.zero_grad()

    return step


if __name__ == "__main__":
    main()
