"""Copies: what decides one, and how often draws show it."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.core.config import build, parse_yaml
from consilium.core.errors import ConfigError
from consilium.data.batches.config import AugmentationConfig, CopiesConfig, RandomChanges
from consilium.data.batches.copies import DrawnLooks, copy_digest, copy_draw

DIGESTS = [hashlib.sha256(bytes([number])).digest() for number in range(200)]


def test_every_copy_of_every_content_has_numbers_of_its_own() -> None:
    draws = [copy_draw(copy_digest(digest, number)) for digest in DIGESTS for number in range(1, 6)]
    assert len(set(draws)) == len(draws)
    assert min(draws) >= 0
    assert max(draws) < 2**63
    assert 0.45 < np.mean([draw >= 2**62 for draw in draws]) < 0.55


@given(number=st.integers(1, 5), weight=st.floats(0.1, 10), seed=st.integers(0, 2**31 - 1))
def test_draws_show_every_look_as_often_as_its_weight_says(number: int, weight: float, seed: int) -> None:
    config = CopiesConfig(number=number, weight=weight, invert_prob=0.5)
    assert sum(config.shares) == pytest.approx(1)
    assert sum(config.shares[1:]) == pytest.approx(weight * config.shares[0])
    draws_B = (np.arange(4) << 32)[:, None] + np.arange(5000)
    looks_B = DrawnLooks(config, seed=seed).of(draws_B.ravel())
    found = np.bincount(looks_B, minlength=number + 1) / looks_B.size
    assert len(found) == number + 1
    np.testing.assert_allclose(found, config.shares, atol=0.02)  # six deviations of 20,000 draws


def test_the_look_of_a_draw_is_its_own_whatever_is_beside_it() -> None:
    drawn, draws_B = DrawnLooks(CopiesConfig(number=3, blur=1.0), seed=4), np.arange(1000)
    looks_B = drawn.of(draws_B)
    assert np.array_equal(drawn.of(draws_B[::-7]), looks_B[::-7])
    assert not np.array_equal(DrawnLooks(CopiesConfig(number=3, blur=1.0), seed=5).of(draws_B), looks_B)


def test_a_copy_is_changed_as_a_draw_would_be() -> None:
    given = {"crop_scale": (0.03, 0.25), "horizontal_flip_prob": 0.5, "crop_ratio": (0.5, 2.0), "noise": 0.1}
    assert CopiesConfig(number=2, weight=0.5, **given).changes == AugmentationConfig(**given)
    assert set(AugmentationConfig.model_fields) - set(RandomChanges.model_fields) == {"views", "copies"}


@pytest.mark.parametrize(
    ("copies", "beside", "says"),
    [
        ("{number: 0, blur: 1}", {}, "`copies.number` is 0; expected a number of 1 or more"),
        ("{number: 1.5, blur: 1}", {}, "`copies.number` is 1.5; expected a whole number"),
        ("{weight: 0, blur: 1}", {}, "`copies.weight` is 0; expected a number above 0"),
        ("{weight: -1, blur: 1}", {}, "`copies.weight` is -1; expected a number above 0"),
        ("{crop_scale: [0.5, 1.5]}", {}, "`copies.crop_scale.1` is 1.5; expected a number of 1 or less"),
        ("{crop_scale: [0.5, 0.2]}", {}, r"crop_scale is \[0.5, 0.2\]; expected \[min, max\] with 0 < min <= max"),
        ("{horizontal_flip_prob: 2}", {}, "`copies.horizontal_flip_prob` is 2; expected a number of 1 or less"),
        ("{number: 3}", {}, "`copies`: no change is given, so that copies would equal their images; give one"),
        ("{crop_ratio: [0.5, 1], resolution_prob: 0.5}", {}, "no change is given"),
        ("{views: together, blur: 1}", {}, "`views` is not a key of `copies`"),
        ("{copies: {blur: 1}, blur: 1}", {}, "`copies` is not a key of `copies`"),
        ("{blurr: 1}", {}, "`blurr` is not a key of `copies`; did you mean `blur`"),
        ("2", {}, "`copies` is 2; expected a section of keys"),
        ("{blur: 1}", {"crop_scale": [0.5, 1]}, "copies are changed once, and crop_scale beside them would change"),
        ("{blur: 1}", {"views": "mirrored", "gamma": [0.5, 2]}, "and gamma, views beside them would change every draw"),
    ],
)
def test_what_copies_cannot_be_is_said(copies: str, beside: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(AugmentationConfig, {"copies": parse_yaml(copies, origin="tests"), **beside}, origin="tests")
