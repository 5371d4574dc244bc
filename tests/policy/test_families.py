"""A kind of task is one folder and one line: nothing else names it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from consilium.tasks.config import kinds
from tests.policy.source import MODULES, imports

ROOT = Path(__file__).parents[2]
SHARED = {"answers", "texts", "towers", "two_towers"}  # what several families share lies beside them


def test_only_the_union_names_a_family() -> None:
    wrong = []
    for name, module in MODULES.items():
        for imported, node in imports(module):
            parts = imported.split(".")
            if parts[:2] != ["consilium", "tasks"] or len(parts) < 3 or parts[2] in ("family", "config"):
                continue
            inside = name.startswith(f"consilium.tasks.{parts[2]}")
            helped = parts[2] in SHARED and name.startswith("consilium.tasks.")
            if not (inside or helped or name == "consilium.tasks.config"):
                wrong.append(f"{module.place(node)}: {imported}")
    assert not wrong, "\n".join(wrong)


def test_nobody_asks_which_kind_a_task_is() -> None:
    wrong = []
    for name, module in MODULES.items():
        if name.startswith("consilium.tasks."):
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                if any(
                    isinstance(side, ast.Attribute)
                    and side.attr == "kind"
                    and ast.unparse(side.value).split(".")[-1] in ("task", "section")
                    for side in sides
                ):
                    wrong.append(module.place(node))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_has_a_contract_test_a_recipe_and_a_guide(kind: str) -> None:
    assert (ROOT / "src/consilium/tasks" / kind / "family.py").is_file()
    assert (ROOT / f"tests/tasks/test_{kind}_contract.py").is_file()
    assert any(f"kind: {kind}" in path.read_text(encoding="utf-8") for path in (ROOT / "recipes").glob("*.yaml"))
    assert any(f"kind: {kind}" in path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
