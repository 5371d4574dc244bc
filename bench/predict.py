"""`consilium predict` on files against its two bounds: decoding alone, and the bare forward pass.

    python bench/predict.py [--rounds 5] [--device auto] [--share 1.0]

Every round runs, for every case, in turn: ``decode``, the loader of predict with its number of processes, whose
batches are thrown away; ``forward``, the bundle's model over a batch that is on the device, normalised, in evaluation
mode; ``predict``, all that the command does once its modules are imported: the bundle read and checked, the files
decoded, one line of JSON written for each. Rates are images a second by the clock, medians over rounds; ratios are
taken within a round. Files are JPEG of made pictures (``bench/_pictures.py``), each given several times over.

On an accelerator the two bounds do not share anything, and predict can reach the slower one. On a CPU they share the
cores: what both together allow is one after the other, each on all cores (1 / (1 / decode + 1 / forward)), which is
below the slower of the two. ``work`` is the processor time of predict over that of decode and forward together, which a
busy neighbour changes least; what it has above 1 is what predict adds.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does

import torch

from bench._machine import describe_machine
from bench._pictures import synthetic
from consilium.bundle import save_bundle
from consilium.core.contracts import Batch, Views
from consilium.core.reporter import Silent
from consilium.data.batches.loader import Loader, evaluation_requests
from consilium.data.batches.readers import ImageReader, Readers
from consilium.data.config import ImageConfig, LoaderConfig
from consilium.evaluation.config import AveragingConfig
from consilium.manifest import new_manifest
from consilium.predictions import predict_files
from consilium.predictor import Predictor
from consilium.tasks.answers.targets import LabelKnowledge
from consilium.tasks.classify.config import ClassifyConfig
from consilium.tasks.classify.task import build_classify

BATCH, DIFFERENT = 32, 16  # images a batch, and different files
LABELS = [f"label_{number:02d}" for number in range(30)]


@dataclass(frozen=True)
class Case:
    """Files of one size through one model."""

    side: int
    model: str
    size: int
    images: int

    @property
    def name(self) -> str:
        """How the table calls it."""
        return f"{self.side} px files, {self.model} at {self.size}"


CASES = (
    Case(512, "mobilenetv3_small_050", 96, 1536),
    Case(1024, "resnet18", 64, 768),
    Case(1024, "resnet18", 224, 384),
    Case(512, "resnet50", 224, 256),
)


@dataclass(frozen=True)
class Cost:
    """Seconds an image: by the clock, and of all processors together."""

    clock: float
    processor: float


def main() -> None:
    """Make the files and bundles, run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--share", type=float, default=1.0, help="of the images of each case")
    arguments = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side in {case.side for case in CASES}:
            (folder / str(side)).mkdir()
            for number in range(DIFFERENT):
                synthetic(side, seed=number).save(folder / str(side) / f"{number:02d}.jpg", quality=90)
        print("| case | decode | forward | predict | of the slower | both together allow | of that | work |")
        print("|---|---|---|---|---|---|---|---|")
        for case in CASES:
            bundle = write_bundle(folder / case.name.replace(" ", "_"), case)
            files = sorted(str(path) for path in (folder / str(case.side)).iterdir())
            count = max(int(case.images * arguments.share), 2 * BATCH)
            paths = (files * -(-count // len(files)))[:count]
            measures = measurements(bundle, paths, device=arguments.device)
            found = [{key: measure() for key, measure in measures.items()} for _ in range(arguments.rounds + 1)]
            print_row(case, found[1:])  # the first warms up
    print(describe_machine())


def write_bundle(folder: Path, case: Case) -> Path:
    """A bundle with random weights."""
    config = ClassifyConfig.model_validate({"vision": {"name": case.model, "pretrained": False}})
    image = ImageConfig(size=(case.size, case.size))
    knowledge = LabelKnowledge(labels=LABELS, class_counts=[1] * len(LABELS), training_cases=len(LABELS))
    task = build_classify(config, knowledge, image_size=image.size, weights=False)
    manifest = new_manifest(
        config,
        knowledge,
        name="bench",
        image=image,
        looks=AveragingConfig(),
        seed=0,
        data_fingerprint="",
        metrics={},
        licenses=[],
    )
    folder.mkdir()
    save_bundle(folder, manifest=manifest, task=task)
    return folder


def measurements(bundle: Path, paths: list[str], *, device: str) -> dict[str, Callable[[], Cost]]:
    """What a round runs, by name."""
    predictor = Predictor.load(bundle, device=device, batch_size=BATCH)
    task: Any = predictor.task
    size = predictor.image.size
    images = torch.randn(BATCH, 3, *size).to(predictor.device, memory_format=torch.channels_last)
    rows, mask = torch.arange(BATCH), torch.ones(BATCH, 1, dtype=torch.bool, device=predictor.device)
    batch = Batch(images=Views(mask, images[:, None]), rows_B=rows, draws_B=rows)
    cores = len(os.sched_getaffinity(0))

    def decode(config: LoaderConfig) -> None:
        loader = Loader(Readers(images=ImageReader(Files(paths), image=predictor.image)), config=config)
        for loaded in loader.load(evaluation_requests(range(len(paths)), config=config)):
            assert not loaded.errors

    def forward() -> None:
        with torch.inference_mode():
            for _ in range(-(-len(paths) // BATCH)):
                scores = task.logits(batch)
            scores.cpu()  # waits for the device

    def predict() -> None:
        out = bundle / "predictions.jsonl"
        predict_files(bundle, paths, out=out, batch_size=BATCH, device=device, reporter=Silent())

    return {
        "decode": lambda: cost(lambda: decode(predictor.loader), len(paths)),
        "decode, all cores": lambda: cost(
            lambda: decode(predictor.loader.model_copy(update={"workers": cores})), len(paths)
        ),
        "forward": lambda: cost(forward, -(-len(paths) // BATCH) * BATCH),
        "predict": lambda: cost(predict, len(paths)),
    }


@dataclass(frozen=True)
class Files:
    """The image table that the loader reads: one file a row."""

    paths: list[str]

    def images(self, row: int) -> list[str | bytes]:
        """The one view of a row."""
        return [self.paths[row]]


def cost(work: Callable[[], None], images: int) -> Cost:
    """What ``work`` costs an image; its processes have ended when it is over."""
    clock, before = time.perf_counter(), os.times()
    work()
    gc.collect()
    after, seconds = os.times(), time.perf_counter() - clock
    return Cost(seconds / images, (sum(after[:4]) - sum(before[:4])) / images)


def print_row(case: Case, rounds: list[dict[str, Cost]]) -> None:
    """One row of the table."""
    rates = {key: statistics.median(1 / found[key].clock for found in rounds) for key in rounds[0]}
    together = [found["decode, all cores"].clock + found["forward"].clock for found in rounds]
    of_slower = [max(found["decode"].clock, found["forward"].clock) / found["predict"].clock for found in rounds]
    of_both = [both / found["predict"].clock for both, found in zip(together, rounds, strict=True)]
    work = [found["predict"].processor / (found["decode"].processor + found["forward"].processor) for found in rounds]
    print(
        f"| {case.name} | {rates['decode']:.0f} | {rates['forward']:.0f} | {rates['predict']:.0f} "
        f"| {spread(of_slower)} | {statistics.median(1 / both for both in together):.0f} | {spread(of_both)} "
        f"| {spread(work)} |",
        flush=True,
    )


def spread(ratios: list[float]) -> str:
    """Median, least and most."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
