"""Durations: numbers as ever, numbers with a unit in one spelling, and what is neither."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.core.config import apply_overrides, build
from consilium.core.durations import parts_of
from consilium.core.errors import ConfigError
from consilium.experiment import Experiment

MINIMAL = {
    "name": "lasting",
    "task": {"kind": "classify"},
    "data": {"sources": [{"kind": "folder", "name": "a", "path": "a"}]},
}


def experiment(*overrides: str) -> Experiment:
    return build(Experiment, apply_overrides(MINIMAL, overrides, model=Experiment), origin="tests")


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("500 steps", "500 steps"),
        ("1step", "1 steps"),
        ("2.0 steps", "2 steps"),
        ("2 epochs", "2 epochs"),
        ("0.5 epoch", "0.5 epochs"),
        ("10%", "10 %"),
        ("2.5 %", "2.5 %"),
        ("0.25", 0.25),
        ("3", 3),
    ],
)
def test_a_duration_is_a_number_or_a_number_with_a_unit(written: str, kept: str | float) -> None:
    found = experiment(
        f"schedule.warmup={written}", f"trainer.save_every={written}", f"trainer.validate_every={written}"
    )
    assert found.schedule.warmup == found.trainer.save_every == found.trainer.validate_every == kept
    again = build(Experiment, found.model_dump(mode="json"), origin="again")
    assert again == found


@given(st.integers(1, 10**12), st.sampled_from(["steps", "epochs", "%"]))
def test_what_is_kept_says_the_same(number: int, unit: str) -> None:
    if unit == "%" and number > 100:
        number = 100
    kept = experiment(f"trainer.save_every={number}{unit}").trainer.save_every
    assert parts_of(kept) == (number, unit)


def test_a_value_may_repeat_the_unit_of_its_key() -> None:
    found = experiment(
        "trainer.max_epochs=3 epochs",
        "trainer.max_steps=1 step",
        "trainer.log_every=5 steps",
        "task.vision.freeze.warmup_epochs=0 epochs",
        "data.mixture={stop: steps, steps: 7 steps}",
    )
    assert (found.trainer.max_epochs, found.trainer.max_steps, found.trainer.log_every) == (3, 1, "5 steps")
    assert found.data.mixture.steps == 7


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "schedule.warmup=5 stps",
            "`schedule.warmup`: '5 stps' is no duration; expected a number, or one with its unit",
        ),
        ("schedule.warmup=-1", "`schedule.warmup` is -1; expected a number of 0 or more."),
        ("schedule.warmup=-1 steps", "'-1 steps' is no duration"),
        ("schedule.warmup=1.5 steps", "'1.5 steps' is no whole number of steps"),
        ("trainer.save_every=0", "`trainer.save_every` is 0; expected a number above 0."),
        ("trainer.save_every=0 %", "'0 %' is no time at all"),
        ("trainer.validate_every=101 %", "'101 %' is more than the whole training"),
        ("trainer.validate_every=[1]", "expected a number."),
        ("trainer.log_every=1.5", "expected a whole number."),
        ("trainer.max_epochs=500 steps", "'500 steps' is no number of epochs; expected a number, also with this unit"),
        ("trainer.max_epochs=0 epochs", '`trainer.max_epochs` is "0 epochs"; expected a number of 1 or more.'),
        ("trainer.max_steps=10 %", "'10 %' is no number of steps"),
        ("trainer.max_epochs=1.5 epochs", "expected a whole number."),
    ],
)
def test_what_is_no_duration_is_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        experiment(override)
    assert said in str(refused.value)
