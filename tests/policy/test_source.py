"""Budgets of files and functions, and what no file may do: unpickle, or run text as code."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.policy.source import MODULES, Module

MAX_FILE, MAX_FUNCTION = 400, 60
UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
RUNNERS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "runpy.run_path"}


def over_budget(module: Module) -> Iterator[str]:
    """The file of a module and its functions, as far as they are too long."""
    lines = len(module.text.splitlines())
    if lines > MAX_FILE:
        yield f"{module.name} has {lines} lines, more than {MAX_FILE}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION:
                yield f"{module.place(node)}: {node.name} has {length} lines, more than {MAX_FUNCTION}"


def test_budgets() -> None:
    over = [line for module in MODULES.values() for line in over_budget(module)]
    assert not over, "\n".join(over)


def test_what_is_too_long_is_noticed() -> None:
    text = "def f():\n" + "    pass\n" * MAX_FUNCTION + "x = 0\n" * MAX_FILE
    over = list(over_budget(Module("a", MODULES["consilium"].path, text, ast.parse(text))))
    assert [line.split(" has ")[1] for line in over] == ["461 lines, more than 400", "61 lines, more than 60"]


def unpickling(module: Module) -> list[str]:
    """Every place of a module that could run code out of a file it reads."""
    found = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] in UNPICKLERS]
            found += [f"{module.place(node)}: imports {name}" for name in names]
        elif isinstance(node, ast.ImportFrom):
            # The error is needed to catch what torch.load(weights_only=True) raises.
            names = [alias.name for alias in node.names if alias.name != "UnpicklingError"]
            if names and (node.module or "").split(".")[0] in UNPICKLERS:
                found.append(f"{module.place(node)}: imports {', '.join(names)} from {node.module}")
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called == "torch.load" and given.get("weights_only") != "True":
                found.append(f"{module.place(node)}: torch.load without weights_only=True")
            if given.get("allow_pickle", "False") != "False":
                found.append(f"{module.place(node)}: allow_pickle")
            if called in RUNNERS or given.get("shell", "False") != "False":
                found.append(f"{module.place(node)}: {called} runs text as code")
            unpacks = called.endswith((".extract", ".extractall")) and given.get("filter") != "'data'"
            if unpacks and module.name != "consilium.core.archives":  # which checks every member itself
                found.append(f"{module.place(node)}: {called} without filter='data'; use core.archives")
            if called.endswith("read_pickle") or called in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"):
                found.append(f"{module.place(node)}: {called}")
    return found


def test_nothing_is_unpickled() -> None:
    found = [line for module in MODULES.values() for line in unpickling(module)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("import pickle", True),
        ("from joblib import load", True),
        ("from pickle import UnpicklingError, loads", True),
        ("from pickle import UnpicklingError", False),
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=True)", False),
        ("np.load(path, allow_pickle=True)", True),
        ("np.load(path, allow_pickle=False)", False),
        ("pd.read_pickle(path)", True),
        ("yaml.load(text, Loader=loader)", True),
        ("yaml.safe_load(text)", False),
        ("eval(text)", True),
        ("exec(text)", True),
        ("os.system(text)", True),
        ("subprocess.run(text, shell=True)", True),
        ("subprocess.run(words)", False),
        ("task.eval()", False),
        ("re.compile(text)", False),
        ("archive.extractall(folder)", True),
        ("archive.extractall(folder, filter='data')", False),
    ],
)
def test_the_rule_itself(line: str, bad: bool) -> None:
    module = Module("a", MODULES["consilium"].path, line, ast.parse(line))
    assert bool(unpickling(module)) is bad
