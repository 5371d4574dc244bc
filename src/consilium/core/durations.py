"""How long something lasts in a training: a number, or a number with its unit, as in 500 steps, 2 epochs or 10 %."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated

from pydantic import BeforeValidator, Discriminator, Field, Tag

_TEXT = re.compile(r"^\s*(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>steps?|epochs?|%)\s*$")
_UNITS = {"step": "steps", "epoch": "epochs"}


def parts_of(duration: float | str) -> tuple[float, str | None]:
    """The number of a duration and its unit: steps, epochs or % (of the whole training); None: it has no unit."""
    if not isinstance(duration, str):
        return duration, None
    found = _TEXT.match(duration)
    if found is None:
        raise ValueError(
            f"'{duration}' is no duration; expected a number, or one with its unit: 500 steps, 2 epochs, 10 %"
        )
    return float(found["number"]), _UNITS.get(found["unit"], found["unit"])


def _kind(value: object) -> str:
    """Which check judges a value: that of numbers, unless it is text, and not that of a number."""
    if not isinstance(value, str):
        return "number"
    try:
        float(value)
    except ValueError:
        return "text"
    return "number"


def _timed(text: str, *, zero: bool = False) -> str:
    """A duration with a unit in one spelling."""
    number, unit = parts_of(text)
    if unit == "steps" and number % 1:
        raise ValueError(f"'{text}' is no whole number of steps")
    if unit == "%" and number > 100:
        raise ValueError(f"'{text}' is more than the whole training, which is 100 %")
    if number == 0 and not zero:
        raise ValueError(f"'{text}' is no time at all; expected more than 0")
    as_written = _TEXT.sub(r"\g<number>", text)
    return f"{int(number) if number.is_integer() else as_written} {unit}"


def _counted(value: object, *, unit: str) -> object:
    """A number whose key names its unit, which a text may repeat; the check of numbers judges all else."""
    found = _TEXT.match(value) if isinstance(value, str) else None
    if found is None:
        return value
    if _UNITS.get(found["unit"], found["unit"]) != unit:
        raise ValueError(f"'{value}' is no number of {unit}; expected a number, also with this unit: 2 {unit}")
    return found["number"]


def _pattern(*units: str) -> str:
    """What an editor takes for a text with one of these units."""
    return rf"^\s*[0-9]+(\.[0-9]+)?\s*({'|'.join(units)})\s*$"


def _unit(unit: str, *, least: int) -> BeforeValidator:
    """The check of a whole number whose key names its unit."""
    text = Annotated[str, Field(pattern=_pattern(f"{unit}?"))]
    return BeforeValidator(partial(_counted, unit=unit), json_schema_input_type=Annotated[int, Field(ge=least)] | text)


_KEPT = r"^([0-9]+ steps|[0-9]+(\.[0-9]+)? (epochs|%))$"
_WithUnit = Annotated[str, Field(pattern=_pattern("steps?", "epochs?", "%"))]
_Text = Annotated[str, Field(pattern=_KEPT), BeforeValidator(_timed, json_schema_input_type=_WithUnit), Tag("text")]
_TextOrZero = Annotated[
    str,
    Field(pattern=_KEPT),
    BeforeValidator(partial(_timed, zero=True), json_schema_input_type=_WithUnit),
    Tag("text"),
]
_BY_KIND = Discriminator(_kind)

# How long from the start of a training; from one time to the next; and that, in steps where it has no unit.
FromStart = Annotated[Annotated[float, Field(ge=0.0), Tag("number")] | _TextOrZero, _BY_KIND]
Interval = Annotated[Annotated[float, Field(gt=0.0), Tag("number")] | _Text, _BY_KIND]
StepInterval = Annotated[Annotated[int, Field(ge=1), Tag("number")] | _Text, _BY_KIND]

# Whole numbers whose keys name their unit, which a value may repeat: `max_epochs: 2 epochs`.
Epochs = Annotated[int, Field(ge=1), _unit("epochs", least=1)]
NoOrMoreEpochs = Annotated[int, Field(ge=0), _unit("epochs", least=0)]
Steps = Annotated[int, Field(ge=1), _unit("steps", least=1)]
