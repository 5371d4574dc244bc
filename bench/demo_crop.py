"""Does a wide crop help the demo's router with sources that it has never seen?

    python bench/demo_crop.py [--seeds 0 1 2] [--out runs/demo_crop]

The demo trains a random tower on 64 px images; ``RANGES`` are the candidates for its ``crop_scale``, of which the first
is that of the demo. The choice is made inside its second training, which never sees the cells ``UNSEEN``: each of three
``INNER`` groups of cells (source, class) is left out beside them, so that every class keeps a source, and the range
with the best mean recall over classes, with the first seed, is chosen. It and the demo's own then answer ``UNSEEN``
with every seed. Finished runs are kept in ``--out``; the same command goes on where it was stopped.
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
from collections.abc import Iterable
from pathlib import Path

import torch

from bench._machine import describe_machine
from consilium.core.files import write_text
from consilium.core.reporter import format_table
from consilium.data.cases.renames import new_name
from consilium.demo import demo_data_path
from consilium.demo.unseen import UNSEEN
from consilium.experiment import Experiment
from consilium.predictor import Predictor
from consilium.session import train

RANGES = ([0.5, 1.0], [0.2, 1.0], [0.05, 1.0])
Cells = list[dict[str, list[str]]]
INNER: list[Cells] = [
    [
        {"meta.source": ["lifelines", "totalseg", "breakhis", "oct_b", "covid_cxr"]},
    ],
    [
        {"meta.source": ["plotnine", "nctcrc"]},
        {"meta.source": ["vqa_rad"], "label": ["radiology.ct"]},
        {"meta.source": ["mednist"], "label": ["radiology.xray.chest"]},
    ],
    [
        {"meta.source": ["openslide", "oct_a"]},
        {"meta.source": ["mednist"], "label": ["radiology.ct"]},
    ],
]


def main() -> None:
    """Choose inside, then answer what was left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/demo_crop"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine())
    out, seeds = arguments.out, arguments.seeds
    inside = {
        str(crop): pooled(recalls(out, crop, cells, seed=seeds[0], also=UNSEEN) for cells in INNER) for crop in RANGES
    }
    means = {crop: statistics.fmean(found.values()) for crop, found in inside.items()}
    print(format_table([{"crop_scale": crop, "recall": means[crop], **own} for crop, own in inside.items()]))
    best = max(RANGES, key=lambda crop: means[str(crop)])
    print(f"chosen inside: {best}")
    sides = {name: [recalls(out, crop, UNSEEN, seed=seed) for seed in seeds] for name, crop in
             (("the demo's", RANGES[0]), ("chosen", best))}  # fmt: skip
    rows = []
    for name, found in sides.items():
        each = [statistics.fmean(own.values()) for own in found]
        shown = {label: statistics.fmean(own[label] for own in found) for label in found[0]}
        rows.append(
            {"side": name, "recall": statistics.fmean(each), "lowest": min(each), "highest": max(each), **shown}
        )
    print(format_table(rows, title=f"never seen, seeds {seeds}"))


def recalls(out: Path, crop: list[float], cells: Cells, *, seed: int, also: Cells | None = None) -> dict[str, float]:
    """The share of the images of ``cells`` that is named right, by cell; ``also`` is left out, too, but not asked."""
    file = out / f"{INNER.index(cells) if also else 'unseen'}-{crop[0]}-{crop[1]}-{seed}.json"
    if not file.is_file():
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            changes = {
                "seed": seed,
                "name": "crop",
                "data.sources.0.path": str(demo_data_path() / "modality.csv"),
                "data.store.root": str(out.absolute() / "stores"),
                "data.split.leave_out": [*cells, *(also or [])],
                "data.augmentation.crop_scale": crop,
                "data.loader.workers": 0,
                "trainer.threads": 1,
                "output.root": folder,
                "evaluation.bootstrap_samples": 0,
                "report.images": False,
            }
            overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
            recipe = demo_data_path().parent / "router.yaml"
            experiment = Experiment.load(recipe, overrides=overrides)
            result = train(experiment, quiet=True)
            assert result is not None
            found = asked(Predictor.load(result.bundle), cells, names=experiment.data.rename_labels)
        out.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(found))
        print(f"{file.stem}: {time.perf_counter() - start:.0f} s", flush=True)
    kept: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
    return kept


def asked(predictor: Predictor, cells: Cells, *, names: dict[str, str]) -> dict[str, float]:
    """The share of each cell (source, label) that is named right."""
    table, images = demo_data_path() / "modality.csv", defaultdict(list)
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            own = {"meta.source": row["source"], "label": new_name(row["label"], names)}
            if any(all(own[column] in values for column, values in cell.items()) for cell in cells):
                images[own["meta.source"], own["label"]].append(table.parent / row["image"])
    return {
        f"{source} {label}": statistics.fmean(
            record["path"][-1]["label"] == label for record in predictor.predict(list(own))
        )
        for (source, label), own in sorted(images.items())
    }


def pooled(groups: Iterable[dict[str, float]]) -> dict[str, float]:
    """The mean over the sources of each class, of all groups."""
    found = defaultdict(list)
    for cells in groups:
        for cell, recall in cells.items():
            found[cell.partition(" ")[2]].append(recall)
    return {label: statistics.fmean(own) for label, own in found.items()}


if __name__ == "__main__":
    main()
