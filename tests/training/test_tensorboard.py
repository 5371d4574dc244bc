"""What TensorBoard shows of a run: every step once, whatever a killed start left."""

from __future__ import annotations

from pathlib import Path

import pytest

from consilium.core.contracts import Progress, StepLog
from consilium.training.tracking import TensorBoardHook


def step_log(loss: float) -> StepLog:
    return StepLog(
        loss=loss,
        parts={},
        learning_rates={"head": 0.5},
        gradient_norm=None,
        data_seconds=0.1,
        step_seconds=0.2,
        cases=8,
    )


def test_tensorboard_reads_every_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    progress = Progress()
    for resume_step, steps in ((0, range(1, 6)), (3, range(4, 8))):  # killed after step 5, whose checkpoint is of 3
        hook = TensorBoardHook(tmp_path / "tensorboard", resume_step=resume_step)
        for progress.step in steps:
            hook.on_step(progress, step_log(progress.step + 100 * resume_step))
        hook.on_evaluation(progress, {"accuracy": 0.25, "auroc": None})
    hook.on_end(progress)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [
        *((step, float(step)) for step in (1, 2, 3)),
        *((step, 300.0 + step) for step in (4, 5, 6, 7)),
    ]
    assert [event.value for event in found.Scalars("learning_rate/head")] == [0.5] * 7
    assert [(event.step, event.value) for event in found.Scalars("val/accuracy")] == [(7, pytest.approx(0.25))]
    assert set(found.Tags()["scalars"]) == {
        "train/loss",
        "time/data_seconds",
        "time/step_seconds",
        "learning_rate/head",
        "val/accuracy",
    }
