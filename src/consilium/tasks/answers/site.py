"""A calibration chosen anew on the labelled cases of another site, and judged on cases that did not choose it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from consilium.core.answers import Calibration
from consilium.core.errors import DataError
from consilium.core.evaluation import Outputs
from consilium.core.labels import LabelTree
from consilium.core.reporter import counted
from consilium.evaluation.config import AnswersConfig, EvaluationConfig
from consilium.evaluation.labels.calibration import choose_label_threshold, fit_labels
from consilium.evaluation.labels.checks import check_outputs
from consilium.evaluation.labels.recalibration import (
    SiteCalibration,
    Stated,
    before_after,
    joined,
    stated_answers,
    stated_labels,
)
from consilium.tasks.answers.answering import Answering
from consilium.tasks.answers.settle import recalibrated, settle_answers
from consilium.tasks.answers.targets import LabelKnowledge, label_counts

FOLDS = 5
LEAST_GROUPS = 20  # as many resample well enough for an interval, and leave 16 to choose on
_RULE_OF_THREE = 3.0  # n right answers in a row leave an upper limit of 3 / n for the share of wrong ones (95 %)


def calibrate_on_site(
    task: Answering,
    knowledge: LabelKnowledge,
    outputs: Outputs,
    *,
    config: AnswersConfig,
    evaluation: EvaluationConfig,
) -> SiteCalibration:
    """Choose temperatures and thresholds on ``outputs``, and give the task what was chosen on all of them.

    What is judged is chosen without the judged cases: the groups are divided into ``FOLDS``, and the cases of each are
    answered by a calibration that the others chose. ``config.wanted_accuracy`` None means that of the old calibration.
    A node of which the site has no case keeps its old temperature. Too few cases, and cases of one label, are a
    DataError.
    """
    old, labels = knowledge.calibration, knowledge.tree
    known_N = check_outputs(outputs, labels=labels, multi_label=task.multi_label)
    outputs = outputs.take(np.flatnonzero(known_N))
    wanted = config.wanted_accuracy or old.wanted_accuracy
    config = config.model_copy(update={"calibrate": True, "wanted_accuracy": wanted})
    _refuse_few(outputs, wanted=wanted)
    _refuse_one_label(outputs, labels=labels)

    def choose(rows: np.ndarray) -> Calibration:
        return _chosen(task, knowledge, outputs.take(rows), config=config)

    def state(calibration: Calibration, rows: np.ndarray) -> Stated:
        task.calibrate(calibration)
        own = recalibrated(task, outputs.take(rows))
        if task.multi_label:
            return stated_labels(own, threshold=task.threshold)
        return stated_answers(own, labels=labels, calibration=calibration)

    every = np.arange(len(outputs.ids))
    before = state(old, every)
    after = _cross_fitted(outputs.groups, choose=choose, state=state, seed=evaluation.seed)
    judged = before_after(before, after, outputs.groups, answers=config, evaluation=evaluation)
    chosen = choose(every)
    changes = _changes(task, old, chosen, outputs)
    task.calibrate(chosen)
    counts = label_counts(labels, outputs.known_targets)
    return SiteCalibration(
        calibration=chosen,
        judged=judged,
        changes=changes,
        label_shares=_shares(knowledge, counts, cases=len(every)),
        cases=len(every),
        groups=len(set(outputs.groups)),
        notes=_notes(chosen, labels=labels, multi_label=task.multi_label, counts=counts),
    )


def _cross_fitted(
    groups: list[str],
    *,
    choose: Callable[[np.ndarray], Calibration],
    state: Callable[[Calibration, np.ndarray], Stated],
    seed: int,
) -> Stated:
    """What is stated of the cases of each fold by a calibration that the other folds chose."""
    names, group_N = np.unique(np.asarray(groups), return_inverse=True)
    fold_G = np.random.default_rng(seed).permutation(len(names)) % FOLDS
    held = [np.flatnonzero(fold_G[group_N] == fold) for fold in range(FOLDS)]
    parts = [state(choose(np.setdiff1d(np.arange(len(groups)), rows)), rows) for rows in held]
    return joined(parts, held)


def _chosen(task: Answering, knowledge: LabelKnowledge, outputs: Outputs, *, config: AnswersConfig) -> Calibration:
    """The calibration that cases choose, whatever the task had before."""
    old, labels = knowledge.calibration, knowledge.tree
    if task.multi_label:
        truth_NK = outputs.known_targets > 0.5
        temperature, offsets_K = fit_labels(outputs.arrays["logits"], truth_NK)
        offsets = dict(zip(labels.names, offsets_K, strict=True))
        task.calibrate(Calibration(temperatures={labels.name_of(None): temperature}, offsets=offsets))
        threshold = choose_label_threshold(recalibrated(task, outputs).arrays["probabilities"], truth_NK)
        return task.calibration.model_copy(update={"thresholds": [] if threshold is None else [threshold]})
    steps_NG = labels.steps_MG[outputs.known_targets]
    unseen = [
        labels.name_of(group.parent)
        for group, steps_N in zip(labels.siblings, steps_NG.T, strict=True)
        if (steps_N < 0).all()
    ]
    kept = {name: old.temperatures.get(name, 1.0) for name in unseen}
    task.calibrate(Calibration(temperatures=kept, distances=[] if config.distance is not None else old.distances))
    return settle_answers(task, knowledge, {"val": outputs}, config=config).knowledge.calibration


def _refuse_few(outputs: Outputs, *, wanted: float | None) -> None:
    cases, groups = len(outputs.ids), len(set(outputs.groups))
    if groups < LEAST_GROUPS:
        raise DataError(
            f"the data has {counted(cases, 'labelled case')} of {counted(groups, 'group')} (patients); a calibration "
            f"needs at least {LEAST_GROUPS} groups: it is chosen on four fifths of them and judged on the others, and "
            f"with fewer no interval would say anything. Label {counted(LEAST_GROUPS - groups, 'more group')}."
        )
    least = 0 if wanted is None else math.ceil(round(_RULE_OF_THREE / (1 - wanted), 6))
    if cases < least:
        raise DataError(
            f"the data has {counted(cases, 'labelled case')}; thresholds for a wanted accuracy of {wanted:g} need at "
            f"least {least}: even if all of n answers are right, as many as 3 / n of the answers may be wrong. Label "
            f"{counted(least - cases, 'more case')}, or want less (--wanted-accuracy)."
        )


def _refuse_one_label(outputs: Outputs, *, labels: LabelTree) -> None:
    targets = outputs.known_targets
    if targets.ndim == 1 and len(present := set(targets.tolist())) == 1:
        raise DataError(
            f"all labelled cases have one label ({labels.names[present.pop()]}); how sure the model may be of one "
            "answer and not of another can only be learned from cases of at least two."
        )
    if targets.ndim == 2 and not (targets > 0.5).any():
        raise DataError("none of the labelled cases has any label; a threshold needs cases with labels and without.")


def _changes(task: Answering, old: Calibration, new: Calibration, outputs: Outputs) -> list[dict[str, Any]]:
    """Every temperature, threshold and offset before and after, and how many cases it was chosen on."""
    labels, targets = task.labels, outputs.known_targets
    if task.multi_label:
        root = labels.name_of(None)
        task.calibrate(old)
        before = task.threshold
        task.calibrate(new)
        cases = len(outputs.ids)
        return [
            _change("temperature", root, old.temperatures.get(root, 1.0), new.temperatures[root], cases),
            _change("threshold", "of every label", before, task.threshold, cases),
            *(_change("offset", name, old.offsets.get(name, 0.0), new.offsets[name], cases) for name in labels.names),
        ]
    steps_NG = labels.steps_MG[targets]
    rows = []
    for place, group in enumerate(labels.siblings):
        if len(group.ids) > 1:
            name = labels.name_of(group.parent)
            cases = int((steps_NG[:, place] >= 0).sum())
            rows.append(_change("temperature", name, old.temperatures.get(name, 1.0), new.temperatures[name], cases))
    levels = max(len(old.thresholds), len(new.thresholds))
    for level in range(levels):
        reached = int((labels.paths_ML[targets, level] >= 0).sum())
        both = [own[level] if level < len(own) else None for own in (old.thresholds, new.thresholds)]
        rows.append(_change("threshold", f"level {level + 1}", both[0], both[1], reached))
    return rows


def _shares(knowledge: LabelKnowledge, counts: list[int], *, cases: int) -> dict[str, tuple[float | None, float]]:
    """The share of cases with each label, in training and at the site."""
    trained = knowledge.training_cases
    return {
        name: (before / trained if trained else None, own / cases)
        for name, before, own in zip(knowledge.labels, knowledge.class_counts, counts, strict=True)
    }


def _change(what: str, where: str, before: float | None, after: float | None, cases: int) -> dict[str, Any]:
    return {"what": what, "where": where, "before": before, "after": after, "cases": cases}


def _notes(chosen: Calibration, *, labels: LabelTree, multi_label: bool, counts: list[int]) -> list[str]:
    """What a person should know before the calibration is used."""
    found = []
    if absent := [name for name, count in zip(labels.names, counts, strict=True) if not count]:
        found.append(
            f"the site has no case of {counted(len(absent), 'label')} ({', '.join(absent[:10])}"
            f"{' ...' if len(absent) > 10 else ''}): nothing shows how far answers with these can be trusted there."
        )
    if not multi_label and any(level is None for level in chosen.thresholds):
        never = [str(level + 1) for level, own in enumerate(chosen.thresholds) if own is None]
        found.append(
            f"no threshold gives the wanted accuracy of {chosen.wanted_accuracy:g} at level {', '.join(never)}: such "
            "answers are never given. Want less (--wanted-accuracy), or train on cases of the site."
        )
    return found
