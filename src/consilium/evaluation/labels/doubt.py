"""Signs of doubt side by side: how well each tells right answers from wrong ones, also where sources are new.

Axes in names: N case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.estimates import estimate
from consilium.evaluation.labels import hierarchy as h
from consilium.evaluation.metrics import Bools, Floats

AURC = "aurc"
_CURVE_ROWS = 200


def curve_rows(sure_N: Floats, wrong_N: Bools) -> list[dict[str, Any]]:
    """Points of the curve of risk over coverage, at most 200 of them, from the surest case on.

    The ``threshold`` is that of the sign itself: of one that grows with doubt ``sure_N`` is the negative.
    """
    curve = h.risk_coverage(sure_N, wrong_N)
    points = len(curve.sure_T)
    shown = np.unique(np.linspace(0, max(points - 1, 0), min(points, _CURVE_ROWS)).round().astype(int))
    return [
        {
            "threshold": abs(float(curve.sure_T[at])),
            "answered": int(curve.answered[at]),
            "coverage": float(curve.answered[at] / curve.answered[-1]),
            "risk": float(curve.risk[at]),
        }
        for at in shown
    ]


def sign_tables(
    signs: Mapping[str, Floats],
    wrong_N: Bools,
    *,
    groups: Sequence[str],
    columns: Mapping[str, np.ndarray],
    seen: Mapping[str, Sequence[str]],
    config: EvaluationConfig,
) -> dict[str, list[dict[str, Any]]]:
    """The area under the curve of every sign (``doubt``), and the curves (``doubt_curves``), of all cases.

    ``signs`` say how sure each answer is, ``wrong_N`` whether it is wrong. ``seen`` are the values that training cases
    have in some of the ``columns``: the same is given once more of the cases whose value in ``never_seen`` is another.
    """
    among = {"": np.ones(len(wrong_N), dtype=bool)}
    for column, values in seen.items():
        if column in columns:
            among[column] = ~np.isin(columns[column].astype(str), ["", *values])
    tables: dict[str, list[dict[str, Any]]] = {"doubt": [], "doubt_curves": []}
    for column, here_N in among.items():
        chosen = np.flatnonzero(here_N)
        for sign, sure_N in signs.items() if len(chosen) else ():
            sure, wrong = sure_N[chosen], wrong_N[chosen]
            found = estimate(
                {},
                [groups[n] for n in chosen.tolist()],
                config=config,
                extra={AURC: lambda weights, sure=sure, wrong=wrong: h.aurc(sure, wrong, weights=weights)},  # type: ignore[misc]
            )
            told = {"sign": sign, "never_seen": column}
            tables["doubt"].append({**told, "cases": len(chosen), "wrong": int(wrong.sum()), **found.cells(AURC, AURC)})
            tables["doubt_curves"] += [{**told, **row} for row in curve_rows(sure, wrong)]
    return tables
