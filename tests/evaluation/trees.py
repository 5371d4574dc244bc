"""Label trees, what a model says of cases, and their labels, for tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from consilium.core.answers import Answers, answer
from consilium.core.evaluation import Outputs
from consilium.core.labels import LabelTree

TREES = (
    ["ct", "mri"],
    ["a.b", "a.c", "d"],
    ["rad.ct", "rad.mri", "rad.xray.hand", "rad.xray.chest", "mic.blood", "other"],
    ["only.one.path"],
)


def paths(probabilities_NM: np.ndarray, labels: LabelTree) -> np.ndarray:
    """Probabilities of paths from those among siblings."""
    return np.stack([probabilities_NM[:, list(labels.path(node))].prod(1) for node in range(len(labels))], axis=1)


def outputs(labels: LabelTree, truth: list[int], *, seed: int = 0, skill: float = 2.0) -> Outputs:
    """A model that is sometimes right."""
    random = np.random.default_rng(seed)
    scores_NM = random.normal(size=(len(truth), len(labels)))
    for row, node in enumerate(truth):
        if node >= 0:
            scores_NM[row, list(labels.path(node))] += skill
    shares_NM = np.exp(scores_NM)
    for group in labels.siblings:
        shares_NM[:, list(group.ids)] /= shares_NM[:, list(group.ids)].sum(1, keepdims=True)
    return Outputs(
        arrays={"conditionals": shares_NM, "probabilities": paths(shares_NM, labels)},
        targets=np.array(truth, dtype=np.int64),
        ids=[f"case-{n}" for n in range(len(truth))],
        groups=[f"patient-{n // 2}" for n in range(len(truth))],
        columns={"source": ["ab"[n % 2] for n in range(len(truth))]},
    )


@dataclass(frozen=True)
class Judged:
    """Labelled cases and what is answered, with how often each case counts in each of three resamples."""

    labels: LabelTree
    truth_N: np.ndarray
    answers: Answers
    weights_RN: np.ndarray

    def path(self, node: int) -> list[str]:
        """The names from the top down to a node."""
        parts = self.labels.names[node].split(".")
        return [".".join(parts[: depth + 1]) for depth in range(len(parts))]

    def said(self, case: int, *, whole: bool = False) -> list[str]:
        """The names that the model says of a case, as far as it answers and they can be judged."""
        ids = [node for node in self.answers.paths_NL[case].tolist() if node >= 0]
        names = [self.labels.names[node] for node in ids]
        names = names if whole else names[: self.answers.depths_N[case]]
        inner = self.labels.names[self.truth_N[case]]
        is_inner = any(name.startswith(f"{inner}.") for name in self.labels.names)
        return names[: len(inner.split("."))] if is_inner else names


@st.composite
def judged(draw: st.DrawFn) -> Judged:
    """Any tree, labels at any depth, any thresholds."""
    labels = LabelTree.from_labels([draw(st.sampled_from(TREES))], nested=True)
    truth = draw(st.lists(st.integers(0, len(labels) - 1), min_size=1, max_size=12))
    found = outputs(labels, truth, seed=draw(st.integers(0, 1000)), skill=draw(st.sampled_from([0.0, 1.0, 3.0])))
    thresholds = draw(st.lists(st.none() | st.floats(0, 1), max_size=labels.levels))
    weights = st.lists(st.integers(0, 3), min_size=len(truth), max_size=len(truth))
    answers = answer(found.arrays["probabilities"], labels=labels, thresholds=thresholds)
    return Judged(labels, found.targets, answers, np.array([draw(weights) for _ in range(3)], dtype=float))
