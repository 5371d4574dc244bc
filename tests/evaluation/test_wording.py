"""What an evaluation says in sentences."""

from __future__ import annotations

from typing import Any

import pytest

from consilium.core.contracts import Evaluation, Interval
from consilium.evaluation import wording


def evaluation(**changes: Any) -> Evaluation:
    given: dict[str, Any] = {
        "split": "test",
        "cases": 412,
        "groups": 390,
        "metrics": {"accuracy": 0.942},
        "intervals": {"accuracy": Interval(0.942, 0.918, 0.963), "balanced_accuracy": Interval(0.9)},
        "tables": {
            "per_class": [
                {"label": "ct", "support": 400, "recall": 0.9525},
                {"label": "mri", "support": 12, "recall": 0.5},
                {"label": "pet", "support": 0, "recall": None},
                {"label": "oct", "support": 3, "recall": 1.0},
            ],
            "confusion": [
                {"truth": "ct", "prediction": "ct", "cases": 381, "share": 0.9525},
                {"truth": "ct", "prediction": "mri", "cases": 19, "share": 0.0475},
                {"truth": "mri", "prediction": "ct", "cases": 6, "share": 0.5},
                {"truth": "mri", "prediction": "mri", "cases": 6, "share": 0.5},
            ],
            "calibration": [
                {"statements": 0, "confidence": None, "frequency": None},
                {"statements": 300, "confidence": 0.99, "frequency": 0.95},
                {"statements": 100, "confidence": 0.7, "frequency": 0.9},
            ],
        },
    }
    return Evaluation(**{**given, **changes})


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{NARROW NO-BREAK SPACE}", " ")


def test_summary() -> None:
    said = [plain(text) for text in wording.summary(evaluation(), confidence=0.95)]
    assert said == [
        "On 412 held-out test cases from 390 groups the model named the right class in 94.2 % "
        "(95 % interval 91.8 to 96.3).",
        "Each of the 3 classes counting the same, it found 90.0 % of a class's cases.",
        "Its weakest class is mri: it found 6 of 12 cases (50.0 %).",
    ]


def test_several_classes_never_found() -> None:
    rows = [{"label": label, "support": 4, "recall": 0.0} for label in ("ct", "mri")]
    said = wording.summary(evaluation(tables={"per_class": rows}), confidence=0.95)
    assert said[-1] == "It found no case at all of 2 classes: ct, mri."


def test_groups_are_named_only_where_they_differ_from_cases() -> None:
    assert plain(wording.cases_phrase(evaluation(groups=412))) == "412 held-out test cases"
    assert plain(wording.cases_phrase(evaluation(cases=1, groups=1, split="val"))) == "1 validation case"
    assert plain(wording.cases_phrase(evaluation(cases=12000, groups=None, split="b"))) == "12 000 cases of the split b"


def test_confusions() -> None:
    assert [plain(text) for text in wording.confusions(evaluation(), at_most=5)] == [
        "ct taken for mri: 19 of 400 (4.8 %)",
        "mri taken for ct: 6 of 12 (50.0 %)",
    ]
    assert len(wording.confusions(evaluation(), at_most=1)) == 1
    assert wording.errors_phrase(evaluation()) == "25 of 412 cases were named wrong."


@pytest.mark.parametrize(
    ("stated", "right", "verdict"),
    [(0.95, 0.9, "surer than it should be"), (0.8, 0.9, "less sure"), (0.9, 0.905, "about as sure as it should be")],
)
def test_calibration_verdict(stated: float, right: float, verdict: str) -> None:
    bins = [{"statements": 10, "confidence": stated, "frequency": right}]
    assert verdict in wording.calibration_sentence(evaluation(tables={"calibration": bins}))
    assert wording.calibration_sentence(evaluation(tables={})) == ""


def test_cautions() -> None:
    said = " ".join(wording.cautions(evaluation(groups=9, split="val")))
    for told in ("validation cases", "Only 9 independent groups", "was here: pet", "say little: oct"):
        assert told in said
    assert wording.cautions(evaluation(tables={})) == []


def test_numbers() -> None:
    assert [plain(wording.number(value)) for value in (1234567, 0.12345, None, "", "text", True)] == [
        "1 234 567", "0.123", "–", "–", "text", "True",
    ]  # fmt: skip
    assert plain(wording.percent(0.9424)) == "94.2 %"
    assert wording.percent(None) == "–"
