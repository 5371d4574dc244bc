"""Plain values are read out of a pickle by its instructions, and nothing in it is called."""

from __future__ import annotations

import collections
import datetime
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.data.case import RowError
from consilium.data.sources.pickled import plain_value

PLAIN = st.recursive(
    st.text() | st.binary() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=5).map(tuple),
    max_leaves=12,
)


@given(value=PLAIN, protocol=st.integers(3, pickle.HIGHEST_PROTOCOL))
def test_plain_values(value: Any, protocol: int) -> None:
    assert plain_value(pickle.dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize("protocol", range(6))
def test_a_pair_in_every_protocol(protocol: int) -> None:
    pair = ("p7", 12, "Drusen, 黄斑.")
    assert plain_value(pickle.dumps(pair, protocol=protocol)) == pair


class _Call:
    """A pickle of it would write a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_call_is_refused_and_not_made(tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "made"
    with pytest.raises(RowError, match=r"calls or names Python code \(posix\.mkdir\); nothing in a pickle is ever run"):
        plain_value(pickle.dumps((1, _Call(file)), protocol=protocol))
    assert not file.exists()


@pytest.mark.parametrize("value", [[1], {"a": 1}, {1}, None, (True,), collections.OrderedDict(), np.int64(3)])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(RowError, match=r"calls or names Python code|holds more than text, bytes, numbers and tuples"):
        plain_value(pickle.dumps(value))


def test_a_date_is_refused() -> None:
    with pytest.raises(RowError, match=r"datetime\.date"):
        plain_value(pickle.dumps(datetime.date(2020, 1, 1)))


@given(value=PLAIN, cut=st.integers(1, 30))
def test_a_pickle_cut_short(value: Any, cut: int) -> None:
    pickled = pickle.dumps(value)
    with pytest.raises(RowError, match="cut short or damaged"):
        plain_value(pickled[: max(0, len(pickled) - cut)])


@given(noise=st.binary(max_size=60))
def test_noise_is_a_row_error_or_a_plain_value(noise: bytes) -> None:
    try:
        value = plain_value(b"\x80\x04" + noise)
    except RowError:
        return
    assert isinstance(value, str | bytes | int | float | tuple)
