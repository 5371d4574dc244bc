"""What the loop does with batches, figures and hooks, on a toy whose every number is known."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from consilium.core.config import to_yaml
from consilium.core.contracts import (
    Batch,
    Hook,
    Look,
    ParameterGroup,
    Prediction,
    Progress,
    StepLog,
    StepOutput,
    Views,
)
from consilium.core.errors import InterruptedRunError, NonFiniteLossError, TrainingError
from consilium.core.evaluation import Outputs
from consilium.core.task import Task
from consilium.data.batches.loader import Loader
from consilium.data.cases.mixture import Mixture, build_mixture
from consilium.experiment import Experiment
from consilium.predictor import Predictor
from consilium.session import train
from consilium.session.train import Session
from consilium.tasks.classify.task import Classify
from consilium.training.config import CosineConfig, PlateauConfig, SGDConfig, TrainerConfig
from consilium.training.dryrun import Trial
from consilium.training.hooks import History, LogHook, RunLog, read_history
from consilium.training.loop import Training, fit, refuse_non_finite
from consilium.training.monitor import Monitor
from consilium.training.optim import Schedule, build_optimizer
from consilium.training.plan import make_plan
from consilium.training.state import checkpoints, load_checkpoint
from tests.tiny import SESSION, Recorder, Run, TrainTiny, assert_close, same, tiny_experiment, train_tiny

ROWS = 40


class Toy(Task):
    """One parameter per row; the loss of a case is its parameter, so that a step tells which rows reached it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Parameter(torch.zeros(ROWS, 1))
        self.epochs: list[int] = []
        self.poison: int | None = None  # the row whose loss is not a number

    def step(self, batch: Batch) -> StepOutput:
        loss = self.head[batch.rows_B].mean()
        if self.poison is not None and self.poison in batch.rows_B.tolist():
            loss = loss * torch.nan
        return StepOutput(loss=loss, parts={"own": loss.detach() * 2})

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup("head", [self.head])]

    def predict(self, batch: Batch) -> Prediction:
        return Prediction({"loss": self.head[batch.rows_B]})

    def combine(self, looks: Sequence[tuple[Look, Prediction]]) -> Prediction:
        return looks[0][1]

    def records(self, prediction: Prediction) -> list[dict[str, Any]]:
        return [{"loss": float(loss)} for loss in prediction.arrays["loss"]]

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


class Events:
    """A hook that writes down what it is told."""

    def __init__(self, told: list[str], folder: Path) -> None:
        self.told, self.folder = told, folder
        self.logs: list[StepLog] = []
        self.saved: list[list[str]] = []

    def on_step(self, progress: Progress, log: StepLog) -> None:
        self.told.append(f"step {progress.step}")
        self.logs.append(log)

    def on_evaluation(self, progress: Progress, metrics: Mapping[str, float | None]) -> None:
        self.told.append(f"evaluation {progress.step}")
        self.saved.append([path.name for path in checkpoints(self.folder)])

    def on_end(self, progress: Progress) -> None:
        self.told.append("end")


