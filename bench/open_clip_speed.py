"""How long is a training step beside that of open_clip's own trainer, and what of ours is not forward and backward?

    python bench/open_clip_speed.py [--cases files ViT-B-32 BiomedCLIP] [--rounds 5] [--steps 4]

Theirs is ``open_clip_train.train.train_one_epoch`` on the model, optimizer and loader that ``open_clip_train.main``
makes of its arguments; ours is ``consilium.training.loop.fit`` on the align task with its loader and device transform.
Both have the same towers with random weights, batches, AdamW and float32 on one thread, and read in the process that
trains:

- ``files``: 1024 px JPEG files (``bench/_pictures.py``), crops of 224 px; EfficientNet-Lite0 and a BERT of MiniLM's
  size, texts of about 20 tokens, which they fill up to 77, open_clip's usual context. Also the loaders alone.
- ``ViT-B-32``: tensors that are there already, 77 tokens on both sides. The architecture is the same, not its code:
  theirs are open_clip's own modules, ours timm's image tower and transformers' CLIP text tower with mean pooling.
- ``BiomedCLIP``: tensors, ViT-B/16 and BERT-base, texts of 56 to 72 tokens, which they fill up to 256, the model's
  context, and ours to the longest of the batch.

Each side is a process of its own that lives for all rounds; in a round both run some steps, in turn, the order
exchanged from round to round. A ratio is taken within a round, of the median step, once by processor time and once by
the clock: on a machine with other work processor time is what counts. The first round warms up and is not counted.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import _open_clip
from bench._machine import describe_machine
from bench._steps import CASES, Case, Round, Steps, prepare
from bench._steps_ours import our_loader, ours
from bench._steps_theirs import their_loader, theirs
from consilium.core.reporter import format_table


def main() -> None:
    """Measure and print a table for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each side in a round")
    arguments = parser.parse_args()
    if absent := _open_clip.missing():
        print(absent)
        return
    torch.set_num_threads(1)
    print(describe_machine())
    for name in arguments.cases:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, Path(folder), rounds=arguments.rounds, steps=arguments.steps)


def measure(name: str, folder: Path, *, rounds: int, steps: int) -> None:
    """Run the rounds of a case and print its tables."""
    case = CASES[name]
    prepare(case, folder, count=case.batch * (steps + 1))
    pairs = {"step": (theirs, ours)}
    if case.files:
        pairs["loader alone"] = (their_loader, our_loader)
    rows = []
    for what, makers in pairs.items():
        sides = [Side(make, case, folder) for make in makers]
        found: list[list[Steps]] = []
        for number in range(rounds + 1):
            order = sides if number % 2 else sides[::-1]
            done = {id(side): side(steps + 1) for side in order}
            if number:
                found.append([done[id(side)] for side in sides])
        for side in sides:
            side.close()
        rows += [row(what, case, kind, [[getattr(side, kind) for side in both] for both in found]) for kind in KINDS]
        if what == "step":
            parts = shares([our for _, our in found])
    print(
        format_table(rows, title=f"{name}: batches of {case.batch}, {rounds} rounds of {steps} steps, goal {case.goal}")
    )
    print(f"  of our step: {parts}\n", flush=True)


KINDS = ("processor", "clock")


def row(what: str, case: Case, kind: str, found: list[list[list[float]]]) -> dict[str, Any]:
    """The median steps of both sides, and their ratio within rounds."""
    medians = [[statistics.median(side) for side in both] for both in found]
    ratios = [their / our for their, our in medians]
    their, our = (statistics.median(column) for column in zip(*medians, strict=True))
    return {
        "what": what,
        "by": kind,
        "open_clip, s": their,
        "ours, s": our,
        "ratio": statistics.median(ratios),
        "rounds": f"{min(ratios):.2f} to {max(ratios):.2f}",
        "ours, pairs/s": round(case.batch / our, 2),
    }


def shares(found: list[Steps]) -> str:
    """The parts of our step, in per cent of its processor time."""
    parts = {
        name: statistics.median(100 * steps.parts[name] / sum(steps.processor) for steps in found)
        for name in found[0].parts
    }
    parts["everything else"] = 100 - sum(parts.values())
    return ", ".join(f"{name} {share:.1f} %" for name, share in parts.items())


class Side:
    """A process that makes something once and runs rounds of it."""

    def __init__(self, make: Callable[[Case, Path], Round], case: Case, folder: Path) -> None:
        context = multiprocessing.get_context("fork")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, case, folder, there), daemon=True)
        self._process.start()
        there.close()

    def __call__(self, steps: int) -> Steps:
        self._here.send(steps)
        found: Steps = self._here.recv()
        return found

    def close(self) -> None:
        """End it."""
        self._here.send(0)
        self._process.join()


def _serve(make: Callable[[Case, Path], Round], case: Case, folder: Path, pipe: Any) -> None:
    run = make(case, folder)
    while steps := pipe.recv():
        pipe.send(run(steps))


if __name__ == "__main__":
    main()
