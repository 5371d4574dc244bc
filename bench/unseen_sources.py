"""How good is the router on sources that it has never seen? ``recipes/unseen_sources.yaml`` against a plain loop.

    python bench/unseen_sources.py [--leave sources cells folds known] [--seeds 0 1 2 3 4] [--out runs/unseen_sources]

Data is ``modality/manifest.csv`` in the folder that CONSILIUM_SHARED names. What is left out and answered:

- ``sources``: each of the sources whose class exists elsewhere, whole; training has all other rows.
- ``cells``: each class of a source that exists elsewhere; the source stays with its other classes.
- ``folds``: the two divisions that earlier versions were judged by.
- ``known``: nothing; the rows that the manifest calls test are answered, so all sources are known.

Ours is the recipe; ``SIDES`` are changes of it, each run with the first of the seeds. ``plain`` is a loop that a
careful person writes for the same tower, frozen (``bench/_plain.py``), with every seed.

``chosen`` is the one of ``CANDIDATES`` whose head, with the first seed, has the least log loss on sources that were
left out inside its training part, five groups of them: the recipe chooses its strength by the same figure, so the
choice costs nothing, and what is answered takes no part in it. It is run with every seed, each of which draws the
copies anew; the head itself has none, so that a choice without copies has one run. Zoomed copies were found on these
very sources: the figures are of development, not a proof.

Figures: *recall* is the mean over classes of the mean over the sources of a class of the share that is named right.
*First level* asks for the branch of the tree alone (``BRANCHES``). Intervals hold 95 % of 2,000 resamples of sources;
they say how the figure may move with other sources of the same kind. Every finished run is a small file in ``--out``;
the same command goes on where it was stopped.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import csv
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from sklearn.metrics import f1_score

from bench._imagenet import imagenet_weights
from bench._machine import describe_machine
from bench._plain import Probe
from consilium.core.config import build, merge, read_tree
from consilium.core.files import fingerprint, write_text
from consilium.core.reporter import Silent, format_table
from consilium.data.batches.features import CachedImageReader, CachedLooks, Contents
from consilium.data.batches.readers import Readers
from consilium.data.cases.cases import Cases, Studied
from consilium.data.cases.load import load_data
from consilium.experiment import Experiment
from consilium.predictor import Predictor, case_outputs
from consilium.series import GUARDS_OFF
from consilium.session import train
from consilium.tasks.family import studying
from consilium.training.frozen import FrozenFeatures, ImageField
from consilium.training.hooks import RunLog

SOURCE = "meta.source"  # the column of the table
RECIPE = Path(__file__).parents[1] / "recipes" / "unseen_sources.yaml"
RESAMPLES, PLAIN_EPOCHS = 2000, 8
BRANCHES = {
    "radiology": ("ct", "mri", "ultrasound", "xray_chest", "xray_hand"),
    "microscopy": ("blood_microscopy", "fluorescence_microscopy", "histopathology"),
    "eye": ("fundus", "oct"),
    "photograph": ("dermoscopy", "endoscopy"),
    "chart": ("chart",),
}
BRANCH_OF = {label: branch for branch, labels in BRANCHES.items() for label in labels}
FOLDS: dict[str, list[dict[str, list[str]]]] = {
    "fold 1": [
        {SOURCE: ["vqa_rad"], "label": ["ct", "mri", "xray_chest"]},
        {SOURCE: ["openslide", "scanpy", "wbc", "chase"]},
    ],
    "fold 2": [
        {SOURCE: ["mednist"], "label": ["ct", "mri"]},  # its hands and chests stay
        {SOURCE: ["dsb2018"], "label": ["histopathology"]},
        {SOURCE: ["covid_cxr", "plotnine", "bccd", "idrid"]},
    ],
}
ZOOMED = {"number": 1, "crop_scale": [0.03, 0.25], "horizontal_flip_prob": 0.5, "brightness_jitter": 0.2,
          "contrast_jitter": 0.2, "saturation_jitter": 0.2, "hue_jitter": 0.02}  # fmt: skip
SIDES: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "one look": {"data": {"augmentation": {"copies": None}}},
    "zoomed": {"data": {"augmentation": {"copies": {**ZOOMED, "weight": 1.0}}}},
    "zoomed, half": {"data": {"augmentation": {"copies": {**ZOOMED, "weight": 0.5}}}},
    "zoomed less": {"data": {"augmentation": {"copies": {**ZOOMED, "crop_scale": [0.1, 0.5], "weight": 1.0}}}},
    "zoomed twice": {"data": {"augmentation": {"copies": {**ZOOMED, "crop_scale": [0.03, 0.5], "number": 2}}}},
}
CANDIDATES = tuple(name for name in SIDES if name != "plain")
WITHOUT_SEED = ("one look",)


@dataclass(frozen=True)
class Asked:
    """The answers to what was left out: source, truth and answer of each case."""

    sources: list[str]
    truth: list[str]
    answers: list[str]
    left_out_log_loss: float | None = None  # of the choice of the strength inside training
    seconds: float = 0.0


Found = dict[str, dict[str, dict[int, Asked]]]  # by side, unit and seed


def main() -> None:
    """Make the runs that are missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leave", nargs="+", default=list(LEFT), choices=list(LEFT))
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("runs/unseen_sources"))
    arguments = parser.parse_args()
    if "CONSILIUM_SHARED" not in os.environ:
        print("CONSILIUM_SHARED names no folder with modality/manifest.csv, so there is nothing to measure on.")
        return
    torch.set_num_threads(1)
    print(describe_machine())
    arguments.out.mkdir(parents=True, exist_ok=True)
    router = Router(arguments.out)
    for leave in arguments.leave:
        units = LEFT[leave]()
        found: Found = {}
        for side in arguments.sides:
            seeds = arguments.seeds if side == "plain" else arguments.seeds[:1]
            found[side] = {
                unit: {seed: router.kept(leave, unit, cells, side, seed) for seed in seeds}
                for unit, cells in units.items()
            }
        if not {*CANDIDATES} - found.keys():
            found["chosen"] = {}
            for unit, cells in units.items():
                best = chosen(unit, found)
                seeds = arguments.seeds[: 1 if best in WITHOUT_SEED else None]
                found["chosen"][unit] = {seed: router.kept(leave, unit, cells, best, seed) for seed in seeds}
        show(leave, found)


