"""Labels that their own texts name are found, common words are not, and 100,000 texts are quick."""

from __future__ import annotations

import time
from typing import Any

import pytest

from consilium.data.guards.texts import NamedLabel, named_labels, repeated_texts
from tests.data.samples import case_table


def found(rows: list[dict[str, Any]], **synonyms: list[str]) -> dict[str, NamedLabel]:
    return {named.label: named for named in named_labels(case_table(rows), synonyms=synonyms).found}


def rows_of(texts: dict[str, list[str]], split: str = "train") -> list[dict[str, Any]]:
    return [{"label": label, "text": text, "split": split} for label, own in texts.items() for text in own]


def test_what_a_finding_says() -> None:
    rows = rows_of({"skin.melanoma": ["A Melanoma.", "dark lesion", "No melanoma seen", "melanomas"]})
    rows += rows_of({"skin.nevus": ["brown lesion"] * 4})
    rows += rows_of({"skin.melanoma": ["lesion", "melanoma"]}, split="test")
    named = found(rows)
    assert set(named) == {"skin.melanoma"}
    finding = named["skin.melanoma"]
    assert (finding.term, finding.terms) == ("melanoma", ("melanoma",))
    assert finding.share == pytest.approx(4 / 6)
    assert finding.elsewhere == 0
    assert finding.shares == {"train": 0.75, "test": 0.5}
    assert finding.example == "0"
    for told in (
        "'melanoma' is in 67% of the texts of 'skin.melanoma' and in 0% of all others",
        "(train 75%, test 50%; such as case 0)",
    ):
        assert told in finding.message


@pytest.mark.parametrize(
    ("label", "text", "term"),
    [
        ("basal_cell_carcinoma", "Basal-cell carcinoma", "basal cell carcinoma"),
        ("BasalCell", "the basal cells", "basal cell"),
        ("xray", "An X-ray of the hand", "xray"),
        ("x-ray", "an xray", "xray"),
        ("biopsy", "two biopsies", "biopsy"),
        ("ct", "CT of the head", "ct"),
        ("rash", "Rashes", "rash"),
        ("naevus", "NAEVUS", "naevus"),
        ("pleural_effusion", "fluid in the pleural space", "pleural"),
    ],
)
def test_ways_to_name(label: str, text: str, term: str) -> None:
    assert found(rows_of({label: [text] * 3, "zzz": ["nothing of the kind"] * 3}))[label].term == term


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("mela", "melanoma"),  # a part of a word
        ("basal_cell", "cell, basal"),  # in another order: the single words are in the others' texts too
        ("a", "a lesion"),  # one letter
        ("12", "12 lesions"),  # a number
        ("ct", "the pictured"),
    ],
)
def test_ways_that_do_not_name(label: str, text: str) -> None:
    assert found(rows_of({label: [text] * 3, "zzz": ["basal things, cell things"] * 3})) == {}


def test_words_of_all_labels_alike_are_no_leak() -> None:
    texts = {
        "radiology.ct": ["Radiology report", "radiology"],
        "radiology.mri": ["radiology department", "radiology"],
    }
    assert found(rows_of(texts)) == {}
    # ... but a branch of the tree may be given away where there is another
    named = found(rows_of({**texts, "microscopy.light": ["a slide"] * 4}))
    assert set(named) == {"radiology"}
    assert named["radiology"].share == 1


def test_a_label_that_is_the_plural_of_another() -> None:
    named = found(rows_of({"nodule": ["nodules", "nodule"] * 2, "nodules": ["nodules"] * 4, "mass": ["left"] * 40}))
    assert {label: named[label].share for label in named} == {"nodule": 1, "nodules": 1}


def test_one_mention_is_chance() -> None:
    assert found(rows_of({"mri": ["mri", "head", "knee"], "ct": ["head"] * 3})) == {}
    assert found(rows_of({"mri": ["mri"] * 2 + ["head"] * 48, "ct": ["head"] * 3})) == {}
    assert set(found(rows_of({"mri": ["mri"] * 3 + ["head"] * 47, "ct": ["head"] * 3}))) == {"mri"}


def test_synonyms() -> None:
    rows = rows_of({"skin.melanoma": ["MM, level III"] * 3, "skin.nevus": ["a mole of 3 mms", "mole", "black mole"]})
    assert found(rows) == {}
    named = found(rows, melanoma=["malignant tumour", "level III"])
    assert named["skin.melanoma"].term == "level iii"
    assert found(rows, **{"skin.nevus": ["mole"]})["skin.nevus"].term == "mole"
    (note,) = named_labels(case_table(rows), synonyms={"melanom": ["mm"], "skin": ["cutis"]}).notes
    assert note == "data.guards.synonyms names 'melanom', which is no label and no part of one."


def test_several_labels_of_a_case() -> None:
    rows = [
        {"label": ["effusion", "nodule"], "text": "nodule above an effusion"},
        {"label": "effusion", "text": "an effusion"},
        {"label": "nodule", "text": "a nodule"},
        {"label": "mass", "text": "left"},
    ]
    assert set(found(rows)) == {"effusion", "nodule"}


def test_nothing_to_compare() -> None:
    assert found(rows_of({})) == {}
    assert found([{"label": "ct"}, {"text": "ct"}]) == {}
    assert found(rows_of({"ct": ["ct"] * 5})) == {}


def test_texts_on_both_sides() -> None:
    train = [{"text": text, "split": "train"} for text in ("No finding.", "Effusion", "Nodule", "Mass")]
    test = [{"text": text, "split": "test"} for text in ("no  finding", "No finding!", "other", "others", "third")]
    (warning,) = repeated_texts(case_table(train + test))
    assert warning.startswith("40% of the texts of test are in train too, word for word (most often 'no finding')")
    assert repeated_texts(case_table(train + test[2:])) == []
    assert repeated_texts(case_table(test)) == []


def test_many_texts_are_quick() -> None:
    text = "The patient was seen with a lesion of uncertain kind on the left arm; size 3 mm, border regular. " * 4
    labels = [f"class{letter}{other}.kind {other}" for letter in "abcdefghij" for other in "klmnopqrst"]
    rows = [{"label": labels[n % 100], "text": f"{text} number{n}"} for n in range(10_000)]
    table = case_table(rows)
    started = time.perf_counter()
    named_labels(table, synonyms={})
    assert time.perf_counter() - started < 5  # 100,000 texts then take less than a minute, on a slow machine
