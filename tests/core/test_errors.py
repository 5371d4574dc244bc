"""The tree in the docstring is the tree of classes."""

from __future__ import annotations

import inspect
import re

import pytest

from consilium.core import errors
from consilium.core.errors import ConsiliumError, MissingExtraError

CLASSES = [found for _, found in inspect.getmembers(errors, inspect.isclass) if found.__module__ == errors.__name__]


def drawn_tree() -> dict[str, str]:
    """Parent by child, as ConsiliumError's docstring draws them."""
    tree: dict[str, str] = {}
    path: list[str] = ["ConsiliumError"]
    # Python 3.13 takes the indentation out of docstrings that the others leave in.
    for line in inspect.cleandoc(ConsiliumError.__doc__ or "").splitlines():
        match = re.match(r"^(?P<bars>\s*[│ ]*)[├└]── (?P<name>\w+)", line)
        if match:
            depth = 1 + (len(match["bars"]) - 4) // 4
            tree[match["name"]] = path[depth - 1]
            path[depth:] = [match["name"]]
    return tree


def test_docstring_draws_every_error_and_no_other() -> None:
    real = {found.__name__: found.__bases__[0].__name__ for found in CLASSES if found is not ConsiliumError}
    assert drawn_tree() == real


@pytest.mark.parametrize("found", CLASSES, ids=lambda found: found.__name__)
def test_exit_code_tells_user_errors_from_failed_runs(found: type[ConsiliumError]) -> None:
    if found is errors.InterruptedRunError:
        assert found.exit_code == 130  # what shells expect after Ctrl-C
    else:
        assert found.exit_code == (1 if issubclass(found, errors.TrainingError) else 2)


def test_missing_extra_names_the_command_that_installs_it() -> None:
    message = str(MissingExtraError("logging to Weights & Biases", "wandb"))
    assert "logging to Weights & Biases" in message
    assert "pip install 'consilium[wandb]'" in message
