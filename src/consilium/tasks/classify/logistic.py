"""A head that is fitted to all training cases at once: a logistic regression among the siblings at every node.

Axes in names: N case of the table, U unit, T training row, K child of a node, F feature, G group of siblings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from consilium.core.config import nearest
from consilium.core.errors import ConfigError, DataError
from consilium.core.labels import LabelTree, Siblings
from consilium.core.reporter import counted
from consilium.data.cases.cases import Cases
from consilium.data.cases.folds import divide, units_of
from consilium.data.store.splits import position
from consilium.evaluation.logistic import FOLDS, STRENGTHS, LinearHead, choose_linear, fit_linear, softmax


@dataclass(frozen=True)
class Solved:
    """The head's weight [K, F] and bias [K], its mean log loss on the training rows, and a row on each regression.

    ``trust_K`` is what the scores of a prior are multiplied by.
    """

    weight_KF: np.ndarray
    bias_K: np.ndarray
    trust_K: np.ndarray
    loss: float
    table: list[dict[str, Any]]


def units_left_out(cases: Cases, leave_out: str) -> np.ndarray:
    """The number [N] of the unit of each case: its group, or its value of a column.

    Cases without a value are one unit. A column that is not there is a ConfigError, training cases of a single unit are
    a DataError.
    """
    table, columns = cases.table, cases.table.columns()
    if leave_out != "group" and leave_out not in columns:
        hint = nearest(leave_out, ["group", *sorted(columns)], there="there are")
        raise ConfigError(f"task.head.leave_out names the column '{leave_out}'{hint}")
    values = units_of(table) if leave_out == "group" else columns[leave_out]
    names, unit_N = np.unique(np.array(values, dtype=str), return_inverse=True)
    train = unit_N[cases.rows["train"]]
    if len(np.unique(train)) < 2:
        raise DataError(
            f"task.head chooses its strength on training cases of which whole values of '{leave_out}' are left out, "
            f"and all {counted(len(train), 'training case')} have one: '{names[train[0]]}'. {_instead(leave_out)}"
        )
    return np.asarray(unit_N, dtype=np.int64)


def _instead(leave_out: str) -> str:
    if leave_out == "group":
        return "Name the column of the patient (columns.group of a source)."
    return "Name another column in task.head.leave_out, or group."


def fit_siblings(
    features_TF: np.ndarray,
    targets_T: np.ndarray,
    weights_T: np.ndarray,
    units_T: np.ndarray,
    *,
    judged_T: np.ndarray | None = None,
    prior_TK: np.ndarray | None = None,
    labels: LabelTree,
    leave_out: str,
    progress: Callable[[int, int], None],
) -> Solved:
    """The regression of every group of siblings, on the rows at or below one of them, with a strength of its own.

    ``targets_T`` are ids of nodes. The strength is the one of least weighted log loss on units that are left out, of
    which the rows in ``judged_T`` (None: all) are judged, in folds that are even in every class. Where siblings have
    one unit alone, or no class in two, they take the strength of the nearest node above that could choose; none above
    that is a DataError. ``prior_TK`` are scores of another kind to which those of the head are added: how far they are
    trusted is chosen with the strength, a class without cases is answered by them alone, and siblings without any case
    by them as they are.
    """
    weight_KF, bias_K = np.zeros((len(labels), features_TF.shape[1])), np.zeros(len(labels))
    trust_K = np.ones(len(labels))
    table: list[dict[str, Any]] = []
    solved: dict[int | None, _Found] = {}
    loss, steps_TG = 0.0, labels.steps_MG[targets_T]
    judged_T = np.ones(len(targets_T), dtype=bool) if judged_T is None else judged_T
    for number, group in enumerate(labels.siblings):
        rows = np.flatnonzero(steps_TG[:, number] >= 0)
        targets_TK = np.eye(len(group.ids))[steps_TG[rows, number]]
        if not len(rows) or len(group.ids) < 2:
            continue
        children = list(group.ids)
        prior = None if prior_TK is None else prior_TK[rows][:, children]
        problem = _Problem(features_TF[rows], targets_TK, weights_T[rows], units_T[rows], judged_T[rows], prior)
        above = next((solved[node] for node in _above(labels, group) if node in solved), None)
        name = labels.name_of(group.parent)
        found = problem.solve(name, above=above, leave_out=leave_out, progress=progress)
        solved[group.parent] = found
        weight_KF[children], bias_K[children] = found.head.layer()
        trust_K[children] = found.head.trust
        scores_TK = problem.features_TF @ weight_KF[children].T + bias_K[children]
        likely_TK = softmax(scores_TK if prior is None else scores_TK + found.head.trust * prior)
        loss -= float(problem.weights_T @ np.log((likely_TK * targets_TK).sum(axis=1).clip(1e-12)))
        table.append(
            {"node": name, "strength": f"{found.strength:g}", **found.facts, "converged": found.head.converged}
        )
    return Solved(weight_KF, bias_K, trust_K, loss, table)


def _above(labels: LabelTree, group: Siblings) -> list[int | None]:
    """The parents of the groups above a group, from the nearest to the root."""
    path = () if group.parent is None else labels.path(group.parent)[:-1]
    return [*reversed(path), None]


@dataclass(frozen=True)
class _Found:
    head: LinearHead
    strength: float
    facts: dict[str, Any]


@dataclass(frozen=True)
class _Problem:
    """The rows of one regression."""

    features_TF: np.ndarray
    targets_TK: np.ndarray
    weights_T: np.ndarray
    units_T: np.ndarray
    judged_T: np.ndarray
    prior_TK: np.ndarray | None

    def solve(self, name: str, *, above: _Found | None, leave_out: str, progress: Callable[[int, int], None]) -> _Found:
        """The head of the strength that left-out units choose, or of the one from ``above`` where they cannot."""
        fold_T, rows = self._folds(), (self.features_TF, self.targets_TK)
        if self._chooses(fold_T):
            chosen = choose_linear(
                *rows,
                fold_T,
                weights_T=self.weights_T,
                judged_T=self.judged_T,
                prior_TK=self.prior_TK,
                progress=progress,
            )
            losses: dict[str, float | None] = {f"log_loss_{own:g}": chosen.log_losses.get(own) for own in STRENGTHS}
            if self.prior_TK is not None:
                by_trust = {f"log_loss_trust_{own:g}": loss for own, loss in chosen.by_trust.items()}
                losses = {"trust": chosen.head.trust, **by_trust, **losses}
            return _Found(chosen.head, chosen.strength, {"chosen_by": f"{fold_T.max() + 1} folds", **losses})
        if above is None:
            raise DataError(
                f"task.head chooses its strength on cases that are left out by '{leave_out}', and at the node '{name}' "
                f"no class has cases of two, so that nothing left out could be named. {_instead(leave_out)}"
            )
        head = fit_linear(
            *rows,
            strength=above.strength,
            weights_T=self.weights_T,
            prior_TK=self.prior_TK,
            trust=above.head.trust,
        )
        trust = {} if self.prior_TK is None else {"trust": head.trust}
        return _Found(head, above.strength, {"chosen_by": "the node above", **trust})

    def _chooses(self, fold_T: np.ndarray) -> bool:
        """Whether a class is in several folds, where another one is, too; a prior also names those that are not."""
        if self.prior_TK is not None:
            return bool(fold_T.max() > 0)
        shown = [self.targets_TK[fold_T != fold].any(axis=0) for fold in range(fold_T.max() + 1)]
        judged = [self.targets_TK[fold_T == fold].any(axis=0) & own for fold, own in enumerate(shown)]
        return any(own.any() and there.sum() > 1 for own, there in zip(judged, shown, strict=True))

    def _folds(self) -> np.ndarray:
        """The fold [T] of each row; a function of its unit, not of a seed."""
        names, unit_T = np.unique(self.units_T, return_inverse=True)
        counts_UK = np.zeros((len(names), self.targets_TK.shape[1]), dtype=np.int64)
        np.add.at(counts_UK, unit_T, self.targets_TK.astype(np.int64))
        folds = min(FOLDS, len(names))
        place_U = [position(str(name), seed=0) for name in names.tolist()]
        fold_U = divide(counts_UK, shares=[1 / folds] * folds, place_U=place_U)
        return np.asarray(np.unique(fold_U, return_inverse=True)[1][unit_T])
