"""From the probabilities of a label tree to an answer: how deep it goes, and when it is none.

Axes in names: N case, M node of the tree, L level (0 is below the root).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from consilium.core.config import Config
from consilium.core.labels import LabelTree

FAR = 2.0**30  # the distance to a node of which no training case is: a number like others, but of no feature
UNKNOWN = "unknown"  # the answer of a case whose first level is not sure enough
DEFAULT, GENERALIST = "default", "generalist"  # who answers in a council without sitting at a node


class Calibration(Config):
    """What validation taught about a model's own probabilities; saved in the bundle.

    ``temperatures`` by the name of an inner node (``root`` for the top): the scores of its children are divided by
    it before their softmax (temperature scaling: Guo et al., 2017, arXiv:1706.04599). ``thresholds``: the least
    probability of a path at each level, from the top, that is given as an answer; None: that level is never given.
    ``distances``: the largest distance to a node at each level with which it is given; []: distance does not matter.
    With any number of labels a case all scores are divided by the temperature of ``root``, the ``offsets`` of labels
    are added to that (Platt, 1999), and the only threshold is the probability from which on a label is given; []: that
    of ``task.answers.threshold``.
    """

    temperatures: dict[str, Annotated[float, Field(gt=0.0)]] = Field(
        default={}, description="Of the children of each inner node."
    )
    thresholds: list[float | None] = Field(default=[], description="Least probability of an answer at each level.")
    wanted_accuracy: float | None = Field(default=None, description="What the thresholds were chosen for.")
    offsets: dict[str, float] = Field(default={}, description="Added to the scaled score of each label.")
    distances: list[float] = Field(default=[], description="Largest distance of an answer at each level.")

    def answers(
        self, probabilities_NM: np.ndarray, *, labels: LabelTree, distances_NM: np.ndarray | None = None
    ) -> Answers:
        """The answers that these thresholds and distances let pass."""
        return answer(
            probabilities_NM,
            labels=labels,
            thresholds=self.thresholds,
            distances_NM=distances_NM,
            limits=self.distances,
        )


class NamedCalibration(Config):
    """A calibration that a bundle knows: its name, and the cases that it was chosen on."""

    name: str = Field(description="training, or what the cases of a site are called.")
    data: str = Field(description="What was given as data.")
    cases: int = Field(ge=0, description="That it was chosen on.")
    groups: int = Field(ge=0, description="Patients or other groups among them.")
    created: str = Field(description="Date and time.")
    calibration: Calibration


@dataclass(frozen=True)
class Answers:
    """The likeliest path of every case, and how much of it is answered.

    ``paths_NL`` are node ids from the top, -1 past a leaf. ``probabilities_NL`` are those of the path down to each
    level, 0 past a leaf. ``depths_N`` counts the levels that are answered: 0 is "unknown".
    """

    paths_NL: np.ndarray
    probabilities_NL: np.ndarray
    depths_N: np.ndarray

    @property
    def nodes_N(self) -> np.ndarray:
        """The node answered, -1 for unknown."""
        last_N = self.paths_NL[np.arange(len(self.paths_NL)), np.maximum(self.depths_N - 1, 0)]
        return np.where(self.depths_N > 0, last_N, -1)


def answer(
    probabilities_NM: np.ndarray,
    *,
    labels: LabelTree,
    thresholds: Sequence[float | None] = (),
    distances_NM: np.ndarray | None = None,
    limits: Sequence[float] = (),
) -> Answers:
    """Walk from the root to the likelier child until a leaf; answered are the levels down to the first unsure one.

    ``probabilities_NM`` are those of paths: a node's is its parent's times its own among its siblings. A level is sure
    where the probability of its path is at least that of ``thresholds`` and, of the levels that have one, the distance
    to its node at most that of ``limits``. Without both every path is answered whole.
    """
    cases = np.arange(len(probabilities_NM))
    paths_NL = np.full((len(cases), labels.levels), -1, dtype=np.int64)
    current_N = np.full(len(cases), -1, dtype=np.int64)
    for group in labels.siblings:  # from the root down, so that every parent comes before its children
        here = cases[current_N == (-1 if group.parent is None else group.parent)]
        ids = np.array(group.ids)
        current_N[here] = ids[probabilities_NM[here][:, ids].argmax(1)]
        paths_NL[here, 0 if group.parent is None else len(labels.path(group.parent))] = current_N[here]
    probabilities_NL = np.where(paths_NL >= 0, probabilities_NM[cases[:, None], paths_NL], 0.0)
    least_L = np.zeros(labels.levels)
    for level, least in enumerate(thresholds[: labels.levels]):
        least_L[level] = np.inf if least is None else least
    sure_NL = (paths_NL >= 0) & (probabilities_NL >= least_L)
    if limits:
        assert distances_NM is not None, "there are limits, but no distances"
        known = min(len(limits), labels.levels)
        sure_NL[:, :known] &= distances_NM[cases[:, None], paths_NL[:, :known]] <= np.array(limits[:known])
    return Answers(paths_NL, probabilities_NL, np.cumprod(sure_NL, axis=1).sum(1))
