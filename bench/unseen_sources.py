"""How good is the router on sources that it has never seen? A plain loop against ``recipes/unseen_sources.yaml``.

    python bench/unseen_sources.py [--start random imagenet] [--seeds 0 1 2] [--folds 1 2] [--recipe FILE]
                                   [--set KEY=VALUE ...]

Data is ``modality/manifest.csv`` in the folder that CONSILIUM_SHARED names. Each fold tests on all cases of sources
that are held out whole, or of some classes of a source; both sides train on the same other cases, from the same
weights, with the same loss, optimizer and batches and as many draws (``bench/_plain.py``):

- ``random``: ResNet-18 with random weights, 64 pixels; ours adds ``VARIED``, which varies what tells sources apart, and
  draws sources equally.
- ``imagenet``: EfficientNet-Lite0 with ImageNet weights (``bench/_imagenet.py``), frozen, 224 pixels; to train all of
  it takes hours on a CPU. Ours is the recipe as it is.

All four draw as many cases, ``EPOCHS`` times those of train. With both starts the last line compares the recipe as it
is with the plain loop from random weights.

Both were chosen without the held-out cases; the recipe says how. Ours takes the weights that are best on validation,
which is drawn from the sources of the training, the plain side its last ones.

Answers are over all 13 classes. The macro-F1 is the mean of F1 over the classes that the fold tests. An answer that is
none of these costs the recall of the true class and no precision, for there is no F1 of the class that it names.

The interval of the difference is Student's t over the pairs of seed and fold. It covers the chance of the training on
these two folds; it says nothing about other sources, of which two folds are too few.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t
from sklearn.metrics import f1_score

from bench._imagenet import imagenet_weights
from bench._machine import describe_machine
from bench._plain import SAME, Cases, Probe, plain, same_probe
from consilium.core.config import apply_overrides, build, merge, read_tree
from consilium.core.reporter import Silent, format_table
from consilium.data.cases.load import load_data
from consilium.data.store.store import CaseTable
from consilium.experiment import Experiment
from consilium.predictor import Predictor, case_outputs
from consilium.series import GUARDS_OFF
from consilium.session import train
from consilium.tasks.family import studying

SOURCE = "meta.source"  # the column of the table
FOLDS: dict[int, list[dict[str, list[str]]]] = {
    1: [
        {SOURCE: ["vqa_rad"], "label": ["ct", "mri", "xray_chest"]},
        {SOURCE: ["openslide", "scanpy", "wbc", "chase"]},
    ],
    2: [
        {SOURCE: ["mednist"], "label": ["ct", "mri"]},  # its hands and chests stay
        {SOURCE: ["dsb2018"], "label": ["histopathology"]},
        {SOURCE: ["covid_cxr", "plotnine", "bccd", "idrid"]},
    ],
}
RECIPE = Path(__file__).parents[1] / "recipes" / "unseen_sources.yaml"
SIDES = ("plain", "ours")
EPOCHS = 8
VARIED = {
    "crop_scale": [0.2, 1.0], "horizontal_flip_prob": 0.5, "vertical_flip_prob": 0.3, "rotation_degrees": 15,
    "brightness_jitter": 0.4, "contrast_jitter": 0.4, "saturation_jitter": 0.4, "hue_jitter": 0.15,
    "grayscale_prob": 0.3, "gamma": [0.6, 1.7], "resolution": [0.25, 1.0], "resolution_prob": 0.5, "noise": 0.05,
    "border_prob": 0.3,
}  # fmt: skip


@dataclass(frozen=True)
class Start:
    """From which weights both sides start: what ours sets for it, and how the plain side answers, by seed."""

    same: dict[str, Any]
    plain: Callable[[Cases, Cases, int], list[str]]


@dataclass(frozen=True)
class Score:
    """Macro-F1 over the classes tested, and the recall of each held-out cell (source, class)."""

    macro_f1: float
    recalls: dict[tuple[str, str], float]


Found = dict[str, list[dict[int, Score]]]  # the scores of each side, by fold and seed


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", nargs="+", default=list(STARTS), choices=list(STARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", type=int, nargs="+", default=[1, 2], choices=sorted(FOLDS))
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the recipe")
    arguments = parser.parse_args()
    if "CONSILIUM_SHARED" not in os.environ:
        print("CONSILIUM_SHARED names no folder with modality/manifest.csv, so there is nothing to measure on.")
        return
    print(describe_machine())
    recipe = apply_overrides(read_tree(arguments.recipe), arguments.set)
    found: dict[str, Found] = {}
    for name in arguments.start:
        with tempfile.TemporaryDirectory() as folder:
            start = STARTS[name](Path(folder))
            found[name] = compare(name, start, recipe, Path(folder), folds=arguments.folds, seeds=arguments.seeds)
    if len(found) == len(STARTS):
        across = {"plain": found["random"]["plain"], "ours": found["imagenet"]["ours"]}
        print(f"the recipe against the plain loop from random weights: {difference(across)}")
    print(describe_machine())


def compare(
    name: str, start: Start, recipe: dict[str, Any], folder: Path, *, folds: list[int], seeds: list[int]
) -> Found:
    """Measure and print the tables of one start."""
    found: Found = {side: [] for side in SIDES}
    for fold in folds:
        scores: dict[str, dict[int, Score]] = {side: {} for side in SIDES}
        for seed in seeds:
            experiment = ours(recipe, start, folder, fold=fold, seed=seed)
            for side, score in measure(experiment, start).items():
                scores[side][seed] = score
        for side in SIDES:
            found[side].append(scores[side])
        title = f"{name} weights, fold {fold}: recall of each held-out cell, mean over the seeds"
        print(format_table(recall_rows(scores), title=title))
    print(format_table(score_rows(found, folds), title=f"{name} weights: macro-F1 on sources never seen"))
    print(difference(found), flush=True)
    return found


def from_random(folder: Path) -> Start:
    """Everything learns, from random weights; ours varies what tells sources apart."""
    change = {
        "task": {"vision": {"freeze": {"kind": "none"}}},
        "data": {"augmentation": VARIED},
        "trainer": {"precision": "bf16", "monitor": "macro_f1"},
    }

    def answers(train: Cases, test: Cases, seed: int) -> list[str]:
        return plain(train, test, epochs=EPOCHS, seed=seed).answers

    return Start(merge(SAME, change), answers)


def from_imagenet(folder: Path) -> Start:
    """A head on the frozen tower."""
    weights = imagenet_weights(folder)
    probe = Probe(weights)

    def answers(train: Cases, test: Cases, seed: int) -> list[str]:
        return probe.answers(train, test, epochs=EPOCHS, seed=seed)

    return Start(same_probe(weights), answers)


STARTS: dict[str, Callable[[Path], Start]] = {"random": from_random, "imagenet": from_imagenet}


def ours(recipe: dict[str, Any], start: Start, folder: Path, *, fold: int, seed: int) -> Experiment:
    """The recipe on a fold, from the weights and with the loss, optimizer, batches and length of the plain side."""
    shared = Path(os.environ["CONSILIUM_SHARED"])
    place = {"path": str(shared / "modality" / "manifest.csv"), "image_root": str(shared)}
    tree = {
        "name": f"fold-{fold}",
        "seed": seed,
        "data": {
            "sources": [{**recipe["data"]["sources"][0], **place}],
            "split": {"leave_out": FOLDS[fold]},
            "store": {"root": str(folder / "stores")},
            "guards": GUARDS_OFF,
        },
        "trainer": {"max_epochs": EPOCHS},
        "evaluation": {"bootstrap_samples": 0},
        "report": {"images": False},
        "output": {"root": str(folder / "runs")},
    }
    return build(Experiment, merge(merge(recipe, start.same), tree), origin="bench")


def measure(experiment: Experiment, start: Start) -> dict[str, Score]:
    """Both sides, trained on the same cases and asked about the same others."""
    task = experiment.task
    loaded = load_data(
        experiment.data,
        needs=task.needs,
        study=studying(task, learns=True),
        splits=("train", "val", "test"),
        reporter=Silent(),
    )
    studied, cases = loaded.studied, loaded.cases
    parts = {
        split: [(str(cases.table.images(row)[0]), cases.table.labels[row][0]) for row in rows.tolist()]
        for split, rows in cases.rows.items()
    }
    seed, began = experiment.seed, time.perf_counter()
    answers = {"plain": start.plain(parts["train"], parts["test"], seed)}
    middle = time.perf_counter()
    result = train(experiment, quiet=True)
    assert result is not None
    predictor = Predictor.load(result.bundle, device=experiment.trainer.device, batch_size=256)
    assert predictor.task.labels.leaves == studied.knowledge.tree.leaves
    probabilities_NK = case_outputs(predictor, studied, "test").arrays["probabilities"]
    answers["ours"] = [predictor.task.labels.leaves[number] for number in probabilities_NK.argmax(1).tolist()]
    rows = cases.rows["test"].tolist()
    scores = {side: score(cases.table, rows, own) for side, own in answers.items()}
    counts = ", ".join(f"{split} {len(rows)}" for split, rows in parts.items())
    print(
        f"{experiment.name}, seed {seed} ({counts}): plain {scores['plain'].macro_f1:.3f} in {middle - began:.0f} s, "
        f"ours {scores['ours'].macro_f1:.3f} in {time.perf_counter() - middle:.0f} s (validation and report included)",
        flush=True,
    )
    return scores


def score(table: CaseTable, rows: list[int], answers: list[str]) -> Score:
    """How good the answers to the test cases are."""
    truth = [table.labels[row][0] for row in rows]
    sources = table.columns()[SOURCE]
    right = defaultdict(list)
    for row, label, answer in zip(rows, truth, answers, strict=True):
        right[sources[row], label].append(answer == label)
    macro_f1 = f1_score(truth, answers, labels=sorted(set(truth)), average="macro", zero_division=0)
    return Score(float(macro_f1), {cell: statistics.fmean(own) for cell, own in sorted(right.items())})


def recall_rows(scores: dict[str, dict[int, Score]]) -> list[dict[str, Any]]:
    """A row for each held-out cell."""
    cells = next(iter(scores["plain"].values())).recalls
    return [
        {"source": cell[0], "class": cell[1]}
        | {side: statistics.fmean(one.recalls[cell] for one in scores[side].values()) for side in SIDES}
        for cell in cells
    ]


def score_rows(found: Found, folds: list[int]) -> list[dict[str, Any]]:
    """A row for each fold and seed."""
    return [
        {"fold": fold, "seed": seed}
        | {side: found[side][number][seed].macro_f1 for side in SIDES}
        | {"difference": found["ours"][number][seed].macro_f1 - found["plain"][number][seed].macro_f1}
        for number, fold in enumerate(folds)
        for seed in found["plain"][number]
    ]


def difference(found: Found) -> str:
    """The mean of both sides, and their paired difference with its interval."""
    values = {side: np.array([one.macro_f1 for fold in found[side] for one in fold.values()]) for side in SIDES}
    pairs = values["ours"] - values["plain"]
    told = f"mean: plain {values['plain'].mean():.3f}, ours {values['ours'].mean():.3f}, difference {pairs.mean():+.3f}"
    if len(pairs) < 2:
        return f"{told}; one pair has no interval"
    half = t.ppf(0.975, len(pairs) - 1) * pairs.std(ddof=1) / len(pairs) ** 0.5
    return f"{told}, 95 % interval {pairs.mean() - half:+.3f} to {pairs.mean() + half:+.3f} (t over {len(pairs)} pairs)"


if __name__ == "__main__":
    main()
