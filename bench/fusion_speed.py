"""How fast does a fusion train over kept features: a step, and a sweep of 20 settings, each with its whole grid?

    python bench/fusion_speed.py [--rounds 5] [--skip-sweep] [--out runs/fusion_speed]

*Step*: features of 768 numbers for the image and the text of each case are at hand, as from frozen towers; measured is
what is learned after them (projections, masking, gated fusion, losses of each modality alone, gradient, AdamW), on one
thread. The bound is that of its matrix products: multiplications and additions of the step divided by the seconds.

*Sweep*: HAM10000 with its notes (``CONSILIUM_SHARED``), frozen EfficientNet-Lite0 and MiniLM whose features are there
already: 20 learning rates, each a training of 30 epochs with validation, bundle, report and the grid of what is
missing, by two processes of one thread.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench import fusion_quality
from bench._fusion import write_cases
from bench._machine import describe_machine
from bench._pairs import read_cases, split
from consilium.core.contracts import Batch, Texts, Views
from consilium.core.labels import LabelTree
from consilium.models.config import FreezeConfig, TextConfig, VisionConfig
from consilium.session import train
from consilium.tasks.fuse.config import AuxiliaryConfig, FuseConfig, MaskingConfig
from consilium.tasks.fuse.task import Fuse
from consilium.training.config import AdamConfig
from consilium.training.optim import build_optimizer

SET, FEATURES, CLASSES, STEPS, SETTINGS = "ham10000 notes", 768, 7, 30, 20
MASKED: dict[str, Any] = {
    "masking": MaskingConfig(image=0.2, text=0.3),
    "auxiliary": AuxiliaryConfig(image=0.3, text=0.3),
}
PLAIN: dict[str, Any] = {"masking": MaskingConfig(), "auxiliary": AuxiliaryConfig()}


class Nothing(nn.Module):
    """A frozen tower that is not asked, since its features are there."""

    num_features, licenses = FEATURES, ()
    depths: Mapping[str, int] = {}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-sweep", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/fusion_speed"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine())
    ways = {
        (width, batch, how): Step(width=width, batch=batch, settings=settings)
        for width in (256, 768)
        for batch in (256, 1024, 4096)
        for how, settings in (("masked, auxiliary losses", MASKED), ("plain", PLAIN))
    }
    rates: dict[tuple[int, int, str], list[float]] = {way: [] for way in ways}
    for _ in range(arguments.rounds):
        for way, step in ways.items():
            rates[way].append(step.rate())
    for (width, batch, how), found in rates.items():
        rate = statistics.median(found)
        work = rate * ways[width, batch, how].operations / 1e9
        print(f"width {width}, batch {batch}, {how}: {rate:,.0f} cases/s, {work:.0f} GFLOP/s in its products")
    if not arguments.skip_sweep and "CONSILIUM_SHARED" in os.environ:
        sweep(arguments.out)


class Step:
    """Steps of one batch over and over."""

    def __init__(self, *, width: int, batch: int, settings: dict[str, Any]) -> None:
        torch.manual_seed(0)
        frozen = FreezeConfig(kind="tower")
        config = FuseConfig(
            kind="fuse",
            width=width,
            vision=VisionConfig(freeze=frozen),
            text=TextConfig(freeze=frozen),
            **settings,
        )
        labels = LabelTree([f"class{number}" for number in range(CLASSES)])
        nothing: Any = Nothing()
        self.task = Fuse(
            config,
            labels=labels,
            vision=nothing,
            text=nothing,
            tokenizer=nothing,
            metadata=None,
            loss=nn.CrossEntropyLoss(),
        )
        self.optimizer = build_optimizer(AdamConfig(kind="adamw"), groups=self.task.parameter_groups())
        rows_B, all_B = torch.arange(batch), torch.ones(batch, dtype=torch.bool)
        self.batch = Batch(
            rows_B,
            rows_B,
            counts={"cases": batch},
            images=Views(all_B[:, None], None, features_BVF=torch.randn(batch, 1, FEATURES)),
            texts=Texts(all_B, rows_B, features_BF=torch.randn(batch, FEATURES)),
            targets_B=torch.randint(CLASSES, (batch,)),
        )
        # Multiplications and additions of a case: forward and the gradient of weights in the projections, and in what
        # follows also the gradient of what it sees.
        heads = 2 if config.auxiliary.weights else 0
        self.operations = 2 * 2 * (2 * FEATURES * width) + 3 * 2 * (2 * 2 * width + (1 + heads) * width * CLASSES)

    def rate(self) -> float:
        """Cases a second over some steps."""
        start = time.perf_counter()
        for _ in range(STEPS):
            self.task.step(self.batch).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return STEPS * len(self.batch) / (time.perf_counter() - start)


def sweep(out: Path) -> None:
    """All settings, by two processes; the features are computed before the clock starts."""
    out.mkdir(parents=True, exist_ok=True)
    write_cases(out / "cases.jsonl", split(read_cases(SET), fold=0))
    swept(out, [1e-3])
    rates = np.geomspace(1e-4, 1e-2, SETTINGS).tolist()
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(swept, [(out, rates[number::2]) for number in (0, 1)])
    seconds = time.perf_counter() - start
    best = max(pair for own in found for pair in own)
    print(f"{SETTINGS} settings in {seconds:.0f} s; the best on validation is {best[1]:.2g} (macro F1 {best[0]:.3f})")


def swept(out: Path, rates: list[float]) -> list[tuple[float, float]]:
    """Macro F1 on validation of each rate."""
    torch.set_num_threads(1)
    trainer, found = fusion_quality.Trainer(out), []
    for rate in rates:
        with tempfile.TemporaryDirectory(dir=out) as folder:
            experiment = trainer.experiment(
                SET, fusion_quality.ROWS["gated"], rate, 0, cases=out / "cases.jsonl", runs=Path(folder)
            )
            result = train(experiment, quiet=True)
            assert result is not None
            judged = json.loads((result.folder / "metrics.json").read_text(encoding="utf-8"))
        found.append((judged["val"]["metrics"]["macro_f1"], rate))
    return found


if __name__ == "__main__":
    main()
