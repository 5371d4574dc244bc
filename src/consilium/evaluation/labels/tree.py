"""The evaluator of one label a case: the classes, and the answers down a label tree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from consilium.core.answers import Answers, Calibration
from consilium.core.errors import ConfigError
from consilium.core.evaluation import Evaluation, Interval, Outputs
from consilium.core.labels import LabelTree, Siblings
from consilium.evaluation import metrics as m
from consilium.evaluation.config import AnswersConfig, EvaluationConfig
from consilium.evaluation.estimates import Estimates, Share, estimate
from consilium.evaluation.labels import hierarchy as h
from consilium.evaluation.labels.checks import check_outputs
from consilium.evaluation.labels.classification import ClassificationEvaluator
from consilium.evaluation.labels.doubt import AURC, curve_rows, sign_tables
from consilium.evaluation.labels.hierarchy import JudgedPaths
from consilium.evaluation.labels.tables import calibration_rows, confusion_rows
from consilium.evaluation.metrics import Bools, Floats, Ints
from consilium.evaluation.report.words import WORDS

HIERARCHICAL = ("hierarchical_precision", "hierarchical_recall", "hierarchical_f1", "hierarchical_f1_whole")
ANSWERED = ("coverage", "answered_accuracy")
WHOLE_PATH = "whole path"  # the last row of the table `levels`


@dataclass(frozen=True)
class _Choices:
    """Which sibling, counted from 0, the label is at or below (-1: none) and the model finds likeliest, how likely."""

    truth_N: Ints
    chosen_N: Ints
    stated_N: Floats


@dataclass(frozen=True)
class _Cases:
    """The labelled cases, what the model says of them, and what it answers."""

    labels: LabelTree
    truth_N: Ints
    conditionals_NM: Floats
    answers: Answers
    groups: list[str]
    columns: dict[str, np.ndarray]
    further: dict[str, Floats]  # signs of doubt beside the probability, by name

    @cached_property
    def is_leaf_N(self) -> Bools:
        """Whether the label is a leaf, so that the whole path can be judged."""
        return np.isin(self.truth_N, self.labels.leaf_ids)

    @cached_property
    def lengths_N(self) -> Ints:
        """How many levels the likeliest path has."""
        return np.asarray((self.answers.paths_NL >= 0).sum(axis=1))

    @cached_property
    def whole(self) -> JudgedPaths:
        """The likeliest paths, whole."""
        return h.judge_paths(self.truth_N, self.answers.paths_NL, self.lengths_N, labels=self.labels)

    @cached_property
    def answered(self) -> JudgedPaths:
        """The same as far as they are answered."""
        return h.judge_paths(self.truth_N, self.answers.paths_NL, self.answers.depths_N, labels=self.labels)

    @cached_property
    def leaf_right_N(self) -> Bools:
        """Whether the likeliest path is the label's, a leaf's, to its end."""
        same_NL = self.answers.paths_NL == self.labels.paths_ML[self.truth_N]
        return np.asarray(self.is_leaf_N & same_NL.all(axis=1))

    @cached_property
    def sure_N(self) -> Floats:
        """The probability of the whole likeliest path."""
        return np.asarray(self.answers.probabilities_NL[np.arange(len(self.lengths_N)), self.lengths_N - 1])

    def signs(self, cases_N: Bools) -> dict[str, Floats]:
        """How sure the answers to some cases are, by each sign."""
        return {"probability": self.sure_N[cases_N], **{name: -own[cases_N] for name, own in self.further.items()}}

    def choices(self, group: Siblings) -> _Choices:
        """What the labels and the model choose among siblings."""
        place = self.labels.siblings.index(group)
        among_NK = self.conditionals_NM[:, list(group.ids)]
        return _Choices(self.labels.steps_MG[self.truth_N, place], among_NK.argmax(axis=1), among_NK.max(axis=1))


class TreeEvaluator:
    """Judges ``probabilities`` and ``conditionals`` [N, M] of all nodes against the ids of labels, int64 [N].

    The classes (leaves) are judged by ``ClassificationEvaluator``, whatever is answered. The answers are judged as
    ``calibration`` gives them. Labels may stop at inner nodes: such a case is judged down to its label. Where there are
    ``distances`` [N, M] or ``disagreement`` [N], they are judged as signs of doubt beside the probability. ``seen``
    are the values that training cases have in columns.
    """

    def __init__(
        self,
        labels: LabelTree,
        *,
        config: EvaluationConfig,
        answers: AnswersConfig,
        calibration: Calibration,
        order: Sequence[str] = (),
        seen: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._labels = labels
        self._config, self._bins = config, answers.calibration_bins
        self._calibration, self._seen = calibration, seen or {}
        self._classes = ClassificationEvaluator(labels, multi_label=False, config=config, answers=answers, order=order)
        self._own = (*(HIERARCHICAL if labels.nested else ()), *ANSWERED, AURC)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names of the figures, in the order of ``quick``."""
        return (*self._classes.metric_names, *self._own)

    def higher_is_better(self, metric: str) -> bool:
        """The direction of a metric."""
        if metric not in self.metric_names:
            known = ", ".join(self.metric_names)
            raise ConfigError(f"'{metric}' is not a metric of this task; its metrics are: {known}.")
        return WORDS[metric].higher_is_better

    def check_monitor(self, metric: str) -> None:
        """Figures of answers hang on thresholds, which come after the training."""
        if metric in ANSWERED:
            raise ConfigError(
                f"trainer.monitor is {metric}, which depends on thresholds that are chosen after the training; "
                "accuracy, macro_f1 or aurc can choose the weights."
            )
        self._classes.check_monitor(metric)

    def quick(self, outputs: Outputs) -> dict[str, float | None]:
        """The plain figures by name."""
        cases = self._check(outputs)
        none = dict.fromkeys(self._classes.metric_names)
        return {**(self._classes.quick(outputs) if cases.is_leaf_N.any() else none), **self._figures(cases)}

    def evaluate(self, outputs: Outputs, *, split: str) -> Evaluation:
        """Figures, intervals and tables of the classes, and of the answers.

        Tables beside those of the classes: ``risk_coverage``; with further signs ``doubt`` and ``doubt_curves``; with
        thresholds or a nested tree ``levels``; of a nested tree ``nodes``, and of its inner nodes ``decisions``,
        ``decision_confusion`` and ``decision_calibration``.
        """
        cases = self._check(outputs)
        found = Evaluation(split=split, cases=0, metrics=dict.fromkeys(self._classes.metric_names))
        if cases.is_leaf_N.any():
            found = self._classes.evaluate(outputs, split=split)
        estimates = self._estimates(cases)
        tables = dict(found.tables)
        notes = tables.pop("notes", [])
        if not cases.is_leaf_N.all():
            notes = [*notes, {"note": "What it says below a label that stops above the leaves is not judged."}]
        if self._abstains:
            self._per_column(cases, tables)
        tables |= self._curves(cases)
        if self._labels.nested or self._abstains:
            tables["levels"] = self._levels(estimates)
        if self._labels.nested:
            tables["nodes"] = self._nodes(estimates)
            tables |= self._decisions(cases, estimates)
        return Evaluation(
            split=split,
            cases=len(cases.truth_N),
            groups=len(set(cases.groups)),
            metrics={**found.metrics, **self._figures(cases)},
            intervals={**found.intervals, **self._intervals(estimates)},
            tables={name: rows for name, rows in {**tables, "notes": notes}.items() if rows},
            draws={**found.draws, **{name: estimates.draws[name] for name in self._own if name in estimates.draws}},
        )

    @property
    def _abstains(self) -> bool:
        """Whether answers may stop early or be unknown."""
        return len(self._calibration.thresholds) > 0 or len(self._calibration.distances) > 0

    def _check(self, outputs: Outputs) -> _Cases:
        rows = np.flatnonzero(check_outputs(outputs, labels=self._labels, multi_label=False))
        probabilities_NM = np.asarray(outputs.arrays["probabilities"])[rows]
        distances_NM = outputs.arrays["distances"][rows] if "distances" in outputs.arrays else None
        answers = self._calibration.answers(probabilities_NM, labels=self._labels, distances_NM=distances_NM)
        further = {} if distances_NM is None else {"distance": h.path_distances(distances_NM, answers.paths_NL)}
        if "disagreement" in outputs.arrays:
            further["disagreement"] = outputs.arrays["disagreement"][rows]
        return _Cases(
            labels=self._labels,
            truth_N=np.asarray(outputs.known_targets)[rows],
            conditionals_NM=np.asarray(outputs.arrays["conditionals"])[rows],
            answers=answers,
            further=further,
            groups=[outputs.groups[row] for row in rows],
            columns={name: np.array(values, dtype=object)[rows] for name, values in outputs.columns.items()},
        )

    # -- Figures ------------------------------------------------------------------------------------------------

    def _shares(self, cases: _Cases) -> dict[str, Share]:
        """The figures that are shares, by name; all but the area under the curve."""
        shares = _answer_shares(cases)
        if self._labels.nested:
            shares |= {
                "hierarchical_precision": h.hierarchical_precision(cases.answered),
                "hierarchical_recall": h.hierarchical_recall(cases.answered),
                "hierarchical_f1": h.hierarchical_f1(cases.answered),
                "hierarchical_f1_whole": h.hierarchical_f1(cases.whole),
            }
        return shares

    def _figures(self, cases: _Cases) -> dict[str, float | None]:
        values = {name: share.value() for name, share in self._shares(cases).items()}
        values[AURC] = _aurc(cases, None)
        return {name: m.defined(values[name]) for name in self._own}

    def _estimates(self, cases: _Cases) -> Estimates:
        """All that gets an interval."""
        shares = self._shares(cases)
        if self._labels.nested or self._abstains:
            shares |= _level_shares(cases)
        if self._labels.nested:
            shares |= _node_shares(cases) | _decision_shares(cases)
        return estimate(shares, cases.groups, config=self._config, extra={AURC: lambda w: _aurc(cases, w)})

    def _intervals(self, estimates: Estimates) -> dict[str, Interval]:
        """Of the headline figures; where every case is answered whole, coverage and the like say nothing new."""
        told = [name for name in self._own if self._abstains or name not in (*ANSWERED, "hierarchical_f1_whole")]
        found = {name: estimates.interval(name) for name in told}
        return {name: interval for name, interval in found.items() if not math.isnan(interval.value)}

    # -- Tables -------------------------------------------------------------------------------------------------

    def _curves(self, cases: _Cases) -> dict[str, list[dict[str, Any]]]:
        """Risk over coverage, of the cases whose label is a leaf: only there can a whole path be judged."""
        leaf_N = cases.is_leaf_N
        signs, wrong_N = cases.signs(leaf_N), ~cases.leaf_right_N[leaf_N]
        tables = {"risk_coverage": curve_rows(signs["probability"], wrong_N)}
        if not cases.further:
            return tables
        return tables | sign_tables(
            signs,
            wrong_N,
            groups=[cases.groups[n] for n in np.flatnonzero(leaf_N)],
            columns={name: values[leaf_N] for name, values in cases.columns.items()},
            seen=self._seen,
            config=self._config,
        )

    def _levels(self, estimates: Estimates) -> list[dict[str, Any]]:
        """A row for every level, and of a nested tree one for whole paths."""
        told = {"level_accuracy": "accuracy"}
        if self._abstains:
            told |= {"level_coverage": "answered", "level_answered_accuracy": "answered_accuracy"}
        cases_X = estimates.shares["level_accuracy"].of.sum(axis=0)
        rows = []
        for place, cases in enumerate(cases_X.tolist()):
            whole = place == self._labels.levels
            row: dict[str, Any] = {"level": WHOLE_PATH if whole else place + 1, "cases": int(cases)}
            if self._abstains:
                thresholds = [*self._calibration.thresholds, *[0.0] * self._labels.levels]
                row["threshold"] = None if whole else thresholds[place]
                if self._calibration.distances:
                    row["distance"] = None if whole else self._calibration.distances[place]
                row["wanted_accuracy"] = self._calibration.wanted_accuracy
            for name, key in told.items():
                row |= estimates.cells(name, key, place)
            rows.append(row)
        return rows

    def _nodes(self, estimates: Estimates) -> list[dict[str, Any]]:
        """A row for every node, leaves and inner ones: how often the likeliest path finds it, and rightly."""
        recall, precision = estimates.shares["node_recall"], estimates.shares["node_precision"]
        return [
            {
                "node": name,
                "parent": self._labels.name_of(self._labels.parent(node)),
                "cases": int(recall.of[:, node].sum()),
                "predicted": int(precision.of[:, node].sum()),
                **estimates.cells("node_recall", "recall", node),
                **estimates.cells("node_precision", "precision", node),
            }
            for node, name in enumerate(self._labels.names)
        ]

    def _decisions(self, cases: _Cases, estimates: Estimates) -> dict[str, list[dict[str, Any]]]:
        """Of every node with several children: how well it tells them apart, given that the label is below it."""
        tables: dict[str, list[dict[str, Any]]] = {
            "decisions": [], "decision_confusion": [], "decision_calibration": [],
        }  # fmt: skip
        bins = self._bins
        for place, group in enumerate(self._labels.choices):
            name = self._labels.name_of(group.parent)
            choices = cases.choices(group)
            here = choices.truth_N >= 0
            truth_N, chosen_N, stated_N = choices.truth_N[here], choices.chosen_N[here], choices.stated_N[here]
            judged = len(truth_N) > 0
            error = m.defined(m.calibration_error(stated_N, truth_N == chosen_N, bins=bins)) if judged else None
            tables["decisions"].append(
                {
                    "node": name,
                    "children": len(group.ids),
                    "cases": len(truth_N),
                    **estimates.cells("decision_accuracy", "accuracy", place),
                    "calibration_error": error,
                    "temperature": self._calibration.temperatures.get(name, 1.0),
                }
            )
            if judged:
                names = [self._labels.names[node] for node in group.ids]
                confusion = confusion_rows(truth_N, chosen_N, names=names)
                calibration = calibration_rows(stated_N, truth_N == chosen_N, bins=bins)
                tables["decision_confusion"] += [{"node": name, **row} for row in confusion]
                tables["decision_calibration"] += [{"node": name, **row} for row in calibration]
        return tables

    def _per_column(self, cases: _Cases, tables: dict[str, list[dict[str, Any]]]) -> None:
        """Add to the figures of each source, scanner ... how many of its cases are answered, and how many rightly."""
        for column in self._config.columns:
            for row in tables.get(f"per_{column}", []):
                here = cases.is_leaf_N & (cases.columns[column] == row[column])  # the cases of that row
                shares = {name: share.among(here) for name, share in _answer_shares(cases).items()}
                groups = [cases.groups[n] for n in np.flatnonzero(here)]
                estimates = estimate(shares, groups, config=self._config)
                row |= {key: value for name in ANSWERED for key, value in estimates.cells(name, name).items()}


