"""Bundles of every model that a test asks for, each written once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.export.models import MODELS


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of a model by its name in ``MODELS``."""
    return cache(lambda name: MODELS[name](tmp_path_factory.mktemp("model")))
