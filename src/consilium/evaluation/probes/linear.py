"""The linear probe: a logistic head on frozen features, fitted to convergence, its strength chosen by left-out groups.

Axes in names: T training image, N image that is asked about, K class, F number of a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from consilium.core.errors import DataError
from consilium.evaluation.metrics import Bools, Floats
from consilium.evaluation.probes.zero_shot import softmax

STRENGTHS = tuple(10.0**power for power in range(1, -6, -1))  # of the penalty, from the strongest
FOLDS = 5
_GRADIENT = 1e-6  # at most, of a fit that has converged; the loss is a mean over cases
_STEPS = 5000


@dataclass(frozen=True)
class LinearHead:
    """A fitted head; ``there_K`` are the classes that training had a choice about, and ``prior_K`` says the others."""

    mean_F: Floats
    deviation_F: Floats
    weight_FK: Floats
    bias_K: Floats
    there_K: Bools
    prior_K: Floats
    multi_label: bool
    converged: bool

    def probabilities(self, features_NF: Floats) -> Floats:
        """The probability of each class, [N, K]."""
        standard_NF = (features_NF - self.mean_F) / self.deviation_F
        scores_NJ = standard_NF @ self.weight_FK + self.bias_K
        found_NK = np.tile(self.prior_K, (len(features_NF), 1))
        found_NK[:, self.there_K] = 0.5 * (1 + np.tanh(scores_NJ / 2)) if self.multi_label else softmax(scores_NJ)
        return found_NK


@dataclass(frozen=True)
class Chosen:
    """The head that is fitted to all training images with the best strength; ``log_loss`` of left-out groups by it."""

    head: LinearHead
    strength: float
    log_losses: dict[float, float]


def fit_linear(
    features_TF: Floats,
    targets_TK: Floats,
    *,
    strength: float,
    multi_label: bool,
    start: LinearHead | None = None,
) -> LinearHead:
    """The head of least mean log loss plus ``strength`` / 2 times the squared weights, found by L-BFGS.

    Features are standardised by their own mean and deviation; the bias is not penalised. This is scikit-learn's
    LogisticRegression with C = 1 / (T strength); with ``multi_label`` one such for every class. ``targets_TK`` are 0 or
    1. Classes that no, or with ``multi_label`` every, training image has, keep that probability.
    """
    import torch
    from torch.nn import functional

    mean_F, deviation_F = features_TF.mean(axis=0), features_TF.std(axis=0)
    deviation_F = np.where(deviation_F > 0, deviation_F, 1.0)
    prior_K = targets_TK.mean(axis=0)
    there_K = (prior_K > 0) & (prior_K < 1) if multi_label else prior_K > 0
    standard_TF = torch.from_numpy((features_TF - mean_F) / deviation_F)
    targets_TJ = torch.from_numpy(targets_TK[:, there_K].astype(float))
    shape = (features_TF.shape[1] + 1, int(there_K.sum()))
    theta = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    if start is not None:
        theta.data[:] = torch.from_numpy(np.vstack([start.weight_FK, start.bias_K]))

    def objective() -> torch.Tensor:
        scores_TJ = standard_TF @ theta[:-1] + theta[-1]
        if multi_label:
            loss = functional.binary_cross_entropy_with_logits(scores_TJ, targets_TJ, reduction="sum")
        else:
            loss = functional.cross_entropy(scores_TJ, targets_TJ, reduction="sum")
        return loss / len(targets_TJ) + strength / 2 * theta[:-1].square().sum()

    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=_STEPS,
        max_eval=4 * _STEPS,
        tolerance_grad=_GRADIENT,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    converged = True
    if theta.numel():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        closure()
        converged = theta.grad is not None and float(theta.grad.abs().max()) <= 10 * _GRADIENT
    found = theta.detach().numpy()
    return LinearHead(mean_F, deviation_F, found[:-1], found[-1], there_K, prior_K, multi_label, converged)


def choose_linear(
    features_TF: Floats,
    targets_TK: Floats,
    groups: Sequence[str],
    *,
    multi_label: bool,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Chosen:
    """The head with the strength of least mean log loss on groups that its fit did not see.

    The groups are divided into five folds, or fewer where there are fewer groups; one group is a DataError.
    """
    names, group_T = np.unique(np.asarray(groups), return_inverse=True)
    folds = min(FOLDS, len(names))
    if folds < 2:
        raise DataError(
            "probes.linear chooses its strength on groups that are left out of train, and all training cases are of "
            f"one group ({names[0]}). Name the column of the patient (columns.group of a source)."
        )
    features_TF = np.asarray(features_TF, dtype=float)
    fold_G = np.random.default_rng(seed).permutation(len(names)) % folds
    sums, cases, done = dict.fromkeys(STRENGTHS, 0.0), 0, 0
    for fold in range(folds):
        out_T = fold_G[group_T] == fold
        head: LinearHead | None = None
        for strength in STRENGTHS:
            head = fit_linear(
                features_TF[~out_T], targets_TK[~out_T], strength=strength, multi_label=multi_label, start=head
            )
            sums[strength] += _loss(head, features_TF[out_T], targets_TK[out_T])
            done += 1
            if progress is not None:
                progress(done, folds * len(STRENGTHS))
        cases += int(out_T.sum())
    losses = {strength: total / cases for strength, total in sums.items()}
    best = min(losses, key=lambda strength: losses[strength])  # of equal ones the strongest
    return Chosen(fit_linear(features_TF, targets_TK, strength=best, multi_label=multi_label), best, losses)


def _loss(head: LinearHead, features_NF: Floats, targets_NK: Floats) -> float:
    """The summed log loss of left-out images about the classes that the fit had a choice about."""
    found_NJ = head.probabilities(features_NF)[:, head.there_K].clip(1e-12, 1 - 1e-12)
    own_NJ = targets_NK[:, head.there_K]
    loss_NJ = own_NJ * np.log(found_NJ)
    if head.multi_label:
        loss_NJ = loss_NJ + (1 - own_NJ) * np.log(1 - found_NJ)
    return float(-loss_NJ.sum())
