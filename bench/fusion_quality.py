"""What is an image with a note worth, against the image alone, the note alone and two classifiers that are averaged?

    python bench/fusion_quality.py [--sets NAME ...] [--rows NAME ...] [--seeds 0 1 2] [--out runs/fusion_quality]

Data is ``pairs/*.jsonl`` in the folder that CONSILIUM_SHARED names: HAM10000 and ISIC-2017 with their notes of age, sex
and site, which leave the diagnosis out (the columns say the same, and ``confirmation`` gives the label away: neither is
read). Five folds by group, a fifth of the rest validates. The towers are frozen, EfficientNet-Lite0 with ImageNet
weights at 224 px and MiniLM, and everything after them is learned: 30 epochs, AdamW, the weights that are best on
validation. Each row and fold gets the one of ``RATES`` whose first training is best on validation.

Judged are the answers to the cases of all folds together, by macro F1. Intervals hold 95 % of 2,000 resamples of groups
and seeds, differences are of the same resamples. ``half`` is the figure where half of the notes are gone, the same for
all rows. Named before anything was run: what is compared is ``gated``, as ``recipes/fuse.yaml`` has it, with the single
modality that is better on validation and with ``late``. ``autogluon`` is a row where ``bench/fusion_autogluon.py`` has
left its answers in the same folder.

Every finished training is a small file in ``--out``; the same command goes on where it was stopped.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import _fusion, _pairs
from bench._fusion import Answered, autogluon_file, figures, keep, kept, losing_half, macro_f1, write_cases
from bench._imagenet import MODEL, imagenet_weights
from bench._machine import describe_machine
from bench._minilm import minilm
from bench._pairs import FOLDS, Case, read_cases
from bench._retrieval import interval
from consilium.core.config import build
from consilium.core.evaluation import Outputs
from consilium.core.files import fingerprint
from consilium.core.reporter import Silent, format_table
from consilium.data.cases.load import load_data
from consilium.evaluation.metrics import Floats
from consilium.experiment import Experiment
from consilium.predictor import Predictor, case_outputs
from consilium.series import GUARDS_OFF
from consilium.session import train
from consilium.tasks.family import studying

RATES, EPOCHS = (3e-4, 1e-3, 3e-3), 30
SEEN = {"both": None, "image": 1, "text": 2}  # the number of the subset of modalities
MASKED: dict[str, Any] = {"masking": {"image": 0.2, "text": 0.3}, "auxiliary": {"image": 0.3, "text": 0.3}}
ROWS: dict[str, dict[str, Any]] = {
    "image only": {"masking": {"complete": "text"}},
    "text only": {"masking": {"complete": "image"}},
    "late": {"fusion": {"kind": "late"}, **MASKED},
    "gated": {"fusion": {"kind": "gated"}, **MASKED},
    "gated, nothing masked": {"fusion": {"kind": "gated"}},
    "weighted_sum": {"fusion": {"kind": "weighted_sum"}, **MASKED},
    "concat": {"fusion": {"kind": "concat"}, **MASKED},
    "attention": {"fusion": {"kind": "attention", "layers": 2, "heads": 4}, **MASKED},
}


def main() -> None:
    """Make the trainings that are missing, and print a table for each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(_fusion.SETS), choices=_fusion.SETS)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/fusion_quality"))
    arguments = parser.parse_args()
    if "CONSILIUM_SHARED" not in os.environ:
        print("CONSILIUM_SHARED names no folder with pairs/*.jsonl, so there is nothing to measure on.")
        return
    torch.set_num_threads(1)
    print(describe_machine())
    arguments.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(arguments.out)
    for name in arguments.sets:
        found = {row: trainer.row(name, row, arguments.seeds) for row in arguments.rows}
        if (theirs := autogluon(arguments.out, name)) is not None:
            found["autogluon"] = [theirs]
        show(name, found)


