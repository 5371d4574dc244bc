"""What an evaluation says in sentences."""

from __future__ import annotations

from typing import Any

import pytest

from consilium.core.evaluation import Evaluation, Interval
from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.council.figures import FIGURES as COUNCIL
from consilium.evaluation.labels import wording as label_wording
from consilium.evaluation.labels.classification import _MULTI, _SINGLE
from consilium.evaluation.labels.tree import ANSWERED, AURC, HIERARCHICAL
from consilium.evaluation.report import wording
from consilium.evaluation.report.words import WORDS, alone
from consilium.evaluation.retrieval.evaluator import RetrievalEvaluator


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
    said = [plain(text) for text in label_wording.summary(evaluation(), confidence=0.95)]
    assert said == [
        "On 412 held-out test cases from 390 groups the model named the right class in 94.2 % "
        "(95 % interval 91.8 to 96.3).",
        "Each of the 3 classes counting the same, it found 90.0 % of a class's cases.",
        "Its weakest class is mri: it found 6 of 12 cases (50.0 %).",
    ]


def test_several_classes_never_found() -> None:
    rows = [{"label": label, "support": 4, "recall": 0.0} for label in ("ct", "mri")]
    said = label_wording.summary(evaluation(tables={"per_class": rows}), confidence=0.95)
    assert said[-1] == "It found no case at all of 2 classes: ct, mri."


def test_groups_are_named_only_where_they_differ_from_cases() -> None:
    assert plain(wording.cases_phrase(evaluation(groups=412))) == "412 held-out test cases"
    assert plain(wording.cases_phrase(evaluation(cases=1, groups=1, split="val"))) == "1 validation case"
    assert plain(wording.cases_phrase(evaluation(cases=12000, groups=None, split="b"))) == "12 000 cases of the split b"


def test_confusions() -> None:
    assert [plain(text) for text in label_wording.confusions(evaluation(), at_most=5)] == [
        "ct taken for mri: 19 of 400 (4.8 %)",
        "mri taken for ct: 6 of 12 (50.0 %)",
    ]
    assert len(label_wording.confusions(evaluation(), at_most=1)) == 1
    assert label_wording.errors_phrase(evaluation()) == "25 of 412 cases were named wrong."


@pytest.mark.parametrize(
    ("stated", "right", "verdict"),
    [(0.95, 0.9, "surer than it should be"), (0.8, 0.9, "less sure"), (0.9, 0.905, "about as sure as it should be")],
)
def test_calibration_verdict(stated: float, right: float, verdict: str) -> None:
    bins = [{"statements": 10, "confidence": stated, "frequency": right}]
    assert verdict in label_wording.calibration_sentence(evaluation(tables={"calibration": bins}))
    assert label_wording.calibration_sentence(evaluation(tables={})) == ""


def test_cautions() -> None:
    said = " ".join(label_wording.cautions(evaluation(groups=9, split="val")))
    for told in ("validation cases", "Only 9 independent groups", "was here: pet", "say little: oct"):
        assert told in said
    assert label_wording.cautions(evaluation(tables={})) == []


def test_numbers() -> None:
    assert [plain(wording.number(value)) for value in (1234567, 0.12345, None, "", "text", True)] == [
        "1 234 567", "0.123", "–", "–", "text", "True",
    ]  # fmt: skip
    assert plain(wording.percent(0.9424)) == "94.2 %"
    assert wording.percent(None) == "–"


LEVEL = {
    "level": 1, "cases": 100, "threshold": 0.8, "wanted_accuracy": 0.95, "accuracy": 0.9, "answered": 0.91,
    "answered_accuracy": 0.972, "answered_accuracy_high": 0.99,
}  # fmt: skip
CURVE = [
    {"threshold": 0.5, "answered": 80, "coverage": 0.8, "risk": 0.01},
    {"threshold": 0.1, "answered": 100, "coverage": 1.0, "risk": 0.1},
]


def answering(*levels: dict[str, Any], coverage: float = 0.91) -> Evaluation:
    return evaluation(
        metrics={"coverage": coverage, "answered_accuracy": 0.972},
        intervals={"coverage": Interval(coverage, 0.88, 0.94), "answered_accuracy": Interval(0.972, 0.95, 0.99)},
        tables={"levels": list(levels), "risk_coverage": CURVE},
    )


def test_when_it_answers() -> None:
    said = [plain(text) for text in label_wording.abstention(answering(LEVEL), confidence=0.95)]
    assert said == [
        "It answered 91.0 % (95 % interval 88.0 to 94.0) of the held-out test cases and was right in 97.2 % "
        "(95 % interval 95.0 to 99.0) of those; asked was 95 %.",
        "The other 9.0 % are “unknown”.",
        "Had it answered every case whole, it would have been right in 90.0 %.",
    ]
    assert label_wording.operating_point(answering(LEVEL)) == (0.91, pytest.approx(0.028))
    assert "stops or says “unknown”" in label_wording.limit(answering(LEVEL))


