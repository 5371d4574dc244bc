"""``config show`` and ``config schema``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from consilium.core.config import read_tree
from consilium.experiment import Experiment
from tests.cli.conftest import Cli
from tests.cli.json_schema import problems
from tests.policy.source import REPOSITORY, SOURCE

RECIPES = sorted([*(REPOSITORY / "recipes").glob("*.yaml"), *(SOURCE / "consilium" / "demo").glob("*.yaml")])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_show_resolves_every_recipe_completely(cli: Cli, path: Path, tmp_path: Path) -> None:
    answer = cli("config", "show", path, "trainer.max_epochs=3")
    assert answer.code == 0
    assert yaml.safe_load(answer.out)["trainer"]["max_epochs"] == 3
    again = tmp_path / "again.yaml"
    again.write_text(answer.out, encoding="utf-8")
    assert Experiment.load(again) == Experiment.load(path, overrides=["trainer.max_epochs=3"])
    assert cli("config", "show", again).out == answer.out


def test_show_layers_files_and_variables(cli: Cli, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = recipe.with_name("later.yaml")
    later.write_text(
        "extends: tiny.yaml\nname: later\noutput: {root: '${WHERE:-there}'}\nschedule: {kind: step, factor: 0.5}\n",
        encoding="utf-8",
    )
    shown = yaml.safe_load(cli("config", "show", later).out)
    assert (shown["name"], shown["output"]["root"], shown["schedule"]["factor"]) == ("later", "there", 0.5)
    assert shown["task"] == yaml.safe_load(recipe.read_text(encoding="utf-8"))["task"]
    monkeypatch.setenv("WHERE", "here")
    assert yaml.safe_load(cli("config", "show", later).out)["output"]["root"] == "here"


def test_show_names_what_is_wrong(cli: Cli, recipe: Path) -> None:
    answer = cli("config", "show", recipe, "trainer.patiense=3", "data.loader.batch_size=0")
    assert answer.code == 2
    assert "`patiense` is not a key of `trainer`; did you mean `patience`?" in answer.err
    assert "`data.loader.batch_size` is 0; expected a number of 1 or more" in answer.err


@pytest.fixture
def schema(cli: Cli) -> dict[str, Any]:
    answer = cli("config", "schema")
    assert answer.code == 0
    return dict(json.loads(answer.out))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_schema_accepts_recipes_as_they_are_and_resolved(schema: dict[str, Any], path: Path) -> None:
    assert problems(read_tree(path), schema) == []
    assert problems(Experiment.load(path).model_dump(mode="json"), schema) == []


def test_the_schema_knows_that_files_extend_others(schema: dict[str, Any]) -> None:
    for base in ("base.yaml", ["base.yaml", "more.yaml"]):
        assert problems({"extends": base, "trainer": {"max_epochs": 3}}, schema) == []
    assert problems({"trainer": {"max_epochs": 3}}, schema)
    assert problems({"extends": 3}, schema)


def test_the_schema_knows_that_a_dataset_is_a_source(schema: dict[str, Any]) -> None:
    tree = {"name": "a", "task": {"kind": "fuse"}}
    assert problems({**tree, "data": {"dataset": "dataset_v1"}}, schema) == []
    assert problems({**tree, "data": {"root": "data"}}, schema)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("trainer.max_epoch", 3),
        ("trainer.max_epochs", 0),
        ("trainer.max_epochs", "three"),
        ("optimizer.kind", "adamww"),
        ("optimizer.momentum", 0.9),  # of sgd, not of adamw
        ("data.image.size", [224]),
        ("data.image.size", [224, "wide"]),
        ("data.sources", []),
        ("name", "a name with spaces"),
        ("task.vision.pretrained", None),
        ("task.loss.class_weights", {"ct": 0}),
    ],
)
def test_the_schema_refuses_what_consilium_refuses(schema: dict[str, Any], place: str, value: object) -> None:
    tree = Experiment.load(REPOSITORY / "recipes" / "router.yaml").model_dump(mode="json")
    section = tree
    *sections, key = place.split(".")
    for name in sections:
        section = section[name]
    section[key] = value
    assert problems(tree, schema)
