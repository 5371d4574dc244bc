"""What learns best from few pairs: frozen towers, their last blocks, adapters or all, and what holds them back.

    python bench/expert_choices.py [--sizes 250 1000 2100] [--rows NAME ...] [--out runs/expert_choices]

Data is ``pairs/*.jsonl`` in the folder that CONSILIUM_SHARED names: the pairs of ``POOL`` together, in five folds by
group. The test is the first fold; a training sees as many pairs of the other four as its size says, whole groups in an
order by chance, the same for all rows. Each expert is judged on the test cases of each set by themselves; figures are
means over all of them. One fold and one seed: the intervals, 95 % of 2,000 resamples of groups, hold for other cases,
not for other trainings.

Trainings are those of ``bench/_experts.py`` with 4,000 samples; new layers learn with 1e-3. Of the rates in ``RATES``
that of the towers is the one whose training has the highest label mAP on validation, for each row and size. Every
finished training is a small file in ``--out``; the same command goes on where it was stopped.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench._experts import OWN_RATES, train_and_embed
from bench._machine import describe_machine
from bench._minilm import minilm
from bench._pairs import Case, read_cases, split
from bench._retrieval import interval, judge, mean, resampled
from consilium.core.config import merge
from consilium.core.files import fingerprint, write_text
from consilium.core.reporter import format_table
from consilium.evaluation.metrics import Floats

POOL, CONTEXT, SAMPLES, RATES = ("isic2017", "ham10000", "vqa_rad", "covid"), 64, 4000, (1e-4, 1e-3)
FROZEN = {"freeze": {"kind": "tower"}}
LAST = {"freeze": {"kind": "all_but_last_blocks", "blocks": 1}}
ROWS: dict[str, dict[str, Any]] = {
    "frozen towers": {"task": {"vision": FROZEN, "text": FROZEN}},
    "frozen text tower": {"task": {"text": FROZEN}},
    "last block of each": {"task": {"vision": LAST, "text": LAST}},
    "adapters in the text tower": {"task": {"text": {"lora": {"rank": 8}}}},
    "all learns": {},
    "all, layer_decay 0.8": {"optimizer": {"groups": {"image": {"layer_decay": 0.8}, "text": {"layer_decay": 0.8}}}},
    "all, feature_distillation": {"task": {"feature_distillation": {"kind": "cosine", "weight": 1.0}}},
    "all, ema": {"trainer": {"ema": {"decay": 0.95}}},
}


def main() -> None:
    """Make the trainings that are missing, and print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[250, 1000, 2100])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--out", type=Path, default=Path("runs/expert_choices"))
    arguments = parser.parse_args()
    if "CONSILIUM_SHARED" not in os.environ:
        print("CONSILIUM_SHARED names no folder with pairs/*.jsonl, so there is nothing to measure on.")
        return
    torch.set_num_threads(1)
    minilm()
    print(describe_machine())
    for size in arguments.sizes:
        found = {
            name: [kept(name, size, rate, arguments.out) for rate in (RATES[:1] if name == "frozen towers" else RATES)]
            for name in arguments.rows
        }
        best = {name: best_of(own) for name, own in found.items()}
        first = drawn(next(iter(best.values())))
        print(format_table([row(name, own, first) for name, own in best.items()], title=f"{size} pairs"), flush=True)


def best_of(trainings: list[dict[str, Any]]) -> dict[str, Any]:
    """The training that is best on validation."""
    return max(trainings, key=lambda found: mean(np.array(found["val"]["label mAP"], float)))


def drawn(training: dict[str, Any]) -> Floats:
    """Label mAP in resamples of groups, the same for all trainings."""
    return resampled(np.array([training["test"]["label mAP"]], float), training["groups"])


def row(name: str, best: dict[str, Any], first: Floats) -> dict[str, Any]:
    """The figures of a training, and how far it is from the first row."""
    return {
        "row": name,
        "rate": f"{best['rate']:g}",
        **{figure: mean(np.array(values, float)) for figure, values in best["test"].items()},
        "interval of label mAP": interval(drawn(best)),
        "beyond the first row": interval(drawn(best) - first),
        "processor s": round(best["seconds"]),
    }


def kept(name: str, size: int, rate: float, out: Path) -> dict[str, Any]:
    """The figures of a training: read where they are kept, made in a process of their own where they are not."""
    settings = {"change": ROWS[name], "size": size, "rate": rate, "pool": POOL, "samples": SAMPLES}
    file = out / f"{name.replace(' ', '-').replace(',', '')}-{size}-{fingerprint(settings)[:8]}.json"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            process = multiprocessing.get_context("fork").Process(
                target=make, args=(name, size, rate, file, Path(folder))
            )
            process.start()
            process.join()
            if process.exitcode:
                log = (Path(folder) / "log.txt").read_text(encoding="utf-8")
                raise SystemExit(f"{name}, {size} pairs, rate {rate:g} failed:\n{log[-3000:]}")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def make(name: str, size: int, rate: float, file: Path, folder: Path) -> None:
    """Train, judge, and keep the figures; what is printed goes to ``log.txt``."""
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        began = time.process_time()
        parts = pooled(size)
        usual = {"optimizer": {"learning_rate": rate, "groups": OWN_RATES}}
        embedded = train_and_embed(
            parts, merge(usual, ROWS[name]), judged=("val", "test"), samples=SAMPLES, context=CONTEXT, seed=0,
            folder=folder,
        )  # fmt: skip
        found: dict[str, Any] = {name: by_set(parts[name], *both) for name, both in embedded.items()}
        found |= {"rate": rate, "seconds": time.process_time() - began}
        found["groups"] = [case.group for own in sets(parts["test"]) for case in own]
        write_text(file, json.dumps(found))


def pooled(size: int) -> dict[str, list[Case]]:
    """The parts of the first fold of all sets; of the training pairs as many as asked for, in whole groups."""
    parts: dict[str, list[Case]] = {"train": [], "val": [], "test": []}
    for name in POOL:
        for part, cases in split(read_cases(name), fold=0).items():
            parts[part] += cases
    groups = sorted({case.group for case in parts["train"]})
    order = {groups[place]: rank for rank, place in enumerate(np.random.default_rng(0).permutation(len(groups)))}
    parts["train"] = sorted(parts["train"], key=lambda case: order[case.group])[:size]
    return parts


def sets(cases: list[Case]) -> list[list[Case]]:
    """The cases of each set."""
    return [[case for case in cases if case.id.startswith(f"{name}-")] for name in POOL]


def by_set(cases: list[Case], images_NF: Floats, texts_NF: Floats) -> dict[str, list[float | None]]:
    """The figures of each case, ranked among those of its own set."""
    place = {case.id: row for row, case in enumerate(cases)}
    found: dict[str, list[float | None]] = {}
    for own in sets(cases):
        rows = [place[case.id] for case in own]
        texts, labels = [case.text for case in own], [case.label for case in own]
        values, _ = judge(images_NF[rows], texts_NF[rows], texts=texts, labels=labels)
        for figure, of_cases in values.items():
            found.setdefault(figure, []).extend(of_cases)
    return found


if __name__ == "__main__":
    main()
