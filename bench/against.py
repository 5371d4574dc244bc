"""Processor time of a training step and of the loader, this checkout against another one.

    python bench/against.py OTHER_CHECKOUT [--pairs 15] [--steps 14]

Both sides run in processes of their own, one thread, in turn, the order exchanged from pair to pair; a ratio is taken
within a pair. Printed are the median ratio and its 95 % bootstrap interval over pairs. A step is one of
``bench/router.py`` with its data decoded in the same process; the loader is ``ours`` of ``bench/loader.py``, which
each side has of its own.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
MEASURED = ("step", "loader")


def main() -> None:
    """Measure and print a line for each; a side of a pair runs this file again with ``--side``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, nargs="?", help="the checkout to compare with")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=14, help="of a training")
    parser.add_argument("--side", choices=MEASURED, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side == "step":
        print(step(arguments.folder, steps=arguments.steps))
    elif arguments.side == "loader":
        print(loader(arguments.folder))
    elif arguments.other is None:
        print("no other checkout was given, so that there is nothing to compare")
    else:
        with tempfile.TemporaryDirectory() as folder:
            for what in MEASURED:
                compare(what, arguments.other.resolve(), Path(folder), pairs=arguments.pairs, steps=arguments.steps)


def compare(what: str, other: Path, folder: Path, *, pairs: int, steps: int) -> None:
    """Run the pairs and print the ratio of this checkout to the other."""
    sides = {HERE: folder / "here", other: folder / "other"}
    ratios = []
    for number in range(pairs + 1):
        order = list(sides) if number % 2 else list(sides)[::-1]
        seconds = {side: run(what, side, sides[side], steps=steps) for side in order}
        if number:  # the first pair prepares
            ratios.append(seconds[HERE] / seconds[other])
            print(f"{what} {number}: {1000 * seconds[other]:.1f} ms, here {1000 * seconds[HERE]:.1f} ms", flush=True)
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(2000))
    low, high = medians[50], medians[-51]
    print(f"{what}: processor time, here to the other: {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})\n")


def run(what: str, side: Path, folder: Path, *, steps: int) -> float:
    """Seconds of processor time that a side takes."""
    environment = {**os.environ, "PYTHONPATH": f"{side}{os.pathsep}{side / 'src'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(side), "--side", what, "--folder", str(folder), "--steps", str(steps)]
    done = subprocess.run(command, cwd=side, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side}: {done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def step(folder: Path, *, steps: int) -> float:
    """The median processor time of a training step, without the first two."""
    from bench._plain import SAME
    from consilium.core.config import build, merge
    from consilium.core.reporter import Silent
    from consilium.demo import demo_data_path
    from consilium.experiment import Experiment
    from consilium.session import train

    times: list[float] = []

    class Clock(Silent):
        def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
            if name == "train":
                times.append(time.process_time())

    tree = {
        "name": "bench",
        "data": {
            "sources": [{"kind": "csv", "name": "modality", "path": str(demo_data_path() / "modality.csv")}],
            "store": {"root": str(folder / "stores")},
            "augmentation": {"crop_scale": [0.5, 1.0], "horizontal_flip_prob": 0.5},
            "loader": {"workers": 0},
        },
        "trainer": {"max_epochs": 1, "max_steps": steps, "precision": "fp32", "threads": 1, "validate_every": 1},
        "evaluation": {"bootstrap_samples": 0},
        "report": {"saliency": 0},
        "output": {"root": str(folder / "runs")},
    }
    train(build(Experiment, merge(SAME, tree), origin="bench"), reporter=Clock())
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(times[2:]))


def loader(folder: Path) -> float:
    """The processor time of an epoch of the loader, the median of five."""
    from bench.loader import ours, write_images

    if not (folder / "512").is_dir():
        write_images(folder, photographs=None, count=64)
    epoch = ours(folder / "512")
    seconds = []
    for number in range(6):
        start = time.process_time()
        epoch(number)
        seconds.append(time.process_time() - start)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
