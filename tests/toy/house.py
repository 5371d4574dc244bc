"""Adds the toy to the house while tests run: the folder, and the one line of the union."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, get_args

from pydantic import Tag

from consilium.experiment import Experiment
from consilium.manifest import Manifest
from consilium.tasks.config import OneTask, TaskConfig
from tests.toy import family
from tests.toy.family import ToySection


@contextmanager
def toy_in_the_house() -> Iterator[None]:
    """``task.kind: toy`` works inside."""
    union = get_args(TaskConfig)[0]
    sys.modules["consilium.tasks.toy.family"] = family
    try:
        _union(union | Annotated[ToySection, Tag("toy")])
        yield
    finally:
        _union(union)
        del sys.modules["consilium.tasks.toy.family"]


def _union(union: Any) -> None:
    for model in (OneTask, Experiment, Manifest):
        model.model_fields["task"].annotation = union
        model.model_rebuild(force=True)
