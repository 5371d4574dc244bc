"""The package's own source, parsed: what the policy tests look at."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE = REPOSITORY / "src"


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    name: str  # consilium.data.case
    path: Path
    text: str
    tree: ast.Module

    def place(self, node: ast.AST) -> str:
        """``src/consilium/data/case.py:12``, for messages."""
        return f"{self.path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 1)}"


def _read(path: Path) -> Module:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    text = path.read_text(encoding="utf-8")
    return Module(name, path, text, ast.parse(text, filename=str(path)))


MODULES = {module.name: module for module in map(_read, sorted(SOURCE.rglob("*.py")))}


def imports(module: Module) -> Iterator[tuple[str, ast.stmt]]:
    """Every module that ``module`` imports, at its top or inside functions, with the statement."""
    package = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            home = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                home = ".".join([*parent, *filter(None, [node.module])])
            for alias in node.names:
                # `from consilium.data import case` imports the module consilium.data.case
                submodule = f"{home}.{alias.name}"
                yield (submodule if submodule in MODULES else home), node


Function = ast.FunctionDef | ast.AsyncFunctionDef


def public(module: Module) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Every public class, function and method of a module, by its dotted name in it."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Function | ast.ClassDef]]:
        for node in body:
            if isinstance(node, ast.If | ast.Try):  # a definition may hang on what is installed
                yield from walk(node.body, prefix)
                yield from walk(node.orelse, prefix)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if node.name.startswith("_"):
                    continue
                yield prefix + node.name, node
                if isinstance(node, ast.ClassDef):
                    yield from walk(node.body, f"{prefix}{node.name}.")

    yield from walk(module.tree.body, "")
