"""What a kind of task adds to a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from consilium.core.contracts import Evaluation
from consilium.evaluation.report import wording, words


def _by_name(metric: str, evaluation: Evaluation) -> str:
    return words.meaning(metric)


def _nothing(evaluation: Evaluation) -> list[str]:
    return []


@dataclass(frozen=True)
class ReportParts:
    """What a kind of task adds to a report. Figures and tables that an evaluation lacks are left out.

    ``about`` follows the name in the title. ``headlines`` are figures with intervals, the most important first, and
    ``curves`` those that a training shows beside the loss. ``summary(evaluation, confidence)`` says the result in
    sentences, most important first; ``beside`` what it is to be compared with. ``sections`` and ``galleries`` are
    templates of ``package``, after the headline figures and after the tables by column; ``card`` is one of the model
    card. What they call is in ``calls``. ``by_column`` are the figures for each value of a column. ``console`` are
    lines for the screen. ``labels`` are the classes in reading order, of tasks that have some.
    """

    about: str
    intended_use: str
    pipeline_tag: str
    headlines: tuple[str, ...]
    curves: tuple[str, ...]
    summary: Callable[[Evaluation, float], list[str]]
    beside: Callable[[Evaluation], list[str]] = _nothing
    cautions: Callable[[Evaluation], list[str]] = wording.cautions
    limits: Callable[[Evaluation | None], list[str]] = lambda evaluation: []
    meaning: Callable[[str, Evaluation], str] = _by_name
    console: Callable[[Evaluation], list[str]] = _nothing
    by_column: tuple[str, ...] = ()
    package: str = "consilium.evaluation"
    sections: tuple[str, ...] = ()
    galleries: tuple[str, ...] = ()
    card: str | None = None
    calls: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
