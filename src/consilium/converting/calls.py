"""Old command lines: the script that they name, its flags, and on how many devices it ran."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from consilium.converting.rules import Family
from consilium.core.config import parse_yaml
from consilium.core.errors import ConfigError

_OF_DEVICES = ("nproc_per_node", "nnodes", "num_processes")  # of torchrun and of accelerate launch
_FILES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Call:
    """A command line, taken apart; ``file`` is the config that it names."""

    script: str
    values: dict[str, Any]
    file: str | None
    processes: int


def script_of(words: Sequence[str]) -> int | None:
    """Which of the words is the script; None: no word is one."""
    return next((number for number, word in enumerate(words) if word.endswith(".py")), None)


def read_call(words: Sequence[str], families: Sequence[Family]) -> tuple[Call, Family]:
    """The call in ``words`` and the family of its script; what cannot be read is a ConfigError."""
    place = script_of(words)
    if place is None:
        raise ConfigError(
            f"'{' '.join(words)}' names no script; expected a file, or -- and a call such as train_clip.py FILE."
        )
    name = PurePath(words[place]).name
    own = [one for one in families if one.script == name]
    if not own:
        known = ", ".join(dict.fromkeys(one.script for one in families))
        raise ConfigError(f"{name} is no script that can be converted; these can: {known}.")
    # Scripts of one name differ in how they are called.
    flags = {word[2:].partition("=")[0] for word in words[place + 1 :] if word.startswith("--")}
    family = next((one for one in own if one.file_flag in flags), own[0])
    launcher = dict(_pairs(words[:place], frozenset(), launcher=True))
    counts = [str(launcher.get(key, 1)) for key in _OF_DEVICES]
    processes = math.prod(int(count) for count in counts if count.isdigit())
    rest, file = list(words[place + 1 :]), None
    if family.reads_file and rest and rest[0].endswith(_FILES):
        file = rest.pop(0)
    values: dict[str, Any] = {}
    for key, value in _pairs(rest, family.switches):
        if key in values:
            raise ConfigError(f"{name}: the flag --{key} is given twice; keep one.")
        values[key] = parse_yaml(value, origin=f"{name} --{key}") if isinstance(value, str) else value
    if family.file_flag in values:
        file = str(values.pop(family.file_flag))
    return Call(name, values, file, processes), family


def _pairs(
    words: Sequence[str], switches: frozenset[str], *, launcher: bool = False
) -> Iterator[tuple[str, str | bool]]:
    """Flags with their values: --key=value, --key value, and --key alone of a switch; - in names is _."""
    waiting: str | None = None
    for word in words:
        if word.startswith("--"):
            if waiting is not None:
                yield waiting, _alone(waiting, switches, launcher)
            key, sign, value = word[2:].partition("=")
            waiting = key.replace("-", "_")
            if sign:
                yield waiting, value
                waiting = None
        elif waiting is not None and (waiting not in switches or word.lower() in ("true", "false")):
            yield waiting, word
            waiting = None
        elif not launcher:
            raise ConfigError(
                f"the word '{word}' belongs to no flag; write a value behind its flag, as in --key=value."
            )
    if waiting is not None:
        yield waiting, _alone(waiting, switches, launcher)


def _alone(key: str, switches: frozenset[str], launcher: bool) -> bool:
    """The value of a flag that has none."""
    if not launcher and key not in switches:
        raise ConfigError(f"the flag --{key} has no value; write --{key}=VALUE.")
    return True
