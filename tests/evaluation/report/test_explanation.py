"""What the page on one answer says in words: levels, thresholds, what came second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.core.answers import UNKNOWN, Calibration
from consilium.core.labels import LabelTree
from consilium.core.licenses import License
from consilium.evaluation.report.explanation import (
    ExplanationContent,
    MemberAnswer,
    NearCase,
    Question,
    levels_of,
    percent,
    write_explanation,
)

TREE = LabelTree(["skin", "xray", "xray.chest", "xray.hand"], nested=True)
SURE = {"skin": 0.1, "xray": 0.9, "xray.chest": 0.54, "xray.hand": 0.36}


def record_of(
    probabilities: dict[str, float], calibration: Calibration, distances: list[float] | None = None
) -> dict[str, Any]:
    """A record as a task with labels gives it."""
    values_1M = np.array([[probabilities[name] for name in TREE.names]])
    far_1M = None if distances is None else np.array([distances])
    found = calibration.answers(values_1M, labels=TREE, distances_NM=far_1M)
    path = [step for step in found.paths_NL[0].tolist() if step >= 0]
    node = int(found.nodes_N[0])
    steps = [{"label": TREE.names[step], "probability": probabilities[TREE.names[step]]} for step in path]
    if distances is not None:
        steps = [{**step, "distance": distances[number]} for step, number in zip(steps, path, strict=True)]
    label = UNKNOWN if node < 0 else TREE.names[node]
    return {"label": label, "probability": probabilities.get(label), "path": steps, "probabilities": probabilities}


def member(record: dict[str, Any], calibration: Calibration | None = None, **facts: Any) -> MemberAnswer:
    levels = [] if calibration is None else levels_of(record, TREE, calibration)
    return MemberAnswer("router", "modality", ["image"], record, levels=levels, **facts)


@pytest.mark.parametrize(
    ("thresholds", "sentence"),
    [
        ([], "The router says xray.chest, with a probability of 54.0 %; second is xray.hand, with 36.0 %."),
        ([0.5, 0.5], "The router says xray.chest, with a probability of 54.0 %; second is xray.hand, with 36.0 %."),
        (
            [0.5, 0.6],
            "The router says xray, with a probability of 90.0 %; second is skin, with 10.0 %. It says no more: below, "
            "the likeliest is xray.chest, but its probability of 54.0 % is below the threshold of 60.0 %; second is "
            "xray.hand, with 36.0 %.",
        ),
        (
            [0.90004, 0.5],
            "The router says unknown. The likeliest is xray, but its probability of 90.000 % is below the threshold of "
            "90.004 %; second is skin, with 10.0 %.",
        ),
        (
            [None],
            "The router says unknown. The likeliest is xray, but validation found no probability from which on answers "
            "at this level are right often enough; second is skin, with 10.0 %.",
        ),
    ],
    ids=["no thresholds", "above", "one level", "by a hair", "never"],
)
def test_what_was_said_and_what_was_missing(thresholds: list[float | None], sentence: str) -> None:
    calibration = Calibration(thresholds=thresholds)
    found = member(record_of(SURE, calibration), calibration)
    assert found.sentence().replace("\N{NO-BREAK SPACE}", " ") == sentence


def test_too_far_from_the_training_cases() -> None:
    calibration = Calibration(distances=[5.0])
    found = member(record_of(SURE, calibration, [1.0, 7.25, 1.0, 1.0]), calibration)
    assert "xray, but its distance is 7.25, and answers end at a distance of 5 from the training" in found.sentence()
    assert [own.verdict.split(":")[0] for own in found.levels] == ["not answered", "not answered"]
    assert found.levels[1].verdict == "not answered: the level above is not sure"


@given(
    st.lists(st.integers(0, 1000), min_size=3, max_size=3).filter(any),
    st.lists(st.none() | st.floats(0, 1), max_size=2),
)
def test_levels_are_those_of_the_answer(weights: list[int], thresholds: list[float | None]) -> None:
    skin, chest, hand = (weight / sum(weights) for weight in weights)
    probabilities = {"skin": skin, "xray": chest + hand, "xray.chest": chest, "xray.hand": hand}
    calibration = Calibration(thresholds=thresholds)
    record = record_of(probabilities, calibration)
    levels = levels_of(record, TREE, calibration)
    answered = [own.label for own in levels if own.answered]
    assert (answered or [UNKNOWN])[-1] == record["label"]
    for own in levels:
        assert own.second is not None
        assert own.second_probability is not None
        assert own.second_probability <= own.probability + 1e-12
    unsure = next((own for own in levels if not own.answered), None)
    assert unsure is None or unsure.lacks, "what was missing has a name"
    assert member(record, calibration).sentence().startswith(f"The router says {record['label']}")


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, "less than 0.1 %"), (0.0004, "less than 0.1 %"), (0.421, "42.1 %"), (1.0, "more than 99.9 %"), (None, "–")],
)
def test_no_probability_is_rounded_to_certainty(share: float | None, shown: str) -> None:
    assert percent(share).replace("\N{NO-BREAK SPACE}", " ") == shown


def test_the_bars_hold_all_of_one_label_and_the_first_of_several() -> None:
    shares = [(f"label {number}", share) for number, share in enumerate([0.3, *[0.1] * 7])]
    assert member({"label": "label 0"}, shares=shares).bars() == shares
    shares = [("a", 0.5), *((f"b{number}", 0.05) for number in range(10))]
    *_, (name, rest) = member({"label": "a"}, shares=shares).bars()
    assert (name, rest) == ("3 other labels", pytest.approx(0.15))
    assert member({"labels": []}, shares=shares).bars() == shares[:8]


def test_the_page_escapes_what_a_case_brings_and_shows_what_licences_forbid(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    calibration = Calibration()
    near = NearCase({"id": evil, "labels": [evil], "texts": [evil], "similarity": 0.5}, None)
    expert = MemberAnswer("skin", evil, ["image"], {"image_embedding": [0.0]}, nearest=[near], notes=[evil])
    content = ExplanationContent(
        council=evil,
        question=Question(evil, [(evil, "data:image/jpeg;base64,")], evil, {evil: evil}),
        router=member(record_of(SURE, calibration), calibration),
        experts=[expert],
        expert="skin",
        why=[evil],
        licenses=[License(source="tower", name="cc-by-nc-4.0", read_from="its card")],
        facts={evil: evil},
        command=evil,
    )
    page = write_explanation(tmp_path, content).read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 8
    assert "forbids commercial use" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    figures = json.loads((tmp_path / "explanation.json").read_text(encoding="utf-8"))
    assert figures["router"]["levels"][1]["second"] == "xray.hand"
    assert figures["experts"][0]["map"] is None
