"""The files around the package agree with each other: lock, versions, recipes."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml

import consilium
from tests.policy.source import REPOSITORY, SOURCE

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (REPOSITORY / "requirements" / "dev.txt").read_text(encoding="utf-8")
RECIPES = sorted([*(REPOSITORY / "recipes").glob("*.yaml"), *(SOURCE / "consilium" / "demo").glob("*.yaml")])


def normal(name: str) -> str:
    """A distribution's name in the spelling of the lock."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lock_holds_every_requirement_with_hashes() -> None:
    pinned = re.findall(r"^([A-Za-z0-9._-]+)==\S+(?: ;.*)? \\\n    --hash=sha256:", LOCK, flags=re.MULTILINE)
    groups = [
        PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"].values(),
        *PROJECT["dependency-groups"].values(),
        PROJECT["build-system"]["requires"],
    ]
    wanted = {normal(re.split(r"[<>=!~;\[ ]", line)[0]) for group in groups for line in group}
    assert wanted <= {normal(name) for name in pinned}, "run `make lock`"


def test_the_lock_names_no_registry_and_no_machine() -> None:
    assert not re.findall(r"^.*(?:://|--index|--find-links|-i |\s/\S|@ ).*$", LOCK, flags=re.MULTILINE)


def test_versions_agree() -> None:
    version = PROJECT["project"]["version"]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert consilium.__version__ == version
    assert citation["version"] == version
    assert f"## {version}" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_recipe_loads(recipe: object) -> None:
    assert consilium.Experiment.load(str(recipe)).name