class Toybox:
    """A training of the toy: ``sizes`` are the cases of every batch, epoch by epoch."""

    def __init__(
        self,
        folder: Path,
        sizes: Sequence[Sequence[int]],
        *,
        values: Sequence[float | None] = (),
        higher_is_better: bool = True,
        schedule: Any = None,
        hooks: Sequence[Hook] = (),
        rate: float = 1.0,
        **trainer: Any,
    ) -> None:
        self.task, self.told, self.sizes = Toy(), [], sizes
        self.values = list(values)
        self.seen: list[list[list[int]]] = [[] for _ in sizes]
        config = TrainerConfig(**{"max_epochs": len(sizes), "monitor": "score", **trainer})
        self.plan = make_plan([len(epoch) for epoch in sizes], config=config)
        optimizer = build_optimizer(
            SGDConfig(kind="sgd", learning_rate=rate, momentum=0.0, weight_decay=0.0),
            groups=self.task.parameter_groups(),
        )
        self.schedule = Schedule(
            schedule or CosineConfig(floor=1.0),
            optimizer=optimizer,
            total_steps=self.plan.total_steps,
            steps_per_epoch=self.plan.steps[0],
            floors={},
        )
        self.folder = folder / "checkpoints"
        self.events = Events(self.told, self.folder)
        self.training = Training(
            task=self.task,
            batches=self._batches,
            transform=lambda batch: batch,
            validate=self._validate,
            case_ids=lambda rows: [f"case-{row}" for row in rows],
            plan=self.plan,
            optimizer=optimizer,
            schedule=self.schedule,
            config=config,
            accelerator=Accelerator(cpu=True),
            precision="fp32",
            monitor=Monitor("score", higher_is_better=higher_is_better),
            checkpoints=self.folder,
            hooks=[self.events, *hooks],
        )

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        rows = np.random.default_rng(epoch).permutation(ROWS)
        ends = np.cumsum([0, *self.sizes[epoch]])
        for number in range(start, len(self.sizes[epoch])):
            own = rows[ends[number] : ends[number + 1]]
            self.seen[epoch].append(own.tolist())
            yield Batch(
                images=Views(
                    torch.ones(len(own), 1, dtype=torch.bool), torch.zeros(len(own), 1, 3, 8, 8, dtype=torch.uint8)
                ),
                rows_B=torch.from_numpy(own),
                draws_B=torch.from_numpy(own),
                counts={"cases": len(own)},
            )

    def _validate(self) -> dict[str, float | None]:
        self.told.append("validate")
        return {"score": self.values.pop(0) if self.values else 0.0}

    def fit(self, progress: Progress | None = None) -> Progress:
        return fit(self.training, progress=progress or Progress())


# -- Batches and steps --------------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=8), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(1, 20) | st.none(),
)
def test_every_case_of_the_plan_gets_its_gradient_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]], accumulate: int, max_steps: int | None
) -> None:
    box = Toybox(tmp_path_factory.mktemp("box"), sizes, accumulate=accumulate, max_steps=max_steps)
    progress = box.fit()
    # By hand: a step moves each of its rows by the rate over the cases of the step, also in a short last window.
    expected, steps, seen = torch.zeros(ROWS), 0, 0
    for epoch in range(len(sizes)):
        rows = np.random.default_rng(epoch).permutation(ROWS)
        ends = np.cumsum([0, *sizes[epoch]])
        for first in range(0, len(sizes[epoch]), accumulate):
            if max_steps is not None and steps == max_steps:
                break
            own = rows[ends[first] : ends[min(first + accumulate, len(sizes[epoch]))]]
            expected[own] -= 1 / len(own)
            steps, seen = steps + 1, seen + len(own)
    torch.testing.assert_close(box.task.head[:, 0].detach(), expected)
    assert progress.step == progress.total_steps == box.plan.total_steps == steps
    assert progress.samples == seen
    assert [f"step {number + 1}" for number in range(steps)] == [text for text in box.told if text.startswith("step")]
    assert sum(log.cases for log in box.events.logs) == seen


