"""Judging keeps the evidence of each case, not all that a prediction holds."""

from __future__ import annotations

import subprocess
import sys

import pytest

CASES = 20_000
WIDTH = 4096  # numbers of a prediction: those of all cases are 328 MB
_SCRIPT = """
import io, re, resource, sys
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from consilium.core.contracts import Prediction, StepOutput
from consilium.core.section import Knowledge
from consilium.core.task import Task
from consilium.data.config import ImageConfig, LoaderConfig
from consilium.predictor import Predictor

WIDTH, cases, kept = map(int, sys.argv[1:])
file = io.BytesIO()
Image.new("RGB", (8, 8)).save(file, "PNG")


class Wide(Task):
    def step(self, batch):
        return StepOutput(torch.zeros(()))

    def predict(self, batch):
        return Prediction({"wide": torch.ones(len(batch), WIDTH)})

    def evidence(self, prediction, batch):
        return {"kept": prediction.arrays["wide"][:, :kept].clone()}

    def combine(self, looks):
        return looks[0][1]

    def records(self, prediction):
        return []

    def parameter_groups(self):
        return []


class Pictures:
    def images(self, row):
        return [file.getvalue()]


def peak():
    status = Path("/proc/self/status")  # on Linux ru_maxrss begins with what the process that started this one has
    if status.is_file():
        return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


torch.set_num_threads(1)
predictor = Predictor(
    Wide(),
    Knowledge(training_cases=1),
    image=ImageConfig(size=(8, 8)),
    loader=LoaderConfig(batch_size=100, workers=0),
    device=torch.device("cpu"),
)
peaks = []
for count in (1000, cases):
    found = predictor.arrays(Pictures(), np.arange(count))
    assert found.by_name["kept"].shape == (count, kept)
    peaks.append(peak())
print(peaks[1] - peaks[0])
"""


def growth(*, kept: int) -> float:
    """By how many MB the peak grows from 1,000 cases to all, where so many numbers of each are kept."""
    command = [sys.executable, "-c", _SCRIPT, *map(str, (WIDTH, CASES, kept))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1e6


@pytest.mark.slow
def test_memory_of_judging_grows_with_the_evidence() -> None:
    assert growth(kept=2) < 30
    assert growth(kept=WIDTH) > 250, "the measure notices what is kept"
