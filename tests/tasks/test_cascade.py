"""A cascade says what its networks say, each of images with its own statistics, and asks only where it matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from consilium.core.answers import Calibration
from consilium.core.contracts import Batch, Look, Views
from consilium.core.errors import DataError
from consilium.core.labels import LabelTree
from consilium.data.batches.transforms import DeviceTransform
from consilium.data.config import ImageConfig
from consilium.models.config import VisionConfig
from consilium.tasks.answers.targets import LabelKnowledge
from consilium.tasks.classify.cascade import LEAST, Cascade
from consilium.tasks.classify.config import ClassifyConfig
from consilium.tasks.classify.nodes import choices
from consilium.tasks.classify.task import Classify, build_classify

# Ids are not in the order of the tree; pet has an only child.
LABELS = LabelTree(
    ["xray", "ct", "ct.head", "mri", "mri.t1", "ct.chest", "mri.t2", "mri.t2.fat", "mri.t2.plain", "pet", "pet.fdg"],
    nested=True,
)
CHILDREN = {
    "root": ["xray", "ct", "mri", "pet"],
    "ct": ["ct.head", "ct.chest"],
    "mri": ["mri.t1", "mri.t2"],
    "mri.t2": ["mri.t2.fat", "mri.t2.plain"],
}
IMAGES = {
    name: ImageConfig(size=(32, 32), mean=(0.1 * n, 0.3, 0.5), std=(0.2, 0.1 + 0.1 * n, 0.3))
    for n, name in enumerate(CHILDREN, start=1)
}
CASES = 6


def network(children: list[str], *, seed: int = 0) -> Classify:
    torch.manual_seed(seed)
    config = ClassifyConfig(vision=VisionConfig(name="test_resnet", pretrained=False))
    count = len(children)
    knowledge = LabelKnowledge(labels=children, class_counts=[1] * count, training_cases=count)
    task = build_classify(config, knowledge, image_size=(32, 32))
    with torch.no_grad():  # far from sure and far from alike, whatever the start
        task.head[-1].bias.copy_(torch.randn(count))
    return task.eval()


@pytest.fixture(scope="module")
def networks() -> dict[str, Classify]:
    return {name: network(children, seed=seed) for seed, (name, children) in enumerate(CHILDREN.items())}


@pytest.fixture
def cascade(networks: dict[str, Classify]) -> Cascade:
    return Cascade(LABELS, networks=networks, images=IMAGES).eval()


def batch(*, views: int = 1, seed: int = 0) -> Batch:
    """Bytes, as the loader gives them; with several views only the first case has all."""
    mask_BV = torch.ones(CASES, views, dtype=torch.bool)
    mask_BV[1:, 1:] = False
    random = torch.Generator().manual_seed(seed)
    pixels_BVCHW = torch.randint(0, 256, (CASES, views, 3, 32, 32), dtype=torch.uint8, generator=random)
    return Batch(
        images=Views(mask_BV, pixels_BVCHW),
        rows_B=torch.arange(CASES),
        draws_B=torch.arange(CASES),
    )


def normalised(own: Batch, image: ImageConfig) -> Batch:
    return DeviceTransform(image, augmentation=None, seed=0)(own, train=False)


def ids(names: list[str]) -> list[int]:
    return [LABELS.index(name) for name in names]


def sure_of(label: str, networks: dict[str, Classify], odds: float) -> dict[str, Classify]:
    """The networks, of which the root's gives this label so many logits more than the others, whatever it sees."""
    root = network(CHILDREN["root"])
    with torch.no_grad():
        root.head[-1].weight.zero_()
        root.head[-1].bias.zero_()[CHILDREN["root"].index(label)] = odds
    return {**networks, "root": root}


def test_an_only_child_is_no_choice() -> None:
    found = {name: [LABELS.names[node] for node in group.ids] for name, group in choices(LABELS).items()}
    assert found == CHILDREN
    assert next(iter(found)) == "root"
    assert choices(LabelTree(["a", "a.b", "a.b.c"], nested=True)) == {}


