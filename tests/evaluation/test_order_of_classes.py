"""Grades and their order: a figure that needs it is left out where nobody gave it, never taken from the alphabet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from consilium.core.evaluation import Evaluation, Outputs
from consilium.core.labels import LabelTree, class_order, reading_order
from consilium.evaluation.config import AnswersConfig, EvaluationConfig
from consilium.evaluation.labels.classification import ClassificationEvaluator
from consilium.evaluation.labels.wording import meaning
from consilium.tasks.answers.config import TreeConfig

GRADES = ("No DR", "Mild", "Moderate", "Severe")


def judged(
    names: Sequence[str], truth: Sequence[str], named: Sequence[str], *, order: Sequence[str] = ()
) -> Evaluation:
    """The evaluation of answers that are sure of what they name; ids are in the order of ``names``."""
    labels = LabelTree(names)
    named_N = [labels.index(name) for name in named]
    outputs = Outputs(
        arrays={"probabilities": np.eye(len(names), dtype=np.float32)[named_N]},
        targets=np.array([labels.index(name) for name in truth]),
        ids=[str(n) for n in range(len(truth))],
        groups=[str(n) for n in range(len(truth))],
        columns={},
    )
    config = EvaluationConfig(bootstrap_samples=0)
    return ClassificationEvaluator(
        labels, multi_label=False, config=config, answers=AnswersConfig(), order=order
    ).evaluate(outputs, split="test")


def test_names_have_no_order_until_somebody_gives_it() -> None:
    truth, named = [*GRADES, *GRADES], ["Mild", "No DR", "Moderate", "Severe", *GRADES]
    unknown = judged(sorted(GRADES), truth, named)
    assert unknown.metrics["quadratic_kappa"] is None
    assert "order" not in unknown.tables
    assert "task.tree.nodes" in meaning("quadratic_kappa", unknown)
    # The ids of a bundle stay as they are, whatever the order: kappa of 0, 1, 2, 3 by hand.
    for names in (sorted(GRADES), GRADES):
        given = judged(names, truth, named, order=GRADES)
        assert given.metrics["quadratic_kappa"] == pytest.approx(1 - 2 / 20)
        assert [row["label"] for row in given.tables["order"]] == list(GRADES)
        assert [row["label"] for row in given.tables["per_class"]] == list(GRADES)
        assert [row["truth"] for row in given.tables["confusion"]][:2] == ["No DR", "No DR"]
        assert "No DR, Mild, Moderate, Severe" in meaning("quadratic_kappa", given)
    per_class = {row["label"]: row for row in unknown.tables["per_class"]}
    assert per_class == {row["label"]: row for row in given.tables["per_class"]}
    assert unknown.metrics | {"quadratic_kappa": None} == given.metrics | {"quadratic_kappa": None}


def test_whole_numbers_are_ordered_by_value() -> None:
    numbers = [str(n) for n in range(12)]
    named = ["1", "0", *numbers[2:]]
    found = judged(sorted(numbers), numbers, named)
    assert found.metrics["quadratic_kappa"] == pytest.approx(1 - 2 / 286)  # 286: twice 12 variances of 0 ... 11
    assert [row["label"] for row in found.tables["per_class"]] == numbers
    assert [row["truth"] for row in found.tables["confusion"]] == numbers
    assert judged(numbers, numbers, named).metrics == found.metrics


def test_two_classes_need_no_order() -> None:
    truth, named = ["sick", "sick", "healthy", "healthy"], ["sick", "healthy", "healthy", "healthy"]
    assert judged(["healthy", "sick"], truth, named).metrics["quadratic_kappa"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("labels", "given", "order"),
    [
        (["b", "a", "c"], (), None),
        (["b", "a", "c"], ("c", "b", "a"), ("c", "b", "a")),
        (["b", "a"], ("c", "b", "a"), ("b", "a")),  # a fold without one of the grades
        (["b", "a", "new"], ("b", "a"), None),  # a router to which a label was added
        (["10", "9", "-1"], (), ("-1", "9", "10")),
        (["10", "9", "010"], (), None),  # one number in two spellings
        (["grade 1", "grade 2", "grade 10"], (), None),  # types and clusters are numbered, too
        (["1.5", "2.5", "3.5"], (), None),
        (["²", "1", "3"], (), None),
    ],
)
def test_which_order_is_known(labels: list[str], given: tuple[str, ...], order: tuple[str, ...] | None) -> None:
    assert class_order(labels, given=given) == order


def test_tables_list_whole_numbers_by_value_and_other_labels_as_they_came() -> None:
    assert reading_order(["b", "10", "a", "9"]) == ["9", "10", "b", "a"]


def test_only_a_list_of_one_level_is_an_order() -> None:
    assert TreeConfig(nodes=list(GRADES)).order == GRADES
    assert TreeConfig().order == ()
    assert TreeConfig(nodes={"eye": ["Mild", "Severe"]}).order == ()
    assert TreeConfig(nodes=["eye.Mild", "eye.Severe"], head="joint").order == ()
