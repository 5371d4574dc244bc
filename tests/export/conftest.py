"""Bundles of every model that a test asks for, each written once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from consilium.export.forms import Form
from consilium.export.run import Exported, export
from tests.export.models import MODELS
from tests.tiny import Recorder


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of a model by its name in ``MODELS``."""
    return cache(lambda name: MODELS[name](tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="session")
def exported(
    bundles: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Form], Exported]:
    """The bundle of a model in a form; no test changes its folder."""

    @cache
    def leave(name: str, form: Form) -> Exported:
        return export(bundles(name), to=form, out=tmp_path_factory.mktemp("left") / "out", reporter=Recorder())

    return leave
