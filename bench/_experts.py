"""A small training of an expert on pairs of the shared folder, from real weights, and what it makes of other pairs.

EfficientNet-Lite0 with ImageNet weights at 112 px and MiniLM, batches of 32, AdamW, a cosine after a warm-up of a tenth
of the steps, float32 on one thread, the last weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench._imagenet import MODEL, imagenet_weights
from bench._minilm import minilm
from bench._pairs import Case
from consilium.core.config import build, merge
from consilium.core.reporter import Silent
from consilium.data.cases.load import load_data
from consilium.evaluation.metrics import Floats
from consilium.experiment import Experiment
from consilium.predictor import Predictor, case_outputs
from consilium.series import GUARDS_OFF
from consilium.session import train
from consilium.tasks.family import studying

SIZE, BATCH, WIDTH, DECAY, CROP, OWN_RATE = 112, 32, 512, 0.1, (0.9, 1.0), 1e-3
OWN_RATES = {  # of what is new
    "projection": {"learning_rate": OWN_RATE},
    "temperature": {"learning_rate": OWN_RATE, "weight_decay": 0.0},
}


def epochs_and_steps(cases: int, *, samples: int) -> tuple[int, int]:
    """The epochs that come nearest to the samples, and the steps of one; a last batch that is not full is left out."""
    steps = cases // BATCH
    return max(1, round(samples / (steps * BATCH))), steps


def train_and_embed(
    parts: dict[str, list[Case]],
    change: dict[str, Any],
    *,
    judged: Sequence[str],
    samples: int,
    context: int,
    seed: int,
    folder: Path,
) -> dict[str, tuple[Floats, Floats]]:
    """Train on the part ``train``; images and texts of the judged parts, each [N, F], as the expert embeds them.

    ``change`` is laid over the experiment, ``context`` are the tokens that are read of a text.
    """
    epochs, steps = epochs_and_steps(len(parts["train"]), samples=samples)
    splits, file = tuple(dict.fromkeys(("train", "val", *judged))), folder / "pairs.jsonl"
    with file.open("w", encoding="utf-8") as opened:
        for name in splits:
            opened.writelines(json.dumps({**asdict(case), "split": name}) + "\n" for case in parts[name])
    tree = {
        "name": "bench",
        "seed": seed,
        "task": {
            "kind": "align",
            "vision": {"name": MODEL, "pretrained": str(imagenet_weights(folder))},
            "text": {"name": str(minilm()), "pooling": "mean", "context_length": context},
            "embedding_size": WIDTH,
            "loss": {"kind": "softmax", "positives": "same_text"},
        },
        "data": {
            "sources": [{"kind": "jsonl", "name": "pairs", "path": str(file), "columns": {"group": "group"}}],
            "store": {"root": str(folder / "stores"), "check_images": "header"},
            "guards": GUARDS_OFF,
            "image": {"size": [SIZE, SIZE], "interpolation": "bicubic", "statistics": "model"},
            "augmentation": {"crop_scale": CROP},
            "loader": {"batch_size": BATCH, "drop_last": True, "workers": 0},
        },
        "optimizer": {"kind": "adamw", "weight_decay": DECAY},
        "schedule": {"kind": "cosine", "warmup": epochs * steps // 10},
        "trainer": {
            "max_epochs": epochs, "clip_norm": 1.0, "precision": "fp32", "threads": 1, "device": "cpu",
            "validate_every": epochs, "save_every": epochs,
        },
        "evaluation": {"bootstrap_samples": 0},
        "report": {"images": False},
        "output": {"root": str(folder / "runs")},
    }  # fmt: skip
    experiment = build(Experiment, merge(tree, change), origin="bench")
    result = train(experiment, quiet=True)
    assert result is not None
    predictor = Predictor.load(result.bundle, device="cpu", batch_size=64, workers=0)
    needs, study = experiment.task.needs, studying(experiment.task, learns=True)
    loaded = load_data(experiment.data, needs=needs, study=study, splits=splits, reporter=Silent())
    found: dict[str, tuple[Floats, Floats]] = {}
    for name in judged:
        outputs = case_outputs(predictor, loaded.studied, name)
        places = {case.rpartition("/")[2]: place for place, case in enumerate(outputs.ids)}
        order = [places[case.id] for case in parts[name]]
        texts_NKF = outputs.arrays["text_embeddings"]  # K: of each case one
        found[name] = outputs.arrays["image_embeddings"][order], texts_NKF[order, 0]
    return found
