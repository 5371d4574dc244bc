"""A council of three experts on 1,000 mixed images against its bundles asked one by one.

    python bench/council.py [--rounds 5] [--images 1000] [--resident N]

Three kinds of made pictures (``bench/_pictures.py``), each of one tint, a router that has learned to tell them apart,
and an expert with random weights for each. Every round runs in turn: ``council``, one ``predict`` over all images;
``alone``, the router's own ``predict`` over all, then that of each expert over the images that are routed to it. Times
are medians over rounds; the ratio is taken within a round, by the clock and by the processor. At the end the answers of
both are compared: labels that differ, and the largest difference of a probability.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does

import numpy as np
from PIL import Image

from bench._machine import describe_machine
from bench._pictures import synthetic
from bench.predict import Case, write_bundle
from consilium.core.config import build
from consilium.core.reporter import Silent
from consilium.council import Council, build_council
from consilium.experiment import Experiment
from consilium.predictor import Predictor
from consilium.session import train

KINDS, SIDE, SIZE, MODEL = ("blue", "green", "red"), 512, 224, "resnet18"
PICTURES = 12  # of each kind


def main() -> None:
    """Train the router, build the council, run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--resident", type=int)
    arguments = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        router = train_router(folder)
        experts = {kind: write_bundle(folder / kind, Case(SIDE, MODEL, SIZE, 0)) for kind in KINDS}
        place = build_council(router=router, experts=experts, out=folder / "council", quiet=True)
        council = Council.load(place, resident=arguments.resident)
        bundles = {kind: Predictor.load(own) for kind, own in {"router": router, **experts}.items()}
        files = sorted(map(str, (folder / "pictures").rglob("*.jpg")))
        images = [files[number * 7 % len(files)] for number in range(arguments.images)]
        ways: dict[str, Callable[[], Any]] = {
            "council": lambda: council.predict(images),
            "alone": lambda: one_by_one(bundles, images),
        }
        rounds = [{way: timed(run) for way, run in ways.items()} for _ in range(arguments.rounds + 1)][1:]
        for number, what in enumerate(("clock", "processor")):
            times = {way: statistics.median(own[way][number] for own in rounds) for way in ways}
            ratios = [own["council"][number] / own["alone"][number] for own in rounds]
            print(
                f"{what}: council {times['council']:.2f} s, alone {times['alone']:.2f} s, ratio "
                f"{statistics.median(ratios):.3f} (rounds {min(ratios):.3f} to {max(ratios):.3f})"
            )
        print(differences(council.predict(images), one_by_one(bundles, images)))
    print(describe_machine())


def train_router(folder: Path) -> Path:
    """A router that tells the tints apart; its images are those that are asked about."""
    for tint, kind in enumerate(KINDS):
        (folder / "pictures" / kind).mkdir(parents=True)
        for number in range(PICTURES):
            pixels_HWC = np.asarray(synthetic(SIDE, seed=PICTURES * tint + number), dtype=np.float32)
            pixels_HWC = pixels_HWC * np.roll([0.4, 0.4, 1.0], -tint)
            picture = Image.fromarray(pixels_HWC.astype(np.uint8))
            picture.save(folder / "pictures" / kind / f"{number:02d}.jpg", quality=90)
    tree = {
        "name": "router",
        "task": {"kind": "classify", "vision": {"name": MODEL, "pretrained": False}},
        "data": {
            "sources": [{"kind": "folder", "name": "pictures", "path": str(folder / "pictures")}],
            "image": {"size": [SIZE, SIZE]},
            "loader": {"batch_size": 8},
            "store": {"root": str(folder / "stores")},
        },
        "trainer": {"max_epochs": 5},
        "output": {"root": str(folder / "runs")},
    }
    result = train(build(Experiment, tree, origin="bench"), reporter=Silent())
    assert result is not None
    return result.bundle


def one_by_one(bundles: dict[str, Predictor], images: list[str]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The route of each image and the answer of its expert, each bundle asked by itself."""
    routes = bundles["router"].predict(images)
    answers: dict[int, dict[str, Any]] = {}
    for kind in KINDS:
        rows = [row for row, route in enumerate(routes) if route["label"] == kind]
        answers.update(zip(rows, bundles[kind].predict([images[row] for row in rows]), strict=True))
    return [(route, answers[row]) for row, route in enumerate(routes)]


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock, and of all processors with the processes that decode."""
    start, before = time.perf_counter(), sum(os.times()[:4])
    run()
    return time.perf_counter() - start, sum(os.times()[:4]) - before


def differences(found: list[dict[str, Any]], alone: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """How often routes and labels differ, and by how much probabilities do."""
    routes = sum(own["route"]["label"] != route["label"] for own, (route, _) in zip(found, alone, strict=True))
    labels = sum(own["answer"]["label"] != answer["label"] for own, (_, answer) in zip(found, alone, strict=True))
    largest = max(
        abs(value - answer["probabilities"][label])
        for own, (_, answer) in zip(found, alone, strict=True)
        for label, value in own["answer"]["probabilities"].items()
    )
    shares = [sum(own["expert"] == kind for own in found) for kind in KINDS]
    return f"asked {shares}; routes that differ: {routes}, labels: {labels}, largest difference: {largest:.1e}"


if __name__ == "__main__":
    main()
