"""AutoGluon MultiModal on the folds of ``bench/fusion_quality.py``, with the same towers: five minutes for each fold.

    python bench/fusion_autogluon.py --python AUTOGLUON_PYTHON [--seconds 300] [--out runs/fusion_quality]

AUTOGLUON_PYTHON is the interpreter of an environment in which ``autogluon.multimodal`` is installed, since it pins
versions that Consilium does not share. It starts from the same EfficientNet-Lite0 and MiniLM, and may tune them, with
its own settings otherwise; it sees the same training and validation cases, on all cores of the machine, and answers the
test cases as they are and with half of the notes gone. ``bench/fusion_quality.py`` shows its row. A fold that is
finished is a small file in ``--out``; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch

from bench import _pairs
from bench._fusion import Answered, autogluon_file, keep, kept, losing_half, macro_f1
from bench._imagenet import MODEL, imagenet_weights
from bench._machine import describe_machine
from bench._minilm import minilm
from bench._pairs import FOLDS, Case, read_cases
from consilium.models.weights import load_state

SET = "ham10000 notes"


def main() -> None:
    """Make the folds that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("runs/fusion_quality"))
    arguments = parser.parse_args()
    if "CONSILIUM_SHARED" not in os.environ:
        print("CONSILIUM_SHARED names no folder with pairs/*.jsonl, so there is nothing to measure on.")
        return
    print(describe_machine())
    for fold in range(FOLDS):
        file = autogluon_file(arguments.out, SET, fold=fold)
        if kept(file) is None:
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                validation, answers = trained(fold, arguments.python, arguments.seconds, Path(folder))
            keep(file, Answered(validation, answers, time.perf_counter() - start))
            print(
                f"fold {fold}: {time.perf_counter() - start:.0f} s, macro F1 on validation {validation:.3f}", flush=True
            )


def trained(fold: int, python: Path, seconds: int, folder: Path) -> tuple[float, dict[str, list[str]]]:
    """Macro F1 on validation, and the answers to the test cases as they are and with half of the notes gone."""
    parts = _pairs.split(read_cases(SET), fold=fold)
    lost = losing_half(read_cases(SET))
    gone = {case.id for case, own in zip(read_cases(SET), lost, strict=True) if own}
    tables = {name: write_table(folder / f"{name}.csv", cases) for name, cases in parts.items()}
    tables["half"] = write_table(folder / "half.csv", parts["test"], without=gone)
    asked = {
        "tables": {name: str(path) for name, path in tables.items()},
        "folder": str(folder),
        "seconds": seconds,
        "image_tower": str(image_tower(folder / "tower")),
        "text_tower": str(minilm()),
        "context": _pairs.SETS[SET].context,
        "out": str(folder / "answers.json"),
    }
    child = Path(__file__).with_name("_autogluon.py")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    subprocess.run([python, child], input=json.dumps(asked), text=True, check=True, env=environment)
    answers = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    return macro_f1(answers["val"], parts["val"]), {"both": answers["test"], "half": answers["half"]}


def write_table(path: Path, cases: list[Case], *, without: frozenset[str] | set[str] = frozenset()) -> Path:
    """Image, text and label of each case; a text that is not there, or of a case that loses it, is an empty cell."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text", "label"])
        writer.writerows([case.image, "" if case.id in without else case.text, case.label] for case in cases)
    return path


def image_tower(folder: Path) -> Path:
    """The image tower as a folder that AutoGluon reads."""
    folder.mkdir()
    model: Any = timm.create_model(MODEL, num_classes=0)
    model.load_state_dict(load_state(imagenet_weights(folder)), strict=False)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    about = {
        "architecture": MODEL,
        "num_features": model.num_features,
        "pretrained_cfg": {
            name: model.pretrained_cfg[name] for name in ("mean", "std", "input_size", "interpolation", "crop_pct")
        },
    }
    (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


if __name__ == "__main__":
    main()
