"""Logistic regression on a matrix of features, fitted to convergence, its strength chosen on folds that are left out.

Probes fit it to the features of an expert, and ``task.head: {kind: logistic}`` to those of a frozen tower.
Axes in names: T training row, S one that is seen, N row that is asked about, K class, J class that training has a
choice about, F feature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from consilium.evaluation.metrics import Bools, Floats, Ints

FOLDS = 5  # in which rows are left out, where there are as many units
TRUSTS = (0.0, 0.25, 0.5, 1.0)  # what a prior's scores may be multiplied by
STRENGTHS = tuple(10.0**power for power in range(1, -6, -1))  # of the penalty, from the strongest
_ERROR, _ROUGH = 1e-5, 1e-3  # of a weight on standardised features, about: of a last fit, and of those on the way
_STEPS, _LEAST = 5000, 1e-9  # steps at most, and the least that one may lower the loss where single precision is used
PATIENCE = 2  # weaker penalties in a row that were worse than one before, after which no weaker one is tried
_FLAT = 1e-6  # a deviation below this share of a feature's size is rounding
_NEVER = -20.0  # score of a class without cases: those of the others sum to 0, so that it gets less than exp(-20)


@dataclass(frozen=True)
class LinearHead:
    """A fitted head; ``there_K``: training had a choice about these classes; ``given_K`` is 0 or 1 of the others.

    ``trust`` is what the scores of a prior are multiplied by, to which the head's own are added.
    """

    mean_F: Floats
    deviation_F: Floats
    weight_FJ: Floats
    bias_J: Floats
    there_K: Bools
    given_K: Floats
    multi_label: bool
    converged: bool
    trust: float = 0.0

    def probabilities(self, features_NF: Floats) -> Floats:
        """The probability of each class, [N, K]."""
        standard_NF = (features_NF - self.mean_F) / self.deviation_F
        scores_NJ = standard_NF @ self.weight_FJ + self.bias_J
        found_NK = np.tile(self.given_K, (len(features_NF), 1))
        found_NK[:, self.there_K] = 0.5 * (1 + np.tanh(scores_NJ / 2)) if self.multi_label else softmax(scores_NJ)
        return found_NK

    def layer(self) -> tuple[Floats, Floats]:
        """Weight [K, F] and bias [K] for features as they are.

        A class without training cases has the score of the prior alone; without one it is never likely.
        """
        weight_KF = np.zeros((len(self.there_K), len(self.mean_F)))
        bias_K = np.full(len(self.there_K), 0.0 if self.trust else _NEVER)
        weight_KF[self.there_K] = (self.weight_FJ / self.deviation_F[:, None]).T
        bias_K[self.there_K] = self.bias_J - weight_KF[self.there_K] @ self.mean_F
        return weight_KF, bias_K


@dataclass(frozen=True)
class Chosen:
    """The head that all rows give with the best strength and trust, and the mean log loss of left-out rows.

    ``log_losses`` are those of the best trust by strength, as far as it was tried, ``by_trust`` those of the best
    strength by trust.
    """

    head: LinearHead
    strength: float
    log_losses: dict[float, float]
    by_trust: dict[float, float]


def softmax(scores_NK: Floats) -> Floats:
    """Probabilities of classes from their scores."""
    odds_NK = np.exp(scores_NK - scores_NK.max(axis=1, keepdims=True))
    return np.asarray(odds_NK / odds_NK.sum(axis=1, keepdims=True))


def fit_linear(
    features_TF: Floats,
    targets_TK: Floats,
    *,
    strength: float,
    multi_label: bool = False,
    weights_T: Floats | None = None,
    prior_TK: Floats | None = None,
    trust: float = 0.0,
) -> LinearHead:
    """The head of least mean log loss plus ``strength`` / 2 times the squared weights, found by L-BFGS.

    ``weights_T`` are what rows count in the mean; None: the same. Features are standardised by their weighted mean and
    deviation; the bias is not penalised. This is scikit-learn's LogisticRegression with C = 1 / strength and weights
    that sum to 1 (of two classes with C = 2 / strength: its one column of weights is the difference of the two here);
    with ``multi_label`` one such for every class. ``targets_TK`` are 0 or 1. Classes that no, or with ``multi_label``
    every, training row has, keep that probability. ``prior_TK`` are scores of another kind, to which, times ``trust``,
    those of the head are added: it learns what they leave open.
    """
    weights_T = np.ones(len(features_TF)) if weights_T is None else weights_T
    fit = _Fit(features_TF, targets_TK, weights_T, multi_label=multi_label, exact=True)
    return fit.trusting(prior_TK, trust).down_to(strength)


def choose_linear(
    features_TF: Floats,
    targets_TK: Floats,
    fold_T: Ints,
    *,
    multi_label: bool = False,
    weights_T: Floats | None = None,
    judged_T: Bools | None = None,
    prior_TK: Floats | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Chosen:
    """The head with the strength of least mean log loss on rows of folds that its fit did not see.

    Rows are as in ``fit_linear``; ``fold_T`` numbers the fold of each, of which there are two or more. Of left-out rows
    those in ``judged_T`` are judged (None: all), about the classes that the fit had a choice about; with a prior about
    all, and how far it is trusted is chosen, too. Strengths are tried from the strongest on, until two in a row are
    worse than one before.
    """
    weights_T = np.ones(len(features_TF)) if weights_T is None else weights_T
    trusts = TRUSTS if prior_TK is not None else TRUSTS[:1]
    outs = [fold_T == fold for fold in np.unique(fold_T)]
    asked = [out_T if judged_T is None else out_T & judged_T for out_T in outs]
    total = float(sum(weights_T[asked_T].sum() for asked_T in asked))
    rest = [np.where(out_T, 0.0, weights_T) for out_T in outs]
    fits = [_Fit(features_TF, targets_TK, own_T, multi_label=multi_label, exact=False) for own_T in rest]

    def left_out(head: LinearHead, asked_T: Bools) -> float:
        prior = None if prior_TK is None else prior_TK[asked_T]
        return _loss(head, features_TF[asked_T], targets_TK[asked_T], weights_T[asked_T], prior)

    losses: dict[tuple[float, float], float] = {}
    for number, trust in enumerate(trusts):
        heads: list[LinearHead | None] = [None] * len(fits)
        for turn, strength in enumerate(STRENGTHS, start=1 + number * len(STRENGTHS)):
            found = [
                fit.trusting(prior_TK, trust).at(strength, start=head) for fit, head in zip(fits, heads, strict=True)
            ]
            losses[trust, strength] = sum(map(left_out, found, asked)) / total
            heads = [*found]
            if progress is not None:
                progress(turn, len(trusts) * len(STRENGTHS))
            own = [loss for (of, _), loss in losses.items() if of == trust]
            if min(own) < min(own[-PATIENCE:]):
                break
    trust, strength = min(losses, key=lambda both: losses[both])  # of equal ones the least trust, the strongest penalty
    fit = _Fit(features_TF, targets_TK, weights_T, multi_label=multi_label, exact=True).trusting(prior_TK, trust)
    by_trust = {own: min(loss for (of, _), loss in losses.items() if of == own) for own in trusts}
    by_strength = {own: loss for (of, own), loss in losses.items() if of == trust}
    return Chosen(fit.down_to(strength), strength, by_strength, by_trust)


def _loss(
    head: LinearHead, features_NF: Floats, targets_NK: Floats, weights_N: Floats, prior_NK: Floats | None
) -> float:
    """The weighted sum of the log loss of left-out rows about the classes that the fit had a choice about.

    With a prior all classes are judged; without trust in it one that the fit did not see has the mean of the scores.
    """
    if prior_NK is not None:
        weight_KF, bias_K = replace(head, trust=1.0).layer()
        found_NK = softmax(features_NF @ weight_KF.T + bias_K + head.trust * prior_NK)
        return float(-(weights_N @ (targets_NK * np.log(found_NK.clip(1e-12))).sum(axis=1)))
    found_NJ = head.probabilities(features_NF)[:, head.there_K].clip(1e-12, 1 - 1e-12)
    own_NJ = targets_NK[:, head.there_K]
    loss_NJ = own_NJ * np.log(found_NJ)
    if head.multi_label:
        loss_NJ = loss_NJ + (1 - own_NJ) * np.log(1 - found_NJ)
    return float(-(weights_N @ loss_NJ).sum())


class _Fit:
    """The fits of one set of weighted rows, which share its statistics; a row of weight 0 is not seen.

    What L-BFGS moves are coordinates in which the loss curves about alike in every direction: along the principal axes
    of the standardised features, each divided by the root of its curvature. That takes a few dozen steps in the place
    of hundreds, whatever the strength. ``exact`` fits are in double precision, others in single.
    """

    def __init__(
        self, features_TF: Floats, targets_TK: Floats, weights_T: Floats, *, multi_label: bool, exact: bool
    ) -> None:
        self._multi_label, self._exact, self._seen_T = multi_label, exact, weights_T > 0
        weights_S, seen_SK = weights_T[self._seen_T] / weights_T.sum(), targets_TK[self._seen_T] > 0
        seen_K = np.asarray(seen_SK.any(axis=0))
        self.there_K: Bools = seen_K & ~seen_SK.all(axis=0) if multi_label else seen_K
        self.given_K = seen_K.astype(float)
        self._trust, self._prior_SJ = 0.0, torch.zeros(())
        self._weights_S = self._tensor(weights_S)
        self._targets_SJ = self._tensor(targets_TK[self._seen_T][:, self.there_K] * weights_S[:, None])
        standard_SF = np.asarray(features_TF[self._seen_T], dtype=np.float64)
        self._mean_F = weights_S @ standard_SF
        standard_SF -= self._mean_F
        deviation_F = np.sqrt(weights_S @ np.square(standard_SF))
        moves_F = deviation_F > _FLAT * np.hypot(deviation_F, self._mean_F)
        self._deviation_F = np.where(moves_F, deviation_F, 1.0)
        standard_SF /= self._deviation_F
        turned_SF = self._tensor(standard_SF)
        spread_F, self._axes_FF = torch.linalg.eigh((turned_SF * self._weights_S[:, None]).T @ turned_SF)
        self._spread_F = spread_F.clamp_min(0)
        self._turned_SF = turned_SF @ self._axes_FF

    def _tensor(self, array: Floats) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64 if self._exact else np.float32))

    def trusting(self, prior_TK: Floats | None, trust: float) -> _Fit:
        """The same with a prior, whose scores of each row the head's are added to."""
        if prior_TK is not None:
            self._trust, self._prior_SJ = trust, trust * self._tensor(prior_TK[self._seen_T][:, self.there_K])
        return self

    def down_to(self, strength: float) -> LinearHead:
        """The head of a strength, by way of all stronger ones: from far away the coordinates would not fit."""
        head = None
        for step in (own for own in STRENGTHS if own > strength):
            head = self.at(step, start=head)
        return self.at(strength, start=head, error=_ERROR)

    def at(self, strength: float, *, start: LinearHead | None = None, error: float = _ROUGH) -> LinearHead:
        """The head of a strength, sought from one of another strength; no weight is off by much more than ``error``."""
        shape = len(self._mean_F), self._targets_SJ.shape[1]
        weight_FJ, bias_J = (np.zeros(shape), np.zeros(shape[1])) if start is None else (start.weight_FJ, start.bias_J)
        if not len(bias_J):
            return self._head(weight_FJ, bias_J, converged=True)
        turned_FJ, first_J = self._axes_FF.T @ self._tensor(weight_FJ), self._tensor(bias_J)
        _, likely_SJ = self._likely(self._scores(turned_FJ, first_J))
        curves = float((self._weights_S @ (likely_SJ * (1 - likely_SJ))).mean()) / 2
        step_F1 = 1 / (curves * self._spread_F[:, None] + strength).sqrt()
        step = 1 / max(curves, 1e-6) ** 0.5  # of the bias
        moved = torch.vstack([turned_FJ / step_F1, first_J / step]).requires_grad_()

        def closure() -> Tensor:
            turned_FJ = step_F1 * moved.data[:-1]
            scores_SJ = self._scores(turned_FJ, moved.data[-1] * step)
            loss_S, likely_SJ = self._likely(scores_SJ)
            wrong_SJ = likely_SJ * self._weights_S[:, None] - self._targets_SJ
            slope_FJ = self._turned_SF.T @ wrong_SJ + strength * turned_FJ
            moved.grad = torch.vstack([step_F1 * slope_FJ, wrong_SJ.sum(0) * step])
            loss: Tensor = self._weights_S @ loss_S - (self._targets_SJ * scores_SJ).sum()
            loss += strength / 2 * turned_FJ.square().sum()
            return loss

        tolerance = error * strength**0.5  # a slope of it moves no weight by more than the error
        optimizer = torch.optim.LBFGS(
            [moved],
            max_iter=_STEPS,
            max_eval=4 * _STEPS,
            tolerance_grad=tolerance,
            tolerance_change=0 if self._exact else _LEAST,
            history_size=20,
            line_search_fn="strong_wolfe",
        )
        with torch.no_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]
            closure()
        assert moved.grad is not None
        weight_FJ = (self._axes_FF @ (step_F1 * moved.data[:-1])).double().numpy()
        converged = float(moved.grad.abs().max()) <= 10 * tolerance
        return self._head(weight_FJ, (moved.data[-1] * step).double().numpy(), converged=converged)

    def _scores(self, turned_FJ: Tensor, bias_J: Tensor) -> Tensor:
        scores_SJ: Tensor = self._turned_SF @ turned_FJ + bias_J + self._prior_SJ
        return scores_SJ

    def _likely(self, scores_TJ: Tensor) -> tuple[Tensor, Tensor]:
        """The part of each row's loss that its target has no part in, and the probabilities of its classes."""
        if self._multi_label:
            return torch.nn.functional.softplus(scores_TJ).sum(1), scores_TJ.sigmoid()
        return scores_TJ.logsumexp(1), scores_TJ.softmax(1)

    def _head(self, weight_FJ: Floats, bias_J: Floats, *, converged: bool) -> LinearHead:
        return LinearHead(
            self._mean_F,
            self._deviation_F,
            weight_FJ,
            bias_J,
            there_K=self.there_K,
            given_K=self.given_K,
            multi_label=self._multi_label,
            converged=converged,
            trust=self._trust,
        )
