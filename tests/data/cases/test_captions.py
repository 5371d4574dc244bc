"""Texts that are made of the rows of a source when they are used."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from consilium.core.errors import ConfigError
from consilium.data.cases.captions import Captioned, captioned, label_words
from consilium.data.store.prepare import prepare
from tests.data.samples import case_table, data_config, write_images


def made(rows: list[dict[str, Any]], **captions: Any) -> Captioned:
    """The texts of cases of the source s, and of t, whose texts stay."""
    sources = [{"kind": "csv", "name": name, "path": "x.csv"} for name in ("s", "t")]
    config = data_config(Path(), {**sources[0], "captions": captions}, sources[1])
    return captioned(case_table(rows), config.sources)


def texts(found: Captioned) -> list[list[str]]:
    return [[text.text for text in own] for own in found.table.named_texts]


ROWS: list[dict[str, Any]] = [
    {"label": "skin.basal_cell_carcinoma"},
    {"label": ["effusion", "lung.mass"]},
    {"label": "nevus", "text": "its own"},
    {},
    {"label": "nevus", "source": "t"},
]


def test_cases_without_a_text_get_one_of_every_template() -> None:
    found = made(ROWS, template="a photograph of {label}")
    assert texts(found) == [
        ["a photograph of basal cell carcinoma"],
        ["a photograph of effusion, mass"],
        ["its own"],
        [],
        [],
    ]
    assert found.notes == ["source 's': 2 cases got texts out of labels (captions.template); 1 case kept their own."]
    assert found.table.texts == [own[0] if own else None for own in texts(found)]
    found = made(ROWS[:2], template=["{label}", "{label}, or: {label}"])
    assert texts(found)[0] == ["basal cell carcinoma", "basal cell carcinoma, or: basal cell carcinoma"]
    assert found.notes == ["source 's': 2 cases got texts out of labels (captions.template), 2 each."]


def test_what_was_made_goes_where_the_table_goes() -> None:
    found = made(ROWS, template="{label}").table.select([1, 0])
    assert [found.captions(row) for row in range(2)] == [["effusion, mass"], ["basal cell carcinoma"]]
    sent = copy.copy(found.with_splits(["train", "val"]))  # as it is sent to a process that decodes
    assert sent.named_texts == found.named_texts


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (ROWS[3:], "none of its cases that lack a text has a label"),
        (ROWS[2:3], "each of its cases has a text of its own"),
    ],
)
def test_a_template_that_makes_no_text_is_refused(rows: list[dict[str, Any]], reason: str) -> None:
    with pytest.raises(
        ConfigError, match=f"source 's': captions.template makes no text, since {reason}. Name the column"
    ):
        made(rows, template="{label}")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("a photograph", "the template 'a photograph' has no place for the label; write {label} where the label bel"),
        (["{label}", "{modality} of {label}"], "has a place for 'modality', which is not known; write {label}"),
        ("{} of", "has a place for '', which is not known"),
        (7, "captions.template` is 7; expected a list"),
        ([["a"]], "captions.template.0` is"),
    ],
)
def test_templates_without_a_place_for_the_label_are_refused(template: Any, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(ROWS, template=template)
    assert reason in str(caught.value)


def test_labels_are_read_as_people_do() -> None:
    assert [label_words(label) for label in ("a", "a.b_c", "x.__d_ e_")] == ["a", "b c", "d e"]


def test_templates_use_new_names_and_leave_the_store_as_it_is(tmp_path: Path) -> None:
    write_images(tmp_path / "images", [f"{label}/{n}.png" for label in ("mel", "nv") for n in range(2)])
    source = {"kind": "folder", "name": "skin", "path": str(tmp_path / "images")}
    names = {"mel": "skin.malignant_melanoma", "nv": "nevus"}
    first = prepare(data_config(tmp_path, {**source, "captions": {"template": "{label}"}}, rename_labels=names))
    assert first.store.table.texts == ["malignant melanoma"] * 2 + ["nevus"] * 2
    assert first.notes() == ["source 'skin': 4 cases got texts out of labels (captions.template)."]
    again = prepare(data_config(tmp_path, source))
    assert not again.created
    assert again.store.table.texts == [None] * 4


REPORTS: list[dict[str, Any]] = [
    {"text": "FINDINGS: Clear lungs. No effusion. IMPRESSION: Normal."},
    {"text": "IMPRESSION: Pneumonia."},
    {"text": "A chest radiograph."},
    {},
    {"texts": {"findings": "A mass.", "report": "IMPRESSION: Tumour. HISTORY: cough"}},
]


def test_sections_are_chosen_by_heading_or_column_and_counted() -> None:
    found = made(REPORTS, sections=["findings", "Impression"])
    assert texts(found) == [["Clear lungs. No effusion.", "Normal."], ["Pneumonia."], [], [], ["A mass.", "Tumour."]]
    assert [text.name for text in found.table.named_texts[0]] == ["findings", "impression"]
    assert found.notes == [
        "source 's': sections of 4 reports: findings in 2, impression in 3; the text of 1 case without any is missing "
        "(captions.without_section)."
    ]
    found = made(REPORTS, sections="findings", without_section="whole")
    assert texts(found) == [
        ["Clear lungs. No effusion."],
        ["IMPRESSION: Pneumonia."],
        ["A chest radiograph."],
        [],
        ["A mass."],
    ]
    assert found.notes == [
        "source 's': sections of 4 reports: findings in 2; the text of 2 cases without any stays whole "
        "(captions.without_section)."
    ]


def test_a_training_draws_sentences_and_a_text_is_judged_whole() -> None:
    found = made(REPORTS, sections="findings", sentences=True)
    assert [found.table.captions(row) for row in (0, 1, 4)] == [["Clear lungs. No effusion."], [], ["A mass."]]
    assert [found.table.drawn(row) for row in (0, 1, 4)] == [["Clear lungs.", "No effusion."], [], ["A mass."]]
    assert found.notes[1] == "source 's': 2 texts of 1.5 sentences on average, of which one is drawn."


@pytest.mark.parametrize(
    ("section", "hint"),
    [
        ("finding", "names 'finding', which none of 4 reports has; did you mean `findings`? A heading stands before"),
        (
            "Opinion",
            "names 'opinion', which none of 4 reports has; there are: findings, history, impression, report. A",
        ),
    ],
)
def test_a_section_that_occurs_nowhere_is_refused(section: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(REPORTS, sections=["findings", section])
    assert f"source 's': captions.sections {hint}" in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"sections": ["findings:"]}, "sections names 'findings:'; expected a heading without its colon"),
        ({"sections": [" "]}, "sections names ' '; expected a heading"),
        ({"without_section": "whole"}, "says what to do without a section, and sections names none"),
    ],
)
def test_sections_that_are_no_names_are_refused(keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(REPORTS, **keys)
    assert reason in str(caught.value)
