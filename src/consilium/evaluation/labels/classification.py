"""The evaluator of classification, single label and multi-label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from consilium.core.answers import answer
from consilium.core.errors import ConfigError, DataError
from consilium.core.evaluation import Evaluation, Interval, Outputs
from consilium.core.labels import LabelTree, class_order, reading_order
from consilium.evaluation import metrics as m
from consilium.evaluation.config import AnswersConfig, EvaluationConfig
from consilium.evaluation.labels.checks import check_outputs
from consilium.evaluation.labels.tables import calibration_rows, confusion_rows
from consilium.evaluation.metrics import Bools, Floats, Ints
from consilium.evaluation.report.words import WORDS
from consilium.evaluation.statistics import bootstrap_groups, figure_interval
from consilium.evaluation.subgroups import gap_row, subgroups

_SINGLE = (
    "accuracy", "balanced_accuracy", "macro_f1", "micro_f1", "weighted_f1", "macro_precision", "macro_recall",
    "macro_auroc", "macro_aupr", "quadratic_kappa", "calibration_error", "log_loss", "brier",
)  # fmt: skip
_MULTI = (
    "exact_match", "hamming_loss", "macro_f1", "micro_f1", "weighted_f1", "macro_precision", "macro_recall",
    "macro_auroc", "macro_aupr", "calibration_error", "log_loss", "brier",
)  # fmt: skip
_Rows = list[dict[str, Any]]
_SHOWN_CASES = 100  # rows of the tables `worst` and `least_certain`


@dataclass(frozen=True)
class _Cases:
    """The judged cases: labelled ones only, checked."""

    truth_NK: Bools
    predicted_NK: Bools
    probabilities_NK: Floats
    ids: list[str]
    groups: list[str]
    columns: dict[str, list[str]]

    def take(self, rows: Ints) -> _Cases:
        """The cases at these rows."""
        return _Cases(
            truth_NK=self.truth_NK[rows],
            predicted_NK=self.predicted_NK[rows],
            probabilities_NK=self.probabilities_NK[rows],
            ids=[self.ids[row] for row in rows],
            groups=[self.groups[row] for row in rows],
            columns={name: [values[row] for row in rows] for name, values in self.columns.items()},
        )


class ClassificationEvaluator:
    """Judges ``probabilities`` [N, K] against targets: int64 [N], or float [N, K] with ``multi_label``.

    Cases without a label (a target of -1, or nan in a multi-label row) are left out and counted in a note. Of a
    nested label tree the leaves are the classes; cases whose label stops above them are left out, too. ``order`` has
    the labels from the lowest to the highest grade, where somebody gave it.
    """

    def __init__(
        self,
        labels: LabelTree,
        *,
        multi_label: bool,
        config: EvaluationConfig,
        answers: AnswersConfig,
        order: Sequence[str] = (),
    ) -> None:
        self._tree = labels
        self._labels = labels.leaves
        self._order = None if multi_label else class_order(self._labels, given=order)
        self._listed = [self._labels.index(label) for label in self._order or reading_order(self._labels)]
        self._multi_label = multi_label
        self._config, self._answers = config, answers
        self._names = _MULTI if multi_label else _SINGLE

    def quick(self, outputs: Outputs) -> dict[str, float | None]:
        """The plain figures by name."""
        return self._figures(self._check(outputs))

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names of the figures, in the order of ``quick``."""
        return tuple(self._names)

    def higher_is_better(self, metric: str) -> bool:
        """The direction of a metric."""
        if metric not in self._names:
            raise ConfigError(f"'{metric}' is not a metric of this task; its metrics are: {', '.join(self._names)}.")
        return WORDS[metric].higher_is_better

    def check_monitor(self, metric: str) -> None:
        """Quadratic kappa needs an order of the labels."""
        if metric == "quadratic_kappa" and len(self._labels) > 2 and not self._order:
            raise ConfigError(
                "trainer.monitor is quadratic_kappa, which needs the order of the labels, and nothing says which that "
                f"is. Give it as task.tree.nodes, from the lowest to the highest: [{', '.join(self._labels)}], "
                "rearranged."
            )

    def evaluate(self, outputs: Outputs, *, split: str) -> Evaluation:
        """Figures, bootstrap intervals of the headline ones, and tables.

        Tables: ``per_class``, ``confusion`` (single label; pairs that occur), ``calibration`` (bins), ``order`` (of the
        classes, lowest first; where it is known), ``per_<column>``, ``gaps`` (between the values of a column),
        ``worst`` (most confidently wrong first), ``least_certain``, ``notes``.
        """
        cases = self._check(outputs)
        headline = self._headline(cases, None)
        draws = self._draws(cases)
        notes: list[str] = []
        if (left_out := len(outputs.ids) - len(cases.ids)) > 0:
            why = "no label at a leaf of the tree" if self._tree.nested else "no label"
            of = " of the figures of classes" if self._tree.nested else ""
            notes.append(f"{left_out} of {len(outputs.ids)} cases have {why} and are left out{of}.")
        tables = {
            "per_class": self._per_class(cases, headline, draws),
            "confusion": [] if self._multi_label else self._confusion(cases),
            "calibration": calibration_rows(*self._statements(cases), bins=self._answers.calibration_bins),
            "order": [{"label": label} for label in self._order or ()],
            "worst": self._worst(cases),
            "least_certain": self._least_certain(cases),
        }
        for column in self._config.columns:
            tables[f"per_{column}"], gaps = self._per_column(cases, column, notes)
            tables["gaps"] = [*tables.get("gaps", []), *gaps]
        tables["notes"] = [{"note": note} for note in notes]
        return Evaluation(
            split=split,
            cases=len(cases.ids),
            groups=len(set(cases.groups)),
            metrics=self._figures(cases),
            intervals=self._intervals(cases, headline, draws),
            tables={name: rows for name, rows in tables.items() if rows},
            draws={name: draws[name] for name in self._names if name in draws},
        )

    # -- Reading the outputs ------------------------------------------------------------------------------------

    def _check(self, outputs: Outputs) -> _Cases:
        known = check_outputs(outputs, labels=self._tree, multi_label=self._multi_label)
        probabilities, targets = np.asarray(outputs.arrays["probabilities"]), np.asarray(outputs.known_targets)
        predicted = self._decide(probabilities)
        if self._tree.nested:
            leaf_of_M = np.full(len(self._tree), -1)
            leaf_of_M[list(self._tree.leaf_ids)] = np.arange(len(self._labels))
            targets = np.where(known, leaf_of_M[targets], -1)
            known, probabilities = targets >= 0, probabilities[:, list(self._tree.leaf_ids)]
            if not known.any():
                raise DataError(f"none of {len(known)} cases has a label that is a leaf of the tree.")
        everything = _Cases(
            truth_NK=targets > 0.5 if self._multi_label else m.one_hot(targets, classes=len(self._labels)),
            predicted_NK=predicted,
            probabilities_NK=probabilities,
            ids=list(outputs.ids),
            groups=list(outputs.groups),
            columns=dict(outputs.columns),
        )
        return everything.take(np.flatnonzero(known))

    def _decide(self, probabilities_NM: Floats) -> Bools:
        """The classes that are named; of a tree the leaf that the likeliest path leads to."""
        if self._multi_label:
            return np.asarray(probabilities_NM >= self._answers.threshold)
        leaf_N = answer(probabilities_NM, labels=self._tree).nodes_N
        return np.asarray(leaf_N[:, None] == np.array(self._tree.leaf_ids))

    # -- Figures ------------------------------------------------------------------------------------------------

    def _figures(self, cases: _Cases) -> dict[str, float | None]:
        counts = m.class_counts(cases.truth_NK, cases.predicted_NK)
        truth, probabilities = cases.truth_NK, cases.probabilities_NK
        values: dict[str, Any] = {
            "macro_f1": m.macro_f1(counts),
            "micro_f1": m.micro_f1(counts),
            "weighted_f1": m.weighted_f1(counts),
            "macro_precision": m.macro_precision(counts),
            "macro_recall": m.macro_recall(counts),
            "macro_auroc": m.macro(m.auroc(truth, probabilities)),
            "macro_aupr": m.macro(m.average_precision(truth, probabilities)),
            "calibration_error": self._calibration_error(cases, None),
            **self._penalties(cases, None),
        }
        if self._multi_label:
            values["exact_match"] = m.exact_match(truth, cases.predicted_NK)
        else:
            values["accuracy"] = m.accuracy(counts)
            values["balanced_accuracy"] = m.balanced_accuracy(counts)
            values["quadratic_kappa"] = self._quadratic_kappa(cases)
        return {name: m.defined(values[name]) for name in self._names}

    def _headline(self, cases: _Cases, weights: Floats | None) -> dict[str, Floats]:
        """The figures that get intervals: scalars [...], and ``class_*`` [..., K]."""
        counts = m.class_counts(cases.truth_NK, cases.predicted_NK, weights=weights)
        areas = m.auroc(cases.truth_NK, cases.probabilities_NK, weights=weights)
        return {
            **self._decisions(cases, weights),
            "macro_auroc": m.macro(areas),
            "calibration_error": self._calibration_error(cases, weights),
            "class_recall": m.recall(counts),
            "class_precision": m.precision(counts),
            "class_f1": m.f1(counts),
            "class_auroc": areas,
        }

    def _decisions(self, cases: _Cases, weights: Floats | None) -> dict[str, Floats]:
        """The headline figures of decisions alone, which need no ranking of scores."""
        counts = m.class_counts(cases.truth_NK, cases.predicted_NK, weights=weights)
        if self._multi_label:
            exact = m.exact_match(cases.truth_NK, cases.predicted_NK, weights=weights)
            return {"exact_match": exact, "macro_f1": m.macro_f1(counts), "micro_f1": m.micro_f1(counts)}
        return {
            "accuracy": m.accuracy(counts),
            "balanced_accuracy": m.balanced_accuracy(counts),
            "macro_f1": m.macro_f1(counts),
        }

    def _penalties(self, cases: _Cases, weights: Floats | None) -> dict[str, Floats]:
        """The figures that are means of a penalty for each case."""
        truth, probabilities = cases.truth_NK, cases.probabilities_NK
        if self._multi_label:
            return {
                "hamming_loss": m.hamming_loss(truth, cases.predicted_NK, weights=weights),
                "log_loss": m.binary_log_loss(truth, probabilities, weights=weights),
                "brier": m.binary_brier(truth, probabilities, weights=weights),
            }
        return {
            "log_loss": m.log_loss(truth, probabilities, weights=weights),
            "brier": m.brier(truth, probabilities, weights=weights),
        }

    def _calibration_error(self, cases: _Cases, weights: Floats | None) -> Floats:
        confidence, correct = self._statements(cases)
        return m.calibration_error(confidence, correct, bins=self._answers.calibration_bins, weights=weights)

    def _statements(self, cases: _Cases) -> tuple[Floats, Bools]:
        """What is said and whether it is so: of the named class [N], or of every label [N, K] if multi-label."""
        if self._multi_label:
            return cases.probabilities_NK, cases.truth_NK
        named_N = (cases.probabilities_NK * cases.predicted_NK).sum(axis=1)
        return named_N, np.asarray((cases.truth_NK & cases.predicted_NK).any(axis=1))

    def _places(self, cases: _Cases) -> tuple[Ints, Ints]:
        """Of the true and the named class of each case the place among the listed classes; one label a case."""
        place_K = np.argsort(self._listed)
        return place_K[cases.truth_NK.argmax(axis=1)], place_K[cases.predicted_NK.argmax(axis=1)]

    def _quadratic_kappa(self, cases: _Cases) -> float:
        """Agreement of grades; nan where their order is not known, which two classes do not need."""
        if self._order is None and len(self._labels) > 2:
            return math.nan
        return m.quadratic_weighted_kappa(m.confusion_matrix(*self._places(cases), classes=len(self._labels)))

    # -- Intervals ----------------------------------------------------------------------------------------------

    def _draws(self, cases: _Cases) -> dict[str, Floats]:
        config = self._config
        return bootstrap_groups(
            cases.groups,
            lambda weights: {**self._headline(cases, weights), **self._penalties(cases, weights)},
            samples=config.bootstrap_samples,
            seed=config.seed,
        )

    def _intervals(self, cases: _Cases, values: dict[str, Floats], draws: dict[str, Floats]) -> dict[str, Interval]:
        return {
            name: figure_interval(
                float(value),
                draws.get(name),
                groups=cases.groups,
                share=name in ("accuracy", "exact_match"),
                confidence=self._config.confidence,
            )
            for name, value in values.items()
            if not name.startswith("class_") and not math.isnan(value)
        }

    # -- Tables -------------------------------------------------------------------------------------------------

    def _per_class(self, cases: _Cases, values: dict[str, Floats], draws: dict[str, Floats]) -> list[dict[str, Any]]:
        counts = m.class_counts(cases.truth_NK, cases.predicted_NK)
        truth, probabilities = cases.truth_NK, cases.probabilities_NK
        columns: dict[str, Any] = {
            "support": counts.support.astype(int),
            "predicted": (counts.tp + counts.fp).astype(int),
            "precision": m.precision(counts),
            "recall": m.recall(counts),
            "specificity": m.specificity(counts),
            "f1": m.f1(counts),
            "auroc": values["class_auroc"],
            "aupr": m.average_precision(truth, probabilities),
        }
        for level in self._answers.specificities:
            key = f"sensitivity_at_specificity_{level:.2f}"
            columns[key] = m.sensitivity_at_specificity(truth, probabilities, specificity=level)
        rows = []
        for k in self._listed:
            row: dict[str, Any] = {"label": self._labels[k]}
            for name, column in columns.items():
                row[name] = int(column[k]) if name in ("support", "predicted") else m.defined(column[k])
                if f"class_{name}" in draws:
                    inside = truth[:, k] if name == "recall" else cases.predicted_NK[:, k]
                    groups = [cases.groups[n] for n in np.flatnonzero(inside)]
                    share = name in ("recall", "precision")
                    interval = figure_interval(
                        column[k],
                        draws[f"class_{name}"][:, k],
                        groups=groups,
                        share=share,
                        confidence=self._config.confidence,
                    )
                    row[f"{name}_low"], row[f"{name}_high"] = interval.low, interval.high
            rows.append(row)
        return rows

    def _confusion(self, cases: _Cases) -> list[dict[str, Any]]:
        """The pairs that occur, in the order of the classes in other tables."""
        return confusion_rows(*self._places(cases), names=[self._labels[k] for k in self._listed])

    def _per_column(self, cases: _Cases, column: str, notes: list[str]) -> tuple[_Rows, _Rows]:
        """A row for each value of a column, and for each figure how far apart they are."""
        config = self._config
        parts = {
            value: cases.take(rows_N)
            for value, rows_N in subgroups(cases.columns, column, config=config, notes=notes).items()
        }
        rows: _Rows = []
        for value, part in parts.items():
            figures = self._decisions(part, None)
            draws = bootstrap_groups(
                part.groups,
                lambda weights, part=part: self._decisions(part, weights),  # type: ignore[misc]
                samples=config.bootstrap_samples,
                seed=config.seed,
            )
            row: dict[str, Any] = {column: value, "n": len(part.ids), "groups": len(set(part.groups))}
            intervals = self._intervals(part, figures, draws)
            for name, figure in figures.items():
                interval = intervals.get(name)  # none where the figure is not defined
                row[name] = m.defined(figure)
                row[f"{name}_low"], row[f"{name}_high"] = (interval.low, interval.high) if interval else (None, None)
            rows.append(row)
        groups = {value: part.groups for value, part in parts.items()}
        gaps = [
            gap_row(
                column,
                name,
                rows,
                groups=groups,
                statistic=lambda value, weights, name=name: self._decisions(parts[value], weights)[name],  # type: ignore[misc]
                config=config,
            )
            for name in self._decisions(cases, None)
        ]
        return rows, [row for row in gaps if row is not None]

    def _worst(self, cases: _Cases) -> list[dict[str, Any]]:
        """Wrong cases, the most confidently wrong first."""
        wrong_NK = cases.truth_NK != cases.predicted_NK
        if not self._multi_label:
            wrong_NK = wrong_NK & cases.predicted_NK  # only the named class: its probability is how sure the error was
        miss_NK = np.where(cases.truth_NK, 1.0 - cases.probabilities_NK, cases.probabilities_NK)
        miss_NK = np.where(wrong_NK, miss_NK, -1.0)
        order = np.argsort(-miss_NK.max(axis=1), kind="stable")[: int(wrong_NK.any(axis=1).sum())]
        return [self._case(cases, n, int(miss_NK[n].argmax())) for n in order[:_SHOWN_CASES]]

    def _least_certain(self, cases: _Cases) -> list[dict[str, Any]]:
        """Cases nearest to another decision: lowest top probability, or a label nearest to the threshold."""
        threshold = self._answers.threshold if self._multi_label else 0.0
        margin_NK = np.abs(cases.probabilities_NK - threshold)
        if not self._multi_label:
            margin_NK = np.where(cases.predicted_NK, margin_NK, np.inf)
        order = np.argsort(margin_NK.min(axis=1), kind="stable")[:_SHOWN_CASES]
        return [self._case(cases, n, int(margin_NK[n].argmin())) for n in order]

    def _case(self, cases: _Cases, row: int, label: int) -> dict[str, Any]:
        """One case; ``label`` is the one whose probability is told."""
        truth, probabilities = cases.truth_NK[row], cases.probabilities_NK[row]
        return {
            "id": cases.ids[row],
            "truth": self._names_of(truth),
            "prediction": self._names_of(cases.predicted_NK[row]),
            "label": self._labels[label],
            "probability": float(probabilities[label]),
            "truth_probability": None if self._multi_label else float(probabilities[truth][0]),
        }

    def _names_of(self, labels_K: Bools) -> str:
        return ", ".join(label for label, there in zip(self._labels, labels_K, strict=True) if there)
