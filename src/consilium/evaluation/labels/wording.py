"""What an evaluation of labels says, in sentences: shared by the report and the model card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from consilium.core.evaluation import Evaluation
from consilium.evaluation.report import words
from consilium.evaluation.report.wording import (
    FEW_CASES,
    SPLIT_WORDS,
    cases_phrase,
    listed,
    notes,
    number,
    on_the_split,
    percent,
    plain,
    with_interval,
)


def largest_class(evaluation: Evaluation) -> dict[str, Any] | None:
    """The ``label`` of most cases and the ``accuracy`` of a model that always names it; None with several labels."""
    rows = evaluation.tables.get("per_class", [])
    if "accuracy" not in evaluation.metrics or not rows:
        return None
    largest = max(rows, key=lambda row: row["support"])
    return {"label": largest["label"], "accuracy": largest["support"] / sum(row["support"] for row in rows)}


def beside_accuracy(evaluation: Evaluation) -> list[str]:
    """What a model would reach that looks at nothing; nothing to say where a case has several labels."""
    largest = largest_class(evaluation)
    if largest is None:
        return []
    reached = percent(largest["accuracy"])
    return [f"A model that always names the largest class, {largest['label']}, would name {reached} right."]


def meaning(name: str, evaluation: Evaluation) -> str:
    """What a figure means, and what it is to be compared with: the largest class, the order of the classes."""
    own = words.meaning(name)
    if name == "accuracy" and (largest := largest_class(evaluation)) is not None:
        return f"{own}; always naming the largest class reaches {percent(largest['accuracy'])}"
    if name != "quadratic_kappa":
        return own
    order = [row["label"] for row in evaluation.tables.get("order", [])]
    if order:
        return f"{own}, the classes from low to high in this order: {listed(order, at_most=30)}"
    if len(evaluation.tables.get("per_class", [])) > 2:
        return f"{own}; left out, since nothing says in which order the classes are (task.tree.nodes gives it)"
    return own


def summary(evaluation: Evaluation, *, confidence: float) -> list[str]:
    """The result in plain sentences, most important first."""
    shown = {name: with_interval(name, value, confidence=confidence) for name, value in evaluation.intervals.items()}
    where = f"On {cases_phrase(evaluation)} the model"
    sentences = []
    if "accuracy" in shown:
        leaf = sum(row["support"] for row in evaluation.tables["per_class"])
        of = f" of the {number(leaf)} whose label is a leaf of the tree" if leaf < evaluation.cases else ""
        sentences.append(f"{where} named the right class in {shown['accuracy']}{of}.")
    elif "exact_match" in shown:
        sentences.append(f"{where} got every label right in {shown['exact_match']} of the cases.")
    classes = [row for row in evaluation.tables.get("per_class", []) if row["support"] > 0]
    if "balanced_accuracy" in shown and len(classes) > 1:
        sentences.append(
            f"Each of the {len(classes)} classes counting the same, it found {shown['balanced_accuracy']} of a "
            "class's cases."
        )
    missed = [row["label"] for row in classes if row["recall"] == 0.0]
    if len(missed) > 1:
        sentences.append(f"It found no case at all of {len(missed)} classes: {listed(missed)}.")
    elif len(classes) > 1:
        weakest = min(classes, key=lambda row: row["recall"])
        if weakest["recall"] < 1.0:
            sentences.append(
                f"Its weakest class is {weakest['label']}: it found {round(weakest['recall'] * weakest['support'])} of "
                f"{number(weakest['support'])} cases ({percent(weakest['recall'])})."
            )
    return sentences


def calibration_sentence(evaluation: Evaluation) -> str:
    """Whether stated confidence can be believed."""
    bins = [row for row in evaluation.tables.get("calibration", []) if row["statements"]]
    total = sum(row["statements"] for row in bins)
    if not total:
        return ""
    said = sum(row["statements"] * row["confidence"] for row in bins) / total
    right = sum(row["statements"] * row["frequency"] for row in bins) / total
    if "exact_match" in evaluation.metrics:
        return (
            f"Over all cases and labels it states {percent(said)} on average, and {percent(right)} of the labels apply."
        )
    verdict = "about as sure as it should be"
    if abs(said - right) >= 0.02:
        verdict = "surer than it should be" if said > right else "less sure than it could be"
    return f"On average it states {percent(said)} confidence and is right in {percent(right)}: {verdict}."


def confusions(evaluation: Evaluation, *, at_most: int) -> list[str]:
    """The most frequent mistakes, one sentence each."""
    support = {row["label"]: row["support"] for row in evaluation.tables.get("per_class", [])}
    rows = [row for row in evaluation.tables.get("confusion", []) if row["truth"] != row["prediction"]]
    rows.sort(key=lambda row: (-row["cases"], -row["share"]))
    return [
        f"{row['truth']} taken for {row['prediction']}: {row['cases']} of {number(support[row['truth']])} "
        f"({percent(row['share'])})"
        for row in rows[:at_most]
    ]


def errors_phrase(evaluation: Evaluation) -> str:
    """How many cases were named wrong."""
    rows = evaluation.tables["confusion"]
    wrong = sum(row["cases"] for row in rows if row["truth"] != row["prediction"])
    judged = sum(row["cases"] for row in rows)
    return f"{number(wrong)} of {number(judged)} cases {'was' if wrong == 1 else 'were'} named wrong."


def abstention(evaluation: Evaluation, *, confidence: float) -> list[str]:
    """When it answers and when it does not, and how often it is right then."""
    levels = evaluation.tables.get("levels", [])
    if not _may_stop(evaluation):
        return [
            "It answers every case, however unsure it is: no accuracy and no distance was asked for.",
            *_if_it_stopped(evaluation),
        ]
    whole, wanted, share = levels[-1], levels[0]["wanted_accuracy"], evaluation.metrics["coverage"]
    kind = SPLIT_WORDS.get(evaluation.split, "cases")
    told = {name: with_interval(name, value, confidence=confidence) for name, value in evaluation.intervals.items()}
    nested = len(levels) > 1
    asked = "" if wanted is None else f"; asked was {plain(wanted)}" + (" at each level" if nested else "")
    sentences = [f"It answered none of the {kind}: every one is “unknown”."]
    if share:
        right = "and all that it said was right" if nested else "and was right"
        answered = f"{told['coverage']} of the {kind}" + (", at least the first level," if nested else "")
        sentences = [f"It answered {answered} {right} in {told['answered_accuracy']} of those{asked}."]
        if share < 1.0:
            sentences.append(f"The other {percent(1 - share)} are “unknown”.")
    if nested and whole["answered_accuracy"] is not None:
        sentences.append(
            f"It went down to a leaf of the tree in {percent(whole['answered'])}, and was right there in "
            f"{percent(whole['answered_accuracy'])}; where it is unsure on the way it stops at the parent."
        )
    if whole["accuracy"] is not None:
        sentences.append(f"Had it answered every case whole, it would have been right in {percent(whole['accuracy'])}.")
    return sentences + _never_answered(levels)


def limit(evaluation: Evaluation | None) -> str:
    """What it does with an image that is none of its classes."""
    if evaluation is None or not _may_stop(evaluation):
        return (
            "It names one of its classes whatever the image shows: an image of another kind gets a wrong name, perhaps "
            "with high confidence."
        )
    return (
        "Where it is unsure it stops or says “unknown”. That catches some images of another kind; others get a wrong "
        "name, perhaps with high confidence."
    )


def _may_stop(evaluation: Evaluation) -> bool:
    """Whether there are thresholds below which it does not answer."""
    return any("answered" in row for row in evaluation.tables.get("levels", []))


def operating_point(evaluation: Evaluation) -> tuple[float, float] | None:
    """Share answered whole and share of these that is wrong, as the thresholds are set; None where there are none."""
    whole = evaluation.tables.get("levels", [{}])[-1]
    right = whole.get("answered_accuracy")
    return None if right is None else (whole["answered"], 1.0 - right)


def further_curves(evaluation: Evaluation) -> dict[str, list[dict[str, Any]]]:
    """The curves of risk over coverage by other signs than the probability, over all cases."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in evaluation.tables.get("doubt_curves", []):
        if not row["never_seen"] and row["sign"] != "probability":
            found.setdefault(row["sign"], []).append(row)
    return found