def test_every_drawn_row_reaches_the_model_in_order(tiny: TrainTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    mixtures: list[Mixture] = []
    step = Classify.step

    def note_rows(task: Classify, batch: Batch) -> StepOutput:
        seen.append(batch.rows_B.tolist())
        return step(task, batch)

    def note_mixture(*arguments: Any, **options: Any) -> Mixture:
        mixtures.append(build_mixture(*arguments, **options))
        return mixtures[-1]

    monkeypatch.setattr(Classify, "step", note_rows)
    monkeypatch.setattr(SESSION, "build_mixture", note_mixture)
    monkeypatch.setattr(SESSION, "dry_run", _no_trial)
    tiny("data.loader.batch_size=7", "trainer.accumulate=2", "trainer.max_epochs=3", "trainer.max_steps=6")
    (mixture,) = mixtures
    drawn = [mixture.epoch(epoch) for epoch in range(3)]
    assert [row for rows in seen for row in rows] == np.concatenate(drawn).tolist()
    assert [len(rows) for rows in seen] == [7, 7, 7, 3] * 3
    assert not np.array_equal(drawn[0], drawn[1])


def _no_trial(*_: object, precision: str, **__: object) -> Trial:
    return Trial(precision, 0.1, None, 1)


def test_max_steps_ends_in_mid_epoch_with_validation_and_checkpoint(tmp_path: Path) -> None:
    box = Toybox(tmp_path, [[2] * 5] * 3, max_steps=7)
    progress = box.fit()
    assert (progress.step, progress.epoch, progress.batch) == (7, 1, 2)
    assert progress.epochs == pytest.approx(1.4)
    assert box.told[-4:] == ["step 7", "validate", "evaluation 7", "end"]
    assert [path.name for path in checkpoints(box.folder)] == ["step-00000007"]


def test_a_finished_training_does_nothing_more(tmp_path: Path) -> None:
    box = Toybox(tmp_path, [[2, 2]])
    progress = box.fit()
    weights = box.task.head.detach().clone()
    box.told.clear()
    assert box.fit(progress) is progress
    assert box.told == ["end"]
    assert torch.equal(box.task.head, weights)


def test_the_schedule_has_exactly_the_steps_of_the_training(tmp_path: Path) -> None:
    box = Toybox(tmp_path, [[3] * 4] * 5, accumulate=3, schedule=CosineConfig(warmup=2, floor=0.25))
    box.fit()
    rates = [log.learning_rates["head"] for log in box.events.logs]
    assert len(rates) == box.plan.total_steps == 10
    assert rates[0] == pytest.approx(1 / 3)
    assert rates[2] == 1.0
    assert rates[-1] == pytest.approx(0.25)
    assert sorted(rates[2:], reverse=True) == rates[2:]


# -- Hooks --------------------------------------------------------------------------------------------------------


def test_hooks_hear_of_everything_in_order(tmp_path: Path) -> None:
    second: list[str] = []
    box = Toybox(tmp_path, [[1] * 3] * 2, validate_every=0.67, save_every=1.0, hooks=[Events(second, tmp_path)])
    box.fit()
    assert box.told == [
        *("step 1", "step 2", "validate", "evaluation 2"),
        *("step 3", "step 4", "validate", "evaluation 4"),
        *("step 5", "step 6", "validate", "evaluation 6", "end"),
    ]
    assert second == [text for text in box.told if text != "validate"]
    # What a validation finds is saved with the checkpoint of its step, so the checkpoint comes last.
    assert box.events.saved == [[], ["step-00000003"], ["step-00000003"]]
    assert [path.name for path in checkpoints(box.folder)] == ["step-00000006"]
    assert box.task.epochs == [0, 1]


def test_parts_and_loss_are_means_over_the_cases_of_a_step(tmp_path: Path) -> None:
    box = Toybox(tmp_path, [[1, 3]], accumulate=2)
    with torch.no_grad():
        box.task.head[:, 0] = torch.arange(ROWS)
    expected = np.random.default_rng(0).permutation(ROWS)[:4].mean()
    box.fit()
    (log,) = box.events.logs
    assert log.loss == pytest.approx(expected)
    assert log.parts["own"] == pytest.approx(2 * expected)
    assert log.cases == 4


def test_an_error_in_a_hook_stops_the_run(tmp_path: Path) -> None:
    class Broken(Events):
        def on_step(self, progress: Progress, log: StepLog) -> None:
            raise RuntimeError("no more")

    box = Toybox(tmp_path, [[1, 1]], hooks=[Broken([], tmp_path)])
    with pytest.raises(RuntimeError, match="no more"):
        box.fit()
    assert box.told == ["step 1"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# -- The best checkpoint ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "higher", "best"),
    [
        ([0.1, 0.5, 0.3, 0.4], True, 2),
        ([0.5, 0.5, 0.5, 0.5], True, 1),  # of equals the first
        ([0.1, 0.5, 0.5, 0.6], True, 4),
        ([0.9, 0.2, 0.2, 0.4], False, 2),
        ([-1.0, -3.0, -2.0, -3.0], False, 2),
        ([0.0, 0.0, 1e-9, 0.0], True, 3),
    ],
)
def test_the_best_weights_are_those_of_the_best_value(
    tmp_path: Path, values: list[float], higher: bool, best: int
) -> None:
    box = Toybox(tmp_path, [[1]] * 4, values=values, higher_is_better=higher)
    weights: list[Tensor] = []
    validate = box.training.validate
    box.training.validate = lambda: (weights.append(box.task.head.detach().clone()), validate())[1]
    progress = box.fit()
    assert (progress.best_step, progress.best_metric) == (best, values[best - 1])
    assert [path.name for path in box.folder.glob("best-*")] == [f"best-{best:08d}"]
    assert torch.equal(load_file(box.folder / f"best-{best:08d}" / "model.safetensors")["head"], weights[best - 1])
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize(
    ("values", "patience", "steps"),
    [
        ([1, 1, 1, 1, 1, 1], 1, 2),  # a tie is no gain
        ([1, 0, 0, 0, 0, 0], 3, 4),
        ([1, 0, 2, 0, 0, 3], 2, 5),  # a gain counts anew
        ([1, 0, 2, 0, 3, 0], 2, 6),
        ([1, 2, 3, 4, 5, 6], 1, 6),
        ([1, 0, 0, 0, 0, 0], None, 6),
    ],
)
def test_patience_counts_validations_without_a_gain(
    tmp_path: Path, values: list[float], patience: int | None, steps: int
) -> None:
    box = Toybox(tmp_path, [[1]] * 6, values=values, patience=patience)
    progress = box.fit()
    assert progress.step == steps
    early = steps < 6
    assert progress.stop_reason == (f"score has not improved for {patience} validations" if early else None)
    # Stopped for good: a restart from its last checkpoint trains no further.
    _, saved = load_checkpoint(checkpoints(box.folder)[-1], module=Toy())
    assert (saved.step, saved.stop_reason) == (steps, progress.stop_reason)
    assert box.told[-1] == "end"


def test_a_plateau_schedule_hears_of_every_validation(tmp_path: Path) -> None:
    schedule = PlateauConfig(patience=1, factor=0.5)
    box = Toybox(tmp_path, [[1]] * 8, values=[3, 2, 2.5, 4, 4, 4, 4, 4], schedule=schedule)
    box.fit()
    rates = [log.learning_rates["head"] for log in box.events.logs]
    # The second validation without a gain (after step 3, after step 6) lowers the rate at once.
    assert rates == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25])


