"""Runs ``consilium`` as a person does, and knows what a refusal looks like and what it must leave alone."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Answer, cli, recipe

__all__ = ["cli", "recipe"]  # fixtures


def assert_refused(answer: Answer, *told: str, code: int = 2) -> None:
    """One error for a person: the exit code, a message with all of ``told``, no traceback."""
    assert answer.code == code, answer.err
    assert answer.err.startswith("error: "), answer.err
    assert answer.err.count("error: ") == 1
    for text in told:
        assert text in answer.err, f"{text!r} is not in: {answer.err}"
    assert "Traceback" not in answer.out + answer.err
    assert "  File " not in answer.out + answer.err


def contents(*folders: Path) -> dict[str, str]:
    """Every file under the folders by its path, as a digest; locks are not content."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


@contextlib.contextmanager
def nothing_lost(*folders: Path) -> Iterator[None]:
    """Files that are there stay byte for byte, and none of ours is left half written."""
    before = contents(*folders)
    assert before, "there is nothing to lose"
    yield
    after = contents(*folders)
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after if name.endswith((".tmp", ".old"))]


@pytest.fixture
def images(tiny_images: Path, tmp_path: Path) -> Path:
    """A copy of the tiny experiment's images that a test may damage."""
    return Path(shutil.copytree(tiny_images, tmp_path / "images"))


def runs(recipe: Path, name: str = "*") -> list[Path]:
    """The run folders of a recipe."""
    return sorted((recipe.parent / "runs").glob(f"tiny/{name}"))
