"""Reports taken apart: what is a heading, where a section ends, and what a sentence is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.data.cases.reports import plain, sections_of, sentences_of

MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___-year-old woman with cough  // r/o pneumonia

 COMPARISON:  None.

 FINDINGS:

 PA and lateral views of the chest.  Lungs: clear.
 HEART: normal in size. There are no new findings: all as before.

 IMPRESSION:

 No acute cardiopulmonary process.
"""


def test_sections_of_a_report_begin_and_end_at_headings() -> None:
    found = sections_of(MIMIC, ["findings", "impression"])
    assert set(found) == {"examination", "indication", "comparison", "findings", "impression"}
    assert found["findings"].startswith("PA and lateral views")
    assert found["findings"].endswith("all as before."), "what stands before a colon inside of it is no heading"
    assert found["impression"] == "No acute cardiopulmonary process."
    assert found["indication"].startswith("___-year-old")


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ("FINDINGS: Clear. IMPRESSION: Normal.", ["findings"], {"findings": "Clear.", "impression": "Normal."}),
        ("findings: clear\nimpression : normal", [], {"findings": "clear", "impression": "normal"}),
        ("**Findings:** Clear.\n\n**Impression**: Normal.", [], {"findings": "Clear.", "impression": "Normal."}),
        ("FINDINGS AND IMPRESSION: Clear.", [], {"findings": "Clear.", "impression": "Clear."}),
        ("Findings/Impression: Clear.", [], {"findings": "Clear.", "impression": "Clear."}),
        ("FINDINGS:\nIMPRESSION: Normal.", ["findings"], {"impression": "Normal."}),
        ("FINDINGS: a\nADDENDUM: b\nFINDINGS: c", [], {"findings": "a\nc", "addendum": "b"}),
        ("Gross_Stain: brown. FINDINGS: x", ["gross stain"], {"gross stain": "brown.", "findings": "x"}),
        ("Befund: unauffällig.\nBEURTEILUNG: gesund", ["Befund", "Beurteilung"],
         {"befund": "unauffällig.", "beurteilung": "gesund"}),
        ("No new findings: all as before.", [], {}),
        ("subfindings: no; PREVIEWS: none", [], {}),
        ("A normal chest.", ["findings"], {}),
        ("", ["findings"], {}),
    ],
)  # fmt: skip
def test_what_is_a_heading(text: str, names: list[str], expected: dict[str, str]) -> None:
    assert sections_of(text, names) == expected


@given(st.lists(st.text("abc .\n", min_size=1).filter(str.strip), min_size=1, max_size=4))
def test_whatever_stands_in_a_section_is_found_again(bodies: list[str]) -> None:
    names = ["findings", "impression", "comparison", "history"][: len(bodies)]
    text = "\n".join(f"{name.upper()}: {body}" for name, body in zip(names, bodies, strict=True))
    assert sections_of(text, []) == {name: body.strip() for name, body in zip(names, bodies, strict=True)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The heart is normal. No effusion!  Is it?", ["The heart is normal.", "No effusion!", "Is it?"]),
        (
            "A mass of 2.1 cm\nis seen in the left lung. It is new.",
            ["A mass of 2.1 cm is seen in the left lung.", "It is new."],
        ),
        ("1. No nodule. 2. Clear lungs.", ["1. No nodule.", "2. Clear lungs."]),
        ("Seen by Dr. Smith. See fig. 2 and i.e. The rest.", ["Seen by Dr. Smith.", "See fig. 2 and i.e. The rest."]),
        ('He said "clear." Then no more', ['He said "clear."', "Then no more"]),
        ("no end, no capital. like this", ["no end, no capital. like this"]),
        ("心脏正常。无胸腔积液。", ["心脏正常。", "无胸腔积液。"]),
        ("12.", ["12."]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences_of(text) == expected


@given(st.text(st.sampled_from("aB1. \n!?()\"'。")))
def test_sentences_hold_every_sign_of_a_text(text: str) -> None:
    found = sentences_of(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert bool(found) == bool(text.strip())
    assert all(sentence == " ".join(sentence.split()) for sentence in found)


def test_names_are_compared_plainly() -> None:
    assert plain("  Clinical_History ") == "clinical history"
