"""What a kind of task adds to a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from consilium.core.evaluation import Evaluation
from consilium.evaluation.report import wording, words


def _by_name(metric: str, evaluation: Evaluation) -> str:
    return words.meaning(metric)


def _nothing(evaluation: Evaluation) -> list[str]:
    return []


@dataclass(frozen=True)
class PooledParts:
    """What a kind of task adds to the page of a cross-validation whose answers of all folds are judged in one list.

    ``sections`` are templates after the table of folds. ``predicates`` end a sentence that begins with a share of the
    cases ("were named right"), by figure. ``undefined`` is an example of a fold in which a figure is not defined.
    ``cautions`` are about figures over the answers of several models.
    """

    sections: tuple[str, ...] = ()
    predicates: Mapping[str, str] = field(default_factory=dict)
    undefined: str = ""
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True)
class AddedTable:
    """A section that a report gets beside its figures: a sentence and a table; the rows are in ``tables``, too."""

    title: str
    text: str
    rows: Sequence[Mapping[str, Any]]
    name: str


@dataclass(frozen=True)
class ReportParts:
    """What a kind of task adds to a report. Figures and tables that an evaluation lacks are left out.

    ``about`` follows the name in the title. ``headlines`` are figures with intervals, the most important first, and
    ``curves`` those that a training shows beside the loss. ``summary(evaluation, confidence)`` says the result in
    sentences, most important first; ``beside`` what it is to be compared with. ``sections`` and ``galleries`` are
    templates of ``package``, after the headline figures and after the tables by column; ``compared`` are those of the
    page of a comparison, each by the table of test that it shows; ``card`` is one of the model card. What templates
    call is in ``calls``. ``figures`` are what ``metrics.json`` has beside the metrics, ``results`` what
    ``evaluation_results.json`` has of a split; without any there is no such file. ``pooled`` is added to the page of a
    cross-validation. ``by_column`` are the figures for each value of a column. ``screen`` are the figures that are
    printed, () all of them, and ``console`` are further lines. ``labels`` are the classes in reading order, of tasks
    that have some.
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
    figures: Callable[[Evaluation], Mapping[str, Any]] = lambda evaluation: {}
    results: Callable[[Evaluation], Mapping[str, Any]] = lambda evaluation: {}
    by_column: tuple[str, ...] = ()
    screen: tuple[str, ...] = ()
    package: str = "consilium.evaluation"
    sections: tuple[str, ...] = ()
    galleries: tuple[str, ...] = ()
    compared: Mapping[str, str] = field(default_factory=dict)
    card: str | None = None
    pooled: PooledParts = PooledParts()
    calls: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
