"""Choosing the best weights where the monitored figure ties, rests or is undefined."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from consilium.core.contracts import Progress
from consilium.core.errors import TrainingError
from consilium.core.reporter import Silent
from consilium.experiment import Experiment
from consilium.training.config import TrainerConfig
from consilium.training.hooks import RunLog, build_hooks
from consilium.training.monitor import Monitor

F1 = Monitor("macro_f1", higher_is_better=True, tie_breaker="log_loss")


def record(monitor: Monitor, figures: Sequence[tuple[float | None, float | None]]) -> tuple[Progress, list[bool]]:
    """The state after validations with these (metric, log loss), and which of them were gains."""
    progress, gains = Progress(), []
    for step, (value, loss) in enumerate(figures, start=1):
        progress.step = step
        gains.append(monitor.record(progress, {"log_loss": loss, monitor.name: value}))
    return progress, gains


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        ([(0.0, 0.7), (0.0, 0.5), (0.0, 0.6)], 2),  # rare findings: nothing is above the threshold yet
        ([(0.9, 0.7), (1.0, 0.5), (1.0, 0.3), (1.0, 0.4)], 3),  # all is right early
        ([(0.5, 0.7), (0.4, 0.1)], 1),  # log loss decides between equals alone
        ([(0.5, 0.3), (0.5, 0.3)], 1),  # both tie: the earlier weights stay
        ([(None, 0.7), (None, 0.5), (None, 0.6)], 2),
        ([(None, 0.1), (0.0, 0.5)], 2),  # any value is better than none
        ([(0.2, 0.5), (None, 0.1)], 1),
        ([(0.5, None), (0.5, 0.4), (0.5, None)], 2),
    ],
)
def test_the_tie_breaker_decides_between_equals(figures: list[tuple[float | None, float | None]], best: int) -> None:
    progress, _ = record(F1, figures)
    assert (progress.best_step, progress.best_metric, progress.best_tie_breaker) == (best, *figures[best - 1])


def test_a_lower_metric_may_be_better() -> None:
    progress, _ = record(Monitor("brier", higher_is_better=False, tie_breaker="log_loss"), [(0.2, 3), (0.2, 2), (1, 1)])
    assert progress.best_step == 2
    progress, gains = record(Monitor("log_loss", higher_is_better=False), [(0.3, 0.3), (0.3, 0.3), (0.2, 0.2)])
    assert (progress.best_step, gains) == (3, [True, False, True])


@pytest.mark.parametrize(
    ("figures", "gains"),
    [
        ([(0.0, 0.7), (0.0, 0.5), (0.0, 0.6), (0.0, 0.4)], [True, True, False, True]),
        ([(0.8, 0.7), (0.7, 0.5), (0.7, 0.5)], [True, True, False]),  # learns, though the metric is below its best
        ([(0.8, 0.7), (0.9, 0.8), (0.9, 0.75)], [True, True, False]),
        ([(0.5, 0.7), (0.5, 0.7 - 1e-6), (0.5, 0.7 - 2e-6)], [True, False, False]),  # too little to go on for
        ([(0.5, 0.7), (0.5, 0.69996), (0.5, 0.69992)], [True, False, True]),  # many little ones are one
    ],
)
def test_patience_holds_while_the_tie_breaker_falls(figures: list[tuple[float, float]], gains: list[bool]) -> None:
    progress, found = record(F1, figures)
    assert found == gains
    assert progress.evaluations_without_improvement == (gains[::-1].index(True))


def test_a_metric_without_any_value_stops_with_advice() -> None:
    for monitor in (F1, Monitor("log_loss", higher_is_better=False)):
        with pytest.raises(TrainingError, match=rf"trainer\.monitor is {monitor.name}, which is undefined"):
            record(monitor, [(None, None)])


def test_a_checkpoint_of_an_earlier_version_knows_no_tie_breaker() -> None:
    progress = Progress(step=7, best_metric=0.0, best_step=3, evaluations_without_improvement=2)
    assert F1.record(progress, {"macro_f1": 0.0, "log_loss": 0.4})
    assert (progress.best_step, progress.best_tie_breaker, progress.evaluations_without_improvement) == (7, 0.4, 0)


def told(folder: Path, figures: Sequence[tuple[float | None, float]]) -> list[str]:
    lines: list[str] = []
    hooks = build_hooks(
        folder,
        log=RunLog(echo=lines.append),
        reporter=Silent(),
        metrics=["macro_f1", "log_loss"],
        groups=["head"],
        resume_step=0,
        log_every=1,
        monitor=F1,
        shown=["log_loss"],
        cached=False,
        wandb=None,
    )
    progress = Progress(total_steps=len(figures))
    for step, (value, loss) in enumerate(figures, start=1):
        progress.step = step
        metrics = {"macro_f1": value, "log_loss": loss}
        F1.record(progress, metrics)
        for hook in hooks:
            hook.on_evaluation(progress, metrics)
    progress.stop_reason = F1.rest(2)
    for hook in hooks:
        hook.on_end(progress)
    return lines


def test_the_log_names_the_figures_of_the_best_weights(tmp_path: Path) -> None:
    assert told(tmp_path, [(0.0, 0.7), (0.0, 0.5)]) == [
        "validation after step 1 (best so far): macro_f1 0.0000, log_loss 0.7000",
        "validation after step 2 (best so far): macro_f1 0.0000, log_loss 0.5000",
        "training ended after step 2 of 2: macro_f1 has not improved for 2 validations, and log_loss has not fallen; "
        "best macro_f1 0.0000, log_loss 0.5000 at step 2",
    ]


def test_the_log_says_once_that_the_metric_is_undefined(tmp_path: Path) -> None:
    lines = told(tmp_path, [(None, 0.7), (None, 0.5)])
    notes = [line for line in lines if line.startswith("note:")]
    assert len(notes) == 1
    assert "macro_f1 is undefined on validation" in notes[0]
    assert "log_loss chooses the best weights" in notes[0]
    assert lines[-1].endswith("; best log_loss 0.5000 at step 2")


@pytest.mark.parametrize(
    ("multi_label", "given", "used"),
    [
        (True, {}, "macro_auroc"),
        (False, {}, "macro_f1"),
        (True, {"monitor": "macro_f1"}, "macro_f1"),  # as every config.yaml of an earlier version names it
        (False, {"monitor": None}, "macro_f1"),
        (True, {"monitor": "auto"}, "macro_auroc"),
        (True, {"max_epochs": 3}, "macro_auroc"),
    ],
)
def test_the_resolved_config_names_the_monitor(multi_label: bool, given: dict[str, object], used: str) -> None:
    tree = {
        "name": "a",
        "task": {"multi_label": multi_label},
        "data": {"sources": [{"kind": "folder", "name": "a", "path": "a"}]},
        **({"trainer": given} if given else {}),
    }
    experiment = Experiment.model_validate(tree)
    assert experiment.trainer.monitor == experiment.monitor == used
    assert Experiment.model_validate(experiment.model_dump()).trainer.monitor == used
    assert TrainerConfig().monitor is None
