"""What the page of a cross-validation warns of: what the folds say, once, in whole sentences."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from consilium.core.evaluation import Evaluation, Interval, Outputs
from consilium.core.labels import LabelTree
from consilium.evaluation.config import AnswersConfig, EvaluationConfig
from consilium.evaluation.labels.classification import ClassificationEvaluator
from consilium.evaluation.labels.report import label_parts
from consilium.evaluation.report.crossval import CrossvalContent, FoldFigures, write_crossval
from consilium.evaluation.retrieval.report import retrieval_parts

LOOK = "`consilium data inspect` lists all that was found, and draws near-duplicates."
ALIKE = (
    "leak: almost the same image is in train and test (cases {0}, {0}_small); keep one of them. And {1} more like it."
)


def content(*notes_of_folds: list[str], seed: int = 0) -> CrossvalContent:
    labels = LabelTree(["ct", "mri"])
    random = np.random.default_rng(seed)
    ids = [str(n) for n in range(40)]
    outputs = Outputs({"probabilities": random.dirichlet(np.ones(2), 40)}, np.arange(40) % 3 // 2, ids, ids, {})
    evaluator = ClassificationEvaluator(
        labels, multi_label=False, config=EvaluationConfig(bootstrap_samples=20), answers=AnswersConfig()
    )
    pooled = evaluator.evaluate(outputs, split="crossval")
    return CrossvalContent(
        name="near",
        what=f"{len(notes_of_folds)} folds",
        by_value=False,
        folds=[
            FoldFigures(f"fold {n}", "runs", 20, 5, 20, pooled.metrics, pooled.intervals, notes)
            for n, notes in enumerate(notes_of_folds)
        ],
        pooled=pooled,
        parts=label_parts(labels.leaves),
        skipped={},
        notes=[],
        confidence=0.95,
        command="consilium crossval near.yaml --folds 3",
        config_yaml="name: near\n",
    )


def test_leaks_of_folds_are_on_the_page_and_in_the_json(tmp_path: Path) -> None:
    folds = [[ALIKE.format("a/1", 9), LOOK], [ALIKE.format("b/2", 13), LOOK], ["pixels: odd", LOOK]]
    page = write_crossval(tmp_path, content(*folds)).read_text(encoding="utf-8")
    told = "fold 0, fold 1: leak: almost the same image is in train and test (cases a/1, a/1_small or cases b/2, "
    notes = json.loads((tmp_path / "crossval.json").read_text(encoding="utf-8"))["notes"]
    assert any(note.startswith(told) for note in notes)
    assert LOOK in notes
    box = page.split('<aside class="cautions">')[1].split("</aside>")[0]
    assert told in box
    assert "fold 2: pixels: odd" in box
    assert "consilium data" not in box
    assert LOOK in page.split('<section id="reproduce">')[1]
    assert "A model that always names the largest class, ct, would name" in page


@pytest.mark.parametrize(
    ("notes", "told"),
    [
        (
            ["only 7 cases tested: the figures say little.", "only 5 cases tested: the figures say little."],
            "fold 0, fold 1: only 5 to 7 cases tested: the figures say little.",
        ),
        (
            ["val has no case of: ct; they count.", "val has no case of: mri; they count."],
            "fold 0, fold 1: val has no case of: ct or mri; they count.",
        ),
        (
            ["leak: group 'p1' is in train and test.", "leak: group 'p2' is in train and test."],
            "fold 0, fold 1: leak: group 'p1' or 'p2' is in train and test.",
        ),
        (["only 7 cases tested.", "only 7 cases tested."], "only 7 cases tested."),
    ],
)
def test_notes_of_one_kind_are_one_sentence_without_gaps(notes: list[str], told: str) -> None:
    found = content(*([note] for note in notes)).cautions()
    assert told in found
    assert not [note for note in found if re.search(r"\.\.\.|\(\)|''", note)]


def test_what_a_report_says_of_few_groups_and_cases_is_said_of_the_pooled_figures() -> None:
    told = ("Fewer than 10 cases", "independent groups")
    large = content([])
    small = replace(large, pooled=small_evaluation())
    for words in told:
        assert any(words in note for note in small.cautions())
        assert not any(words in note for note in large.cautions())


def small_evaluation() -> Evaluation:
    outputs = Outputs(
        {"probabilities": np.eye(2)[[0, 1, 1]]}, np.array([0, 1, 0]), ["a", "b", "c"], ["a", "b", "c"], {}
    )
    evaluator = ClassificationEvaluator(
        LabelTree(["ct", "mri"]), multi_label=False, config=EvaluationConfig(), answers=AnswersConfig()
    )
    return evaluator.evaluate(outputs, split="crossval")


def test_a_family_whose_answers_are_not_pooled_has_the_mean_over_the_folds_and_no_word_of_labels(
    tmp_path: Path,
) -> None:
    folds = [
        FoldFigures(f"fold {n}", "runs", 20, 5, 20, {"mean_recall": value}, {"mean_recall": Interval(value, 0.1, 0.9)})
        for n, value in enumerate((0.25, 0.5))
    ]
    pooled = Evaluation(split="crossval", cases=40, metrics={})
    found = replace(content([]), folds=folds, pooled=pooled, parts=retrieval_parts())
    page = write_crossval(tmp_path, found).read_text(encoding="utf-8")
    assert found.sentences() == [
        "40 cases were each tested once, by a model that had not seen them: Mean recall 37.5\N{NO-BREAK SPACE}% as the "
        "mean over the folds.",
        "Fold by fold from 25.0\N{NO-BREAK SPACE}% (fold 0) to 50.0\N{NO-BREAK SPACE}% (fold 1).",
    ]
    assert "Nothing is pooled" in page
    assert not re.search(r"AUROC|confus|class,|named|all cases, pooled", page)
    assert [list(row) for row in found.summary_rows()] == [["figure", "mean", "deviation", "folds"]]
