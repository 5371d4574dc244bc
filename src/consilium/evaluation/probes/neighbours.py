"""Classification by similarity alone: votes of the nearest training images, and means of a few images a class.

Axes in names: N image that is asked about, T training image, K class, F number of a feature, S draw.
"""

from __future__ import annotations

import numpy as np

from consilium.core.errors import DataError
from consilium.core.reporter import some
from consilium.evaluation.metrics import Floats, Ints
from consilium.evaluation.retrieval.ranks import nearest, unit

TEMPERATURE = 0.07  # of votes and of class means, as in Wu et al.


def vote(train_TF: Floats, targets_TK: Floats, images_NF: Floats, *, k: int) -> Floats:
    """The share of each class [N, K] among the ``k`` training images of largest cosine, weighted by exp(cosine / 0.07).

    ``targets_TK`` are 1 for each class of a training image. Of fewer than ``k`` images all vote. Wu et al.,
    Unsupervised Feature Learning via Non-Parametric Instance Discrimination, 2018, arXiv:1805.01978.
    """
    rows_NJ, cosine_NJ = nearest(unit(images_NF), unit(train_TF), count=k)
    weights_NJ = np.exp((cosine_NJ - cosine_NJ.max(axis=1, keepdims=True)) / TEMPERATURE)
    votes_NK = np.einsum("nj,njk->nk", weights_NJ, targets_TK[rows_NJ])
    return np.asarray(votes_NK / weights_NJ.sum(axis=1, keepdims=True))


def class_means(train_TF: Floats, targets_T: Ints, *, classes: int) -> Floats:
    """Of each class the mean of its unit features, made a unit again, [K, F]: its prototype in cosine.

    Snell et al., Prototypical Networks for Few-shot Learning, 2017, arXiv:1703.05175.
    """
    units_TF = unit(train_TF)
    return unit(np.stack([units_TF[targets_T == k].mean(axis=0) for k in range(classes)]))


def draw_shots(targets_T: Ints, *, shots: int, draws: int, labels: list[str], seed: int) -> list[Ints]:
    """The rows of ``shots`` training images of each class, drawn anew each time; a class with fewer is a DataError."""
    counts_K = np.bincount(targets_T[targets_T >= 0], minlength=len(labels))
    if short := [f"{label} ({count})" for label, count in zip(labels, counts_K, strict=True) if count < shots]:
        raise DataError(
            f"probes.few_shot asks for {shots} training images of each class, and train has fewer of "
            f"{some(short, 10)}. Leave {shots} out, add training cases, or keep these labels out (data.filters.labels)."
        )
    random = np.random.default_rng([seed, shots])
    rows_of = [np.flatnonzero(targets_T == k) for k in range(len(labels))]
    return [np.concatenate([random.choice(own, size=shots, replace=False) for own in rows_of]) for _ in range(draws)]