def test_an_undefined_metric_stops_with_advice(tmp_path: Path) -> None:
    box = Toybox(tmp_path, [[1]], values=[None])
    with pytest.raises(TrainingError, match=r"trainer\.monitor is score, which is undefined on this validation set"):
        box.fit()


# -- Stops that keep the last good checkpoint ---------------------------------------------------------------------


def test_a_loss_that_is_no_number_names_its_cases_and_takes_no_step(tmp_path: Path) -> None:
    box = Toybox(tmp_path, [[2, 2], [2, 2]])
    box.task.poison = int(np.random.default_rng(1).permutation(ROWS)[2])  # in the second batch of the second epoch
    before: list[Tensor] = []
    box.events.on_step = lambda *_: before.append(box.task.head.detach().clone())  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLossError) as stopped:
        box.fit()
    assert f"case-{box.task.poison}" in str(stopped.value)
    assert "the loss became nan" in str(stopped.value)
    assert torch.equal(box.task.head, before[-1])
    assert len(before) == 3
    other = Toy()
    _, progress = load_checkpoint(checkpoints(box.folder)[-1], module=other)
    assert progress.step == 2
    assert torch.equal(other.head, before[1])


@pytest.mark.parametrize(("validate_every", "save_every"), [(1.0, 3.0), (3.0, 1.0)])
def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path, validate_every: float, save_every: float) -> None:
    box = Toybox(tmp_path, [[1, 1], [1, 1], [1, 1]], validate_every=validate_every, save_every=save_every)

    def damage(progress: Progress, _: StepLog) -> None:  # as an infinite gradient of a finite loss does
        if progress.step == 4:
            with torch.no_grad():
                box.task.head[-1] = torch.inf

    box.events.on_step = damage  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLossError, match="`head` of the model is no longer finite after step 4"):
        box.fit()
    (written,) = box.folder.iterdir()
    assert written.name == ("best-00000002" if validate_every == 1 else "step-00000002")
    assert torch.isfinite(load_file(written / "model.safetensors")["head"]).all()


