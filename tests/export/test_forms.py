"""The table of the guide says which form holds which model, and the code that decides says the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import consilium
from consilium.export.forms import FORMS, MisfitError, forms_of
from consilium.models.checkpoints.clip_tokenizer import clip_tokenizer
from consilium.models.tokenizer import Tokenizer
from consilium.models.trained import DualEncoder
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


@pytest.mark.parametrize("name", ["MobileCLIP of open_clip", "SigLIP of open_clip"])
def test_padding_that_is_read_must_be_a_special_token(name: str, bundles: Callable[[str], Path]) -> None:
    """CLIP's own tokenizer pads with the word 0, and what other libraries pad with instead would be read."""
    model = consilium.load(bundles(name), device="cpu")
    made_of = family_of(model.manifest.task).trained(model.task)  # type: ignore[union-attr]
    assert isinstance(made_of, DualEncoder)
    by_word = Tokenizer.made_of(clip_tokenizer(), context_length=32, pad_id=0, to_context=True)
    found = forms_of(replace(made_of, tokenizer=by_word), image_size=model.image.size)
    assert [form for form, held in found.items() if "reads its padding" in str(held)] == ["hf", "open_clip"]
