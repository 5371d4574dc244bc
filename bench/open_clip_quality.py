"""Does an expert find more than open_clip's own trainer makes of the same towers, pairs and samples?

    python bench/open_clip_quality.py --sets isic2017 [--out runs/open_clip_quality] [--minutes 90] [--rows NAME ...]

Data is ``pairs/*.jsonl`` in the folder that CONSILIUM_SHARED names: ``SETS``. Cases fall into five folds by group. A
training sees the cases of four folds but those of a fifth of their groups, its validation, and is judged once, on the
fold that it has not seen: images and texts of a fold are ranked among themselves, and chance stands beside.

Both sides start from EfficientNet-Lite0 with ImageNet weights (``bench/_imagenet.py``) and MiniLM
(``bench/_minilm.py``), all of which learns, with linear projections that each draws as torch does. Both see images of
112 px, stretched, crops of 0.9 to 1 of the area, batches of 32, as many whole epochs as come nearest to 4,000 samples,
AdamW with a weight decay of 0.1, gradients of norm 1 at most, a warm-up of a tenth of the steps, a cosine, float32, and
keep their last weights. Their trainer is ``open_clip_train.main``.

Ours is what ``recipes/clip.yaml`` says of the loss and the rates: equal texts are right answers for each other, and
projections and temperature have a rate of 1e-3 of their own. ``ROWS`` switch these off one by one. The limit of the
temperature is no row, for theirs has the same.

Rules, which were fixed before any figure was seen:

- The learning rate is one of ``RATES``, for open_clip and for ours the one whose training with 1,000 samples has the
  highest label mAP on the validation of fold 1, seed 0: with 4,000 the search alone would take a third of the time.
  The rows take that of ours; those with one rate for all, that of open_clip.
- Runs are made in the order: rates; seed 0 of open_clip and ours; seed 0 of the other rows; then the next seeds. One
  that would go beyond ``--minutes`` of processor time of the whole table is not begun, nor any after it.
- The table shows a row once all five folds of a seed are there, and counts whole seeds only.

Every finished run is a small file in ``--out``; the same command goes on where it was stopped, however it was.

Figures are means of both directions, image to text and text to image. *R@k*: one of the first k has the query's own
text. *Label mAP*: every answer with the query's label is right; cases without one are left out of it. Intervals hold
95 % of 2,000 resamples of groups and of seeds; differences are taken within a resample.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import contextlib
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from bench import _open_clip
from bench._experts import BATCH, CROP, DECAY, OWN_RATE, OWN_RATES, SIZE, WIDTH, epochs_and_steps, train_and_embed
from bench._imagenet import MODEL, imagenet_weights
from bench._machine import describe_machine
from bench._minilm import minilm
from bench._pairs import FOLDS, SETS, Case, read_cases, split
from bench._retrieval import FIGURES, interval, judge, mean, resampled
from consilium.core.files import fingerprint, write_text
from consilium.core.reporter import format_table
from consilium.evaluation.metrics import Floats

SEEDS, RATES = (0, 1, 2), (1e-4, 3e-4, 1e-3, 3e-3)
SAMPLES, SEARCHED = 4000, 1000  # of a run, and of one that finds the rate
MEAN = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Row:
    """A way to train; ``rates``: projections and temperature have a rate of their own."""

    positives: str | None = "same_text"  # None: not ours
    rates: bool = True


ROWS = {
    "open_clip": Row(positives=None, rates=False),
    "ours": Row(),
    "ours, positives: case": Row(positives="case"),
    "ours, one rate": Row(rates=False),
    "ours, neither": Row(positives="case", rates=False),
    "ours, positives: same_label": Row(positives="same_label"),
}
MAIN = ("open_clip", "ours")


@dataclass(frozen=True)
class Run:
    """A training, and what it is judged on: ``val`` or ``test`` of its fold."""

    pairs: str
    row: str
    fold: int
    seed: int
    rate: float
    judged: str = "test"
    samples: int = SAMPLES

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides its figures."""
        shared = {"size": SIZE, "batch": BATCH, "width": WIDTH, "decay": DECAY, "own": OWN_RATE}
        return {**asdict(self), **asdict(SETS[self.pairs]), **asdict(ROWS[self.row]), **shared, "crop": CROP}

    def file(self, out: Path) -> Path:
        """Where its figures are kept."""
        row = self.row.replace(", ", "-").replace(": ", "-").replace(" ", "-")
        name = f"{row}-{self.judged}-fold{self.fold}-seed{self.seed}-{fingerprint(self.settings)[:8]}.json"
        return out / self.pairs / name


class SpentError(Exception):
    """The processor time of a table is used up."""


