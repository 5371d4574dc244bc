"""The router against a plain loop: the same model, data, samples seen and precision; images a second and accuracy.

    python bench/router.py [--data modality.csv] [--epochs 16] [--seeds 0 1] [--rounds 5] [--skip-accuracy]

The plain loop is what a careful person writes in 40 lines (``bench/_plain.py``). ``--data`` is a csv with the columns
image (or path), label (or modality), split and group_id; the default is the embedded demo set, and CONSILIUM_SHARED
names a folder whose ``modality/manifest.csv`` is taken instead. Images a second are those of the median step, which
includes waiting for its data: in rounds, plain and ours in turn, one epoch each, and again in the trainings whose
accuracy is measured. Both sides decode in one worker process, and waiting threads sleep, as `consilium train` has it.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from sklearn.metrics import accuracy_score, f1_score

from bench._machine import describe_machine
from bench._plain import BATCH, SAME, plain
from consilium.core.config import build, merge
from consilium.demo import demo_data_path
from consilium.experiment import Experiment
from consilium.session import train
from consilium.training.hooks import read_history


@dataclass(frozen=True)
class Side:
    """What a training of one side gave: on the test split, and the seconds of its median step."""

    accuracy: float
    macro_f1: float
    step: float

    @property
    def rate(self) -> float:
        """Images a second."""
        return BATCH / self.step

    def __str__(self) -> str:
        return f"{self.rate:.0f} images/s, accuracy {self.accuracy:.4f}, macro-F1 {self.macro_f1:.4f}"


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


def score_plain(cases: dict[str, list[tuple[str, str]]], *, epochs: int, seed: int) -> Side:
    """A training of the plain loop."""
    result = plain(cases["train"], cases["test"], epochs=epochs, seed=seed)
    truth = [label for _, label in cases["test"]]
    macro_f1 = float(f1_score(truth, result.answers, average="macro"))
    return Side(float(accuracy_score(truth, result.answers)), macro_f1, typical(result.seconds))


def typical(seconds: list[float]) -> float:
    """The median step; the first steps start worker processes, and the last may be shorter."""
    return statistics.median(seconds[2:-1] or seconds)


def ours(table: Path, folder: Path, *, epochs: int, seed: int, limit_steps: int | None = None) -> Side:
    """A training by Consilium with the same ingredients."""
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
    result = train(experiment, quiet=True)
    assert result is not None
    rows = [row for row in read_history(result.bundle / "history.csv") if row["train_loss"]]
    seconds = [float(row["data_seconds"]) + float(row["step_seconds"]) for row in rows]
    found = result.runs[0].metrics["test"]
    return Side(found["accuracy"] or 0.0, found["macro_f1"] or 0.0, typical(seconds))


def measure_steps(table: Path, cases: dict[str, list[tuple[str, str]]], folder: Path, *, rounds: int) -> None:
    """Print the images a second of both, in turn, and the ratio within each round."""
    found = []
    for number in range(rounds):
        theirs = score_plain(cases, epochs=1, seed=number)
        found.append((theirs, ours(table, folder, epochs=1, seed=number)))
        print(f"round {number}: plain {theirs.rate:.0f}, ours {found[-1][1].rate:.0f} images a second", flush=True)
    ratios = [our.step / theirs.step for theirs, our in found]
    rates = [statistics.median(side.rate for side in sides) for sides in zip(*found, strict=True)]
    print(
        f"\nmedian images a second: plain {rates[0]:.0f}, ours {rates[1]:.0f}; time of a step, ours to plain "
        f"{statistics.median(ratios):.3f} (rounds {min(ratios):.3f} to {max(ratios):.3f}; goal: at most 1.05)\n"
    )


def measure_accuracy(
    table: Path, cases: dict[str, list[tuple[str, str]]], folder: Path, *, epochs: int, seeds: list[int]
) -> None:
    """Print what both reach on the test split for every seed; each test set is looked at once a run."""
    found = []
    for seed in seeds:
        start = time.perf_counter()
        theirs = score_plain(cases, epochs=epochs, seed=seed)
        middle = time.perf_counter()
        found.append((theirs, ours(table, folder, epochs=epochs, seed=seed)))
        print(f"seed {seed}, {epochs} epochs:\n  plain {theirs} in {middle - start:.0f} s")
        print(
            f"  ours {found[-1][1]} in {time.perf_counter() - middle:.0f} s, validation and report included", flush=True
        )
    print(f"\n| medians over {len(seeds)} seeds | images a second | accuracy | macro-F1 |\n|---|---|---|---|")
    for name, sides in zip(("plain", "ours"), zip(*found, strict=True), strict=True):
        values = [(side.rate, side.accuracy, side.macro_f1) for side in sides]
        rate, accuracy, macro_f1 = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"| {name} | {rate:.0f} | {accuracy:.4f} | {macro_f1:.4f} |")


if __name__ == "__main__":
    main()
