"""Imports point one way, nothing runs in a ring, and what must start fast loads no heavy library."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.policy.source import MODULES, Module, imports

# From below to above; neighbours in a row do not import each other.
LAYERS = (
    ("core",),
    ("console",),
    ("data", "models", "losses", "evaluation", "descriptions"),
    ("tasks", "training"),
    ("manifest",),
    ("bundle",),
    ("predictor", "inputs"),
    ("search", "export", "probing"),
    ("council",),
    ("predictions",),
    ("judge",),
    ("experiment",),
    ("session",),
    ("series", "evaluating", "calibrating", "ensembling", "explaining"),
    ("crossval", "comparison", "converting", "labelling", "launch", "serving", "demo"),
    ("cli",),
)
HEIGHT = {part: height for height, row in enumerate(LAYERS) for part in row}
FRONT_DOORS = {"", "__main__"}  # they may name everything

HEAVY = {
    "PIL", "accelerate", "datasets", "faiss", "huggingface_hub", "jinja2", "matplotlib", "onnx", "onnxruntime",
    "open_clip", "pandas", "peft", "pyarrow", "scipy", "simplejpeg", "sklearn", "timm", "tokenizers", "torch",
    "torchvision", "transformers", "wandb",
}  # fmt: skip
CONFIG_FILES = sorted(name for name in MODULES if name.endswith(".config"))


def part_of(module: str) -> str:
    """``data`` of ``consilium.data.case``, '' of ``consilium`` itself."""
    return module.partition(".")[2].partition(".")[0]


def may_import(importer: str, imported: str) -> bool:
    """Whether a part of the package may import another one."""
    return importer == imported or HEIGHT[imported] < HEIGHT[importer]


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("cli", "core", True),
        ("training", "data", True),
        ("data", "models", False),
        ("training", "tasks", False),
        ("training", "bundle", False),
        ("tasks", "experiment", False),
        ("core", "data", False),
        ("experiment", "demo", False),
    ],
)
def test_the_rule_itself(importer: str, imported: str, allowed: bool) -> None:
    assert may_import(importer, imported) is allowed


def test_every_part_has_a_layer() -> None:
    parts = {part_of(name) for name in MODULES} - FRONT_DOORS
    assert parts <= set(HEIGHT), "put a new package into LAYERS, where the design draws it"


def only_the_version(node: ast.stmt) -> bool:
    """Whether a statement is ``from consilium import __version__``, which loads nothing."""
    return isinstance(node, ast.ImportFrom) and [alias.name for alias in node.names] == ["__version__"]


def upward(module: Module) -> Iterator[str]:
    """The imports of a module that do not point down."""
    importer = part_of(module.name)
    if importer in FRONT_DOORS or importer not in HEIGHT:  # the test above names a part without a layer
        return
    for imported, node in imports(module):
        if imported.split(".")[0] != "consilium":
            continue
        if imported == "consilium" and not only_the_version(node):
            yield f"{module.place(node)}: import names from their home, not from `consilium`"
        elif imported != "consilium" and not may_import(importer, part_of(imported)):
            yield f"{module.place(node)}: {importer} must not import {imported}"


def test_imports_point_down() -> None:
    wrong = [line for module in MODULES.values() for line in upward(module)]
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {
        name: {target for target, _ in imports(module) if target in MODULES and target != name}
        for name, module in MODULES.items()
        if name != "consilium"
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            pytest.fail("import ring: " + " -> ".join((*path[path.index(name) :], name)))
        if name not in done:
            for target in sorted(graph.get(name, ())):
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_config_files_need_pydantic_and_configs_only() -> None:
    wrong = [
        f"{module.place(node)}: {imported}"
        for module in map(MODULES.__getitem__, CONFIG_FILES)
        for imported, node in imports(module)
        if imported.split(".")[0] not in {*sys.stdlib_module_names, "pydantic", "yaml"}
        and imported not in CONFIG_FILES
        and part_of(imported) != "core"
    ]
    assert not wrong, "\n".join(wrong)


def loaded_after(code: str, *, folder: Path) -> set[str]:
    """The heavy libraries that a fresh interpreter has loaded after running ``code``."""
    script = f"import sys\n{code}\nprint('LOADED', *sorted({{name.split('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "LOADED" in run.stdout, run.stdout
    return HEAVY & set(run.stdout.split("LOADED")[1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import consilium; dir(consilium); consilium.__version__",
        "from consilium import ConsiliumError, Experiment",
        "import " + ", ".join(CONFIG_FILES),
        "from consilium.cli import main\nsys.argv = ['consilium', '--help']\ntry: main()\nexcept SystemExit: pass",
    ],
    ids=["import", "experiment", "configs", "help"],
)
def test_starts_without_a_heavy_library(code: str, tmp_path: Path) -> None:
    assert loaded_after(code, folder=tmp_path) == set()


def test_the_probe_sees_a_heavy_library(tmp_path: Path) -> None:
    assert loaded_after("import PIL.Image", folder=tmp_path) == {"PIL"}