def main() -> None:
    """Make the runs that are missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), help="beside open_clip and ours")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--minutes", type=float, default=90.0, help="of processor time for a table")
    parser.add_argument("--out", type=Path, default=Path("runs/open_clip_quality"))
    arguments = parser.parse_args()
    if "CONSILIUM_SHARED" not in os.environ:
        print("CONSILIUM_SHARED names no folder with pairs/*.jsonl, so there is nothing to measure on.")
        return
    if absent := _open_clip.missing():
        raise SystemExit(absent)
    torch.set_num_threads(1)
    minilm()
    rows = [name for name in ROWS if name in MAIN or name in arguments.rows]
    for pairs in arguments.sets:
        print(describe_machine())
        table(pairs, rows, arguments.seeds, out=arguments.out, minutes=arguments.minutes)


def table(pairs: str, rows: list[str], seeds: list[int], *, out: Path, minutes: float) -> None:
    """Make the runs of a set, as far as the time goes, and print its table."""
    cases = read_cases(pairs)
    made = Made(out, minutes=60 * minutes)
    rates: dict[str, float] = {}
    with contextlib.suppress(SpentError):
        for name in MAIN:
            found = {rate: made(Run(pairs, name, 0, 0, rate, "val", SEARCHED)) for rate in RATES}
            scores = {rate: mean(np.array(one["values"]["label mAP"], dtype=float)) for rate, one in found.items()}
            rates[name] = max(scores, key=lambda rate: scores[rate])
            shown = ", ".join(f"{rate:g} {score:.3f}" for rate, score in scores.items())
            print(f"{pairs}, {name}: label mAP on validation by rate: {shown}", flush=True)
        for seed in seeds:
            for fold in range(FOLDS):
                for name in MAIN:
                    made(Run(pairs, name, fold, seed, rates[name]))
            for name in [name for name in rows if name not in MAIN]:
                for fold in range(FOLDS):
                    made(Run(pairs, name, fold, seed, rate_of(name, rates)))
    if len(rates) == len(MAIN):
        runs = {
            name: [[Run(pairs, name, fold, seed, rate_of(name, rates)) for fold in range(FOLDS)] for seed in seeds]
            for name in rows
        }
        kept = {
            name: [seed for seed in own if all(run.file(out).is_file() for run in seed)] for name, own in runs.items()
        }
        title = f"{pairs}: {len(cases)} cases, {len({case.group for case in cases})} groups; {made.told}"
        whole = {name: own for name, own in kept.items() if own}
        print(format_table(summary(whole, made), title=title) if MAIN[0] in whole else title, flush=True)


def rate_of(row: str, rates: dict[str, float]) -> float:
    """The learning rate of a row."""
    return rates["ours" if ROWS[row].rates else "open_clip"]


class Made:
    """The figures of runs: read where they are kept, made in a process of their own where they are not."""

    def __init__(self, out: Path, *, minutes: float) -> None:
        self.out, self.limit = out, minutes
        self.seconds: dict[str, list[float]] = {}  # by row

    @property
    def told(self) -> str:
        """What it took."""
        return f"{sum(map(sum, self.seconds.values())) / 60:.0f} minutes of processor time"

    def __call__(self, run: Run) -> dict[str, Any]:
        file = run.file(self.out)
        if not file.is_file():
            own = [*self.seconds.get(run.row, []), *(self.seconds.get("ours", []) if run.row not in MAIN else [])]
            if sum(map(sum, self.seconds.values())) + max(own, default=0.0) > self.limit:
                raise SpentError
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory() as folder:
                process = multiprocessing.get_context("fork").Process(target=make, args=(run, file, Path(folder)))
                process.start()
                process.join()
                if process.exitcode:
                    raise SystemExit(f"{run} failed:\n{(Path(folder) / 'log.txt').read_text(encoding='utf-8')[-3000:]}")
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        self.seconds.setdefault(run.row, []).append(found["seconds"])
        return found


def make(run: Run, file: Path, folder: Path) -> None:
    """Train, judge, and keep the figures; what is printed goes to ``log.txt``."""
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        began = time.process_time()
        parts = split(read_cases(run.pairs), fold=run.fold)
        side = theirs if ROWS[run.row].positives is None else ours
        images_NF, texts_NF = side(run, parts, folder)
        cases = parts[run.judged]
        texts, labels = [case.text for case in cases], [case.label for case in cases]
        values, chance = judge(images_NF, texts_NF, texts=texts, labels=labels)
        found = {
            "settings": run.settings,
            "seconds": time.process_time() - began,
            "counts": {name: len(own) for name, own in parts.items()},
            "groups": [case.group for case in cases],
            "values": values,
            "chance": chance,
        }
        write_text(file, json.dumps(found))


# -- Both sides: embeddings of the judged cases ----------------------------------------------------------------------


def ours(run: Run, parts: dict[str, list[Case]], folder: Path) -> tuple[Floats, Floats]:
    """Train by consilium."""
    row = ROWS[run.row]
    change: dict[str, Any] = {
        "task": {"loss": {"positives": row.positives}},
        "optimizer": {"learning_rate": run.rate, "groups": OWN_RATES if row.rates else {}},
    }
    return train_and_embed(
        parts, change, judged=[run.judged], samples=run.samples, context=SETS[run.pairs].context, seed=run.seed,
        folder=folder,
    )[run.judged]  # fmt: skip


def theirs(run: Run, parts: dict[str, list[Case]], folder: Path) -> tuple[Floats, Floats]:
    """Train by open_clip's trainer."""
    epochs, steps = epochs_and_steps(len(parts["train"]), samples=run.samples)
    model = _open_clip.write_model(
        folder / "model",
        embedding_size=WIDTH,
        vision={"timm_model_name": MODEL, "image_size": SIZE, "timm_pool": "avg", "timm_proj": "linear"},
        text={"context_length": SETS[run.pairs].context, "hf_pooler_type": "mean_pooler", "hf_proj_type": "linear"},
        encoder=minilm(),
        mean=MEAN,
        std=MEAN,
    )
    text = load_file(minilm() / "model.safetensors")
    _open_clip.write_start(model, image=load_file(imagenet_weights(folder)), text=text, seed=run.seed)
    _open_clip.write_pairs(folder / "pairs.tsv", [(case.image, case.text) for case in parts["train"]])
    _open_clip.in_channels_last()
    checkpoint = _open_clip.train(
        model, folder / "logs", train_data=folder / "pairs.tsv", dataset_type="csv", batch_size=BATCH, epochs=epochs,
        lr=run.rate, wd=DECAY, beta1=0.9, beta2=0.999, eps=1e-8, warmup=epochs * steps // 10,
        grad_clip_norm=1.0, precision="fp32", seed=run.seed, aug_cfg=(f"scale={CROP}",),
    )  # fmt: skip
    network, transform, tokenizer = _open_clip.trained(model, checkpoint)
    found: list[tuple[Floats, Floats]] = []
    with torch.inference_mode():
        for some in batches(parts[run.judged]):
            images_BCHW = torch.stack([transform(Image.open(case.image)) for case in some])
            texts_BT = tokenizer([case.text for case in some])
            found.append((network.encode_image(images_BCHW).numpy(), network.encode_text(texts_BT).numpy()))
    images_NF, texts_NF = (np.concatenate(side) for side in zip(*found, strict=True))
    return images_NF, texts_NF


