"""Keys of a config that have moved: where each is now, and configs of earlier versions with their keys there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOVED = {
    "evaluation.calibrate": "task.answers.calibrate",
    "evaluation.wanted_accuracy": "task.answers.wanted_accuracy",
    "evaluation.threshold": "task.answers.threshold",
    "evaluation.specificities": "task.answers.specificities",
    "evaluation.calibration_bins": "task.answers.calibration_bins",
    "optimizer.head_learning_rate": "optimizer.groups.head.learning_rate",
}


def up_to_date(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The config that an earlier version wrote into a run or a bundle, with moved keys where they are now.

    A null stands for the default of such a key and is left out. A config that somebody writes is not translated: it is
    refused, and told where its keys are.
    """
    result = dict(tree)
    for old, new in MOVED.items():
        *sections, key = old.split(".")
        section = _at(result, sections)
        if key in section:
            rest = {name: value for name, value in section.items() if name != key}
            result = _with(result, sections, rest)
            if section[key] is not None:
                result = _with(result, new.split("."), section[key])
    return result


def _at(tree: Any, keys: Sequence[str]) -> Mapping[str, Any]:
    """The section at these keys, empty where there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, Mapping) else {}


def _with(tree: Mapping[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    """``tree`` with the value at these keys."""
    key, *deeper = keys
    return {**tree, key: _with(_at(tree, [key]), deeper, value) if deeper else value}
