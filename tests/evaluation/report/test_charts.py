"""Plots as SVG text."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from consilium.evaluation.report.charts import Series, interval_strip, line_chart
from consilium.evaluation.report.svg import ticks


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
@example(1e-12, 1e-12)  # a tiny learning rate
@example(1.0986, 1.0986 + 1e-13)  # a loss that hardly moves
@example(0.0, 5e-324)
def test_ticks_enclose_evenly(one: float, other: float) -> None:
    low, high = sorted((one, other))
    marks = ticks(low, high)
    steps = np.diff(marks)
    reach = max(abs(low), abs(high), 1e-9)
    assert marks[0] <= low + 1e-6 * reach
    assert marks[-1] >= high - 1e-6 * reach
    assert 2 <= len(marks) <= 9
    assert marks[0] < marks[-1]
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3, atol=1e-9)


def test_a_line_breaks_at_nothing_and_marks_the_best() -> None:
    drawn = line_chart(
        [Series("a", [(1, 0.5), (2, float("nan")), (3, 0.7)]), Series("b", [(2, 0.6)])], title="F1", mark=2
    )
    assert "nan" not in drawn
    assert ">best<" in drawn
    assert line_chart([Series("a", [])], title="none") == ""
    assert line_chart([Series("a", [(1, float("nan"))])], title="none") == ""


def test_a_constant_line_can_be_drawn() -> None:
    ElementTree.fromstring(line_chart([Series("rate", [(0, 0.1), (5, 0.1)])], title="rate"))
    ElementTree.fromstring(line_chart([Series("zero", [(0, 0.0)])], title="zero"))


def test_strip() -> None:
    assert interval_strip(None, None, None) == ""
    assert "whisker" not in interval_strip(0.5, None, None)
    assert "whisker" in interval_strip(0.5, 0.4, 0.6)
