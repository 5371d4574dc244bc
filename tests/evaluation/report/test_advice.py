"""What a reader of figures is warned of, and what whoever trains is advised to run."""

from __future__ import annotations

from consilium.evaluation.report.advice import advised, gathered

LOOK = "`consilium data inspect` lists all that was found, and draws near-duplicates."
SOURCE = "a model can learn a hospital. Judge it on one it never saw: `consilium crossval --leave-out hospital`."


def test_command_lines_are_for_whoever_trains() -> None:
    found = advised(["leak: two sides. And 3 more like it.", LOOK, SOURCE])
    assert found.said == ["leak: two sides. And 3 more like it.", "a model can learn a hospital."]
    assert found.to_run == [LOOK, SOURCE]


def test_what_has_no_command_stays_as_it_is() -> None:
    texts = ["Fewer than 10 cases: a. b", "no full stop", "data.on_leak: drop takes out 2 cases (`x`). See e.g. there."]
    assert advised(texts).said == texts
    assert advised(texts).to_run == []


def test_notes_of_several_trainings_are_said_once() -> None:
    odd = "only {} cases tested: the figures say little."
    found = gathered({"a": ["same", odd.format(5), "own"], "b": ["same", odd.format(8)], "c": ["same"]})
    assert found == ["same", "a, b: only 5 to 8 cases tested: the figures say little.", "a: own"]
    assert gathered({}) == []
