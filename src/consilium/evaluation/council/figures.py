"""The figures of a council: how often the right expert gave the right answer, and what the router costs.

Axes in names: N case, R resample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from consilium.core.answers import DEFAULT, GENERALIST, UNKNOWN
from consilium.core.evaluation import Evaluation
from consilium.core.reporter import counted
from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.estimates import Estimates, Share, estimate
from consilium.evaluation.labels import hierarchy as h
from consilium.evaluation.labels.doubt import AURC, curve_rows
from consilium.evaluation.metrics import Bools, Floats, defined
from consilium.evaluation.subgroups import subgroups

NO_EXPERT = "no expert"  # what tables call a true route where none sits
# What may become of a case.
RIGHT, WRONG, SHORT = "right answer", "wrong answer", "not answered by the right expert"
ELSEWHERE, SILENT, PASSED = "sent to a wrong expert", "not sent to its expert", "rightly sent to no expert"
NOT_JUDGED = "right expert, answer not judged"
OUTCOMES = (RIGHT, PASSED, WRONG, SHORT, ELSEWHERE, SILENT, NOT_JUDGED)

END_TO_END, ORACLE, COST = "end_to_end", "oracle_end_to_end", "router_cost"
ROUTED, ANSWERED, RIGHT_WHEN_ANSWERED = "route_accuracy", "answers_given", "right_when_given"
FIGURES = (END_TO_END, ORACLE, COST, ROUTED, ANSWERED, RIGHT_WHEN_ANSWERED, AURC)  # the most important first


def is_expert(asked: str) -> bool:
    """Whether somebody who was asked is an expert at a node."""
    return asked not in (UNKNOWN, DEFAULT, GENERALIST)


@dataclass(frozen=True)
class CouncilCase:
    """What a council said of a case, beside what is true.

    ``true_route`` and ``route`` are labels, or 'unknown'. ``expected`` is the seat of the expert on the true route,
    None where none sits, and ``asked`` who was asked first: a seat, 'default', 'generalist', or 'unknown' for nobody.
    ``route_right``: the right one was asked, by a path that does not leave the true one. ``right``: what the council
    answered is true; ``oracle_right``: so is what it answers when it is told the true route; both None where there is
    nothing to compare an answer with. ``answered``: a whole answer was given, and ``sure`` is its confidence: the
    probability of the route times that of the answer.
    """

    id: str
    group: str
    true_route: str
    route: str
    expected: str | None
    asked: str
    route_right: bool
    truth: str
    answer: str
    right: bool | None
    oracle_right: bool | None
    answered: bool
    sure: float
    columns: Mapping[str, str] = field(default_factory=dict)
    error: str = ""

    @property
    def outcome(self) -> str:
        """One of ``OUTCOMES``."""
        sent = is_expert(self.asked)
        if self.expected is None:
            return ELSEWHERE if sent else WRONG if self.right is False else PASSED
        if not self.route_right:
            return ELSEWHERE if sent else SILENT
        if self.right is None:
            return NOT_JUDGED
        return RIGHT if self.right else WRONG if self.answered else SHORT

    def row(self) -> dict[str, Any]:
        """The case as a row of a table."""
        own = {key: value for key, value in asdict(self).items() if key not in ("columns", "right", "sure")}
        return {**own, "outcome": self.outcome, "sure": round(self.sure, 6), **self.columns}


@dataclass(frozen=True)
class _Arrays:
    """The cases as arrays, [N]; ``judged_N``: there is something to compare the answer of the true expert with."""

    judged_N: Bools
    right_N: Bools
    oracle_N: Bools
    routed_N: Bools
    given_N: Bools
    sure_N: Floats
    expected_N: np.ndarray
    asked_N: np.ndarray

    @classmethod
    def of(cls, cases: Sequence[CouncilCase]) -> _Arrays:
        judged_N = np.array([case.oracle_right is not None for case in cases])
        return cls(
            judged_N=judged_N,
            right_N=np.array([case.route_right and bool(case.right) for case in cases]) & judged_N,
            oracle_N=np.array([bool(case.oracle_right) for case in cases]) & judged_N,
            routed_N=np.array([case.route_right for case in cases]),
            given_N=np.array([case.answered for case in cases]) & judged_N,
            sure_N=np.array([case.sure for case in cases], dtype=float),
            expected_N=np.array([case.expected or NO_EXPERT for case in cases]),
            asked_N=np.array([case.asked for case in cases]),
        )

    def shares(self, among_N: Bools) -> dict[str, Share]:
        """The figures of some of the cases."""
        judged_N, given_N = self.judged_N & among_N, self.given_N & among_N
        return {
            END_TO_END: Share(self.right_N & among_N, judged_N),
            ORACLE: Share(self.oracle_N & among_N, judged_N),
            ROUTED: Share(self.routed_N & among_N, among_N),
            ANSWERED: Share(given_N, judged_N),
            RIGHT_WHEN_ANSWERED: Share(self.right_N & given_N, given_N),
        }


def evaluate_council(
    cases: Sequence[CouncilCase],
    *,
    split: str,
    config: EvaluationConfig,
    seen: Mapping[str, Sequence[str]],
    stages: Sequence[dict[str, Any]],
    unread: Mapping[str, str],
    notes: Sequence[str] = (),
) -> Evaluation:
    """Every figure of a council, with intervals over groups.

    ``seen``: the values that the router's training cases have in some columns. ``stages`` are the rows of the table of
    latencies, ``unread`` the cases that could not be read, and why.
    """
    arrays, groups = _Arrays.of(cases), [case.group for case in cases]
    estimates = _estimate(arrays, groups, config=config)
    intervals = {name: estimates.interval(name) for name in FIGURES if not np.isnan(estimates.values[name])}
    own_notes = [*notes, *_notes(cases)]
    given = np.flatnonzero(arrays.given_N)
    tables = {
        "outcomes": [
            {"outcome": outcome, "cases": count, "share": count / len(cases)}
            for outcome, count in _ordered(Counter(case.outcome for case in cases))
        ],
        "per_expert": _per_expert(arrays, groups, config=config),
        **_per_column(cases, arrays, groups, seen=seen, config=config, notes=own_notes),
        "no_expert": _without_expert(cases),
        "confusion": [
            {"truth": truth, "prediction": route, "cases": count}
            for (truth, route), count in sorted(Counter((case.true_route, case.route) for case in cases).items())
        ],
        "risk_coverage": _curve(arrays, given),
        "stages": list(stages),
        "cases": [case.row() for case in cases],
        **({"unread": [{"id": name, "reason": reason} for name, reason in unread.items()]} if unread else {}),
    }
    tables["notes"] = [{"note": text} for text in own_notes]
    return Evaluation(
        split=split,
        cases=len(cases),
        metrics={name: defined(estimates.values[name]) for name in FIGURES},
        intervals=intervals,
        tables=tables,
        groups=len(set(groups)),
    )


def _estimate(arrays: _Arrays, groups: list[str], *, config: EvaluationConfig) -> Estimates:
    """The figures of all cases."""
    given_N = arrays.given_N
    shares = arrays.shares(np.ones_like(given_N))

    def cost(weights: Floats | None) -> Floats:
        return np.asarray(shares[ORACLE].value(weights) - shares[END_TO_END].value(weights))

    def risk(weights: Floats | None) -> Floats:
        own = np.ones(len(given_N)) if weights is None else weights
        return h.aurc(arrays.sure_N[given_N], ~arrays.right_N[given_N], weights=own[..., given_N])

    return estimate(shares, groups, config=config, extra={COST: cost, AURC: risk})


def _ordered(counts: Counter[str]) -> list[tuple[str, int]]:
    return [(outcome, counts[outcome]) for outcome in OUTCOMES if counts[outcome]]


def _per_expert(arrays: _Arrays, groups: list[str], *, config: EvaluationConfig) -> list[dict[str, Any]]:
    """A row for the cases of every expert, and one for those without."""
    names = {*arrays.expected_N.tolist(), *(name for name in arrays.asked_N.tolist() if is_expert(name))}
    rows = []
    for name in sorted(names, key=lambda name: (name == NO_EXPERT, name)):
        own_N, asked_N = arrays.expected_N == name, arrays.asked_N == name
        rows.append(
            {
                "expert": name,
                **_figures(arrays, own_N, groups, config=config),
                "judged": int((own_N & arrays.judged_N).sum()),
                "asked": None if name == NO_EXPERT else int(asked_N.sum()),
                "of_others": None if name == NO_EXPERT else int((asked_N & ~own_N).sum()),
            }
        )
    return rows


def _per_column(
    cases: Sequence[CouncilCase],
    arrays: _Arrays,
    groups: list[str],
    *,
    seen: Mapping[str, Sequence[str]],
    config: EvaluationConfig,
    notes: list[str],
) -> dict[str, list[dict[str, Any]]]:
    """``per_{column}``: the figures of each value of a column; ``seen``: of values that the router was trained on."""
    columns = {name: [case.columns[name] for case in cases] for name in cases[0].columns}
    tables: dict[str, list[dict[str, Any]]] = {"seen": []}
    for column in config.columns:
        values = subgroups(columns, column, config=config, notes=notes)
        among = {value: np.isin(np.arange(len(cases)), rows) for value, rows in values.items()}
        tables[f"per_{column}"] = [
            {column: value, **_figures(arrays, own_N, groups, config=config)} for value, own_N in among.items()
        ]
        for kind, is_known in (("trained on", True), ("never seen", False)) if column in seen else ():
            own_N = np.isin(columns.get(column, []), ["", *seen[column]]) == is_known
            if own_N.any():
                told = {"column": column, "the router has": kind}
                tables["seen"].append({**told, **_figures(arrays, own_N, groups, config=config)})
    return tables


def _figures(arrays: _Arrays, own_N: Bools, groups: list[str], *, config: EvaluationConfig) -> dict[str, Any]:
    """The figures of some of the cases, as cells of a table."""
    shares = arrays.shares(own_N)
    shown = {figure: shares[figure] for figure in (END_TO_END, ORACLE, ROUTED)}
    found = estimate(shown, groups, config=config)
    row: dict[str, Any] = {"n": int(own_N.sum()), "groups": len({groups[n] for n in np.flatnonzero(own_N).tolist()})}
    for figure in shown:
        row |= found.cells(figure, figure)
    return row


def _without_expert(cases: Sequence[CouncilCase]) -> list[dict[str, Any]]:
    """Of every true route where no expert sits: how many cases went to whom."""
    routes: dict[str, Counter[str]] = {}
    for case in cases:
        if case.expected is None:
            routes.setdefault(case.true_route, Counter())[case.asked] += 1
    return [
        {
            "route": route,
            "cases": asked.total(),
            "no_expert_asked": asked.total() - sum(count for name, count in asked.items() if is_expert(name)),
            "sent_to": ", ".join(f"{name} {count}" for name, count in asked.most_common() if is_expert(name)),
        }
        for route, asked in sorted(routes.items())
    ]


def _curve(arrays: _Arrays, given: np.ndarray) -> list[dict[str, Any]]:
    """Risk over coverage of the answers that were given; coverage is the share of all judged cases."""
    if not len(given):
        return []
    share = len(given) / int(arrays.judged_N.sum())
    rows = curve_rows(arrays.sure_N[given], ~arrays.right_N[given])
    return [{**row, "coverage": row["coverage"] * share} for row in rows]


def judged(evaluation: Evaluation) -> int:
    """How many cases have an answer to compare with, or rightly none."""
    return sum(row["judged"] for row in evaluation.tables["per_expert"])


def _notes(cases: Sequence[CouncilCase]) -> list[str]:
    """What a reader must know before believing the figures."""
    unjudged = Counter(case.expected for case in cases if case.oracle_right is None)
    found = [
        f"{counted(count, 'case')} of the expert of '{name}' count for the route alone: there is no answer to compare "
        "with what it says."
        for name, count in sorted(unjudged.items(), key=lambda item: str(item[0]))
    ]
    if failed := [case for case in cases if case.error]:
        found.append(
            f"{counted(len(failed), 'case')} got no answer from the expert that was asked, and count as wrong; the "
            f"first is {failed[0].id}: {failed[0].error}"
        )
    return found
