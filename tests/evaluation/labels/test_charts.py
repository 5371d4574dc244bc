"""Charts of labels."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from consilium.evaluation.labels.charts import confusion_heat_map, most_confused, risk_coverage, small_reliability


@pytest.mark.parametrize("classes", [2, 13, 30, 45, 90])
def test_confusion_of_any_size(classes: int) -> None:
    labels = [f"label <{n}>" for n in range(classes)]
    rows = [{"truth": label, "prediction": label, "cases": 3} for label in labels]
    rows.append({"truth": labels[0], "prediction": labels[1], "cases": 1})
    drawn = ElementTree.fromstring(confusion_heat_map(labels, rows))
    shown = min(classes, 60)
    assert len(drawn.findall("rect")) == shown**2
    counts = [text.text for text in drawn.findall("text") if "count" in text.get("class", "")]
    assert len(counts) == (shown + 1 if classes <= 30 else 0)
    assert "label <0> named label <1>: 1 (25.0 %)" in {title.text for title in drawn.iter("title")}


def test_numbers_are_light_only_on_dark_cells() -> None:
    rows = [("a", "a", 9), ("a", "b", 1), ("b", "a", 1), ("b", "b", 1)]
    drawn = confusion_heat_map(["a", "b"], [{"truth": t, "prediction": p, "cases": c} for t, p, c in rows])
    counts = [text for text in ElementTree.fromstring(drawn).findall("text") if "count" in text.get("class", "")]
    assert [text.get("class") for text in counts] == ["count light", "count", "count", "count"]


def test_a_large_matrix_keeps_the_classes_with_errors() -> None:
    counts = np.eye(100, dtype=np.int64)
    counts[97, 3] = 5
    kept = most_confused(counts)
    assert len(kept) == 60
    assert {3, 97} <= set(kept)
    assert kept == sorted(kept)


def test_the_curve_of_risk_marks_what_is_set_and_what_was_asked() -> None:
    rows = [{"answered": 10 * n, "coverage": n / 10, "risk": n / 100} for n in range(1, 11)]
    drawn = risk_coverage(rows, point=(0.6, 0.06), wanted=0.95)
    ElementTree.fromstring(drawn)
    assert "asked: at most 5 %" in drawn
    assert "60.0 % answered, 6.0 % of these wrong" in drawn
    bare = risk_coverage(rows, point=None, wanted=None)
    assert "asked" not in bare
    assert "circle" not in bare


def test_further_signs_have_a_curve_and_a_name_each() -> None:
    rows = [{"answered": 10 * n, "coverage": n / 10, "risk": n / 100} for n in range(1, 11)]
    drawn = ElementTree.fromstring(
        risk_coverage(rows, point=None, wanted=None, further={"distance": rows[:4], "disagreement": rows})
    )
    assert [path.get("class") for path in drawn.findall("path")] == ["series a", "series b", "series c"]
    assert {"probability", "distance", "disagreement"} <= {text.text for text in drawn.findall("text")}


def test_a_curve_starts_where_there_are_some_answers() -> None:
    """The one surest case is wrong: as a share of all answers so far that is 100 %, and says nothing."""
    rows = [{"answered": n, "coverage": n / 40, "risk": 1 / n} for n in range(1, 41)]
    drawn = ElementTree.fromstring(risk_coverage(rows, point=None, wanted=None))
    (line,) = drawn.findall("path")
    assert len(str(line.get("d")).split("L")) == 31
    ElementTree.fromstring(risk_coverage(rows[:1], point=None, wanted=None))


def test_small_reliability_draws_filled_bins() -> None:
    bins = [{"statements": n, "confidence": 0.5 if n else None, "frequency": 0.5 if n else None} for n in (0, 3, 9)]
    drawn = ElementTree.fromstring(small_reliability("a <node>", bins))
    assert len(drawn.findall("circle")) == 2
    assert "a <node>" in [text.text for text in drawn.findall("text")]


@pytest.mark.parametrize("labels", [["a", "b"], ["a", "b", "a long label of a class"]])
def test_words_of_a_small_matrix_are_not_cut(labels: list[str]) -> None:
    drawn = ElementTree.fromstring(confusion_heat_map(labels, []))
    (title,) = [text for text in drawn.findall("text") if text.text == "named by the model"]
    middle, half = float(title.get("x", "")), 6.9 * len("named by the model") / 2
    assert middle + half <= float(drawn.get("width", ""))
    (other,) = [text for text in drawn.findall("text") if text.text == "true class"]
    first = min(float(rect.get("x", "")) for rect in drawn.findall("rect"))
    assert float(other.get("x", "")) + 6.5 * len("true class") <= first
