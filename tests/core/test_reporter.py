"""Texts for a person: several that are alike become one whole sentence."""

from __future__ import annotations

import re

import pytest

from consilium.core.reporter import in_common

VARYING = re.compile(r"'[^']*'|\d+(?:[.,]\d+)*|(?<=\()[^()]*(?=\))")


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["only 8 cases tested"] * 2, "only 8 cases tested"),
        (["only 8 cases tested", "only 5 cases tested", "only 12 cases tested"], "only 5 to 12 cases tested"),
        (["a share of 0.5", "a share of 0.25"], "a share of 0.25 to 0.5"),
        (["1,200 rows", "30 rows"], "30 to 1,200 rows"),
        (["split '0' is unknown", "split '1' is unknown"], "split '0' or '1' is unknown"),
        ([f"split '{n}' is unknown" for n in range(5)], "split '0', '1', '2' or others is unknown"),
        ([f"'{letter * 60}' is long" for letter in "abc"], f"'{'a' * 60}' or others is long"),
        (["no case of (ct, mri)", "no case of (ct)"], "no case of (ct, mri or ct)"),
    ],
)
def test_what_differs_is_named(texts: list[str], sentence: str) -> None:
    assert in_common(texts, varying=VARYING) == sentence
