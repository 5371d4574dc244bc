"""How many damaged inputs a form gets: few in the fast suite, 2,500 in the slow one."""

from __future__ import annotations

import pytest

FEW, MANY = 200, 2500


@pytest.fixture(params=[pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)])
def count(request: pytest.FixtureRequest) -> int:
    """The number of inputs."""
    return int(request.param)
