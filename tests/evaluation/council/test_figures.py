"""The figures of a council against counts by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from consilium.core.evaluation import Evaluation
from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.council import figures as f
from consilium.evaluation.council.figures import CouncilCase, evaluate_council
from consilium.evaluation.council.report import council_parts, gone_wrong
from consilium.evaluation.report.page import ReportContent, write_report

RIGHT = CouncilCase(
    id="a", group="a", true_route="skin", route="skin", expected="skin", asked="skin", route_right=True,
    truth="nevus", answer="nevus", right=True, oracle_right=True, answered=True, sure=0.9, columns={"source": "here"},
)  # fmt: skip
WRONG = replace(RIGHT, answer="melanoma", right=False, oracle_right=False, sure=0.6)
SHORT = replace(RIGHT, answer="unknown", right=False, oracle_right=False, answered=False, sure=0.2)
LOST = replace(RIGHT, route="eye", asked="eye", route_right=False, answer="3", right=False, sure=0.8)
SILENT = replace(RIGHT, route="unknown", asked="unknown", route_right=False, answer="", right=None, answered=False)
PASSED = CouncilCase(
    id="b", group="b", true_route="ct", route="ct", expected=None, asked="unknown", route_right=True,
    truth="", answer="", right=True, oracle_right=True, answered=False, sure=0.0, columns={"source": "there"},
)  # fmt: skip
STRAY = replace(
    PASSED, route="skin", asked="skin", route_right=False, answer="nevus", right=True, answered=True, sure=0.7
)
UNJUDGED = replace(RIGHT, truth="", answer="", right=None, oracle_right=None, sure=0.99)


def judged(*kinds: CouncilCase, seen: dict[str, list[str]] | None = None, samples: int = 50) -> Evaluation:
    cases = [replace(case, id=f"case-{n}", group=f"group-{n}") for n, case in enumerate(kinds)]
    config = EvaluationConfig(bootstrap_samples=samples)
    return evaluate_council(cases, split="test", config=config, seen=seen or {}, stages=STAGES, unread={})


STAGES: list[dict[str, Any]] = [
    {"stage": "router", "cases": 8, "seconds": 1.0, "ms_a_case": 125.0, "seconds_to_load": None}
]


@pytest.mark.parametrize(
    ("case", "outcome"),
    [
        (RIGHT, f.RIGHT), (WRONG, f.WRONG), (SHORT, f.SHORT), (LOST, f.ELSEWHERE), (SILENT, f.SILENT),
        (PASSED, f.PASSED), (STRAY, f.ELSEWHERE), (UNJUDGED, f.NOT_JUDGED),
        (replace(PASSED, asked="default", right=False), f.WRONG), (replace(PASSED, asked="default"), f.PASSED),
    ],
)  # fmt: skip
def test_what_becomes_of_a_case(case: CouncilCase, outcome: str) -> None:
    assert case.outcome == outcome


def test_every_figure_by_hand() -> None:
    found = judged(RIGHT, WRONG, SHORT, LOST, SILENT, PASSED, STRAY, UNJUDGED)
    # Judged: all but the last. Right: the first and the one that was passed on. The oracle: also the lost and silent
    # ones (their expert would be right) and the stray one (nobody would be asked).
    assert found.metrics["end_to_end"] == pytest.approx(2 / 7)
    assert found.metrics["oracle_end_to_end"] == pytest.approx(5 / 7)
    assert found.metrics["router_cost"] == pytest.approx(3 / 7)
    assert found.metrics["route_accuracy"] == pytest.approx(5 / 8)
    assert found.metrics["answers_given"] == pytest.approx(4 / 7)
    assert found.metrics["right_when_given"] == pytest.approx(1 / 4)
    # The given answers, the surest first: right, lost, stray, wrong.
    assert found.metrics["aurc"] == pytest.approx(np.mean([0, 1 / 2, 2 / 3, 3 / 4]))
    assert [row["coverage"] for row in found.tables["risk_coverage"]] == pytest.approx([1 / 7, 2 / 7, 3 / 7, 4 / 7])
    rows = {row["expert"]: row for row in found.tables["per_expert"]}
    assert list(rows) == ["eye", "skin", "no expert"]
    assert (rows["skin"]["n"], rows["skin"]["asked"], rows["skin"]["of_others"]) == (6, 5, 1)
    assert rows["skin"]["end_to_end"] == pytest.approx(1 / 5)
    assert rows["eye"]["n"] == 0
    assert rows["eye"]["of_others"] == 1
    assert rows["no expert"]["end_to_end"] == pytest.approx(1 / 2)
    assert found.tables["no_expert"] == [{"route": "ct", "cases": 2, "no_expert_asked": 1, "sent_to": "skin 1"}]
    assert sum(row["cases"] for row in found.tables["outcomes"]) == 8
    assert "count for the route alone" in found.tables["notes"][0]["note"]


def test_the_interval_of_the_cost_is_of_pairs() -> None:
    """Cases that are wrong with either route do not widen what the router costs."""
    same = judged(*[RIGHT] * 20, *[WRONG] * 20, samples=200)
    assert same.metrics["router_cost"] == 0
    assert same.intervals["router_cost"].low is None, "no resample differs"
    some = judged(*[RIGHT] * 20, *[WRONG] * 20, *[LOST] * 5, samples=200).intervals["router_cost"]
    assert some.low is not None
    assert 0 <= some.low < some.value == pytest.approx(5 / 45)


def test_values_that_the_router_never_saw_stand_apart() -> None:
    found = judged(RIGHT, WRONG, PASSED, STRAY, seen={"source": ["here"]}).tables["seen"]
    assert [(row["the router has"], row["n"], row["end_to_end"]) for row in found] == [
        ("trained on", 2, 0.5), ("never seen", 2, 0.5),
    ]  # fmt: skip
    assert judged(RIGHT, seen={}).tables["seen"] == []


def test_mistakes_are_shown_the_lost_ones_first_and_one_of_a_group(tmp_path: Any) -> None:
    kinds = [RIGHT, WRONG, replace(LOST, sure=0.1), LOST, PASSED]
    cases = [replace(case, id=str(n), group="same" if n in (2, 3) else str(n)) for n, case in enumerate(kinds)]
    found = evaluate_council(
        cases, split="test", config=EvaluationConfig(bootstrap_samples=0), seen={}, stages=STAGES, unread={"x": "gone"}
    )
    assert [row["id"] for row in gone_wrong(found, 5)] == ["3", "1"]
    path = write_report(tmp_path, ReportContent(title="t", parts=council_parts(["skin"]), evaluations={"test": found}))
    page = path.read_text(encoding="utf-8")
    assert "the router costs" in page
    assert "Routes without an expert" in page
    assert (tmp_path / "tables" / "test_unread.csv").is_file()


def test_nothing_to_judge_leaves_the_route() -> None:
    found = judged(UNJUDGED, UNJUDGED)
    assert found.metrics["end_to_end"] is None
    (sentence,) = council_parts(["skin"]).summary(found, 0.95)
    assert "went to the right expert" in sentence
