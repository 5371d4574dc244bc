"""The classify task keeps the contract of every task, and knows what its own predictions mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from consilium.core.answers import Calibration
from consilium.core.contracts import Batch, Look, Prediction, Views
from consilium.core.labels import LabelTree
from consilium.losses.config import CrossEntropyConfig
from consilium.models.config import FreezeConfig, LinearHeadConfig, MLPHeadConfig, VisionConfig
from consilium.models.distance import Moments
from consilium.tasks.answers.config import TreeConfig
from consilium.tasks.answers.targets import LabelKnowledge
from consilium.tasks.classify.config import ClassifyConfig
from consilium.tasks.classify.task import Classify, build_classify
from tests.contracts.task import TaskContract

LABELS = LabelTree(["ct", "mri", "xray"])
# Children of one node have ids apart from each other, and one node has a single child.
TREE = LabelTree(["ct", "mri", "ct.head", "mri.t1", "mri.t1.fat", "ct.chest", "mri.t2", "ct.chest.lung"], nested=True)


def build(
    *,
    multi_label: bool = False,
    warmup_epochs: int = 0,
    seed: int = 0,
    nested: bool = False,
    labels: LabelTree | None = None,
) -> Classify:
    torch.manual_seed(seed)
    labels = labels or (TREE if nested else LABELS)
    config = ClassifyConfig(
        multi_label=multi_label,
        tree=TreeConfig(head="joint" if nested else "flat"),
        vision=VisionConfig(name="test_resnet", pretrained=False, freeze=FreezeConfig(warmup_epochs=warmup_epochs)),
        head=MLPHeadConfig(hidden_sizes=[8], dropout=0.0) if multi_label else LinearHeadConfig(),
        loss=CrossEntropyConfig(class_weights="balanced"),
    )
    counts = [5, 4, 2, 2, 1, 3, 2, 1] if nested else [4, 3, 2][: len(labels)]
    knowledge = LabelKnowledge(labels=list(labels.names), nested=nested, class_counts=counts, training_cases=9)
    return build_classify(config, knowledge, image_size=(32, 32))


def make_batch(*, seed: int = 0, views: int = 1, multi_label: bool = False) -> Batch:
    random = torch.Generator().manual_seed(seed)
    mask_BV = torch.ones(4, views, dtype=torch.bool)
    mask_BV[1:, 1:] = False  # one case has all views, the others one
    images_BVCHW = torch.randn(4, views, 3, 32, 32, generator=random) * mask_BV[:, :, None, None, None]
    return Batch(
        images=Views(mask_BV, images_BVCHW),
        rows_B=torch.arange(4),
        draws_B=torch.arange(4),
        targets_B=(torch.rand(4, 3, generator=random) > 0.5).float() if multi_label else torch.tensor([0, 1, 2, 1]),
        counts={"cases": 4},
    )


class TestOneLabel(TaskContract):
    def task(self, *, warmup_epochs: int = 0, seed: int = 0) -> Any:
        return build(warmup_epochs=warmup_epochs, seed=seed)

    def batch(self, *, seed: int = 0) -> Batch:
        return make_batch(seed=seed)


class TestManyLabels(TaskContract):
    def task(self, *, warmup_epochs: int = 0, seed: int = 0) -> Any:
        return build(warmup_epochs=warmup_epochs, seed=seed, multi_label=True)

    def batch(self, *, seed: int = 0) -> Batch:
        return make_batch(seed=seed, multi_label=True)


class TestTree(TaskContract):
    def task(self, *, warmup_epochs: int = 0, seed: int = 0) -> Any:
        return build(warmup_epochs=warmup_epochs, seed=seed, nested=True)

    def batch(self, *, seed: int = 0) -> Batch:
        return replace(make_batch(seed=seed), targets_B=torch.tensor([0, 4, 7, 6]))  # the first stops at an inner node


class TestSeveralViews(TaskContract):
    def task(self, *, warmup_epochs: int = 0, seed: int = 0) -> Any:
        return build(warmup_epochs=warmup_epochs, seed=seed)

    def batch(self, *, seed: int = 0) -> Batch:
        return make_batch(seed=seed, views=3)


@pytest.mark.parametrize("views", [1, 3])
def test_features_stand_for_the_images_that_they_are_of(views: int) -> None:
    task, batch = build(seed=1).eval(), make_batch(views=views)
    features_BVF = torch.zeros(*batch.views.there_BV.shape, task.tower.num_features)
    with torch.no_grad():
        features_BVF[batch.views.there_BV] = task.view_features(batch)
    cached = replace(batch, images=Views(batch.views.there_BV, features_BVF=features_BVF))
    assert torch.equal(task.step(cached).loss, task.step(batch).loss)
    assert torch.equal(task.predict(cached).arrays["logits"], task.predict(batch).arrays["logits"])


# -- What a prediction means --------------------------------------------------------------------------------------


@pytest.mark.parametrize("multi_label", [False, True])
def test_probabilities_are_those_of_the_logits(multi_label: bool) -> None:
    arrays = build(multi_label=multi_label).eval().predict(make_batch()).arrays
    expected = arrays["logits"].sigmoid() if multi_label else arrays["logits"].softmax(1)
    torch.testing.assert_close(arrays["probabilities"], expected)
    assert arrays["probabilities"].shape == (4, 3)


def test_records_name_the_most_probable_class() -> None:
    probabilities = torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]])
    records = build().records(Prediction({"probabilities": probabilities}))
    assert [(record["label"], record["probability"]) for record in records] == [("mri", 0.7), ("ct", 0.5)]
    assert records[0]["probabilities"] == {"ct": 0.2, "mri": 0.7, "xray": 0.1}


def test_records_name_every_class_from_the_threshold_on() -> None:
    task = build(multi_label=True)
    prediction = Prediction({"probabilities": torch.tensor([[0.25, 0.75, 0.5], [0.0, 0.25, 0.125]])})
    assert [record["labels"] for record in task.records(prediction)] == [["mri", "xray"], []]
    task.threshold = 0.25
    assert [record["labels"] for record in task.records(prediction)] == [["ct", "mri", "xray"], ["mri"]]


# -- What a prediction means in a tree ------------------------------------------------------------------------------

TAUGHT = Calibration(temperatures={"root": 2.0, "ct": 0.5, "mri": 3.0, "mri.t1": 7.0}, thresholds=[0.5, 0.4])


def scores(seed: int, cases: int = 5) -> torch.Tensor:
    return torch.randn(cases, len(TREE), generator=torch.Generator().manual_seed(seed)) * 4


def answering(calibration: Calibration = TAUGHT) -> Classify:
    task = build(nested=True)
    task.calibrate(calibration)
    return task


@given(st.integers(0, 1000), st.sampled_from([TAUGHT, Calibration()]))
def test_siblings_share_the_probability_of_their_parent(seed: int, calibration: Calibration) -> None:
    logits_BK = scores(seed)
    arrays = answering(calibration).prediction(logits_BK).arrays
    torch.testing.assert_close(arrays["probabilities"][:, list(TREE.leaf_ids)].sum(1), torch.ones(5))
    for group in TREE.siblings:
        ids = list(group.ids)
        temperature = calibration.temperatures.get(TREE.name_of(group.parent), 1.0)
        shares_BK = (logits_BK[:, ids].double() / temperature).softmax(1)
        torch.testing.assert_close(arrays["conditionals"][:, ids].double(), shares_BK, rtol=1e-5, atol=1e-7)
        above_B = torch.ones(5) if group.parent is None else arrays["probabilities"][:, group.parent]
        torch.testing.assert_close(arrays["probabilities"][:, ids].sum(1), above_B)
        torch.testing.assert_close(
            arrays["probabilities"][:, ids].T.double(), shares_BK.T * above_B, rtol=1e-4, atol=1e-7
        )


def seen(predictions: Sequence[Prediction]) -> list[tuple[Look, Prediction]]:
    return [(Look(), prediction) for prediction in predictions]


@given(st.integers(0, 1000), st.permutations(range(3)))
def test_looks_are_averaged_in_any_order(seed: int, order: Sequence[int]) -> None:
    task = answering()
    looks = [task.prediction(scores(seed + number)) for number in range(3)]
    alone, together = task.combine(seen(looks[:1])).arrays, task.combine(seen(looks)).arrays
    turned = task.combine(seen([looks[number] for number in order])).arrays
    for name in ("conditionals", "probabilities"):
        torch.testing.assert_close(alone[name], looks[0].arrays[name], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(turned[name], together[name], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(task.prediction(together["logits"]).arrays["probabilities"], together["probabilities"])


@pytest.mark.parametrize("nested", [False, True])
def test_looks_are_averaged_as_probabilities(nested: bool) -> None:
    task = build(nested=nested)
    looks = [task.prediction(scores(number)[:, : len(task.labels)]) for number in range(3)]
    mean_BK = torch.stack([look.arrays["probabilities"] for look in looks]).mean(0)
    torch.testing.assert_close(task.combine(seen(looks)).arrays["probabilities"], mean_BK, rtol=1e-4, atol=1e-6)


def test_records_stop_where_the_answer_is_unsure() -> None:
    probabilities = [
        [0.75, 0.25, 0.5, 0.125, 0.125, 0.25, 0.125, 0.25],
        [0.25, 0.75, 0.125, 0.375, 0.375, 0.125, 0.375, 0.125],
        [0.5, 0.5, 0.125, 0.25, 0.25, 0.375, 0.25, 0.375],
    ]
    records = answering().records(Prediction({"probabilities": torch.tensor(probabilities)}))
    told = [(record["label"], record["probability"]) for record in records]
    assert told == [("ct.head", 0.5), ("mri", 0.75), ("ct", 0.5)]
    assert records[1]["path"] == [
        {"label": "mri", "probability": 0.75},
        {"label": "mri.t1", "probability": 0.375},
        {"label": "mri.t1.fat", "probability": 0.375},
    ]
    assert [step["label"] for step in records[2]["path"]] == ["ct", "ct.chest", "ct.chest.lung"]
    assert records[0]["probabilities"] == dict(zip(TREE.names, probabilities[0], strict=True))


def test_records_of_a_case_that_nothing_is_sure_of() -> None:
    task = answering(Calibration(thresholds=[None]))
    (record,) = task.records(task.prediction(scores(0, cases=1)))
    assert (record["label"], record["probability"]) == ("unknown", None)
    assert len(record["path"]) >= 2


def test_no_answer_has_no_probability_beside_a_class_of_that_name() -> None:
    task = build(labels=LabelTree(["ct", "unknown"]))
    task.calibrate(Calibration(thresholds=[0.9]))
    records = task.records(task.prediction(torch.tensor([[1.0, 0.0], [0.0, 5.0]])))
    assert [record["label"] for record in records] == ["unknown", "unknown"]
    assert records[0]["probability"] is None
    assert records[1]["probability"] == records[1]["probabilities"]["unknown"] > 0.9


# -- Views --------------------------------------------------------------------------------------------------------


def test_several_views_are_averaged_as_features() -> None:
    task, batch = build().eval(), make_batch(views=3)
    with torch.no_grad():
        features_VF = task.tower(batch.views.pixels[0])
        torch.testing.assert_close(task.logits(batch)[0], task.head(features_VF.mean(0, keepdim=True))[0])


def test_the_distance_of_several_views_is_that_of_their_mean_and_that_of_looks_the_mean_of_theirs() -> None:
    task, batch = build(nested=True).eval(), make_batch(views=3)
    features, nodes = task.tower.num_features, len(TREE)
    moments = Moments(nodes=nodes, features=features)
    random = np.random.default_rng(0)
    moments.add(random.normal(size=(60, features)).astype(np.float32), np.arange(60) % nodes)
    task.distance = moments.fitted(TREE)
    with torch.no_grad():
        mean_VF = task.tower(batch.views.pixels[0]).mean(0, keepdim=True)
    first = task.predict(batch)
    torch.testing.assert_close(first.arrays["distances"][:1], task.distance(mean_VF), rtol=1e-4, atol=1e-4)
    second = task.predict(make_batch(views=3, seed=1))
    together = task.combine([(Look(), first), (Look(mirrored=True), second)]).arrays["distances"]
    torch.testing.assert_close(together, (first.arrays["distances"] + second.arrays["distances"]) / 2)
    records = task.records(Prediction({**first.arrays}))
    for record, own_M in zip(records, first.arrays["distances"].tolist(), strict=True):
        assert [step["distance"] for step in record["path"]] == [
            round(own_M[TREE.index(step["label"])], 4) for step in record["path"]
        ]
        steps = [step["distance"] for step in record["path"]]
        assert steps == sorted(steps)


def test_a_missing_view_counts_for_nothing() -> None:
    task, batch = build(), make_batch(views=3)
    single = replace(batch, images=Views(batch.views.there_BV[1:, :1], batch.views.pixels[1:, :1]))
    with torch.no_grad():
        torch.testing.assert_close(task.eval().logits(batch)[1:], task.logits(single))
    pixels_BVCHW = batch.views.pixels.masked_fill(~batch.views.there_BV[:, :, None, None, None], 9.0)
    filled = replace(batch, images=Views(batch.views.there_BV, pixels_BVCHW))
    first, second = build().train(), build().train()
    first.step(batch)
    second.step(filled)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


# -- Building -----------------------------------------------------------------------------------------------------


def test_a_seed_decides_the_weights() -> None:
    one, same, other = build(seed=1), build(seed=1), build(seed=2)
    weights = [task.head[1].weight for task in (one, same, other)]  # type: ignore[index]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_bundle_needs_no_pretrained_weights() -> None:
    config = ClassifyConfig(vision=VisionConfig(name="test_resnet", pretrained="nowhere.safetensors"))
    knowledge = LabelKnowledge(labels=list(LABELS.names), class_counts=[1, 1, 1], training_cases=3)
    task = build_classify(config, knowledge, image_size=(32, 32), weights=False)
    assert task.tower.num_features == 96
