"""``trainer.ema``: what is validated, chosen and kept is the moving average of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

import consilium
from consilium.training.averaging import MovingAverage, average_warnings
from consilium.training.config import EmaConfig
from consilium.training.hooks import read_history
from tests.tiny import Run, TrainTiny, assert_close, same

DECAY = 0.7
FIVE = ["trainer.max_epochs=2", "trainer.max_steps=5", "optimizer.learning_rate=0.01"]
LONGER = [*FIVE, f"trainer.ema={{decay: {DECAY}}}"]


@pytest.fixture
def after_steps(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The weights of the task after every step."""
    seen: list[dict[str, Tensor]] = []
    init, update = MovingAverage.__init__, MovingAverage.update

    def noting(self: Any, task: Any, config: EmaConfig) -> None:
        init(self, task, config)
        self.task = task

    def updating(self: Any) -> None:
        update(self)
        seen.append({name: tensor.detach().clone() for name, tensor in self.task.state_dict().items()})

    monkeypatch.setattr(MovingAverage, "__init__", noting)
    monkeypatch.setattr(MovingAverage, "update", updating)
    return seen


def averaged(steps: list[dict[str, Tensor]], *, buffers: tuple[str, ...]) -> dict[str, Tensor]:
    """The average by its definition; buffers are the last ones."""
    found = dict(steps[0])
    for step in steps[1:]:
        found = {
            name: step[name] if name.endswith(buffers) else DECAY * tensor + (1 - DECAY) * step[name]
            for name, tensor in found.items()
        }
    return found


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def test_the_bundle_holds_the_average_and_the_checkpoint_the_weights(
    tiny: TrainTiny, after_steps: list[dict[str, Tensor]]
) -> None:
    run = tiny(*LONGER, "trainer.validate_every=100")  # once, at the end
    assert len(after_steps) == 5
    expected = averaged(after_steps, buffers=STATISTICS)
    assert_close(run.weights, expected)
    assert not torch.allclose(run.weights["head.1.weight"], after_steps[-1]["head.1.weight"])
    (checkpoint,) = (run.folder / "checkpoints").glob("step-*")
    assert same(load_file(checkpoint / "model.safetensors"), after_steps[-1]), "the training goes on with its own"


def test_validation_judges_the_average_and_training_goes_on_without_it(tiny: TrainTiny) -> None:
    judged = ["trainer.validate_every=0.34", "trainer.monitor=log_loss", "task.answers.calibrate=false"]
    often, plain = tiny(*LONGER, *judged), tiny(*FIVE, *judged)
    assert often.steps("train_loss") == plain.steps("train_loss")
    assert often.validations("val_log_loss")[0] == plain.validations("val_log_loss")[0], "it begins with the first step"
    assert often.validations("val_log_loss")[1:] != plain.validations("val_log_loss")[1:]
    rows = [row for row in read_history(often.folder / "history.csv") if not row["train_loss"]]
    lowest = min(rows, key=lambda row: float(row["val_log_loss"]))
    assert often.metrics["val"]["log_loss"] == pytest.approx(float(lowest["val_log_loss"]), abs=1e-5)


def test_a_frozen_tower_is_not_averaged_and_stays_cached(tiny: TrainTiny) -> None:
    frozen = ["task.vision.freeze.kind=tower", "task.answers.calibrate=false"]
    run = tiny(*LONGER, *frozen)
    (checkpoint,) = (run.folder / "checkpoints").glob("step-*")
    state = torch.load(checkpoint / "trainer.pt", weights_only=True)["average"]
    assert sorted(map(str, state)) == ["module.0", "module.1", "n_averaged"], "the head's weight and bias"
    assert any("are cached" in line for line in run.reporter.lines)
    uncached = tiny(*LONGER, *frozen, "trainer.cache_features=false")
    assert_close(run.weights, uncached.weights)


def test_what_fails_while_the_average_stands_in_leaves_the_weights() -> None:
    class Toy(torch.nn.Linear):
        def set_epoch(self, epoch: int) -> None:
            """Nothing is frozen."""

    task: Any = Toy(2, 1)
    average = MovingAverage(task, EmaConfig(decay=0.5))
    average.update()
    with torch.no_grad():
        task.weight += 1.0
    own = task.weight.detach().clone()

    def judge() -> None:
        with average.in_place():
            torch.testing.assert_close(task.weight, own - 1.0)
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        judge()
    assert torch.equal(task.weight, own)


def test_an_average_of_the_beginning_is_warned_of(tiny: TrainTiny) -> None:
    run = tiny("trainer.ema={decay: 0.999}")
    told = "trainer.ema.decay is 0.999, of which half is forgotten after 693 steps, but the training has only 2"
    assert told in run.log
    assert told in (run.folder / "report.html").read_text(encoding="utf-8")
    assert not average_warnings(EmaConfig(decay=0.99), total_steps=69)
    assert average_warnings(EmaConfig(decay=0.99), total_steps=68)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1])
def test_a_decay_that_averages_nothing_is_refused(decay: float) -> None:
    with pytest.raises(ValidationError):
        EmaConfig(decay=decay)


def test_the_bundle_answers_as_it_was_judged(tiny: TrainTiny) -> None:
    run: Run = tiny(*LONGER)
    found = consilium.evaluate(run.folder, split="test", out=Path(run.folder) / "again", quiet=True)
    for name, value in run.metrics["test"].items():
        assert found.metrics[name] == (None if value is None else pytest.approx(value, abs=1e-5))
