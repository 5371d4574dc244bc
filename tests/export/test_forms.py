"""The table of the guide says which form holds which model, and the code that decides says the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import consilium
from consilium.export.forms import FORMS, MisfitError, forms_of
from consilium.tasks.family import family_of
from tests.docs.guides import prose
from tests.export.models import MODELS


def table() -> dict[str, list[str]]:
    """Per row of the guide's table what a model becomes in each form, "" where it does not fit."""
    rows = re.findall(r"^\| (.+?) \|(.+)\|$", prose("export"), re.MULTILINE)
    return {name.strip(): [cell.strip().strip("–`") for cell in cells.split("|")] for name, cells in rows}


TABLE = {name: cells for name, cells in table().items() if name in MODELS}


def test_the_table_has_a_row_for_every_model() -> None:
    assert list(TABLE) == list(MODELS)
    (head,) = [cells for name, cells in table().items() if name == "expert or classifier"]
    assert head == list(FORMS)


@pytest.mark.parametrize("name", MODELS)
def test_the_table_says_what_is_decided(name: str, bundles: Callable[[str], Path]) -> None:
    model = consilium.load(bundles(name), device="cpu")
    made_of = family_of(model.manifest.task).trained(model.task)  # type: ignore[union-attr]
    assert made_of is not None
    found = forms_of(made_of, image_size=model.image.size)
    assert ["" if isinstance(held, MisfitError) else held for held in found.values()] == TABLE[name]