class Trainer:
    """Trains what is missing; the features of the frozen towers are kept beside the answers."""

    def __init__(self, out: Path) -> None:
        self.out, self.weights = out, imagenet_weights(out)

    def row(self, name: str, row: str, seeds: list[int]) -> list[list[Answered]]:
        """The answers of a row to every fold, for each seed, with the rate that validation chooses for the fold."""
        chosen = []
        for fold in range(FOLDS):
            tried = {rate: self.kept(name, row, fold, rate, seeds[0]) for rate in RATES}
            chosen.append(max(RATES, key=lambda rate: tried[rate].validation))
        return [[self.kept(name, row, fold, chosen[fold], seed) for fold in range(FOLDS)] for seed in seeds]

    def kept(self, name: str, row: str, fold: int, rate: float, seed: int) -> Answered:
        """What a training left; where it has not been made it is made."""
        key = fingerprint([ROWS[row], EPOCHS, rate, seed])
        file = self.out / name.replace(" ", "_") / f"{row.replace(' ', '-')}-{fold}-{seed}-{key}.json"
        found = kept(file)
        if found is None:
            start = time.perf_counter()
            with tempfile.TemporaryDirectory(dir=self.out) as folder:
                answered = self.trained(name, ROWS[row], fold, rate, seed, Path(folder))
            found = Answered(*answered, seconds=time.perf_counter() - start)
            keep(file, found)
            print(f"{name}, fold {fold}, {row}, rate {rate:g}, seed {seed}: {found.seconds:.0f} s", flush=True)
        return found

    def trained(
        self, name: str, change: dict[str, Any], fold: int, rate: float, seed: int, folder: Path
    ) -> tuple[float, dict[str, list[str]]]:
        """Macro F1 on validation, and the answers to the test cases by what is seen of them."""
        parts = _pairs.split(read_cases(name), fold=fold)
        write_cases(folder / "cases.jsonl", parts)
        experiment = self.experiment(name, change, rate, seed, cases=folder / "cases.jsonl", runs=folder / "runs")
        result = train(experiment, quiet=True)
        assert result is not None
        predictor = Predictor.load(result.bundle, device="cpu", batch_size=64, workers=0)
        loaded = load_data(
            experiment.data,
            needs=experiment.task.needs,
            study=studying(experiment.task, learns=True),
            splits=("train", "val", "test"),
            reporter=Silent(),
        )
        knowledge: Any = predictor.knowledge
        said = {
            split: answered(case_outputs(predictor, loaded.studied, split), knowledge.labels, parts[split])
            for split in ("val", "test")
        }
        return macro_f1(said["val"]["both"], parts["val"]), said["test"]

    def experiment(
        self, name: str, change: dict[str, Any], rate: float, seed: int, *, cases: Path, runs: Path
    ) -> Experiment:
        """The training of a set with a change of the task and a rate."""
        frozen = {"freeze": {"kind": "tower"}}
        tree = {
            "name": "bench",
            "seed": seed,
            "task": {
                "kind": "fuse",
                "vision": {"name": MODEL, "pretrained": str(self.weights), **frozen},
                "text": {
                    "name": str(minilm()), "pooling": "mean", "context_length": _pairs.SETS[name].context, **frozen,
                },
                **change,
            },
            "data": {
                "sources": [{"kind": "jsonl", "name": "cases", "path": str(cases)}],
                "store": {"root": str(self.out / "stores"), "check_images": "header"},
                "guards": GUARDS_OFF,
                "image": {"size": [224, 224], "statistics": "model"},
                "loader": {"batch_size": 32, "workers": 0},
            },
            "optimizer": {"kind": "adamw", "learning_rate": rate, "weight_decay": 0.05},
            "schedule": {"kind": "cosine", "warmup": 0.1},
            "trainer": {"max_epochs": EPOCHS, "clip_norm": 1.0, "precision": "fp32", "threads": 1, "device": "cpu"},
            "evaluation": {"bootstrap_samples": 0},
            "report": {"images": False},
            "output": {"root": str(runs)},
        }  # fmt: skip
        return build(Experiment, tree, origin="bench")


def answered(outputs: Outputs, labels: tuple[str, ...], cases: list[Case]) -> dict[str, list[str]]:
    """The likeliest label of each of the cases, by what is seen of it."""
    places = {case.rpartition("/")[2]: place for place, case in enumerate(outputs.ids)}
    order = [places[case.id] for case in cases]
    found = {}
    for seen, number in SEEN.items():
        subset = outputs.arrays["subset_probabilities"]
        scores_NK = outputs.arrays["probabilities"] if number is None else subset[:, number]
        found[seen] = [labels[best] for best in scores_NK[order].argmax(1)]
    return found


def autogluon(out: Path, name: str) -> list[Answered] | None:
    """The answers of AutoGluon to every fold, where they are all there."""
    found = [kept(autogluon_file(out, name, fold=fold)) for fold in range(FOLDS)]
    return None if None in found else [own for own in found if own is not None]


def show(name: str, found: dict[str, list[list[Answered]]]) -> None:
    """The figures of each row, and the differences that were named beforehand."""
    cases = read_cases(name)
    folds = [_pairs.split(cases, fold=fold)["test"] for fold in range(FOLDS)]
    tested = [case for fold in folds for case in fold]
    truth_N, groups = np.array([str(case.label) for case in tested]), [case.group for case in tested]
    lost_N, figure, rows = losing_half(tested), dict[tuple[str, str], Floats](), []
    for row, seeds in found.items():
        by_SN = {
            seen: np.array([[answer for fold in seed for answer in fold.answers[seen]] for seed in seeds])
            for seen in (SEEN if row != "autogluon" else ("both", "half"))
        }
        if "half" not in by_SN:
            by_SN["half"] = np.where(lost_N, by_SN["image"], by_SN["both"])
        shown: dict[str, object] = {"row": row, "seeds": len(seeds)}
        for seen, answers_SN in by_SN.items():
            judged = figures(answers_SN, truth_N, groups)
            figure[row, seen] = judged["macro F1"]
            shown[seen] = f"{judged['macro F1'][0]:.3f}"
            if seen == "both":
                shown["95 %"] = interval(judged["macro F1"][1:])
                shown["accuracy"] = f"{judged['accuracy'][0]:.3f}"
        shown["validation"] = f"{statistics.fmean(fold.validation for seed in seeds for fold in seed):.3f}"
        shown["seconds"] = f"{statistics.median(fold.seconds for seed in seeds for fold in seed):.0f}"
        rows.append(shown)
    print(format_table(rows, title=f"{name}: macro F1 by what is seen, {len(tested)} cases"))
    single = max(("image only", "text only"), key=lambda row: validation(found, row))
    asked = [(other, seen) for other in (single, "late", "autogluon") for seen in ("both", "half")]
    differences = []
    for other, seen in (*asked, ("image only", "half")):
        if {("gated", seen), (other, seen)} <= figure.keys():
            difference = figure["gated", seen] - figure[other, seen]
            what = "as they are" if seen == "both" else "half of the notes gone"
            differences.append(
                {"gated against": other, "cases": what, "by": f"{difference[0]:+.3f}", "95 %": interval(difference[1:])}
            )
    print(format_table(list({str(own): own for own in differences}.values()), title="differences of macro F1"))


def validation(found: dict[str, list[list[Answered]]], row: str) -> float:
    """The mean macro F1 of a row on validation."""
    return statistics.fmean(fold.validation for seed in found.get(row, []) for fold in seed) if row in found else 0.0


if __name__ == "__main__":
    main()