def _never_answered(levels: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which levels have no threshold."""
    never = [str(row["level"]) for row in levels if row["threshold"] is None and isinstance(row["level"], int)]
    if not never:
        return []
    if never[0] == "1":
        return ["On validation no threshold gave the accuracy that was asked for, so it never answers."]
    return [f"On validation no threshold gave the accuracy asked for at level {never[0]}, so it always stops above it."]


def _if_it_stopped(evaluation: Evaluation) -> list[str]:
    """What a threshold could give, where there is none."""
    rows = evaluation.tables.get("risk_coverage", [])
    some = [row for row in rows if 0.5 <= row["coverage"] < 1.0]
    if not some or not rows[-1]["risk"]:
        return []
    near = min(some, key=lambda row: abs(row["coverage"] - 0.8))
    return [
        f"{percent(rows[-1]['risk'])} of its answers are wrong. Of the surest {percent(near['coverage'], 0)} of them "
        f"{percent(near['risk'])} are."
    ]


def shortfalls(evaluation: Evaluation) -> list[str]:
    """Where fewer answers are right than was asked for."""
    found = []
    levels = [row for row in evaluation.tables.get("levels", []) if isinstance(row["level"], int)]
    for row in levels:
        right, wanted = row.get("answered_accuracy"), row.get("wanted_accuracy")
        if right is None or wanted is None or right >= wanted:
            continue
        where = f"At level {row['level']} its answers" if len(levels) > 1 else "Its answers"
        high = row["answered_accuracy_high"]
        chance = " Chance may explain it: the interval reaches that far." if high is not None and high >= wanted else ""
        found.append(
            f"{where} were right in {percent(right)}, less than the {plain(wanted)} asked for: the threshold "
            f"was chosen on validation cases and does not hold as well here.{chance}"
        )
    return found


def rough_thresholds(validation: Evaluation) -> list[str]:
    """Which levels validation gave no threshold, or one from fewer answers than can show the wanted accuracy."""
    found = []
    for row in validation.tables.get("levels", []):
        wanted = row.get("wanted_accuracy")
        if wanted is None or not isinstance(row["level"], int):
            continue
        if row["threshold"] is None:
            stop = "every answer is “unknown”" if row["level"] == 1 else "answers stop above it"
            found.append(f"No threshold gives {plain(wanted)} right at level {row['level']} on validation: {stop}.")
            break
        answers, enough = round(row["answered"] * row["cases"]), math.ceil(round(1 / (1 - wanted), 6))
        if answers < enough:
            found.append(
                f"To see {plain(wanted)} right takes {number(enough)} answers, and the threshold of level "
                f"{row['level']} was chosen on {number(answers)} of validation: it may hold less well elsewhere."
            )
    return found


def cautions(evaluation: Evaluation) -> list[str]:
    """What a reader must know before believing the figures."""
    per_class = evaluation.tables.get("per_class", [])
    found = on_the_split(evaluation)
    largest, accuracy = largest_class(evaluation), evaluation.metrics.get("accuracy")
    if largest is not None and accuracy is not None and accuracy <= largest["accuracy"] < 1.0:
        found.append(f"Always naming the largest class, {largest['label']}, would be right as often, or more often.")
    absent = [row["label"] for row in per_class if row["support"] == 0]
    if absent:
        found.append(f"Not judged, because no case of it was here: {listed(absent)}.")
    found += shortfalls(evaluation)
    few = [row["label"] for row in per_class if 0 < row["support"] < FEW_CASES]
    if few:
        found.append(f"Fewer than {FEW_CASES} cases, so the figures of the class say little: {listed(few)}.")
    return found + notes(evaluation)
