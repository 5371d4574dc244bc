"""What it costs to decode every image before a training: prepare and the checks, beside a bare loop of decoding.

    python bench/checked.py [--images 20000] [--rounds 3] [--side 512]

Writes JPEG files of ``side`` pixels. In turn, each in a process of its own: a loop that reads every file and decodes it
at the scale that the checks need, in as many threads as there are cores; and ``prepare`` with all that a training
checks before its first step, into a new store. Prints the median time of both and the ratio within each round.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import simplejpeg
from PIL import Image

from bench._machine import describe_machine

SCALED = 74  # 64 pixels, which the checks look at, times the margin that the loader keeps


def main() -> None:
    """Write the files, run both sides in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--only", choices=("decode", "prepare"), default=None, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is not None:
        print({"decode": decode, "prepare": prepare}[arguments.only](arguments.folder))
        return
    print(f"machine: {describe_machine()}\n")
    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary), images=arguments.images, side=arguments.side)
        found = [
            {side: measured(side, Path(temporary)) for side in ("decode", "prepare")} for _ in range(arguments.rounds)
        ]
    ratios = [one["prepare"] / one["decode"] for one in found]
    print("| side | seconds (median) | images a second |\n|---|---|---|")
    for side in ("decode", "prepare"):
        seconds = statistics.median(one[side] for one in found)
        print(f"| {side} | {seconds:.1f} | {arguments.images / seconds:,.0f} |")
    print(
        f"\nprepare and all checks / decoding: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def write(folder: Path, *, images: int, side: int) -> None:
    """JPEG files of two labels, each a smooth picture of its own with the same fine noise."""
    rng = np.random.default_rng(0)
    noise = rng.integers(-12, 13, (side, side, 1), dtype=np.int16)
    for number in range(images):
        smooth = Image.fromarray(rng.integers(12, 244, (24, 24, 3), dtype=np.uint8)).resize((side, side))
        path = folder / "images" / "ab"[number % 2] / f"{number:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels_HWC = (np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8)
        path.write_bytes(simplejpeg.encode_jpeg(pixels_HWC, quality=88))


def measured(side: str, folder: Path) -> float:
    """The seconds of one side in a process of its own, without its imports."""
    shutil.rmtree(folder / "stores", ignore_errors=True)
    command = [sys.executable, __file__, "--only", side, "--folder", str(folder)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def decode(folder: Path) -> float:
    """Read and decode, no more."""

    def one(path: Path) -> None:
        simplejpeg.decode_jpeg(path.read_bytes(), "RGB", min_height=SCALED, min_width=SCALED)

    files = sorted((folder / "images").rglob("*.jpg"))
    began = time.perf_counter()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(one, files):
            pass
    return time.perf_counter() - began


def prepare(folder: Path) -> float:
    """What a training does before it builds its model."""
    from consilium.core.config import build
    from consilium.core.reporter import Silent
    from consilium.data.cases.load import load_data
    from consilium.data.config import DataConfig
    from consilium.tasks.classify.config import ClassifyConfig
    from consilium.tasks.family import studying

    tree = {
        "sources": [{"kind": "folder", "name": "s", "path": str(folder / "images")}],
        "store": {"root": str(folder / "stores")},
    }
    config = build(DataConfig, tree, origin="bench")
    began = time.perf_counter()
    task = ClassifyConfig()
    study, splits = studying(task, learns=True), ("train", "val")
    load_data(config, needs=task.needs, study=study, splits=splits, training=True, reporter=Silent())
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