def test_predictions_that_are_no_numbers_stop_the_training(tmp_path: Path) -> None:
    arrays = {"logits": np.array([[0.0, 1.0], [0.0, np.nan], [np.inf, 0.0]])}
    outputs = Outputs(arrays, np.zeros(3), ids=["a", "b", "c"], groups=["a", "b", "c"], columns={})
    with pytest.raises(NonFiniteLossError, match=r"the logits of 2 of 3 validation cases .*the first: b"):
        refuse_non_finite(outputs, folder=tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_ends_the_step_and_saves(tmp_path: Path, number: signal.Signals) -> None:
    box = Toybox(tmp_path, [[1] * 5])
    box.events.on_step = lambda progress, _: progress.step == 2 and signal.raise_signal(number)  # type: ignore
    before = signal.getsignal(number)
    with pytest.raises(InterruptedRunError, match=f"stopped by {number.name} after step 2 of 5"):
        box.fit()
    assert [path.name for path in checkpoints(box.folder)] == ["step-00000002"]
    assert signal.getsignal(number) is before


def test_a_signal_ends_a_wait_for_data_at_once(tmp_path: Path) -> None:
    box = Toybox(tmp_path, [[1] * 5])
    given = box.training.batches

    def stuck(epoch: int, start: int) -> Iterator[Batch]:
        yield from islice(given(epoch, start), 2)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the training still waits")

    box.training.batches = stuck
    with pytest.raises(InterruptedRunError, match=r"stopped by SIGINT after step 2 of 5"):
        box.fit()
    assert [path.name for path in checkpoints(box.folder)] == ["step-00000002"]


@pytest.mark.parametrize("step", [2, 4])
def test_a_signal_ends_a_validation_which_the_next_start_makes_up_for(tmp_path: Path, step: int) -> None:
    whole = Toybox(tmp_path / "whole", [[1] * 4], values=[0.3, 0.7], validate_every=0.5)
    expected = whole.fit()
    box = Toybox(tmp_path / "broken", [[1] * 4], values=[0.3, 0.7], validate_every=0.5)
    validate, progress = box.training.validate, Progress()

    def stuck() -> Any:
        if progress.step == step:
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("the validation goes on")
        return validate()

    box.training.validate = stuck
    with pytest.raises(InterruptedRunError, match=f"after step {step} of 4"):
        box.fit(progress)
    again = Toybox(tmp_path / "broken", [[1] * 4], values=box.values, validate_every=0.5)
    state, progress = load_checkpoint(checkpoints(box.folder)[-1], module=again.task)
    again.training.optimizer.load_state_dict(state["optimizer"])
    again.schedule.load_state_dict(state["schedule"])
    found = again.fit(progress)
    assert box.told + again.told == whole.told
    assert (found.step, found.best_metric, found.best_step) == (4, expected.best_metric, expected.best_step)
    assert torch.equal(again.task.head, whole.task.head)
    assert not load_checkpoint(checkpoints(box.folder)[-1], module=again.task)[1].validation_due


def test_only_a_later_second_signal_interrupts_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("consilium.training.interrupts.time.monotonic", lambda: clock[0])

    def press(*moments: float) -> Callable[..., None]:
        def on_step(progress: Progress, _: StepLog) -> None:
            for moment in moments:
                clock[0] = moment
                signal.raise_signal(signal.SIGINT)

        return on_step

    box = Toybox(tmp_path / "one", [[1] * 3])
    box.events.on_step = press(100.0, 100.5)  # type: ignore[method-assign]  # a launcher passes on what came already
    with pytest.raises(InterruptedRunError):
        box.fit()
    box = Toybox(tmp_path / "two", [[1] * 3])
    box.events.on_step = press(200.0, 203.0)  # type: ignore[method-assign]  # a person insists
    with pytest.raises(KeyboardInterrupt):
        box.fit()
    assert not checkpoints(box.folder)


def test_training_goes_on_in_training_mode_whatever_validation_left(tmp_path: Path) -> None:
    box = Toybox(tmp_path, [[1] * 4], validate_every=0.5)
    modes: list[bool] = []
    box.events.on_step = lambda *_: modes.append(box.task.training)  # type: ignore[method-assign]
    validate = box.training.validate
    box.training.validate = lambda: (box.task.eval(), validate())[1]
    box.fit()
    assert modes == [True] * 4


# -- Validation leaves no trace -----------------------------------------------------------------------------------


def world(task: nn.Module) -> dict[str, Any]:
    """Weights, modes and random generators."""
    return {
        "weights": {name: tensor.clone() for name, tensor in task.state_dict().items()},
        "modes": {name: module.training for name, module in task.named_modules()},
        "learns": {name: parameter.requires_grad for name, parameter in task.named_parameters()},
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "python": random.getstate(),
    }


def assert_same_world(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert same(left["weights"], right["weights"])
    assert left["modes"] == right["modes"]
    assert left["learns"] == right["learns"]
    assert torch.equal(left["torch"], right["torch"])
    assert np.array_equal(left["numpy"], right["numpy"])
    assert left["python"] == right["python"]


@pytest.mark.parametrize("freeze", ["{kind: none}", "{kind: tower}"])
def test_validation_and_trial_change_nothing(tiny: TrainTiny, monkeypatch: pytest.MonkeyPatch, freeze: str) -> None:
    calls: list[str] = []

    def watch(name: str) -> None:
        method = getattr(Session, name)

        def watched(session: Session, *arguments: Any, **options: Any) -> Any:
            before = world(session.task)
            answer = method(session, *arguments, **options)
            calls.append(name)
            if name == "try_out":  # its last act is a prediction; the loop sets the mode
                session.task.train(before["modes"][""])
            assert_same_world(world(session.task), before)
            return answer

        monkeypatch.setattr(Session, name, watched)

    watch("_validate")
    watch("try_out")
    tiny(
        f"task.vision.freeze={freeze}",
        "task.head.dropout=0.5",
        "data.augmentation.horizontal_flip_prob=0.5",
        "data.loader.eval_batch_size=5",
        "data.loader.workers=1",
        "trainer.validate_every=0.34",
        "trainer.precision=auto",
    )
    assert calls == ["try_out", "_validate", "_validate"]


def test_judging_gives_back_the_mode_it_found(tiny_run: Run, tiny_images: Path) -> None:
    predictor = Predictor.load(tiny_run.folder)
    paths = sorted(str(path) for path in tiny_images.rglob("*.jpg"))[:3]

    class Images:
        def images(self, row: int) -> list[str | bytes]:
            return [paths[row]]

    for training in (True, False):
        predictor.task.train(training)
        predictor.arrays(Images(), np.arange(3))
        assert predictor.task.training is training
        assert all(module.training is training for module in predictor.task.tower.modules())


def test_frozen_stays_frozen_and_thaws_after_its_epochs(tiny: TrainTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    towers: list[dict[str, Tensor]] = []
    validate = Session._validate

    def note(session: Session, checkpoints: Path) -> Any:
        towers.append({name: tensor.clone() for name, tensor in session.task.tower.state_dict().items()})
        return validate(session, checkpoints)

    monkeypatch.setattr(Session, "_validate", note)
    run = tiny("task.vision.freeze.warmup_epochs=2", "trainer.max_epochs=3", "trainer.max_steps=9")
    first, second, third = towers
    assert any("running_mean" in name for name in first)
    assert same(first, second)
    changed = {name for name in third if not torch.equal(third[name], second[name])}
    assert changed == set(third), sorted(set(third) - changed)
    assert run.steps("step")[-1] == 9


# -- Waiting for data ---------------------------------------------------------------------------------------------


def logged(tmp_path: Path, data_seconds: float, step_seconds: float, *, cached: bool = False) -> list[str]:
    """What the text log says of twelve steps."""
    lines: list[str] = []
    log = RunLog(echo=lines.append)
    history = History(tmp_path / "history.csv", metrics=["score"], groups=["head"], resume_step=0)
    hook = LogHook(
        log, history, log_every=4, monitor=Monitor("score", higher_is_better=True), shown=["score"], cached=cached
    )
    progress = Progress(total_steps=12)
    for step in range(1, 13):
        progress.step = step
        progress.loss_sum += step * 2
        progress.loss_cases += 2
        hook.on_step(progress, StepLog(float(step), {}, {"head": 0.1}, None, data_seconds, step_seconds, 2))
    return lines


def test_the_log_says_how_long_a_step_waits(tmp_path: Path) -> None:
    lines = logged(tmp_path, 0.01, 0.09)
    assert [line.split()[1] for line in lines] == ["1/12", "4/12", "8/12", "12/12"]
    assert all(line.endswith("20.0 cases/s  waits for data 10%") for line in lines)
    rows = read_history(tmp_path / "history.csv")
    assert [float(row["train_loss"]) for row in rows] == [1.0, 3.0, 6.5, 10.5]  # means since the last line
    assert {row["data_seconds"] for row in rows} == {"0.01"}


def test_the_logged_loss_is_the_mean_over_cases_since_the_last_line(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv", metrics=["score"], groups=["head"], resume_step=0)
    hook = LogHook(
        RunLog(echo=lambda _: None),
        history,
        log_every=3,
        monitor=Monitor("score", higher_is_better=True),
        shown=["score"],
        cached=False,
    )
    box = Toybox(tmp_path, [[1, 4, 2, 5, 3]], rate=1e-9, hooks=[hook])
    with torch.no_grad():
        box.task.head[:, 0] = torch.arange(ROWS)
    box.fit()
    rows = np.random.default_rng(0).permutation(ROWS)
    losses = [float(row["train_loss"]) for row in read_history(tmp_path / "history.csv") if row["train_loss"]]
    assert losses == pytest.approx([rows[:1].mean(), rows[1:7].mean(), rows[7:15].mean()])


def test_the_log_advises_once_when_steps_wait(tmp_path: Path) -> None:
    lines = logged(tmp_path, 0.04, 0.06)
    (advice,) = [line for line in lines if line.startswith("a step waits 40% of its time for data.")]
    assert "data.loader.workers" in advice
    assert lines.index(advice) == 2  # the first step fills the queue, so it does not count
    cached = tmp_path / "cached"  # nothing is decoded that more workers could decode
    cached.mkdir()
    assert not any(line.startswith("a step waits") for line in logged(cached, 0.04, 0.06, cached=True))


def test_a_slow_loader_is_noticed(tiny: TrainTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Loader.load

    def slowly(loader: Loader, requests: Any) -> Any:
        for loaded in load(loader, requests):
            time.sleep(0.3)
            yield loaded

    monkeypatch.setattr(Loader, "load", slowly)
    run = tiny()
    assert "of its time for data. Raise data.loader.workers" in run.log
    assert all(seconds >= 0.3 for seconds in run.steps("data_seconds"))
    assert all(seconds < 0.3 for seconds in run.steps("step_seconds"))


# -- Several processes --------------------------------------------------------------------------------------------


def torchrun(config: Path, folder: Path, *options: str, name: str = "tiny") -> Path:
    """``consilium train`` in two processes; the folder of the only run in ``folder``."""
    script = config.with_name("train.py")
    script.write_text("from consilium.cli import main\nmain()\n", encoding="utf-8")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(
        [sys.executable, *launch, "train", str(config), *options],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished: ") == 1
    (run,) = (folder / name).iterdir()  # one run folder, whatever the number of processes
    assert (run / "log.txt").read_text(encoding="utf-8").count("training ended") == 1
    return run


def by_one_and_by_two(make: Callable[..., Experiment], folder: Path, *overrides: str) -> tuple[Path, Path]:
    """The runs of an experiment by this process and by two, whose weights must be the same within rounding."""
    one = train(make(folder / "one", *overrides), reporter=Recorder())
    assert one is not None
    experiment, config = make(folder / "two", *overrides), folder / "two.yaml"
    config.write_text(to_yaml(experiment), encoding="utf-8")
    two = torchrun(config, folder / "two" / "runs", name=experiment.name)
    assert_close(*(load_file(run / "model.safetensors") for run in (two, one.folder)))
    return one.folder, two


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "stopped"),
    [(8, None), (7, None), (7, 6)],  # 24 cases: equal parts; 7 + 7 + 7 + 3 do not divide by two
    ids=["equal parts", "unequal parts", "begun by one process"],
)
def test_two_processes_train_as_one(tiny_images: Path, tmp_path: Path, size: int, stopped: int | None) -> None:
    overrides = [
        "task.vision.name=test_convnext",  # no batch statistics
        "task.vision.freeze.warmup_epochs=1",
        # What a class counts must not depend on the batch or the process that a case comes to.
        "task.loss={kind: focal, class_weights: {ct: 1, mri: 2, xray: 6}, label_smoothing: 0.1}",
        "data.augmentation={horizontal_flip_prob: 0.5, crop_scale: [0.5, 1.0]}",
        f"data.loader.batch_size={size}",
        "trainer.accumulate=2",
        "trainer.clip_norm=1.0",
        "optimizer={kind: sgd, learning_rate: 0.05, momentum: 0.9}",
        "schedule={kind: plateau, patience: 0}",
        "trainer.max_epochs=4",
        "trainer.max_steps=8",
        "trainer.validate_every=0.5",
        "trainer.save_every=0.5",
        "trainer.ema={decay: 0.6}",
    ]
    one = train_tiny(tiny_images, tmp_path / "one", *overrides).folder
    shared = tiny_experiment(tiny_images, tmp_path / "two", *overrides, "data.loader.workers=1")
    (config := tmp_path / "two.yaml").write_text(to_yaml(shared), encoding="utf-8")
    if stopped is None:
        two = torchrun(config, tmp_path / "two")
    else:  # in the middle of an epoch, by another number of workers too
        with pytest.raises(KeyboardInterrupt):
            train_tiny(tiny_images, tmp_path / "two", *overrides, reporter=Recorder(stop_at=stopped))
        two = torchrun(config, tmp_path / "two", "--resume")
        assert "resumed from step-00000005: epoch 2, batch 2" in (two / "log.txt").read_text(encoding="utf-8")
    (last_one,), (last_two,) = (list((folder / "checkpoints").glob("step-*")) for folder in (one, two))
    assert last_one.name == last_two.name == "step-00000008"
    weights, expected = (load_file(last / "model.safetensors") for last in (last_two, last_one))
    assert_close(weights, expected)
    rows = [read_history(folder / "history.csv") for folder in (one, two)]
    assert len(rows[0]) == len(rows[1])
    for left, right in zip(*rows, strict=True):
        for name in ("step", "cases", "learning_rate_tower"):
            assert left[name] == right[name]
        for name in ("train_loss", "gradient_norm", "val_log_loss"):
            assert float(left[name] or 0) == pytest.approx(float(right[name] or 0), rel=1e-4)