def manifest() -> list[dict[str, str]]:
    """The rows of the table."""
    with (Path(os.environ["CONSILIUM_SHARED"]) / "modality" / "manifest.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def cells_elsewhere() -> list[tuple[str, str]]:
    """The cells (source, class) whose class another source has, too."""
    pairs = sorted({(row["source"], row["modality"]) for row in manifest()})
    sources = defaultdict(set)
    for source, label in pairs:
        sources[label].add(source)
    return [(source, label) for source, label in pairs if len(sources[label]) > 1]


Units = dict[str, list[dict[str, list[str]]]]  # what each leaves out; nothing: []


def by_source() -> Units:
    """Each source, whole."""
    return {source: [{SOURCE: [source]}] for source in dict.fromkeys(source for source, _ in cells_elsewhere())}


def by_cell() -> Units:
    """Each class of a source."""
    return {f"{source} {label}": [{SOURCE: [source], "label": [label]}] for source, label in cells_elsewhere()}


LEFT: dict[str, Callable[[], Units]] = {
    "sources": by_source,
    "cells": by_cell,
    "folds": lambda: FOLDS,
    "known": lambda: {"test": []},
}


class Router:
    """Trains both sides; what is finished, and all features, are kept in a folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.weights = imagenet_weights(out)
        self.probe = Probe(self.weights)
        self.recipe = read_tree(RECIPE)

    def kept(self, leave: str, unit: str, cells: list[dict[str, list[str]]], side: str, seed: int) -> Asked:
        """The answers of a run: read where they are kept, made where they are not."""
        tree = self.tree(leave, unit, cells, side, seed)
        file = self.out / leave / f"{unit}-{side}-{seed}-{fingerprint(tree)[:8]}.json".replace(" ", "_")
        if not file.is_file():
            began = time.perf_counter()
            made = self.make(tree, plain=side == "plain", seed=seed)
            found = {**made, "seconds": time.perf_counter() - began}
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(found))
            print(f"{leave}, {unit}, {side}, seed {seed}: {found['seconds']:.1f} s", flush=True)
        return Asked(**json.loads(file.read_text(encoding="utf-8")))

    def tree(self, leave: str, unit: str, cells: list[dict[str, list[str]]], side: str, seed: int) -> dict[str, Any]:
        """The recipe with a side's changes, on what is left."""
        shared = Path(os.environ["CONSILIUM_SHARED"])
        source = {
            **self.recipe["data"]["sources"][0],
            "path": str(shared / "modality" / "manifest.csv"),
            "image_root": str(shared),
        }
        split: dict[str, Any] = {"leave_out": cells} if cells else {}
        if leave in ("sources", "cells"):  # all that is not left out trains, but for a share that calibrates
            source["columns"] = {**source["columns"], "split": None}
            split |= {"val": 0.05, "test": 0.0}
        own = {
            "name": unit.replace(" ", "_"),
            "seed": seed,
            "task": {"vision": {"pretrained": str(self.weights)}},
            "data": {
                "sources": [source],
                "split": split,
                "store": {"root": str(self.out / "stores")},
                "guards": GUARDS_OFF,
            },
            "trainer": {"device": "cpu", "threads": 1},
            "evaluation": {"bootstrap_samples": 0},
            "report": {"images": False},
        }
        return merge(merge(self.recipe, SIDES[side] or {}), own)

    def make(self, tree: dict[str, Any], *, plain: bool, seed: int) -> dict[str, Any]:
        """Train and answer."""
        with tempfile.TemporaryDirectory() as folder:
            experiment = build(Experiment, merge(tree, {"output": {"root": folder}}), origin="bench")
            task = experiment.task
            loaded = load_data(
                experiment.data,
                needs=task.needs,
                study=studying(task, learns=True),
                splits=("train", "test"),
                reporter=Silent(),
            )
            cases, log_loss = loaded.cases, None
            rows = cases.rows["test"].tolist()
            truth = [cases.table.labels[row][0] for row in rows]
            if plain:
                parts = {name: pictures(cases, own.tolist()) for name, own in cases.rows.items()}
                answers = self.probe.answers(parts["train"], parts["test"], epochs=PLAIN_EPOCHS, seed=seed)
            else:
                result = train(experiment, quiet=True)
                assert result is not None
                answers = answered(result.bundle, experiment, loaded.studied)
                log_loss = left_out_log_loss(result.bundle)
        sources = cases.table.columns()[SOURCE]
        return {
            "sources": [sources[row] for row in rows],
            "truth": truth,
            "answers": answers,
            "left_out_log_loss": log_loss,
        }


def pictures(cases: Cases, rows: list[int]) -> list[tuple[str, str]]:
    """The path and the label of cases."""
    return [(str(cases.table.images(row)[0]), cases.table.labels[row][0]) for row in rows]


def answered(bundle: Path, experiment: Experiment, studied: Studied[Any]) -> list[str]:
    """The leaf that the bundle names for each test case; the tower's features are read where training kept them."""
    loaded = Predictor.load(bundle, device="cpu")
    table, config = studied.cases.table, experiment.data
    features = FrozenFeatures(
        loaded.task.encoders()["images"],
        ImageField(table, Contents.images(table), image=loaded.image, store=config.store),
        image=loaded.image,
        config=config,
        precision="fp32",
        accelerator=Accelerator(cpu=True),
        log=RunLog(echo=lambda _: None),
        reporter=Silent(),
    )
    features.fill(studied.cases.rows["test"], precision="fp32")
    readers = Readers(images=CachedImageReader(CachedLooks(features.cached(precision="fp32"))))
    predictor = Predictor(
        loaded.task, loaded.knowledge, image=loaded.image, loader=config.loader, device=loaded.device, cached=readers
    )
    probabilities_NK = case_outputs(predictor, studied, "test").arrays["probabilities"]
    task: Any = predictor.task
    leaves: tuple[str, ...] = task.labels.leaves
    places = [task.labels.index(leaf) for leaf in leaves]
    return [leaves[place] for place in probabilities_NK[:, places].argmax(1).tolist()]


def chosen(unit: str, found: Found) -> str:
    """The candidate that left-out sources inside training prefer, with the first seed."""
    losses: dict[str, float] = {}
    for side in CANDIDATES:
        first = next(iter(found[side][unit].values()))
        assert first.left_out_log_loss is not None  # every candidate has a logistic head
        losses[side] = first.left_out_log_loss
    return min(losses, key=lambda side: losses[side])


def left_out_log_loss(bundle: Path) -> float:
    """The least log loss of left-out sources that the head found when it chose its strength."""
    with (bundle / "tables" / "solution.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    return min(float(value) for column, value in row.items() if column.startswith("log_loss_") and value)


# -- Figures ---------------------------------------------------------------------------------------------------------


def recalls(asked: dict[str, dict[int, Asked]], *, branches: bool) -> dict[tuple[str, str], float]:
    """The share of each cell (source, class) that is named right, the mean over seeds."""
    right: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for runs in asked.values():
        for run in runs.values():
            for source, truth, answer in zip(run.sources, run.truth, run.answers, strict=True):
                same = BRANCH_OF[truth] == BRANCH_OF[answer] if branches else truth == answer
                right[source, truth].append(same)
    return {cell: statistics.fmean(own) for cell, own in sorted(right.items())}


def by_class(cells: dict[tuple[str, str], float]) -> dict[str, float]:
    """The mean over the sources of each class."""
    found = defaultdict(list)
    for (_, label), recall in cells.items():
        found[label].append(recall)
    return {label: statistics.fmean(own) for label, own in found.items()}


def resampled(cells: dict[tuple[str, str], float]) -> np.ndarray:
    """The mean recall over classes in every resample of sources [R]; classes without any of them are left out."""
    sources, labels = sorted({source for source, _ in cells}), sorted({label for _, label in cells})
    recall_SC = np.full((len(sources), len(labels)), np.nan)
    for (source, label), recall in cells.items():
        recall_SC[sources.index(source), labels.index(label)] = recall
    there_SC = ~np.isnan(recall_SC)
    rng = np.random.default_rng(0)
    drawn_RS = rng.multinomial(len(sources), [1 / len(sources)] * len(sources), size=RESAMPLES)
    counts_RC = drawn_RS @ there_SC
    sums_RC = drawn_RS @ np.nan_to_num(recall_SC)
    recall_R: np.ndarray = np.nanmean(np.where(counts_RC > 0, sums_RC / np.maximum(counts_RC, 1), np.nan), axis=1)
    return recall_R


def interval(values_R: np.ndarray) -> str:
    """The middle 95 %."""
    low, high = np.quantile(values_R, [0.025, 0.975])
    return f"{low:+.3f} to {high:+.3f}"


def show(leave: str, found: Found) -> None:
    """Print the figures of each side, and the recall of each class and cell."""
    cells = {side: recalls(own, branches=False) for side, own in found.items()}
    first = {side: recalls(own, branches=True) for side, own in found.items()}
    base = "one look" if "one look" in found else next(iter(found))
    rows = []
    for side in found:
        drawn = resampled(cells[side])
        rows.append(
            {
                "side": side,
                "recall": statistics.fmean(by_class(cells[side]).values()),
                "interval": interval(drawn),
                f"beyond {base}": "" if side == base else interval(drawn - resampled(cells[base])),
                "beyond plain": interval(drawn - resampled(cells["plain"])) if "plain" in found else "",
                "first level": statistics.fmean(by_class(first[side]).values()),
                "its interval": interval(resampled(first[side])),
                "macro-F1": macro_f1(found[side]),
                "s a run": statistics.median(run.seconds for own in found[side].values() for run in own.values()),
            }
        )
    print(format_table(rows, title=f"left out: {leave}"))
    classes = {side: by_class(own) for side, own in cells.items()}
    print(
        format_table(
            [{"class": label} | {side: own[label] for side, own in classes.items()} for label in classes[base]]
        )
    )
    shown = [
        {"source": cell[0], "class": cell[1]} | {side: own[cell] for side, own in cells.items()} for cell in cells[base]
    ]
    print(format_table(shown), flush=True)


def macro_f1(asked: dict[str, dict[int, Asked]]) -> float:
    """The mean over units and seeds of the mean F1 over the classes that a unit has."""
    return statistics.fmean(
        float(f1_score(run.truth, run.answers, labels=sorted(set(run.truth)), average="macro", zero_division=0))
        for runs in asked.values()
        for run in runs.values()
    )


if __name__ == "__main__":
    main()
