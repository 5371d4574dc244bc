"""What the package shows: the list of public names, and that each one is typed and documented."""

from __future__ import annotations

import ast
import inspect

import pytest

import consilium
from tests.policy.source import MODULES, Module, public

NAMES = [
    "CalibrateResult",
    "CompareResult",
    "ConsiliumError",
    "Council",
    "CrossvalResult",
    "Experiment",
    "Index",
    "Predictor",
    "Query",
    "TrainResult",
    "__version__",
    "build_council",
    "calibrate",
    "compare",
    "cross_validate",
    "ensemble",
    "evaluate",
    "explain",
    "load",
    "train",
]


def test_the_list() -> None:
    assert consilium.__all__ == NAMES
    assert sorted(NAMES) == NAMES
    assert dir(consilium) == NAMES


def test_no_public_name_is_that_of_a_module() -> None:
    """Importing the module would put it in the place of the function."""
    assert not [name for name in NAMES if f"consilium.{name}" in MODULES]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "__version__"])
def test_every_public_name_resolves_to_something_documented(name: str) -> None:
    value = getattr(consilium, name)
    assert value.__name__ == name
    assert inspect.getdoc(value)


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'trian'.*train"):
        _ = consilium.trian  # type: ignore[attr-defined]


def problems(module: Module) -> list[str]:
    """Every public name of a module that is undocumented, untyped or takes **kwargs."""
    found = [] if ast.get_docstring(module.tree) or not module.text.strip() else [f"{module.name}: no docstring"]
    for name, node in public(module):
        where = f"{module.place(node)}: {name}"
        if not ast.get_docstring(node):
            found.append(f"{where} has no docstring")
        if isinstance(node, ast.ClassDef):
            continue
        arguments = node.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        if "." in name and not any(ast.unparse(decorator) == "staticmethod" for decorator in node.decorator_list):
            named = named[1:]  # self, cls
        untyped = [argument.arg for argument in named if argument.annotation is None]
        if untyped or node.returns is None:
            found.append(f"{where} lacks types: {', '.join([*untyped, *(['return'] if node.returns is None else [])])}")
        if arguments.kwarg is not None:
            found.append(f"{where} takes **{arguments.kwarg.arg}; name the arguments")
    return found


def test_public_names_are_typed_and_documented_and_take_no_kwargs() -> None:
    found = [line for module in MODULES.values() for line in problems(module)]
    assert not found, "\n".join(found)


def test_the_rule_itself() -> None:
    text = '''"""Doc."""
class A:
    def f(self, x, **rest) -> None: "Doc."
    @staticmethod
    def g(x: int): "Doc."
    def _hidden(self, y): ...
'''
    path = MODULES["consilium"].path
    found = problems(Module("a", path, text, ast.parse(text)))
    assert [problem.split(": ", 1)[1] for problem in found] == [
        "A has no docstring",
        "A.f lacks types: x",
        "A.f takes **rest; name the arguments",
        "A.g lacks types: return",
    ]
