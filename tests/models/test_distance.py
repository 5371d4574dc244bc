"""Distances in feature space: equal to scipy's, growing down the tree, and what cannot be measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import oas

from consilium.core.answers import FAR
from consilium.core.errors import DataError
from consilium.core.labels import LabelTree
from consilium.models.distance import FeatureDistance, Moments
from tests.evaluation.trees import TREES


def features_of(targets_N: np.ndarray, *, features: int, seed: int, nodes: int) -> np.ndarray:
    """Features around a centre of each node, far from 0 and of very different spread."""
    random = np.random.default_rng(seed)
    spread_F = np.logspace(-1, 1, features)
    return 20 + (random.normal(size=(nodes, features))[targets_N] + random.normal(size=(len(targets_N), features))) * (
        spread_F
    )


def moments_of(features_NF: np.ndarray, targets_N: np.ndarray, *, nodes: int) -> Moments:
    moments = Moments(nodes=nodes, features=features_NF.shape[1])
    for part in np.array_split(np.arange(len(targets_N)), 3):  # batch by batch
        moments.add(features_NF[part].astype(np.float32), targets_N[part])
    return moments


@given(st.sampled_from(TREES), st.data())
def test_the_distance_to_a_node_is_scipys_least_to_a_class_at_or_below_it(
    paths: list[str], data: st.DataObject
) -> None:
    labels = LabelTree.from_labels([paths], nested=True)
    nodes = st.integers(0, len(labels) - 1)  # inner nodes too: labels may stop early
    targets_N = np.array(data.draw(st.lists(nodes, min_size=6, max_size=60)))
    features = data.draw(st.integers(2, 40))
    features_NF = features_of(targets_N, features=features, seed=data.draw(st.integers(0, 99)), nodes=len(labels))
    features_NF = features_NF.astype(np.float32).astype(np.float64)
    means_MF = np.stack(
        [
            features_NF[targets_N == node].mean(0) if node in targets_N else np.zeros(features)
            for node in range(len(labels))
        ]
    )
    residuals_NF = features_NF - means_MF[targets_N]
    if not residuals_NF.any():
        return
    inverse_FF = np.linalg.inv(oas(residuals_NF, assume_centered=True)[0])
    distance = moments_of(features_NF, targets_N, nodes=len(labels)).fitted(labels)
    asked_NF = features_NF[:3] + 1
    found_NM = distance(torch.from_numpy(asked_NF)).numpy()
    for row, own_F in enumerate(asked_NF):
        for node in range(len(labels)):
            below = [leaf for leaf in set(targets_N.tolist()) if labels.ancestry_MM[leaf, node]]
            expected = min((mahalanobis(own_F, means_MF[leaf], inverse_FF) for leaf in below), default=FAR)
            assert found_NM[row, node] == pytest.approx(expected, rel=1e-3, abs=1e-3)
            if (parent := labels.parent(node)) is not None:
                assert found_NM[row, parent] <= found_NM[row, node]


def test_a_label_without_cases_is_far_from_everything_and_so_is_a_node_with_none_below() -> None:
    labels = LabelTree.from_labels([["a.b", "a.c", "d.e"]], nested=True)
    targets_N = np.array([labels.index(name) for name in ["a.b", "a.b", "a.b"]])
    distance = moments_of(features_of(targets_N, features=3, seed=0, nodes=len(labels)), targets_N, nodes=len(labels))
    (found_M,) = distance.fitted(labels)(torch.full((1, 3), 20.0)).tolist()
    assert {name for name, own in zip(labels.names, found_M, strict=True) if own < FAR} == {"a", "a.b"}


def test_features_far_from_zero_lose_nothing() -> None:
    """In float32, and in batches of more than 25, of which torch makes a product of matrices."""
    labels = LabelTree(["a", "b"])
    targets_N = np.arange(200) % 2
    features_NF = np.random.default_rng(0).normal(size=(200, 8)) * 1e-2 + targets_N[:, None] * 1e-2 + 50
    features_NF = features_NF.astype(np.float32).astype(np.float64)
    moments = moments_of(features_NF, targets_N, nodes=2)
    found_NM = moments.fitted(labels)(torch.from_numpy(features_NF)).numpy()
    inverse_FF = np.linalg.inv(moments.covariance())
    expected_NM = [[mahalanobis(own_F, mean_F, inverse_FF) for mean_F in moments.means_MF] for own_F in features_NF]
    np.testing.assert_allclose(found_NM, expected_NM, rtol=1e-2)


@pytest.mark.parametrize("targets", [[0, 1], [0, 0, 1, 1]])
def test_features_that_do_not_vary_within_a_class_are_refused(targets: list[int]) -> None:
    moments = moments_of(np.array(targets)[:, None] * np.ones(3) + 7.1, np.array(targets), nodes=2)
    with pytest.raises(DataError, match="do not vary within a class"):
        moments.fitted(LabelTree(["a", "b"]))


def test_a_tree_that_grows_keeps_its_distances_and_gets_those_to_new_labels() -> None:
    old, new = LabelTree(["a", "b"]), LabelTree(["a", "b", "c"])
    targets_N = np.arange(60) % 3
    features_NF = features_of(targets_N, features=4, seed=1, nodes=3)
    first = targets_N < 2
    fitted = moments_of(features_NF[first], targets_N[first], nodes=2).fitted(old)
    grown = fitted.extended(new)
    asked_NF = torch.from_numpy(features_NF)
    assert torch.equal(grown(asked_NF)[:, :2], fitted(asked_NF))
    assert bool(grown(asked_NF)[:, 2].eq(FAR).all())
    later = moments_of(features_NF + 1, targets_N, nodes=3)  # the old classes lie elsewhere now
    grown.add_means(later)
    assert torch.equal(grown(asked_NF)[:, :2], fitted(asked_NF))
    covariance = moments_of(features_NF[first], targets_N[first], nodes=2).covariance()
    expected = mahalanobis(features_NF[0], later.means_MF[2], np.linalg.inv(covariance))
    assert float(grown(asked_NF)[0, 2]) == pytest.approx(expected, rel=1e-3)


def test_saved_and_loaded_it_is_the_same() -> None:
    labels = LabelTree(["a", "b"])
    targets_N = np.arange(20) % 2
    features_NF = features_of(targets_N, features=4, seed=2, nodes=2)
    fitted = moments_of(features_NF, targets_N, nodes=2).fitted(labels)
    other = FeatureDistance(labels, features=4)
    other.load_state_dict(fitted.state_dict())
    assert torch.equal(other(torch.from_numpy(features_NF)), fitted(torch.from_numpy(features_NF)))
