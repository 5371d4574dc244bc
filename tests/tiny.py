"""One tiny experiment that trains in a fraction of a second, and what tests ask of its run."""

from __future__ import annotations

import atexit
import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor

from consilium.core.config import apply_overrides, build
from consilium.experiment import Experiment
from consilium.session import TrainResult, train
from consilium.training.hooks import read_history

SESSION = import_module("consilium.session.train")  # the name in the package is the function

# A training ends with gc.collect(), which need not look through all that the libraries above loaded.
gc.freeze()
atexit.register(gc.unfreeze)
freeze_again = cache(gc.freeze)  # with what the first training loaded


# 24 training images in three batches; two optimizer steps, one validation.
TREE: dict[str, Any] = {
    "name": "tiny",
    "task": {
        "kind": "classify",
        "vision": {"name": "test_resnet", "pretrained": False},
        "head": {"kind": "linear"},
        "loss": {"kind": "cross_entropy"},
    },
    "data": {
        "sources": [{"kind": "folder", "name": "images", "path": "(given)"}],
        "image": {"size": [32, 32]},
        "loader": {"batch_size": 8, "workers": 0},
    },
    "optimizer": {"kind": "adamw"},
    "schedule": {"kind": "constant"},
    "trainer": {"max_epochs": 1, "max_steps": 2, "precision": "fp32", "device": "cpu", "log_every": 1},
    "evaluation": {"bootstrap_samples": 20},
    "report": {"images": False, "cases": 2},
}
FULL_BATCH = "data.loader.batch_size=24"  # an epoch is one step over all training images


def tiny_experiment(images: Path, runs: Path, *overrides: str) -> Experiment:
    """The tiny experiment on a folder of images; the store lies beside them, so that all runs share it."""
    places = [
        f"data.sources.0.path={json.dumps(str(images))}",
        f"data.store.root={json.dumps(str(images.parent / 'stores'))}",
        f"output.root={json.dumps(str(runs))}",
    ]
    return build(Experiment, apply_overrides(TREE, [*places, *overrides]), origin="tests")


@dataclass
class Recorder:
    """A reporter that remembers lines and bars; ``stop_at`` is the training step at which it raises ``stop``."""

    lines: list[str] = field(default_factory=list)
    bars: list[tuple[str, int, int | None]] = field(default_factory=list)
    stop_at: int | None = None
    stop: BaseException = field(default_factory=KeyboardInterrupt)

    def line(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
        self.bars.append((name, done, total))
        if name == "train" and done == self.stop_at:
            raise self.stop


@dataclass(frozen=True)
class Run:
    """A finished training."""

    result: TrainResult
    reporter: Recorder

    @property
    def folder(self) -> Path:
        return self.result.bundle

    @property
    def metrics(self) -> dict[str, dict[str, float | None]]:
        return self.result.runs[0].metrics

    @property
    def manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "bundle.json").read_text(encoding="utf-8")))

    @property
    def knowledge(self) -> dict[str, Any]:
        return dict(self.manifest["knowledge"])

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text(encoding="utf-8")

    @property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "model.safetensors")

    def steps(self, column: str) -> list[float]:
        """A column of history.csv over the optimizer steps."""
        return [float(row[column]) for row in read_history(self.folder / "history.csv") if row["train_loss"]]

    def validations(self, column: str) -> list[float]:
        """A column of history.csv over the validations."""
        return [float(row[column]) for row in read_history(self.folder / "history.csv") if not row["train_loss"]]

    def checkpoints(self, kind: str) -> list[int]:
        """The steps of the checkpoints that are left: ``step`` (resumable) or ``best``."""
        return sorted(int(path.name.partition("-")[2]) for path in (self.folder / "checkpoints").glob(f"{kind}-*"))


class TrainTiny(Protocol):
    """Trains the tiny experiment; see the fixture ``tiny``."""

    def __call__(self, *overrides: str, images: Path = ..., **options: Any) -> Run:
        """``options`` are those of ``consilium.session.train``."""
        ...


def train_tiny(images: Path, runs: Path, *overrides: str, **options: Any) -> Run:
    """Train the tiny experiment with overrides."""
    reporter = options.pop("reporter", None) or Recorder()
    result = train(tiny_experiment(images, runs, *overrides), reporter=reporter, **options)
    freeze_again()
    assert result is not None, "a dry run leaves nothing"
    return Run(result, reporter)


def same(left: dict[str, Tensor], right: dict[str, Tensor], *, prefix: str = "") -> bool:
    """Whether all tensors whose names start with ``prefix`` are equal, bit for bit."""
    assert left.keys() == right.keys()
    names = [name for name in left if name.startswith(prefix)]
    assert names, f"nothing is called {prefix}..."
    return all(torch.equal(left[name], right[name]) for name in names)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The names of the tensors that differ."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], *, names: Sequence[str] = ()) -> None:
    """Equal within what another order of additions may change, on any processor."""
    assert actual.keys() == expected.keys()
    for name in names or expected:
        torch.testing.assert_close(
            actual[name], expected[name], rtol=1e-4, atol=5e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
