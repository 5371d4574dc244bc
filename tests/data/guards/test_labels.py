"""One thing labelled two ways is named, and what only looks like it is left in peace."""

from __future__ import annotations

import pytest

from consilium.data.guards.labels import label_conflicts, label_spellings, label_vocabularies
from tests.data.samples import case_table


def test_one_file_with_two_labels() -> None:
    table = case_table(
        [
            {"id": "a", "files": ["x"], "label": "ct"},
            {"id": "b", "files": ["x", "x"], "label": "mri"},
            {"id": "c", "files": ["x"], "label": "mri", "split": "test"},
            {"id": "d", "files": ["x"]},
            {"id": "e", "files": ["y"], "label": "ct"},
            {"id": "f", "files": ["y"], "label": "ct"},
            {"id": "g", "files": ["z"], "label": ["ct", "mri"]},
            {"id": "h", "files": ["z"], "label": ["mri", "ct"]},
        ]
    )
    (conflict,) = label_conflicts(table)
    assert (conflict.ids, conflict.labels) == (("a", "b", "c"), ("ct", "mri", "mri"))
    assert conflict.message == "the same file is labelled 'ct' (a), 'mri' (b, c); correct one, or leave both out."


def test_near_duplicates_with_two_labels() -> None:
    groups = ("p", "q", "p", "r", "q", "s")
    labels = ("ct", "mri", "mri", "ct", "ct", "")
    table = case_table([{"group": group, "label": label or []} for group, label in zip(groups, labels, strict=True)])
    # one group (0, 2), one label (0, 3), no label (1, 5)
    assert label_conflicts(table, near_duplicates=[(0, 2), (0, 3), (1, 5)]) == []
    (conflict,) = label_conflicts(table, near_duplicates=[(0, 1), (1, 3), (0, 3)])
    assert conflict.ids == ("0", "1", "3")
    assert "almost the same image is labelled 'ct' (0, 3), 'mri' (1)" in conflict.message


@pytest.mark.parametrize(
    "labels",
    [
        ("Melanoma", "melanoma"),
        ("basal_cell", "Basal Cell"),
        ("x-ray", "xray"),
        ("x ray", "x.ray"),
        ("nodule", "nodules"),
        ("biopsy", "biopsies"),
        ("melanoma", "skin.melanoma"),
        ("Melanomas", "body.skin.melanoma"),
        ("cell carcinoma", "skin.cell_carcinoma"),
        ("grade 1", "grade1"),
    ],
)
def test_spellings_of_one(labels: tuple[str, str]) -> None:
    (message,) = label_spellings([*labels, labels[0], "another"])
    assert f"'{labels[0]}' (2)" in message
    assert f"'{labels[1]}' (1)" in message


@pytest.mark.parametrize(
    "labels",
    [
        ("ct.head", "mri.head"),
        ("other", "graphics.other"),
        ("A+", "A-"),
        ("1", "-1"),
        ("grade 1.1", "grade 11"),
        ("1 2", "12"),
        ("ct", "cts"),
        ("mass", "mas"),
        ("melanoma", "melanoma.nodular"),
        ("benign", "malignant"),
        ("left", "left upper"),
    ],
)
def test_labels_that_are_two(labels: tuple[str, str]) -> None:
    assert label_spellings(labels) == []


def test_three_spellings_are_one_message() -> None:
    (message,) = label_spellings(["Melanoma", "melanoma", "skin.melanoma", "skin.nevus"])
    assert message.startswith("the labels 'Melanoma' (1), 'melanoma' (1), 'skin.melanoma' (1) may be spellings of one")


@pytest.mark.parametrize(
    ("first", "second", "other_labels", "alarm"),
    [
        ("ham_train", "ham_test", ("mel", "bcc"), True),
        ("isic2019", "isic2020", ("mel", "bcc"), True),
        ("ham v1", "ham v2", ("mel", "bcc"), True),
        ("ham_train", "ham_test", ("mel", "Nevus"), False),
        ("ham_train", "isic_test", ("mel", "bcc"), False),
        ("clinic_ct", "clinic_mri", ("mel", "bcc"), False),
        ("ham_train", "ham_test", ("mel",), False),
        ("1", "2", ("mel", "bcc"), False),
    ],
)
def test_one_data_set_in_two_vocabularies(first: str, second: str, other_labels: tuple[str, ...], alarm: bool) -> None:
    rows = [{"source": first, "label": label} for label in ("melanoma", "nevus")]
    rows += [{"source": second, "label": label} for label in other_labels]
    found = label_vocabularies(case_table(rows))
    assert len(found) == alarm
    if alarm:
        assert (
            "have no label in common (bcc, mel; melanoma, nevus)" in found[0]
            or "(melanoma, nevus; bcc, mel)" in found[0]
        )


@pytest.mark.parametrize(
    "other",
    ["Z\u0061\u0308hne", "Z\u00e4hne\u00a0", "Z\u00e4\u200bhne", "\u0396\u00e4hne", "\uff3a\u00e4hne"],
    ids=["decomposed", "no-break space", "zero width", "another alphabet", "full width"],
)
def test_labels_that_look_the_same_are_written_out(other: str) -> None:
    (message,) = label_spellings(["Z\u00e4hne", other])
    assert ascii("Z\u00e4hne") in message
    assert ascii(other) in message
    assert message.count("written") == 2
