"""Figures of a classifier of several modalities: with all of them, with one alone, and where one is often missing.

Axes in names: N case, M modality, S subset of modalities (bit m of its number: modality m is in it), K class.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np

from consilium.core.evaluation import Evaluation, Evaluator, Outputs
from consilium.core.labels import LabelTree
from consilium.evaluation.config import EvaluationConfig

MISSING = (0.25, 0.5, 0.75, 1.0)  # shares of the cases that lose a modality
FIGURES = ("accuracy", "exact_match", "macro_f1", "macro_auroc")
EXPLAINS = 0.02  # a modality alone that comes so near to all of them explains the figure


class ModalityEvaluator(Evaluator):
    """Judges the answers as any classifier's, and what they would be with fewer modalities.

    Of every case the outputs have ``there`` [N, M] and, for every subset of modalities, ``subset_logits``,
    ``subset_probabilities`` and, of one label a case, ``subset_conditionals``, all [N, S, K].
    """

    def __init__(
        self, answers: Evaluator, *, modalities: Sequence[str], labels: LabelTree, config: EvaluationConfig
    ) -> None:
        """``answers`` judges the answers of classes."""
        self._answers, self._modalities, self._labels, self._config = answers, modalities, labels, config

    @property
    def metric_names(self) -> Sequence[str]:
        """Those of the answers."""
        return self._answers.metric_names

    def quick(self, outputs: Outputs) -> dict[str, float | None]:
        """The figures of the answers."""
        return self._answers.quick(outputs)

    def check_monitor(self, metric: str) -> None:
        """As of the answers."""
        self._answers.check_monitor(metric)

    def higher_is_better(self, metric: str) -> bool:
        """As of the answers."""
        return self._answers.higher_is_better(metric)

    def evaluate(self, outputs: Outputs, *, split: str) -> Evaluation:
        """The evaluation of the answers, and two tables.

        ``modalities``: the main figures with their intervals for the cases as they are, for the cases that have every
        modality with all and with each alone, and for shares of the cases losing one; a case always keeps what it has
        alone, and the cases of a smaller share are among those of a larger one. ``modality_classes``: the mean
        probability of the true class with every subset of modalities, and what each adds to it (Shapley values).
        """
        found = self._answers.evaluate(outputs, split=split)
        there_NM = outputs.arrays["there"] > 0.5
        everything = np.asarray(there_NM.all(1))
        rows = [self._row("as they are", outputs, there_NM, split)]
        if everything.any() and not everything.all():
            rows.append(self._row("with all modalities", taken(outputs, everything), there_NM[everything], split))
        alone = {}
        for place, name in enumerate(self._modalities):
            if everything.any():
                own_NM = np.zeros_like(there_NM[everything])
                own_NM[:, place] = True
                alone[name] = self._row(f"{name} only", taken(outputs, everything), own_NM, split)
        rows += alone.values()
        for place, name in enumerate(self._modalities):
            fate_N = np.array([_fate(name, case) for case in outputs.ids])
            for share in MISSING if everything.any() else ():
                left_NM = there_NM.copy()
                left_NM[(fate_N < share) & (there_NM.sum(1) > 1), place] = False
                row = self._row(f"{name} missing in {share:.0%}", outputs, left_NM, split)
                rows.append({**row, "lost": name, "share": share})
        tables = {**found.tables, "modalities": rows}
        if not outputs.known_targets.ndim > 1 and everything.any():
            tables["modality_classes"] = self._classes(taken(outputs, everything))
        whole = rows[1] if everything.any() and not everything.all() else rows[0]
        if notes := [note for name, row in alone.items() if (note := _explained(name, row, whole))]:
            tables["notes"] = [*tables.get("notes", []), *({"note": note} for note in notes)]
        return replace(found, tables=tables)

    def _row(self, what: str, outputs: Outputs, left_NM: np.ndarray, split: str) -> dict[str, Any]:
        judged = self._answers.evaluate(under(outputs, left_NM), split=split)
        row: dict[str, Any] = {"what": what, "lost": None, "share": None, "cases": judged.cases}
        row |= {name: float(left_NM[:, place].mean()) for place, name in enumerate(self._modalities)}
        for name in FIGURES:
            if (interval := judged.intervals.get(name)) is not None:
                row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        return row

    def _classes(self, outputs: Outputs) -> list[dict[str, Any]]:
        """Of each class the mean probability of the truth, and what each modality adds."""
        targets_N = outputs.known_targets
        known = np.flatnonzero(targets_N >= 0)
        value_NS = outputs.arrays["subset_probabilities"][known, :, targets_N[known]]
        rows = []
        for number, label in enumerate(self._labels.names):
            own = targets_N[known] == number
            if not own.any():
                continue
            value_S = value_NS[own].mean(0)
            players = list(range(len(self._modalities)))
            added = shapley(value_S, players)
            rows.append(
                {"label": label, "cases": int(own.sum()), "all": float(value_S[-1])}
                | {f"{name} only": float(value_S[1 << place]) for place, name in enumerate(self._modalities)}
                | {"nothing": float(value_S[0])}
                | {f"{name} adds": added[place] for place, name in enumerate(self._modalities)}
            )
        return rows


def under(outputs: Outputs, left_NM: np.ndarray) -> Outputs:
    """The outputs of a model that sees of every case the modalities ``left_NM``."""
    number_N = (left_NM * 2 ** np.arange(left_NM.shape[1])).sum(1)
    every = np.arange(len(number_N))
    seen = {
        name.removeprefix("subset_"): array[every, number_N]
        for name, array in outputs.arrays.items()
        if name.startswith("subset_")
    }
    return replace(outputs, arrays={**outputs.arrays, **seen})


def taken(outputs: Outputs, chosen_N: np.ndarray) -> Outputs:
    """Some of the cases."""
    rows = np.flatnonzero(chosen_N)
    return replace(
        outputs,
        arrays={name: array[rows] for name, array in outputs.arrays.items()},
        targets=None if outputs.targets is None else outputs.targets[rows],
        ids=[outputs.ids[row] for row in rows],
        groups=[outputs.groups[row] for row in rows],
        columns={name: [values[row] for row in rows] for name, values in outputs.columns.items()},
        labels=[outputs.labels[row] for row in rows] if outputs.labels else [],
    )


def shapley(values_S: np.ndarray, players: Sequence[int]) -> dict[int, float]:
    """What each of ``players`` adds to the value of all of them, the mean over the orders in which they may come.

    ``values_S`` has the value of every subset of players. Shapley, "A value for n-person games", 1953.
    """
    orders = list(permutations(players))
    found = dict.fromkeys(players, 0.0)
    for order in orders:
        before = 0
        for player in order:
            found[player] += float(values_S[before | 1 << player] - values_S[before]) / len(orders)
            before |= 1 << player
    return found


def _fate(modality: str, case: str) -> float:
    """A number in [0, 1) that the name of a case decides: it loses the modality where shares above it do."""
    return int.from_bytes(hashlib.sha256(f"{modality}\0{case}".encode()).digest()[:6]) / 2**48


def _explained(name: str, alone: dict[str, Any], whole: dict[str, Any]) -> str | None:
    """What to say where one modality explains the figure of all."""
    for figure in FIGURES:
        if alone.get(figure) is not None and whole.get(figure) is not None:
            if alone[figure] < whole[figure] - EXPLAINS:
                return None
            return (
                f"{name} alone reaches a {figure} of {alone[figure]:.3f}, all modalities together {whole[figure]:.3f}: "
                f"{name} explains the figure. Check that it does not give the label away."
            )
    return None
