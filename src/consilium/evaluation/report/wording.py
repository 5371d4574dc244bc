"""Figures in words and numbers, as the report and the model card show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consilium.core.evaluation import Evaluation, Interval
from consilium.core.reporter import counted
from consilium.evaluation.report.words import is_rank, is_share

FEW_CASES = 10
FEW_GROUPS = 20
SPLIT_WORDS = {"test": "held-out test cases", "val": "validation cases", "train": "training cases"}

_OPTIMISTIC = {
    "val": "These are validation cases. They chose the best checkpoint, so new cases will give somewhat lower figures.",
    "train": "These are training cases. The model has seen them, so the figures say little about new cases.",
}


def percent(value: float | None, digits: int = 1) -> str:
    """A share as ``94.2 %``, an undefined one as a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def plain(share: float) -> str:
    """A share that somebody wrote down, with as many digits: ``95 %``."""
    return f"{100 * share:g}\N{NO-BREAK SPACE}%"


def number(value: Any) -> str:
    """A figure for a table cell: three decimals, thousands apart, a dash for None."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") if isinstance(value, int) else f"{value:.3f}"


def place(rank: float) -> str:
    """A place in an order: ``7``, or ``7.5`` between two."""
    return f"{rank:.1f}".removesuffix(".0")


def figure(name: str, value: float | None) -> str:
    """A metric's value: a percentage for shares, a place for ranks, three decimals otherwise."""
    if is_rank(name) and value is not None:
        return place(value)
    return percent(value) if is_share(name) else number(value)


def difference(name: str, value: float | None, *, unit: bool = True) -> str:
    """How much a metric differs, with its sign: ``+1.2 points`` (of a hundred) for a share."""
    if value is None:
        return "–"
    size = f"{100 * abs(value):.1f}" if is_share(name) else place(abs(value)) if is_rank(name) else f"{abs(value):.3f}"
    sign = "" if not float(size) else "+" if value > 0 else "\N{MINUS SIGN}"
    return sign + size + (" points" if unit and is_share(name) else "")


def difference_spread(name: str, low: float | None, high: float | None) -> str:
    """``+0.4 to +2.0``, empty when there is no interval."""
    if low is None or high is None:
        return ""
    return f"{difference(name, low, unit=False)} to {difference(name, high, unit=False)}"


def spread(name: str, low: float | None, high: float | None) -> str:
    """``91.8 to 96.3``, empty when there is no interval."""
    if low is None or high is None:
        return ""
    if is_share(name):
        return f"{100 * low:.1f} to {100 * high:.1f}"
    if is_rank(name):
        return f"{place(low)} to {place(high)}"
    return f"{low:.3f} to {high:.3f}"


def with_interval(name: str, interval: Interval, *, confidence: float) -> str:
    """``94.2 % (95 % interval 91.8 to 96.3)``."""
    shown = spread(name, interval.low, interval.high)
    level = f"{100 * confidence:g}\N{NO-BREAK SPACE}%"
    return figure(name, interval.value) + (f" ({level} interval {shown})" if shown else "")


def cases_phrase(evaluation: Evaluation) -> str:
    """``412 held-out test cases from 390 groups``."""
    kind = SPLIT_WORDS.get(evaluation.split, f"cases of the split {evaluation.split}")
    if evaluation.cases == 1:
        kind = kind.replace("cases", "case", 1)
    independent = evaluation.groups is not None and evaluation.groups < evaluation.cases
    return f"{number(evaluation.cases)} {kind}" + (
        f" from {number(evaluation.groups)} {'groups' if evaluation.groups != 1 else 'group'}" if independent else ""
    )


def on_the_split(evaluation: Evaluation) -> list[str]:
    """What a reader must know of the cases that were judged."""
    found = [_OPTIMISTIC[evaluation.split]] if evaluation.split in _OPTIMISTIC else []
    if evaluation.groups is not None and evaluation.groups < FEW_GROUPS:
        found.append(f"Only {evaluation.groups} independent groups were judged: the intervals are rough.")
    return found


def unread_sentence(unread: Mapping[str, str], *, split: str) -> str:
    """What a reader must know of cases of a split that could not be read, by their ids with the reason."""
    name, reason = next(iter(unread.items()))
    return (
        f"{counted(len(unread), 'case')} of {split} could not be read and count in no figure (listed in "
        f"tables/{split}_unread.csv); the first is {name}: {reason}"
    )


def notes(evaluation: Evaluation) -> list[str]:
    """What the evaluator noted."""
    return [row["note"] for row in evaluation.tables.get("notes", [])]


def cautions(evaluation: Evaluation) -> list[str]:
    """What a reader must know before believing any figures."""
    return on_the_split(evaluation) + notes(evaluation)


def listed(names: Sequence[str], at_most: int = 12) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more
