"""The benches ask the package for names that it has; no test runs them."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.parametrize("file", sorted(BENCH.glob("*.py")), ids=lambda file: file.stem)
def test_a_bench_imports_what_there_is(file: Path) -> None:
    imports = [
        node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)
    ]
    for node in imports:
        if node.module is None or node.module.partition(".")[0] != "consilium":
            continue
        module = importlib.import_module(node.module)
        for alias in node.names:
            inside = importlib.util.find_spec(f"{node.module}.{alias.name}") if hasattr(module, "__path__") else None
            assert hasattr(module, alias.name) or inside is not None, f"{node.module} has no {alias.name}"