@pytest.mark.parametrize("views", [1, 3])
def test_each_group_of_siblings_is_what_its_own_network_says(
    cascade: Cascade, networks: dict[str, Classify], views: int
) -> None:
    given = batch(views=views)
    found = cascade.predict(normalised(given, cascade.image)).arrays
    for name, children in CHILDREN.items():
        own = networks[name].predict(normalised(given, IMAGES[name])).arrays
        torch.testing.assert_close(found["logits"][:, ids(children)], own["logits"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["conditionals"][:, ids(children)], own["probabilities"], rtol=1e-4, atol=1e-5)
    assert found["conditionals"][:, LABELS.index("pet.fdg")].tolist() == [1.0] * CASES
    leaves = found["probabilities"][:, list(LABELS.leaf_ids)]
    torch.testing.assert_close(leaves.sum(1), torch.ones(CASES))


def test_the_statistics_of_another_node_would_say_something_else(networks: dict[str, Classify]) -> None:
    """So that the test above can fail."""
    same = dict.fromkeys(CHILDREN, IMAGES["root"])
    right, wrong = (
        Cascade(LABELS, networks=networks, images=images).eval().predict(normalised(batch(), common)).arrays["logits"]
        for images in (IMAGES, same)
        for common in [ImageConfig(size=(32, 32), mean=(0, 0, 0), std=(1, 1, 1))]
    )
    for name, children in CHILDREN.items():
        assert torch.allclose(right[:, ids(children)], wrong[:, ids(children)], atol=1e-3) == (name == "root")


def test_a_network_is_asked_only_where_the_path_to_it_is_likely_enough(networks: dict[str, Classify]) -> None:
    asked: dict[str, int] = {}
    # Of four children, of whom one is ahead by the log of odds, each other one has 1 / (odds + 3).
    for odds, reached in ((0.9 / LEAST, True), (1.1 / LEAST, False)):
        cascade = Cascade(LABELS, networks=sure_of("ct", networks, float(np.log(odds))), images=IMAGES).eval()
        hooks = [
            own.register_forward_pre_hook(lambda module, given: asked.__setitem__("mri", len(given[0])))
            for own in [cascade.networks[cascade.names.index("mri")].tower]
        ]
        asked.clear()
        logits_BK = cascade.predict(normalised(batch(), cascade.image)).arrays["logits"]
        hooks[0].remove()
        assert asked == ({"mri": CASES} if reached else {})
        assert bool((logits_BK[:, ids(CHILDREN["mri"])] == 0).all()) is not reached
        assert bool((logits_BK[:, ids(CHILDREN["ct"])] != 0).all())


def test_what_is_not_asked_is_shared_alike_and_still_adds_up(networks: dict[str, Classify]) -> None:
    cascade = Cascade(LABELS, networks=sure_of("xray", networks, 30.0), images=IMAGES).eval()
    found = cascade.predict(normalised(batch(), cascade.image)).arrays
    assert found["conditionals"][:, ids(CHILDREN["mri"] + CHILDREN["ct"])].unique().tolist() == [0.5]
    torch.testing.assert_close(found["probabilities"][:, list(LABELS.leaf_ids)].sum(1), torch.ones(CASES))


def test_calibration_does_not_change_what_is_asked(networks: dict[str, Classify]) -> None:
    cascade = Cascade(LABELS, networks=sure_of("ct", networks, float(np.log(1.1 / LEAST))), images=IMAGES).eval()
    given = normalised(batch(), cascade.image)
    before = cascade.predict(given).arrays["logits"]
    cascade.calibrate(Calibration(temperatures={"root": 10.0}))
    assert torch.equal(cascade.predict(given).arrays["logits"], before)


def test_an_answer_does_not_depend_on_the_batch(networks: dict[str, Classify]) -> None:
    """Also where some cases of a batch reach a network and others do not."""
    root = network(CHILDREN["root"])
    with torch.no_grad():  # the score of ct is from about -20 to 20 over these cases, the others' is 0
        features_BF = root.view_features(normalised(batch(), IMAGES["root"]))
        direction_F = features_BF[0] - features_BF[1]
        along_B = features_BF @ direction_F
        scale = 40 / (along_B.max() - along_B.min())
        last: Any = root.head[-1]
        last.weight.zero_()[CHILDREN["root"].index("ct")] = scale * direction_F
        last.bias.zero_()[CHILDREN["root"].index("ct")] = -scale * along_B.median()
    cascade = Cascade(LABELS, networks={**networks, "root": root}, images=IMAGES).eval()
    given = normalised(batch(), cascade.image)
    whole = cascade.predict(given).arrays["logits"]
    reached_B = (whole[:, ids(CHILDREN["ct"])] != 0).all(1)
    assert 0 < int(reached_B.sum()) < CASES, "the cases differ in what they reach"
    for case in range(CASES):
        alone = given.take(torch.tensor([case]))
        torch.testing.assert_close(cascade.predict(alone).arrays["logits"][0], whole[case], rtol=1e-3, atol=1e-2)


def test_several_looks_are_the_mean_of_their_paths(networks: dict[str, Classify]) -> None:
    """A look that never reached a node has hardly a say in what is below it."""
    kinds = [sure_of("ct", networks, 30.0), sure_of("mri", networks, 3.0)]
    looks = [
        Cascade(LABELS, networks=own, images=IMAGES).eval().predict(normalised(batch(), IMAGES["root"]))
        for own in kinds
    ]
    cascade = Cascade(LABELS, networks=networks, images=IMAGES)
    found = cascade.combine([(Look(), look) for look in looks]).arrays["probabilities"]
    mean: Tensor = torch.stack([look.arrays["probabilities"] for look in looks]).mean(0)
    torch.testing.assert_close(found, mean, rtol=1e-4, atol=1e-6)
    below = ids(CHILDREN["mri"])
    second = looks[1].arrays["conditionals"][:, below]
    torch.testing.assert_close(found[:, below] / found[:, below].sum(1, keepdim=True), second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ct": None}, r"no network for the node 'ct'"),
        ({"ct": ["ct.chest", "ct.head"]}, r"of 'ct' tells apart ct.chest, ct.head; its children are ct.head, ct.chest"),
    ],
)
def test_networks_that_do_not_fit_the_tree_are_refused(
    networks: dict[str, Classify], change: dict[str, Any], message: str
) -> None:
    own = {
        name: network(change[name]) if name in change else task
        for name, task in networks.items()
        if change.get(name, True) is not None
    }
    with pytest.raises(DataError, match=message):
        Cascade(LABELS, networks=own, images={name: IMAGES[name] for name in own})


def test_networks_that_take_different_images_are_refused(networks: dict[str, Classify]) -> None:
    other = {**IMAGES, "mri": IMAGES["mri"].model_copy(update={"fit": "pad"})}
    with pytest.raises(DataError, match=r"the networks of 'root' and 'mri' take different images"):
        Cascade(LABELS, networks=networks, images=other)


def test_prediction_leaves_the_batch_as_it_was(cascade: Cascade) -> None:
    given = normalised(batch(), cascade.image)
    before = given.views.pixels.clone()
    cascade.predict(given)
    assert torch.equal(given.views.pixels, before)
