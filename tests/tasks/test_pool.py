"""The answers of the folds of a cross-validation in one list."""

from __future__ import annotations

import numpy as np

from consilium.core.evaluation import Outputs
from consilium.tasks.answers.pool import pool
from consilium.tasks.answers.targets import LabelKnowledge


def test_a_label_that_a_fold_never_learned_has_no_probability() -> None:
    rng = np.random.default_rng(0)

    def tested(labels: list[str], targets: list[int], **columns: list[str]) -> tuple[LabelKnowledge, Outputs]:
        ids = [f"{labels}{n}" for n in range(len(targets))]
        probabilities = rng.dirichlet(np.ones(len(labels)), size=len(targets))
        knowledge = LabelKnowledge(labels=labels, class_counts=[1] * len(labels), training_cases=len(labels))
        return knowledge, Outputs({"probabilities": probabilities}, np.array(targets), ids, ids, columns)

    parts = [tested(["a", "c"], [0, 1, 1], source=["s"] * 3), tested(["a", "b", "c"], [1, 2], sex=["f", "m"])]
    knowledge, pooled = pool(parts, multi_label=False)
    assert knowledge.labels == ["a", "b", "c"]
    assert pooled.known_targets.tolist() == [0, 2, 2, 1, 2]
    assert (pooled.arrays["probabilities"][:3, 1] == 0).all()
    np.testing.assert_array_equal(pooled.arrays["probabilities"][:3, [0, 2]], parts[0][1].arrays["probabilities"])
    assert pooled.columns == {"sex": ["", "", "", "f", "m"], "source": ["s", "s", "s", "", ""]}
