"""How far features lie from those of training cases: the Mahalanobis distance to the classes of a label tree.

Axes in names: N case, B case in a batch, F feature, M node of the tree.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from consilium.core.answers import FAR
from consilium.core.errors import DataError
from consilium.core.labels import LabelTree

DISTANCE = "distance"  # what a task calls the module, and so the beginning of the names of its tensors


class FeatureDistance(nn.Module):
    """Mahalanobis distances of features to the classes, in standard deviations: a mean each, one covariance of all.

    Of Lee et al., "A simple unified framework for detecting out-of-distribution samples and adversarial attacks", 2018,
    arXiv:1807.03888, with the labels of training cases as classes, inner nodes of the tree among them. The distance to
    a node is the least to a class at or below it, so that on a path it grows from the top down; ``FAR`` where no
    training case is at or below the node. The covariance is whitened: distances are Euclidean in its space.
    """

    centre_F: Tensor
    whitening_FF: Tensor
    means_MF: Tensor
    has_mean_M: Tensor

    def __init__(self, labels: LabelTree, *, features: int) -> None:
        super().__init__()
        self.labels = labels
        self.register_buffer("centre_F", torch.zeros(features))
        self.register_buffer("whitening_FF", torch.zeros(features, features))
        self.register_buffer("means_MF", torch.zeros(len(labels), features))  # whitened
        self.register_buffer("has_mean_M", torch.zeros(len(labels), dtype=torch.bool))

    def forward(self, features_BF: Tensor) -> Tensor:
        """Distances [B, M] to all nodes."""
        whitened_BF = (features_BF.float() - self.centre_F) @ self.whitening_FF
        exact = "donot_use_mm_for_euclid_dist"  # the product of matrices would lose what is left of large norms
        distances_BM = torch.cdist(whitened_BF, self.means_MF, compute_mode=exact)
        distances_BM = distances_BM.masked_fill(~self.has_mean_M, FAR)
        for group in reversed(self.labels.siblings):  # from the leaves up, so that all below a node are known
            if group.parent is not None:
                below_B = distances_BM[:, list(group.ids)].amin(1)
                distances_BM[:, group.parent] = torch.minimum(distances_BM[:, group.parent], below_B)
        return distances_BM

    def extended(self, labels: LabelTree) -> FeatureDistance:
        """The same for a tree with further labels behind its own, which have no mean yet."""
        longer = FeatureDistance(labels, features=len(self.centre_F)).to(self.centre_F.device)
        longer.centre_F, longer.whitening_FF = self.centre_F, self.whitening_FF
        longer.means_MF[: len(self.means_MF)] = self.means_MF
        longer.has_mean_M[: len(self.has_mean_M)] = self.has_mean_M
        return longer

    def add_means(self, moments: Moments) -> None:
        """Give a mean to every node that has none and of which there are cases."""
        new_M = (torch.from_numpy(moments.counts_M > 0).to(self.has_mean_M.device)) & ~self.has_mean_M
        means_MF = torch.from_numpy(moments.means_MF).to(self.centre_F)
        self.means_MF[new_M] = ((means_MF - self.centre_F) @ self.whitening_FF)[new_M]
        self.has_mean_M |= new_M


class Moments:
    """Sums over the features of cases, batch by batch: what the mean of each node and the covariance take."""

    def __init__(self, *, nodes: int, features: int) -> None:
        self.counts_M = np.zeros(nodes, dtype=np.int64)
        self._sums_MF = np.zeros((nodes, features))
        self._products_FF = np.zeros((features, features))

    def add(self, features_NF: np.ndarray, targets_N: np.ndarray) -> None:
        """Cases and the nodes that are their labels."""
        features_NF = features_NF.astype(np.float64)
        np.add.at(self.counts_M, targets_N, 1)
        np.add.at(self._sums_MF, targets_N, features_NF)
        self._products_FF += features_NF.T @ features_NF

    @property
    def means_MF(self) -> np.ndarray:
        """The mean of the cases that have each node as their label, zeros where there are none."""
        means_MF: np.ndarray = self._sums_MF / np.maximum(self.counts_M, 1)[:, None]
        return means_MF

    def covariance(self) -> np.ndarray:
        """The covariance of features around the mean of their class [F, F], shrunk so that it can be inverted.

        It is mixed with a multiple of the identity by the oracle approximating shrinkage of Chen et al., "Shrinkage
        algorithms for MMSE covariance estimation", 2010, arXiv:0907.4698, whose share of the latter comes from the
        number of cases and the covariance itself (without the terms of 2 / F, as in scikit-learn).
        """
        cases, features = int(self.counts_M.sum()), len(self._products_FF)
        means_MF = self.means_MF
        raw_FF = (self._products_FF - means_MF.T @ (means_MF * self.counts_M[:, None])) / max(cases, 1)
        trace, squares = float(raw_FF.trace()), float((raw_FF**2).sum())
        if not trace > 1e-12 * float(self._products_FF.trace()):
            raise DataError(
                f"task.answers.distance: the features of the {cases} training cases do not vary within a class, so "
                "nothing says what is far. Take several different cases of each class, or leave distance out."
            )
        even = trace**2 / features  # of the squares, where all features varied alike and apart
        below = (cases + 1) * (squares - even)
        shrinkage = min(1.0, (squares + trace**2) / below) if below > 0 else 1.0
        shrunk_FF: np.ndarray = (1 - shrinkage) * raw_FF + shrinkage * trace / features * np.eye(features)
        return shrunk_FF

    def fitted(self, labels: LabelTree) -> FeatureDistance:
        """The distances to the classes of these cases; features without any spread are a DataError."""
        found = FeatureDistance(labels, features=len(self._products_FF))
        # Of the covariance L L^T and a row x the squared distance is |L^-1 x|^2.
        whitening_FF = np.linalg.inv(np.linalg.cholesky(self.covariance())).T
        centre_F = self._sums_MF.sum(0) / self.counts_M.sum()
        found.centre_F.copy_(torch.from_numpy(centre_F))
        found.whitening_FF.copy_(torch.from_numpy(whitening_FF))
        found.add_means(self)
        return found