def test_when_it_answers_down_a_tree() -> None:
    whole = {**LEVEL, "level": "whole path", "threshold": None, "answered": 0.8, "answered_accuracy": 0.96}
    told = " ".join(label_wording.abstention(answering(LEVEL, {**LEVEL, "level": 2}, whole), confidence=0.95))
    for part in (
        "at least the first level",
        "at each level",
        "down to a leaf of the tree in 80.0 %",
        "right there in 96",
    ):
        assert part in plain(told)
    assert "On validation no threshold" not in told
    never = label_wording.abstention(answering(LEVEL, {**LEVEL, "level": 2, "threshold": None}, whole), confidence=0.95)
    assert never[-1].endswith("asked for at level 2, so it always stops above it.")


def test_when_it_never_answers() -> None:
    nothing = {**LEVEL, "threshold": None, "answered": 0.0, "answered_accuracy": None, "answered_accuracy_high": None}
    said = label_wording.abstention(answering(nothing, coverage=0.0), confidence=0.95)
    assert said[0] == "It answered none of the held-out test cases: every one is “unknown”."
    assert "so it never answers" in said[-1]
    assert label_wording.operating_point(answering(nothing, coverage=0.0)) is None
    assert label_wording.shortfalls(answering(nothing)) == []
    assert "stops or says “unknown”" in label_wording.limit(answering(nothing, coverage=0.0))


def test_when_it_answers_everything() -> None:
    given = evaluation(tables={"risk_coverage": CURVE})
    said = [plain(text) for text in label_wording.abstention(given, confidence=0.95)]
    assert said == [
        "It answers every case, however unsure it is: no accuracy and no distance was asked for.",
        "10.0 % of its answers are wrong. Of the surest 80 % of them 1.0 % are.",
    ]
    assert label_wording.operating_point(given) is None
    assert label_wording.limit(given) == label_wording.limit(None)
    assert "names one of its classes whatever the image shows" in label_wording.limit(given)


@pytest.mark.parametrize(("high", "chance"), [(0.96, True), (0.94, False), (None, False)])
def test_less_than_asked_is_a_caution(high: float | None, chance: bool) -> None:
    missed = {**LEVEL, "answered_accuracy": 0.93, "answered_accuracy_high": high}
    (said,) = label_wording.shortfalls(answering(missed))
    assert "right in 93.0 %, less than the 95 % asked for" in plain(said)
    assert ("Chance may explain it" in said) is chance
    assert said in label_wording.cautions(answering(missed))
    assert label_wording.shortfalls(answering(LEVEL)) == []


@pytest.mark.parametrize(("wanted", "enough", "told"), [(0.9, 10, "10"), (0.95, 20, "20"), (0.999, 1000, "1 000")])
def test_thresholds_from_few_answers_are_told(wanted: float, enough: int, told: str) -> None:
    row = {**LEVEL, "wanted_accuracy": wanted, "cases": 2 * enough, "answered": 0.5}
    few = {**row, "level": 2, "answered": 0.5 - 1 / (2 * enough)}
    lower = {**row, "level": 3, "threshold": None, "answered": 0.0}
    last = {**lower, "level": 4}
    said = [plain(text) for text in label_wording.rough_thresholds(answering(row, few, lower, last))]
    assert said == [
        f"To see {100 * wanted:g} % right takes {told} answers, and the threshold of level 2 was chosen on "
        f"{enough - 1} of validation: it may hold less well elsewhere.",
        f"No threshold gives {100 * wanted:g} % right at level 3 on validation: answers stop above it.",
    ]
    (never,) = label_wording.rough_thresholds(answering({**LEVEL, "threshold": None}))
    assert never.endswith("at level 1 on validation: every answer is “unknown”.")
    assert label_wording.rough_thresholds(evaluation(tables={"risk_coverage": CURVE})) == []


def test_labels_above_the_leaves_are_told_apart_in_the_summary() -> None:
    given = evaluation(cases=500)
    assert "of the 415 whose label is a leaf of the tree" in label_wording.summary(given, confidence=0.95)[0]


def test_every_figure_has_words() -> None:
    retrieval = RetrievalEvaluator(config=EvaluationConfig()).metric_names
    modalities = {alone(name) for name in ("image", "text", "metadata")}
    names = {*_SINGLE, *_MULTI, *HIERARCHICAL, *ANSWERED, AURC, *retrieval, *modalities, *COUNCIL}
    assert set(WORDS) == names


def test_a_rank_is_a_place() -> None:
    assert wording.figure("image_to_text_median_rank", 7.0) == "7"
    assert wording.figure("image_to_text_median_rank", 7.5) == "7.5"
    assert wording.figure("image_to_text_median_rank", None) == "–"
    assert wording.spread("text_to_image_median_rank", 4.0, 10.025) == "4 to 10"
