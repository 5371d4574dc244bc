"""Frozen features judged by probes: each as a classifier of labels, with its intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from consilium.core.evaluation import Evaluation, Interval, Outputs
from consilium.core.labels import LabelTree
from consilium.core.reporter import Reporter, some
from consilium.evaluation import metrics as m
from consilium.evaluation.config import AnswersConfig, EvaluationConfig
from consilium.evaluation.labels.classification import ClassificationEvaluator
from consilium.evaluation.logistic import softmax
from consilium.evaluation.metrics import Floats
from consilium.evaluation.probes.config import ProbesConfig
from consilium.evaluation.probes.linear import choose_probe
from consilium.evaluation.probes.neighbours import TEMPERATURE, class_means, draw_shots, vote
from consilium.evaluation.probes.zero_shot import ClassEmbeddings, probabilities
from consilium.evaluation.retrieval.ranks import unit
from consilium.evaluation.statistics import bootstrap_groups, paired_interval

SINGLE = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc")  # the figures of the table of probes
MULTI = ("macro_auroc", "macro_aupr", "macro_f1", "exact_match")
FEW_SHOT = SINGLE[:3]
_KEPT = ("per_class", "confusion", "worst")


def evaluate_probes(
    config: ProbesConfig,
    test: Outputs,
    *,
    train: Outputs | None,
    labels: LabelTree,
    classes: ClassEmbeddings | None,
    evaluation: EvaluationConfig,
    split: str,
    reporter: Reporter,
) -> Evaluation:
    """Every probe that the config asks for.

    Arrays of ``test`` and ``train``: ``features`` [N, F] for what is learned, of ``test`` also ``image_embeddings``
    [N, D] where there are ``classes``. Targets are int64 [N], -1 without a label, or float [N, K] with ``multi_label``;
    ``train`` may be missing where nothing is learned.

    Figures are called ``zero_shot_accuracy``, ``knn_accuracy`` and so on. Tables: ``probes`` (a row for each),
    ``few_shot`` (a row for each number of images), ``linear_strengths``, and ``{probe}_per_class``,
    ``{probe}_confusion``, ``{probe}_worst`` and ``{probe}_per_<column>`` as a classification has them.
    """
    found: dict[str, Floats] = {}
    tables: dict[str, list[dict[str, Any]]] = {}
    notes: list[str] = []
    if config.zero_shot is not None and classes is not None:
        found["zero_shot"] = probabilities(test.arrays["image_embeddings"], classes)
    if train is not None:
        train = _labelled(train, multi_label=config.multi_label)
        notes += _unseen(train, test, labels, multi_label=config.multi_label)
        if config.few_shot:  # first, since it may ask for more images than there are
            tables["few_shot"] = [
                few_shot_row(shots, config, test, train, labels=labels, evaluation=evaluation)
                for shots in config.few_shot
            ]
        learned, strengths = _learned(config, test, train, labels=labels, notes=notes, reporter=reporter)
        found, tables = {**found, **learned}, {**tables, **strengths}
    evaluator = ClassificationEvaluator(
        labels, multi_label=config.multi_label, config=evaluation, answers=AnswersConfig()
    )
    judged = {
        name: evaluator.evaluate(replace(test, arrays={"probabilities": own}), split=split)
        for name, own in found.items()
    }
    return _together(judged, tables, notes, test=test, train=train, split=split, multi_label=config.multi_label)


def _learned(
    config: ProbesConfig, test: Outputs, train: Outputs, *, labels: LabelTree, notes: list[str], reporter: Reporter
) -> tuple[dict[str, Floats], dict[str, list[dict[str, Any]]]]:
    """The probabilities of the probes that learn from all of train, and the strengths that were tried."""
    found: dict[str, Floats] = {}
    tables: dict[str, list[dict[str, Any]]] = {}
    features_TF, targets_TK = train.arrays["features"], _one_or_zero(train.known_targets, len(labels))
    if config.knn is not None:
        found["knn"] = vote(features_TF, targets_TK, test.arrays["features"], k=config.knn)
        if config.knn > len(features_TF):
            notes.append(f"probes.knn asks {config.knn} training images; all {len(features_TF)} vote.")
    if config.linear:
        chosen = choose_probe(
            features_TF,
            targets_TK,
            train.groups,
            multi_label=config.multi_label,
            seed=config.seed,
            progress=partial(reporter.progress, "linear probe"),
        )
        found["linear"] = chosen.head.probabilities(test.arrays["features"])
        tables["linear_strengths"] = [
            {"strength": strength, "log_loss": loss, "chosen": strength == chosen.strength}
            for strength, loss in chosen.log_losses.items()
        ]
        if not chosen.head.converged:
            notes.append("the linear probe did not converge; its figures may be too low.")
    return found, tables


def _labelled(outputs: Outputs, *, multi_label: bool) -> Outputs:
    """The cases with a label, from which a probe may learn."""
    rows = np.arange(len(outputs.ids)) if multi_label else np.flatnonzero(outputs.known_targets >= 0)
    return replace(
        outputs,
        arrays={name: array[rows] for name, array in outputs.arrays.items()},
        targets=outputs.known_targets[rows],
        ids=[outputs.ids[row] for row in rows],
        groups=[outputs.groups[row] for row in rows],
        columns={name: [values[row] for row in rows] for name, values in outputs.columns.items()},
    )


def _one_or_zero(targets: np.ndarray, classes: int) -> Floats:
    """Targets as [N, K]."""
    return targets.astype(float) if targets.ndim == 2 else m.one_hot(targets, classes=classes).astype(float)


def _unseen(train: Outputs, test: Outputs, labels: LabelTree, *, multi_label: bool) -> list[str]:
    """The labels of test that no training case has."""
    counts = [_one_or_zero(own.known_targets, len(labels)).sum(axis=0) for own in (train, test)]
    names = [name for name, learned, asked in zip(labels.names, *counts, strict=True) if asked and not learned]
    return [f"train has no case of {some(names, 10)}: probes that learn cannot name them."] if names else []


def few_shot_row(
    shots: int,
    config: ProbesConfig,
    test: Outputs,
    train: Outputs,
    *,
    labels: LabelTree,
    evaluation: EvaluationConfig,
) -> dict[str, Any]:
    """Mean figures of class means of ``shots`` images over draws of these; intervals over test groups and draws."""
    known = _labelled(test, multi_label=False)
    truth_NK = m.one_hot(known.known_targets, classes=len(labels))
    targets_T, features_TF = train.known_targets, train.arrays["features"]
    drawn = draw_shots(targets_T, shots=shots, draws=config.few_shot_draws, labels=list(labels.names), seed=config.seed)
    images_NF = unit(known.arrays["features"])
    named = []
    for rows in drawn:
        means_KF = class_means(features_TF[rows], targets_T[rows], classes=len(labels))
        likely_NK = softmax((images_NF @ means_KF.T).astype(float) / TEMPERATURE)
        named.append(m.one_hot(likely_NK.argmax(axis=1), classes=len(labels)))

    def figures(weights: Floats | None) -> dict[str, Floats]:
        counts = [m.class_counts(truth_NK, predicted_NK, weights=weights) for predicted_NK in named]
        of = {"accuracy": m.accuracy, "balanced_accuracy": m.balanced_accuracy, "macro_f1": m.macro_f1}
        return {name: np.stack([figure(own) for own in counts], axis=-1) for name, figure in of.items()}

    values = figures(None)
    draws = bootstrap_groups(known.groups, figures, samples=evaluation.bootstrap_samples, seed=evaluation.seed)
    row: dict[str, Any] = {"images": shots, "draws": len(drawn)}
    for name, values_S in values.items():
        interval = Interval(float(np.mean(values_S)))
        if name in draws:
            interval = paired_interval(values_S, draws[name].T, confidence=evaluation.confidence, seed=evaluation.seed)
        row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return row


def _together(
    judged: Mapping[str, Evaluation],
    tables: dict[str, list[dict[str, Any]]],
    notes: list[str],
    *,
    test: Outputs,
    train: Outputs | None,
    split: str,
    multi_label: bool,
) -> Evaluation:
    """One evaluation of all probes, their figures and tables by their names."""
    shown = MULTI if multi_label else SINGLE
    rows = []
    for name, own in judged.items():
        learned_from = 0 if train is None or name == "zero_shot" else len(train.ids)
        row: dict[str, Any] = {"probe": name, "learned_from": learned_from, "cases": own.cases}
        for figure in shown:
            row[figure] = own.metrics[figure]
            if (interval := own.intervals.get(figure)) is not None:
                row |= {f"{figure}_low": interval.low, f"{figure}_high": interval.high}
        rows.append(row)
        kept = [table for table in own.tables if table in _KEPT or table.startswith("per_")]
        tables |= {f"{name}_{table}": own.tables[table] for table in kept}
        notes += [row["note"] for row in own.tables.get("notes", [])]
    unread = [{"id": name, "reason": reason} for name, reason in test.unread.items()]
    tables = {"probes": rows, **tables, "unread": unread, "notes": [{"note": note} for note in dict.fromkeys(notes)]}
    known = _labelled(test, multi_label=multi_label)
    return Evaluation(
        split=split,
        cases=len(known.ids),
        groups=len(set(known.groups)),
        metrics={f"{name}_{key}": value for name, own in judged.items() for key, value in own.metrics.items()},
        intervals={f"{name}_{key}": value for name, own in judged.items() for key, value in own.intervals.items()},
        draws={f"{name}_{key}": value for name, own in judged.items() for key, value in own.draws.items()},
        tables={name: own for name, own in tables.items() if own},
    )