def batches(cases: list[Case]) -> Iterator[list[Case]]:
    """The cases, 64 at a time."""
    return (cases[start : start + 64] for start in range(0, len(cases), 64))


def summary(runs: dict[str, list[list[Run]]], made: Made) -> list[dict[str, Any]]:
    """A row for each way to train, after that of chance."""
    read = {
        name: [[json.loads(run.file(made.out).read_text(encoding="utf-8")) for run in seed] for seed in own]
        for name, own in runs.items()
    }
    folds = read[MAIN[0]][0]
    sizes = [len(fold["groups"]) for fold in folds]
    chance = {name: float(np.average([fold["chance"][name] for fold in folds], weights=sizes)) for name in FIGURES}
    rows: list[dict[str, Any]] = [{"row": "chance", "seeds": None, "rate": None, **chance}]
    groups = [group for fold in folds for group in fold["groups"]]
    drawn: dict[str, Floats] = {}
    for name, seeds in read.items():
        values_SN = {
            figure: np.array([[value for fold in seed for value in fold["values"][figure]] for seed in seeds], float)
            for figure in FIGURES
        }
        drawn[name] = resampled(values_SN["label mAP"], groups)
        row = {"row": name, "seeds": len(seeds), "rate": f"{runs[name][0][0].rate:g}"}
        row |= {figure: mean(own) for figure, own in values_SN.items()}
        row["interval of label mAP"] = interval(drawn[name])
        row["beyond open_clip"] = "" if name == MAIN[0] else interval(drawn[name] - drawn[MAIN[0]])
        row["processor s a run"] = round(statistics.median(fold["seconds"] for seed in seeds for fold in seed))
        rows.append(row)
    return [{column: row.get(column) for column in rows[-1]} for row in rows]


if __name__ == "__main__":
    main()
