"""Figures of a classifier of several modalities: with all of them, with one alone, and where one is often missing.

Axes in names: N case, M modality, S subset of modalities (bit m of its number: modality m is in it), K class.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np

from consilium.core.evaluation import Evaluation, Evaluator, Outputs
from consilium.core.labels import LabelTree
from consilium.evaluation.report.words import alone

MISSING = (0.25, 0.5, 0.75, 1.0)  # shares of the cases that lose a modality
FIGURES = ("accuracy", "exact_match", "macro_f1", "macro_auroc", "coverage", "answered_accuracy")
EXPLAINS = 0.02  # a modality alone that comes so near to all of them explains the figure


class ModalityEvaluator(Evaluator):
    """Judges the answers as any classifier's, and what they would be with fewer modalities.

    Of every case the outputs have ``there`` [N, M] and, for every subset of modalities, ``subset_logits``,
    ``subset_probabilities`` and, of one label a case, ``subset_conditionals``, all [N, S, K].
    """

    def __init__(self, answers: Evaluator, *, modalities: Sequence[str], labels: LabelTree) -> None:
        """``answers`` judges the answers of classes."""
        self._answers, self._modalities, self._labels = answers, modalities, labels

    @property
    def metric_names(self) -> Sequence[str]:
        """Those of the answers, and the macro F1 of each modality alone."""
        return [*self._answers.metric_names, *(alone(name) for name in self._modalities)]

    def quick(self, outputs: Outputs) -> dict[str, float | None]:
        """The figures of the answers, and the macro F1 of each modality alone over the cases that have all."""
        complete = np.flatnonzero((outputs.arrays["there"] > 0.5).all(1))
        found = self._answers.quick(outputs) | dict.fromkeys(map(alone, self._modalities))
        if len(complete):
            whole = outputs.take(complete)
            for name, own_NM in self._only(len(complete)):
                found[alone(name)] = self._answers.quick(under(whole, own_NM))["macro_f1"]
        return found

    def check_monitor(self, metric: str) -> None:
        """As of the answers."""
        if metric not in map(alone, self._modalities):
            self._answers.check_monitor(metric)

    def higher_is_better(self, metric: str) -> bool:
        """As of the answers; of each modality alone higher is better."""
        return metric in map(alone, self._modalities) or self._answers.higher_is_better(metric)

    def evaluate(self, outputs: Outputs, *, split: str) -> Evaluation:
        """The evaluation of the answers, and two tables.

        ``modalities``: the main figures with their intervals for the cases as they are, for the cases that have every
        modality with all, with each alone and, of three, without each, and for shares of the cases losing one; a case
        always keeps what it has alone, and the cases of a smaller share are among those of a larger one.
        ``modality_classes``: the mean probability of the true class with every subset of modalities, and what each adds
        to it (Shapley values).
        """
        found = self._answers.evaluate(outputs, split=split)
        there_NM = outputs.arrays["there"] > 0.5
        whole = self._row("as they are", found, there_NM)
        rows, without, notes, classes = [whole], [], [], []
        complete = np.flatnonzero(there_NM.all(1))
        if len(complete):
            both, all_NM = outputs.take(complete), there_NM[complete]
            if len(complete) < len(there_NM):
                whole = self._judged("with all modalities", both, all_NM, split)
                rows.append(whole)
            for name, own_NM in self._only(len(complete)):
                rows.append(self._judged(f"{name} only", both, own_NM, split))
                notes += _explained(name, rows[-1], whole)
                if len(self._modalities) > 2:  # of two it is the other alone
                    without.append(self._judged(f"without {name}", both, ~own_NM, split))
            if outputs.known_targets.ndim == 1:
                classes = self._classes(both)
        rows += without
        if (there_NM.sum(1) > 1).any():
            for place in range(len(self._modalities)):
                rows += self._losing(place, outputs, there_NM, split)
        tables = {
            "modalities": rows,
            "modality_classes": classes,
            "notes": [*found.tables.get("notes", []), *({"note": note} for note in notes)],
        }
        by_what = {row["what"]: row.get("macro_f1") for row in rows}
        lone = {alone(name): by_what.get(f"{name} only") for name in self._modalities}
        told = {name: own for name, own in tables.items() if own}
        return replace(found, metrics={**found.metrics, **lone}, tables={**found.tables, **told})

    def _only(self, cases: int) -> Iterator[tuple[str, np.ndarray]]:
        """Of each modality what is seen of so many cases that have nothing else, [N, M]."""
        for place, name in enumerate(self._modalities):
            own_NM = np.zeros((cases, len(self._modalities)), dtype=bool)
            own_NM[:, place] = True
            yield name, own_NM

    def _losing(self, place: int, outputs: Outputs, there_NM: np.ndarray, split: str) -> list[dict[str, Any]]:
        """Rows for growing shares of the cases that lose a modality."""
        name = self._modalities[place]
        fate_N = np.array([_fate(name, case) for case in outputs.ids])
        rows = []
        for share in MISSING:
            left_NM = there_NM.copy()
            left_NM[(fate_N < share) & (there_NM.sum(1) > 1), place] = False
            row = self._judged(f"{name} missing in {share:.0%}", outputs, left_NM, split)
            rows.append({**row, "lost": name, "share": share})
        return rows

    def _judged(self, what: str, outputs: Outputs, left_NM: np.ndarray, split: str) -> dict[str, Any]:
        """The row of a model that sees of every case what is left."""
        return self._row(what, self._answers.evaluate(under(outputs, left_NM), split=split), left_NM)

    def _row(self, what: str, judged: Evaluation, left_NM: np.ndarray) -> dict[str, Any]:
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


def _explained(name: str, alone: dict[str, Any], whole: dict[str, Any]) -> list[str]:
    """What to say where one modality explains the figure of all."""
    figure = next((own for own in FIGURES if own in alone and own in whole), None)
    if figure is None or alone[figure] < whole[figure] - EXPLAINS:
        return []
    return [
        f"{name} alone reaches a {figure} of {alone[figure]:.3f}, all modalities together {whole[figure]:.3f}: {name} "
        "explains the figure. Check that it does not give the label away."
    ]
