"""Each notebook is what its Markdown makes, and goes anywhere: nothing of a run or a machine is in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools.build_notebooks import NOTEBOOKS, made_of

SOURCES = sorted(NOTEBOOKS.glob("*.md"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_is_made_of_its_source(source: Path) -> None:
    assert made_of(source) == source.with_suffix(".ipynb").read_text(encoding="utf-8"), "run `make notebooks`"


def test_every_notebook_has_a_source() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == {path.stem for path in SOURCES}
    assert len(SOURCES) >= 3


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_says_how_to_leave_the_installation_out(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    assert text.index("environment variable `CONSILIUM_INSTALLED`") < text.index("%pip install")
