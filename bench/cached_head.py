"""A new head on 100,000 images whose frozen tower's features are cached, against a plain loop over the same matrix.

    python bench/cached_head.py [--images 100000] [--epochs 5] [--rounds 3]

The images are made: 32 px, ten labels of ten colours under noise, as one csv with splits. The tower is a random
mobilenetv3_small_050 (1024 features), frozen. The first training makes the store, looks through it with all guards
and computes every feature; it is timed once. Each round then trains a head of another kind on what is cached: the
whole of ``consilium.train`` is timed, from the unchanged store over validation each epoch and checkpoints to the
bundle and the report. The plain loop, in turn with it, has the feature matrix in memory already: the same number of
cases, batches and epochs, AdamW with a cosine, accuracy on the same validation cases each epoch, and nothing else.
"""

from __future__ import annotations

import argparse
import colorsys
import csv
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import simplejpeg
import torch
from torch import nn

from bench._machine import describe_machine
from consilium.core.config import build
from consilium.core.reporter import Reporter
from consilium.experiment import Experiment
from consilium.session import train
from consilium.training.hooks import read_history

SIDE, CLASSES, WIDTH, HIDDEN, BATCH, RATE = 32, 10, 1024, 128, 256, 1e-3
HELD_OUT = 0.05  # of the images, for validation and for the test each


def main() -> None:
    """Make the images, fill the cache, run the rounds, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, count=arguments.images)
        lines = Lines()
        start = time.perf_counter()
        ours(folder, head={"kind": "linear"}, epochs=1, reporter=lines)
        told = next((line for line in lines.lines if line.startswith("features of")), "no feature is cached")
        print(f"first training, store and features included: {time.perf_counter() - start:.1f} s; it said: {told}")
        seconds: dict[str, list[float]] = {"ours": [], "in steps": [], "plain": []}
        for number in range(arguments.rounds):
            start = time.perf_counter()
            bundle = ours(folder, head={"kind": "mlp", "hidden_sizes": [HIDDEN]}, epochs=arguments.epochs)
            seconds["ours"].append(time.perf_counter() - start)
            seconds["in steps"].append(in_steps(bundle))
            seconds["plain"].append(plain(folder, epochs=arguments.epochs))
            print(f"round {number}: " + ", ".join(f"{name} {values[-1]:.1f} s" for name, values in seconds.items()))
        median = {name: statistics.median(values) for name, values in seconds.items()}
        print(
            f"{arguments.epochs} epochs of {arguments.images} images, {2 * HELD_OUT:.0%} of them held out, medians: "
            f"ours {median['ours']:.1f} s (goal: below 60), {median['in steps']:.1f} s of it in steps; plain loop "
            f"{median['plain']:.1f} s"
        )


class Lines(Reporter):
    """Remembers the lines of a training."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        """Remember a line."""
        self.lines.append(text)

    def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
        """Nothing: a bar is not measured."""


def write_images(folder: Path, *, count: int) -> None:
    """``count`` small JPEG files and ``images.csv`` with their labels and splits."""
    rng = np.random.default_rng(0)
    colours = np.array([colorsys.hsv_to_rgb(label / CLASSES, 0.6, 0.7) for label in range(CLASSES)]) * 255
    held_out = int(count * HELD_OUT)
    with (folder / "images.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "label", "split"])
        for number in range(count):
            if number % 1000 == 0:
                (folder / "images" / f"{number // 1000:04d}").mkdir(parents=True)
            label = int(rng.integers(CLASSES))
            pixels_HWC = colours[label] + rng.normal(0, 60, (SIDE, SIDE, 3))
            path = Path("images", f"{number // 1000:04d}", f"{number:06d}.jpg")
            (folder / path).write_bytes(simplejpeg.encode_jpeg(np.clip(pixels_HWC, 0, 255).astype(np.uint8)))
            split = "val" if number < held_out else "test" if number < 2 * held_out else "train"
            rows.writerow([path, f"label_{label}", split])


def ours(folder: Path, *, head: dict[str, Any], epochs: int, reporter: Reporter | None = None) -> Path:
    """The bundle of a training; the tower is the same each time."""
    experiment = build(
        Experiment,
        {
            "name": "bench",
            "task": {
                "vision": {"name": "mobilenetv3_small_050", "pretrained": False, "freeze": {"kind": "tower"}},
                "head": head,
            },
            "data": {
                "sources": [{"kind": "csv", "name": "made", "path": str(folder / "images.csv")}],
                "store": {"root": str(folder / "stores")},
                "image": {"size": [SIDE, SIDE]},
                "loader": {"batch_size": BATCH},
            },
            "optimizer": {"kind": "adamw", "learning_rate": RATE},
            "trainer": {"max_epochs": epochs, "precision": "fp32", "device": "cpu", "threads": 1},
            "output": {"root": str(folder / "runs")},
        },
        origin="bench",
    )
    result = train(experiment, reporter=reporter)
    assert result is not None
    return result.bundle


def in_steps(bundle: Path) -> float:
    """Seconds of a training's steps and of the waiting for their data."""
    rows = [row for row in read_history(bundle / "history.csv") if row["train_loss"]]
    steps = np.diff([0, *(int(row["step"]) for row in rows)])
    return float(steps @ [float(row["data_seconds"]) + float(row["step_seconds"]) for row in rows])


def plain(folder: Path, *, epochs: int) -> float:
    """Seconds of a plain loop over the features that are cached, in memory."""
    (path,) = (folder / "stores").glob("features-*/0.features")
    features_NF = torch.from_numpy(np.fromfile(path, dtype=np.float32).reshape(-1, WIDTH))
    targets_N = torch.from_numpy(np.random.default_rng(0).integers(CLASSES, size=len(features_NF)))
    held_out = int(len(features_NF) * HELD_OUT)
    start = time.perf_counter()
    head = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Dropout(0.1), nn.Linear(HIDDEN, CLASSES))
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE)
    steps = -(-(len(features_NF) - 2 * held_out) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    for _ in range(epochs):
        head.train()
        for rows_B in (torch.randperm(len(features_NF) - 2 * held_out) + 2 * held_out).split(BATCH):
            loss = nn.functional.cross_entropy(head(features_NF[rows_B]), targets_N[rows_B])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        head.eval()
        with torch.inference_mode():
            float((head(features_NF[:held_out]).argmax(1) == targets_N[:held_out]).float().mean())
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
