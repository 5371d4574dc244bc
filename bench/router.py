"""The router against a plain loop: the same model, samples seen and precision; accuracy and time a step.

    python bench/router.py [--data modality.csv] [--epochs 16] [--seeds 0 1] [--rounds 5] [--skip-accuracy]

The plain loop is what a careful person writes in 40 lines (``bench/_plain.py``). ``--data`` is a csv with the columns
image (or path), label (or modality), split and group_id; the default is the embedded demo set, and CONSILIUM_SHARED
names a folder whose ``modality/manifest.csv`` is taken instead. Time a step is measured in rounds, plain and ours in
turn, one epoch each; a step's time includes waiting for its data. Both sides decode in one worker process.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import f1_score

from bench._machine import describe_machine
from bench._plain import SAME, plain
from consilium.core.config import build, merge
from consilium.demo import demo_data_path
from consilium.experiment import Experiment
from consilium.session import train
from consilium.training.hooks import read_history


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_table())
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--rounds", type=int, default=5, help="of the step measurement; 0 leaves it out")
    parser.add_argument("--skip-accuracy", action="store_true")
    arguments = parser.parse_args()
    print(describe_machine())
    cases = read_cases(arguments.data)
    print(f"{arguments.data.name}: " + ", ".join(f"{split} {len(rows)}" for split, rows in cases.items()))
    with tempfile.TemporaryDirectory() as folder:
        ours(arguments.data, Path(folder), epochs=1, seed=0, limit_steps=2)  # prepares the store, warms the caches
        if arguments.rounds:
            measure_steps(arguments.data, cases, Path(folder), rounds=arguments.rounds)
        if not arguments.skip_accuracy:
            measure_accuracy(arguments.data, cases, Path(folder), epochs=arguments.epochs, seeds=arguments.seeds)
    print(describe_machine())


def default_table() -> Path:
    """The shared collection where its variable is set, else the demo set."""
    shared = os.environ.get("CONSILIUM_SHARED")
    return Path(shared) / "modality" / "manifest.csv" if shared else demo_data_path() / "modality.csv"


def columns(table: Path) -> tuple[str, str]:
    """The names of the image and label columns."""
    with table.open(encoding="utf-8", newline="") as file:
        names = next(csv.reader(file))
    return ("image" if "image" in names else "path", "label" if "label" in names else "modality")


def root(table: Path) -> Path:
    """The folder that image paths are relative to."""
    return table.parent.parent if table.name == "manifest.csv" else table.parent


def read_cases(table: Path) -> dict[str, list[tuple[str, str]]]:
    """(image path, label) by split."""
    image, label = columns(table)
    cases: dict[str, list[tuple[str, str]]] = {"train": [], "val": [], "test": []}
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            cases[row["split"]].append((str(root(table) / row[image]), row[label]))
    return cases


def score_plain(cases: dict[str, list[tuple[str, str]]], *, epochs: int, seed: int) -> tuple[float, list[float]]:
    """Test macro-F1 of the plain loop, and the seconds of each of its steps."""
    result = plain(cases["train"], cases["test"], epochs=epochs, seed=seed)
    return float(f1_score([label for _, label in cases["test"]], result.answers, average="macro")), result.seconds


def ours(
    table: Path, folder: Path, *, epochs: int, seed: int, limit_steps: int | None = None
) -> tuple[float, list[float]]:
    """Test macro-F1 of a Consilium run with the same ingredients, and the seconds of each step."""
    image, label = columns(table)
    source = {"kind": "csv", "name": "modality", "path": str(table), "image_root": str(root(table))}
    tree = {
        "name": "bench",
        "seed": seed,
        "data": {
            "sources": [{**source, "columns": {"image": image, "label": label}}],
            "store": {"root": str(folder / "stores")},
            "augmentation": {"crop_scale": [0.5, 1.0], "horizontal_flip_prob": 0.5},
            "mixture": {"sampling": "class_balanced"},
        },
        "trainer": {
            "max_epochs": epochs, "max_steps": limit_steps, "precision": "bf16", "log_every": 1,
            "validate_every": max(epochs / 4, 1), "save_every": max(epochs / 4, 1),
        },
        "evaluation": {"bootstrap_samples": 0},
        "output": {"root": str(folder / "runs")},
    }  # fmt: skip
    experiment = build(Experiment, merge(SAME, tree), origin="bench")
    result = train(experiment)
    assert result is not None
    rows = [row for row in read_history(result.bundle / "history.csv") if row["train_loss"]]
    seconds = [float(row["data_seconds"]) + float(row["step_seconds"]) for row in rows]
    return float(result.runs[0].metrics["test"]["macro_f1"] or 0.0), seconds


def measure_steps(table: Path, cases: dict[str, list[tuple[str, str]]], folder: Path, *, rounds: int) -> None:
    """Print the median seconds a step of both, in turn, and the ratio within each round."""
    found = []
    for number in range(rounds):
        _, plain_seconds = score_plain(cases, epochs=1, seed=number)
        _, our_seconds = ours(table, folder, epochs=1, seed=number)
        # The first steps start worker processes; the last may be shorter.
        found.append((statistics.median(plain_seconds[2:-1]), statistics.median(our_seconds[2:-1])))
        print(f"round {number}: plain {found[-1][0]:.4f} s, ours {found[-1][1]:.4f} s a step", flush=True)
    ratios = [ours_ / plain_ for plain_, ours_ in found]
    print(f"\nmedian step: plain {statistics.median(p for p, _ in found):.4f} s, ", end="")
    print(f"ours {statistics.median(o for _, o in found):.4f} s, ratio {statistics.median(ratios):.3f} ", end="")
    print(f"(rounds {min(ratios):.3f} to {max(ratios):.3f}; goal: at most 1.05)\n")


def measure_accuracy(
    table: Path, cases: dict[str, list[tuple[str, str]]], folder: Path, *, epochs: int, seeds: list[int]
) -> None:
    """Print the test macro-F1 of both for every seed; each test set is looked at once a run."""
    scores = []
    for seed in seeds:
        start = time.perf_counter()
        plain_score, _ = score_plain(cases, epochs=epochs, seed=seed)
        middle = time.perf_counter()
        our_score, _ = ours(table, folder, epochs=epochs, seed=seed)
        scores.append((plain_score, our_score))
        print(
            f"seed {seed}, {epochs} epochs: plain macro-F1 {plain_score:.4f} in {middle - start:.0f} s, "
            f"ours {our_score:.4f} in {time.perf_counter() - middle:.0f} s (validation and report included)",
            flush=True,
        )
    means = np.mean(scores, axis=0)
    print(f"mean macro-F1 over {len(seeds)} seeds: plain {means[0]:.4f}, ours {means[1]:.4f}\n")


if __name__ == "__main__":
    main()
