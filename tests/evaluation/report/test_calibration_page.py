"""What the page of a calibration says of differences."""

from __future__ import annotations

import pytest

from consilium.evaluation.report.calibration import verdict


@pytest.mark.parametrize(
    ("figure", "difference", "low", "high", "said"),
    [
        ("coverage", -1.0, None, None, "It differs, but these cases give no interval."),
        ("coverage", 0.0, None, None, "These cases do not show a difference."),
        ("coverage", None, None, None, "These cases do not show a difference."),
        ("accuracy", 0.1, -0.1, 0.2, "These cases do not show a difference."),
        ("accuracy", 0.1, 0.05, 0.2, "Here it is better than before."),
        ("log_loss", 0.1, 0.05, 0.2, "Here it is worse than before."),
    ],
)
def test_a_difference_is_shown_only_by_its_interval(
    figure: str, difference: float | None, low: float | None, high: float | None, said: str
) -> None:
    row = {"figure": figure, "difference": difference, "difference_low": low, "difference_high": high}
    assert verdict(row) == said