# -- Shares ------------------------------------------------------------------------------------------------------


def _answer_shares(cases: _Cases) -> dict[str, Share]:
    """How many cases are answered at all, and how many of these answers are right in all they say."""
    given_N = cases.answers.depths_N > 0
    right_N = given_N & (cases.answered.right_NL | ~cases.answered.said_NL).all(axis=1)
    return {"coverage": Share(given_N, np.ones(len(given_N))), "answered_accuracy": Share(right_N, given_N)}


def _level_shares(cases: _Cases) -> dict[str, Share]:
    """The figures of every level, and of a nested tree in the last column those of whole paths."""
    whole_N = cases.is_leaf_N & (cases.answers.depths_N == cases.lengths_N)
    right_N, leaf_N = cases.leaf_right_N, cases.is_leaf_N

    def widen(share: Share, part_N: Bools, of_N: Bools) -> Share:
        if not cases.labels.nested:
            return share
        return Share(np.column_stack([share.part, part_N]), np.column_stack([share.of, of_N]))

    return {
        "level_accuracy": widen(h.level_accuracy(cases.whole), right_N, leaf_N),
        "level_coverage": widen(h.level_coverage(cases.answered), whole_N, leaf_N),
        "level_answered_accuracy": widen(h.level_answered_accuracy(cases.answered), right_N & whole_N, whole_N),
    }


def _node_shares(cases: _Cases) -> dict[str, Share]:
    true_NM = cases.labels.ancestry_MM[cases.truth_N]
    said_NM = h.nodes_said(cases.whole, cases.answers.paths_NL, labels=cases.labels)
    return {"node_recall": Share(true_NM & said_NM, true_NM), "node_precision": Share(true_NM & said_NM, said_NM)}


def _decision_shares(cases: _Cases) -> dict[str, Share]:
    choices = [cases.choices(group) for group in cases.labels.choices]
    shape = (len(choices), len(cases.truth_N))  # there may be no choice
    truth_NX = np.array([own.truth_N for own in choices]).reshape(shape).T
    chosen_NX = np.array([own.chosen_N for own in choices]).reshape(shape).T
    return {"decision_accuracy": Share(truth_NX == chosen_NX, truth_NX >= 0)}


def _aurc(cases: _Cases, weights: Floats | None) -> Floats:
    """Over the cases whose label is a leaf: only there can a whole path be judged."""
    leaf_N = cases.is_leaf_N
    kept = None if weights is None else weights[..., leaf_N]
    return h.aurc(cases.sure_N[leaf_N], ~cases.leaf_right_N[leaf_N], weights=kept)
