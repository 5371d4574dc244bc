"""A config or command line of another script as an experiment, and what became of each of its parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

from consilium.converting.calls import read_call, script_of
from consilium.converting.clip_experts import BIOMED, EXPERT, ROUTER, TRAIN_CLIP
from consilium.converting.image_text import IMAGE_TEXT
from consilium.converting.ret_clip import RET_CLIP
from consilium.converting.rules import Family, Given, Outcome, as_name
from consilium.core.config import build, read_tree
from consilium.core.durations import parts_of
from consilium.core.errors import ConfigError, ConsiliumError
from consilium.core.explain import nearest, shown
from consilium.core.reporter import Reporter, some
from consilium.experiment import Experiment

FAMILIES = (TRAIN_CLIP, ROUTER, EXPERT, BIOMED, RET_CLIP, IMAGE_TEXT)
USUAL_WARMUP = "10 %"  # in the place of one that is as long as the training
_UNCHECKED = {
    "schedule.warmup": "not compared with the length of the training, which must be longer",
    "trainer.max_steps": "the training also ends after max_epochs; whether these are enough was not counted",
}


@dataclass(frozen=True)
class Line:
    """What became of one parameter of theirs."""

    theirs: str
    outcome: Outcome


@dataclass(frozen=True)
class Conversion:
    """``origin`` is the file or script, ``tree`` our config, ``comments`` are of its keys, by their dotted names."""

    origin: str
    tree: dict[str, Any]
    lines: list[Line]
    comments: dict[str, str] = field(default_factory=dict)


def convert(words: Sequence[str], *, reporter: Reporter) -> Conversion:
    """Convert a file, or the words of a command line; what cannot be read or does not resolve is a ConfigError.

    Where a warm-up or a length is in steps and the data is here, it is prepared and the steps are counted.
    """
    if script_of(words) is None:
        if len(words) != 1:
            raise ConfigError(
                f"{len(words)} words came; expected one file, or -- and a call such as train_clip.py FILE."
            )
        origin, values = words[0], read_tree(words[0])
        family = _family_of_file(values, origin)
        given = Given(family.parameters(values))
    else:
        call, family = read_call(words, FAMILIES)
        origin = call.script if call.file is None else call.file
        values = ({} if call.file is None else read_tree(call.file)) | call.values
        given = Given(family.parameters(values), call.processes)
    _check_family(family, given, origin)
    lines = list(_lines(family, given, origin))
    tree: dict[str, Any] = {}
    first = {"name": as_name(PurePath(origin).stem), **family.ours}
    for dotted, value in (first | _agreed(lines, origin)).items():
        _put(tree, dotted, value)
    experiment = build(Experiment, tree, origin=f"{origin}, converted")
    found = Conversion(origin, tree, [*lines, *(Line("", Outcome("unmapped", note=note)) for note in family.notes)])
    return _in_steps(found, experiment, reporter=reporter)


def _agreed(lines: Sequence[Line], origin: str) -> dict[str, Any]:
    """The values of all lines by dotted key; two parameters that say different things of one are refused."""
    by_key: dict[str, Line] = {}
    for line in lines:
        for key, value in line.outcome.ours.items():
            if (other := by_key.setdefault(key, line)).outcome.ours[key] != value:
                raise ConfigError(f"{origin}: `{other.theirs}` and `{line.theirs}` both say what {key} is; keep one.")
    return {key: line.outcome.ours[key] for key, line in by_key.items()}


def _family_of_file(values: Mapping[str, Any], origin: str) -> Family:
    """The script that a file is for: the one that knows most of its keys."""

    def known(one: Family) -> int:
        return len(one.table.keys() & one.parameters(values).keys())

    family = max((one for one in FAMILIES if one.reads_file), key=known)
    if not known(family):
        _refuse_ours(values, origin)
        raise ConfigError(
            f"{origin} is the config of no script that can be converted; its keys are "
            f"{some(list(values), 8) or 'none'}, and {family.script} reads {', '.join(map(' or '.join, family.needs))}."
        )
    return family


def _refuse_ours(values: Mapping[str, Any], origin: str) -> None:
    sections = {key.partition(".")[0] for key in values}
    if "task" in sections or ("data" in sections and not {"training", "vision_model"} & sections):
        raise ConfigError(f"{origin} is a config of Consilium already; look at it with: consilium config show {origin}")


def _check_family(family: Family, given: Given, origin: str) -> None:
    """What a family needs must be there, else a file or call is of another script, or of none."""
    missing = [names for names in family.needs if not any(given.values.get(name) is not None for name in names)]
    if not missing:
        return
    _refuse_ours(given.values, origin)
    others = [
        one.script
        for one in FAMILIES
        if one is not family and all(given.values.keys() & set(names) for names in one.needs)
    ]
    fits = f" These parameters fit {' and '.join(others)}." if others else ""
    needed = " and ".join(" or ".join(names) for names in missing)
    raise ConfigError(
        f"{origin} is no training of {family.script}, which needs {needed}; given are "
        f"{some(list(given.values), 8) or 'none'}.{fits}"
    )


def _lines(family: Family, given: Given, origin: str) -> Iterator[Line]:
    """The outcome of every parameter, and of what the script takes where nothing is said."""
    null = [key for key, value in given.values.items() if value is None and key in family.table]
    yield from (Line(f"{key}: null", Outcome(note="as if it were left out")) for key in null)
    stated = {key: value for key, value in given.values.items() if key not in null}
    usual = {key: value for key, value in family.usual.items() if key not in stated}
    whole = replace(given, values={**usual, **stated})
    problems = []
    for key, value in whole.values.items():
        rule = family.table.get(key)
        try:
            outcome = _unknown(key, family) if rule is None else rule(value, whole)
        except ValueError as error:
            came = "" if isinstance(value, list | dict) else f" is {shown(_hidden(key, value))}"
            problems.append(f"  - `{key}`{came}{';' if came else ':'} {error}.")
            continue
        if key not in usual or outcome.ours:
            shown_value = f"{key}: {_short(_hidden(key, value))}"
            yield Line(f"{shown_value} (left out)" if key in usual else shown_value, outcome)
    if problems:
        raise ConfigError("\n".join([f"{origin}:", *problems]))


def _unknown(key: str, family: Family) -> Outcome:
    others = [one.script for one in FAMILIES if key in one.table]
    if others:
        return Outcome("unmapped", note=f"{family.script} has no such parameter; {' and '.join(others)} have")
    return Outcome("unmapped", note=f"no parameter that is known{nearest(key, list(family.table))}")


def _hidden(key: str, value: Any) -> Any:
    return "***" if key.endswith("token") and isinstance(value, str) else value


def _short(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for name in sections:
        tree = tree.setdefault(name, {})
    tree[key] = value


def _in_steps(found: Conversion, experiment: Experiment, *, reporter: Reporter) -> Conversion:
    """A warm-up that is legal, and enough epochs for the steps that are wanted, where the data is there."""
    from consilium.converting.counting import elsewhere, planned

    warmup, unit = parts_of(experiment.schedule.warmup)
    warmup, most = warmup if unit == "steps" else 0, experiment.trainer.max_steps
    if not warmup and most is None:
        return found
    missing = elsewhere(experiment)
    try:
        plan = None if missing else planned(experiment, reporter=reporter)
        why = f"the data is not here ({some(missing, 2)})"
    except ConsiliumError as error:
        plan, why = None, str(error).partition("\n")[0]
    if plan is None:
        return _unchecked(found, why)
    total = plan.total_steps
    if most is not None and sum(plan.steps) < most:
        epochs, total = math.ceil(most / plan.steps[0]), most
        reason = f"{most} steps take so many epochs of {plan.steps[0]} steps"
        found = _changed(found, {"trainer.max_steps": most, "trainer.max_epochs": epochs}, reason)
    if warmup >= total:
        reason = f"was {warmup:g} steps; the whole training has {total}, so that the rate would never have been reached"
        found = _changed(found, {"schedule.warmup": USUAL_WARMUP}, reason)
    return found


def _changed(found: Conversion, ours: Mapping[str, Any], reason: str) -> Conversion:
    """With these values in the place of those on the line of the first of them; the last gets the reason as comment."""
    first, last = next(iter(ours)), list(ours)[-1]
    for dotted, value in ours.items():
        _put(found.tree, dotted, value)
    outcome = Outcome("changed", ours, note=reason)
    lines = [replace(line, outcome=outcome) if first in line.outcome.ours else line for line in found.lines]
    return replace(found, lines=lines, comments={**found.comments, last: reason})


def _unchecked(found: Conversion, why: str) -> Conversion:
    """Say of what is in steps that these could not be counted."""
    lines, comments = [], dict(found.comments)
    for line in found.lines:
        for key, said in _UNCHECKED.items():
            if key in line.outcome.ours and not str(line.outcome.ours[key]).endswith("%"):
                line = replace(line, outcome=replace(line.outcome, note=f"{said}: {why}"))
                comments[key] = said
        lines.append(line)
    return replace(found, lines=lines, comments=comments)
