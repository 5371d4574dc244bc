"""How far a site lies from a training: in standard deviations, in shares, and where nothing is known."""

from __future__ import annotations

from consilium.core.inputs import InputStatistics, Spread
from consilium.evaluation.drift import drift_rows

TRAINING = InputStatistics(
    cases=10,
    shares={"image": 1.0, "text": 0.5, "meta.age": 0.9},
    quantities={"brightness": Spread(mean=0.4, std=0.1), "width": Spread(mean=512, std=0.0)},
)


def test_quantities_in_standard_deviations_and_shares_in_points() -> None:
    site = InputStatistics(
        cases=5,
        shares={"image": 1.0, "text": 0.45},
        quantities={"brightness": Spread(mean=0.46, std=0.2), "words": Spread(mean=9, std=2)},
    )
    rows = {row["what"]: row for row in drift_rows(TRAINING, site, labels={"a": (0.5, 0.8), "b": (0.5, 0.45)})}
    bright, words = rows["brightness of images (0 black, 1 white)"], rows["words of a text"]
    assert abs(bright["difference"] - 0.6) < 1e-9
    assert bright["far"]
    assert (words["training"], words["difference"], words["far"]) == (None, None, False)
    assert not rows["share of cases with a text"]["far"]
    assert rows["share of cases with a value of age"]["site"] == 0.0
    assert rows["share of cases with a value of age"]["far"]
    assert [rows[f"share of label {name}"]["far"] for name in "ab"] == [True, False]


def test_what_never_varies_in_training_is_near_only_where_it_is_the_same() -> None:
    for width, far in ((512, False), (513, True)):
        site = InputStatistics(cases=5, quantities={"width": Spread(mean=width, std=0.0)})
        (row,) = (row for row in drift_rows(TRAINING, site, labels={}) if "width" in row["what"])
        assert row["far"] is far
        assert bool(row["difference"]) is far


def test_a_bundle_that_knows_nothing_of_its_training_is_not_said_to_differ() -> None:
    rows = drift_rows(None, TRAINING, labels={"a": (None, 0.8)})
    assert rows
    assert all(row["difference"] is None and not row["far"] for row in rows)
