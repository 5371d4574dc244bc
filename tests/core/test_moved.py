"""Moved keys: whoever writes one hears where it is now; what an earlier version wrote is read as it was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from consilium.core.config import apply_overrides, build
from consilium.core.errors import ConfigError
from consilium.core.moved import MOVED, up_to_date
from consilium.experiment import Experiment

GOOD: dict[str, Any] = {
    "name": "router",
    "task": {"kind": "classify"},
    "data": {"sources": [{"kind": "folder", "name": "atlas", "path": "images"}]},
    "optimizer": {"kind": "adamw"},
}
VALUES: dict[str, Any] = {
    "evaluation.calibrate": False,
    "evaluation.wanted_accuracy": 0.9,
    "evaluation.threshold": 0.25,
    "evaluation.specificities": [0.5],
    "evaluation.calibration_bins": 4,
    "optimizer.head_learning_rate": 0.5,
}


def at(tree: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        tree = tree[key]
    return tree


def older() -> dict[str, Any]:
    return apply_overrides(GOOD, [f"{old}={VALUES[old]}" for old in MOVED])


def test_every_moved_key_is_told_at_once_in_a_file_and_in_overrides(tmp_path: Path) -> None:
    lines = [f"  - `{old}` has moved: write it as `{new}`." for old, new in MOVED.items()]
    overrides = [f"{old}={VALUES[old]}" for old in MOVED]
    with pytest.raises(ConfigError) as caught:
        build(Experiment, older(), origin="r.yaml")
    assert sorted(str(caught.value).splitlines()[1:]) == sorted(lines)
    path = tmp_path / "r.yaml"
    path.write_text("name: a\ntask: {}\ndata: {sources: [{kind: folder, name: a, path: a}]}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        Experiment.load(path, overrides=overrides)
    assert sorted(str(caught.value).splitlines()[1:]) == sorted(lines)


def test_an_old_config_means_the_same_in_the_new_place() -> None:
    translated = up_to_date(older())
    found = build(Experiment, translated, origin="old").model_dump(mode="json")
    for old, new in MOVED.items():
        assert at(found, new) == VALUES[old], new
    assert up_to_date(translated) == translated
    assert up_to_date(GOOD) == GOOD


def test_a_null_of_an_old_config_is_the_default() -> None:
    tree = {
        **GOOD,
        "evaluation": {"wanted_accuracy": None, "confidence": 0.9},
        "optimizer": {**GOOD["optimizer"], "head_learning_rate": None},
    }
    assert up_to_date(tree) == {**GOOD, "evaluation": {"confidence": 0.9}}


@pytest.mark.parametrize("tree", [{"evaluation": 3}, {"task": None, "evaluation": {"threshold": 0.2}}, {}])
def test_a_damaged_config_is_left_to_its_check(tree: dict[str, Any]) -> None:
    up_to_date(tree)


def test_every_key_moved_to_one_that_exists() -> None:
    for old, new in MOVED.items():
        build(Experiment, apply_overrides(GOOD, [f"{new}={VALUES[old]}"]), origin="r.yaml")
