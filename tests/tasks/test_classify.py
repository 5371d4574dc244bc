"""The classify task keeps the contract of every task, and knows what its own predictions mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from consilium.core.contracts import Batch, Prediction
from consilium.core.labels import LabelTree
from consilium.losses.config import CrossEntropyConfig
from consilium.models.config import FreezeConfig, LinearHeadConfig, MLPHeadConfig, VisionConfig
from consilium.tasks.classify import Classify, build_classify
from consilium.tasks.config import ClassifyConfig
from tests.contracts.task import TaskContract

LABELS = LabelTree(["ct", "mri", "xray"])


def build(*, multi_label: bool = False, warmup_epochs: int = 0, seed: int = 0, tower: str = "test_resnet") -> Classify:
    torch.manual_seed(seed)
    config = ClassifyConfig(
        multi_label=multi_label,
        vision=VisionConfig(name=tower, pretrained=False, freeze=FreezeConfig(warmup_epochs=warmup_epochs)),
        head=MLPHeadConfig(hidden_sizes=[8], dropout=0.0) if multi_label else LinearHeadConfig(),
        loss=CrossEntropyConfig(class_weights="balanced"),
    )
    return build_classify(config, labels=LABELS, image_size=(32, 32), class_counts=[4, 3, 2], training_cases=9)


def make_batch(*, seed: int = 0, views: int = 1, multi_label: bool = False) -> Batch:
    random = torch.Generator().manual_seed(seed)
    mask_BV = torch.ones(4, views, dtype=torch.bool)
    mask_BV[1:, 1:] = False  # one case has all views, the others one
    images_BVCHW = torch.randn(4, views, 3, 32, 32, generator=random) * mask_BV[:, :, None, None, None]
    return Batch(
        images_BVCHW=images_BVCHW,
        view_mask_BV=mask_BV,
        rows_B=torch.arange(4),
        draws_B=torch.arange(4),
        targets=(torch.rand(4, 3, generator=random) > 0.5).float() if multi_label else torch.tensor([0, 1, 2, 1]),
        global_cases=4,
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


class TestSeveralViews(TaskContract):
    def task(self, *, warmup_epochs: int = 0, seed: int = 0) -> Any:
        return build(warmup_epochs=warmup_epochs, seed=seed)

    def batch(self, *, seed: int = 0) -> Batch:
        return make_batch(seed=seed, views=3)


@pytest.mark.parametrize("views", [1, 3])
def test_features_stand_for_the_images_that_they_are_of(views: int) -> None:
    task, batch = build(seed=1).eval(), make_batch(views=views)
    features_BVF = torch.zeros(*batch.view_mask_BV.shape, task.tower.num_features)
    with torch.no_grad():
        features_BVF[batch.view_mask_BV] = task.view_features(batch)
    cached = replace(batch, images_BVCHW=torch.empty(4, views, 3, 0, 0), features_BVF=features_BVF)
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
    assert [record["labels"] for record in task.records(prediction, threshold=0.25)] == [["ct", "mri", "xray"], ["mri"]]


# -- Views --------------------------------------------------------------------------------------------------------


def test_several_views_are_averaged_as_features() -> None:
    task, batch = build().eval(), make_batch(views=3)
    with torch.no_grad():
        features_VF = task.tower(batch.images_BVCHW[0])
        torch.testing.assert_close(task.logits(batch)[0], task.head(features_VF.mean(0, keepdim=True))[0])


def test_a_missing_view_counts_for_nothing() -> None:
    task, batch = build(), make_batch(views=3)
    single = replace(batch, images_BVCHW=batch.images_BVCHW[1:, :1], view_mask_BV=batch.view_mask_BV[1:, :1])
    with torch.no_grad():
        torch.testing.assert_close(task.eval().logits(batch)[1:], task.logits(single))
    filled = replace(
        batch, images_BVCHW=batch.images_BVCHW.masked_fill(~batch.view_mask_BV[:, :, None, None, None], 9.0)
    )
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
    task = build_classify(
        config, labels=LABELS, image_size=(32, 32), class_counts=[1, 1, 1], training_cases=3, weights=False
    )
    assert task.tower.num_features == 96
