"""Named views against a plain implementation: losses, gradients, what is missing, exchange, processes."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from consilium.core.contracts import Batch, Views
from consilium.core.errors import ConfigError
from consilium.losses.config import SigmoidContrastiveConfig, SoftmaxContrastiveConfig
from consilium.losses.contrastive import build_contrastive
from consilium.losses.partial import loss_of_those_there
from consilium.tasks.align.config import ViewsConfig
from consilium.tasks.align.views import AlignViews
from tests.losses.test_contrastive import pairs
from tests.tasks.test_align_chunk import batch_of, perturbed, step_of, task_of
from tests.tiny import assert_close

LEFT, RIGHT = (False, True), (True, False)  # what a case has that lacks this one
MISSING = {1: LEFT, 4: RIGHT, 5: RIGHT}  # cases that lack a view


def eyes(**options: Any) -> AlignViews:
    own = options.pop("views", {})
    task = perturbed(task_of(views=ViewsConfig(**own), **options))
    assert isinstance(task, AlignViews)
    return task


def batch_with(count: int, missing: dict[int, tuple[bool, bool]]) -> Batch:
    """Cases with both views but for those that are missing."""
    batch = batch_of(count, views=2)
    there_BV = torch.ones(count, 2, dtype=torch.bool)
    for case, there in missing.items():
        there_BV[case] = torch.tensor(there)
    return replace(batch, images=replace(batch.views, there_BV=there_BV))


def plain(task: AlignViews, batch: Batch) -> dict[str, Tensor]:
    """The losses as RET-CLIP writes them, each over the cases that have what it is of."""
    assert batch.texts is not None
    tower, text = task.vision, task.text(batch.texts.tokens_BT, batch.texts.attention_BT)
    project = task.image_projection.layers
    left, right = (project(tower(batch.views.pixels[:, view])) for view in (0, 1))
    heads, there_BV = task.heads, batch.views.there_BV
    levels = {
        "case": (heads.case_map(torch.cat((left, right), 1)), task.text_projection.layers(text), there_BV.all(1)),
        "left": (heads.view_maps[0](left), heads.text_heads[0](text), there_BV[:, 0]),
        "right": (heads.view_maps[1](right), heads.text_heads[1](text), there_BV[:, 1]),
    }
    losses = {}
    for (name, (image, words, there)), own in zip(levels.items(), task.losses, strict=True):
        one, other = (functional.normalize(part[there], dim=1) for part in (image, words))
        logits, truth = own.log_scale.exp() * one @ other.T, torch.arange(int(there.sum()))
        losses[name] = (functional.cross_entropy(logits, truth) + functional.cross_entropy(logits.T, truth)) / 2
    return losses


# -- Losses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["sum", "mean"])
@pytest.mark.parametrize("missing", [{}, MISSING], ids=["whole", "missing"])
def test_losses_and_gradients_are_those_of_a_plain_implementation(way: str, missing: Any) -> None:
    task, batch = eyes(views={"loss": way}), batch_with(8, missing)
    found, parts = step_of(task, batch), task.step(batch).parts
    task.zero_grad()
    losses = plain(task, batch)
    total = sum(losses.values()) / (3 if way == "mean" else 1)
    assert isinstance(total, Tensor)
    total.backward()
    expected = {name: one.grad for name, one in task.named_parameters() if one.grad is not None}
    assert_close(found, {"loss": total.detach(), **expected})
    for name, loss in losses.items():
        torch.testing.assert_close(parts[f"{name}_loss"], loss.detach())


def test_each_space_has_its_own_temperature() -> None:
    task, batch = eyes(), batch_with(8, {})
    assert len({float(loss.scale.detach()) for loss in task.losses}) == 3, "they have moved apart"
    parts = task.step(batch).parts
    for name, loss in zip(("temperature", "left_temperature", "right_temperature"), task.losses, strict=True):
        assert float(parts[name]) == pytest.approx(1 / float(loss.scale.detach()))
    gradients = step_of(task, batch)
    names = ("loss.log_scale", "view_losses.0.log_scale", "view_losses.1.log_scale")
    assert all(float(gradients[name]) != 0 for name in names)


def test_a_missing_view_changes_nothing_for_the_others() -> None:
    """The space of the missing view has the loss of the batch without the case, the other that of the whole batch."""
    task, whole, lacking = eyes(), batch_with(7, {}), batch_with(7, {2: LEFT})
    without = batch_with(7, {}).take(torch.tensor([0, 1, 3, 4, 5, 6]))
    parts = {name: task.step(batch).parts for name, batch in
             (("whole", whole), ("lacking", lacking), ("without", without))}  # fmt: skip
    torch.testing.assert_close(parts["lacking"]["right_loss"], parts["whole"]["right_loss"])
    for name in ("left_loss", "case_loss"):
        torch.testing.assert_close(parts["lacking"][name], parts["without"][name])
        assert not torch.allclose(parts["lacking"][name], parts["whole"][name])


def test_what_is_in_the_place_of_a_missing_view_is_never_seen() -> None:
    task, batch = eyes(), batch_with(6, MISSING)
    pixels_BVCHW = batch.views.pixels.clone()
    pixels_BVCHW[~batch.views.there_BV] = 1e6
    other = replace(batch, images=Views(batch.views.there_BV, pixels_BVCHW))
    for name, value in step_of(task, batch).items():
        assert torch.equal(value, step_of(task, other)[name]), name


def test_chunks_have_the_loss_and_gradients_of_the_batch() -> None:
    batch = batch_with(8, MISSING)
    assert_close(step_of(eyes(chunk=3), batch), step_of(eyes(), batch))


def test_autocast_changes_little() -> None:
    batch = batch_with(8, MISSING)
    found, expected = step_of(eyes(), batch, bf16=True), step_of(eyes(), batch)
    assert found["loss"].dtype == torch.float32
    assert float(found["loss"]) == pytest.approx(float(expected["loss"]), rel=0.02)
    assert found.keys() == expected.keys()


@given(st.lists(st.booleans(), min_size=2, max_size=9), st.sampled_from(["softmax", "sigmoid"]), st.data())
def test_a_loss_of_some_is_that_of_these_alone(there: list[bool], kind: str, data: Any) -> None:
    numbers = data.draw(st.lists(st.integers(-1, 3), min_size=len(there), max_size=len(there)))
    loss = build_contrastive(SoftmaxContrastiveConfig() if kind == "softmax" else SigmoidContrastiveConfig())
    there_B, same_B = torch.tensor(there), torch.tensor(numbers)
    images, texts = (part.requires_grad_() for part in pairs(len(there), seed=len(there)))
    found = loss_of_those_there(loss, images, texts, there_B=there_B, of=int(there_B.sum()), share=1.0, same_B=same_B)
    found.backward()
    assert images.grad is not None
    assert texts.grad is not None
    assert loss.log_scale.grad is not None
    assert not images.grad[~there_B].any()
    assert not texts.grad[~there_B].any()
    if there_B.sum() < 2:
        assert float(found.detach()) == 0
        assert not images.grad.any()
    else:
        alone = loss(images.detach()[there_B], texts.detach()[there_B], same_B=same_B[there_B])
        torch.testing.assert_close(found.detach(), alone.detach())


def test_a_batch_without_a_complete_pair_trains_the_views() -> None:
    task, batch = eyes(), batch_with(6, {n: LEFT if n % 2 else RIGHT for n in range(6)})
    found, parts = step_of(task, batch), task.step(batch).parts
    assert float(parts["case_loss"]) == 0
    assert float(found["loss"]) == pytest.approx(float(parts["left_loss"] + parts["right_loss"]))
    learns = {name for name, _ in task.named_parameters()}
    assert found.keys() - {"loss"} == learns, "every parameter stays in the graph"
    assert not found["heads.case_map.weight"].any()


def test_a_batch_of_one_pair_in_every_space_is_an_error_that_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"this batch has 1 of left or of right. Set data.loader.drop_last: true"):
        eyes().step(batch_with(2, {0: LEFT, 1: RIGHT}))


# -- Answers ------------------------------------------------------------------------------------------------------


def test_exchanged_views_are_those_of_a_case_whose_views_have_changed_places() -> None:
    task, batch = eyes().eval(), batch_with(6, {2: LEFT, 3: RIGHT})
    images = batch.views
    turned = replace(batch, images=images.each(lambda tensor: tensor.flip(1)))
    found, other = task.predict(batch).arrays, task.predict(turned).arrays
    torch.testing.assert_close(found["exchanged_image_embeddings"], other["image_embeddings"])
    torch.testing.assert_close(found["tower_image_embeddings"], other["tower_image_embeddings"].flip(1))
    whole = torch.tensor([True, True, False, False, True, True])
    assert not torch.allclose(found["image_embeddings"][whole], other["image_embeddings"][whole])
    assert not found["image_embeddings"][~whole].any()
    assert torch.equal(found["has_image"].bool(), whole)


def test_a_case_answers_with_what_it_has() -> None:
    task, batch = eyes().eval(), batch_with(3, {1: LEFT, 2: RIGHT})
    whole, right, left = task.records(task.predict(batch))
    assert set(whole) == {"image_embedding", "left_image_embedding", "right_image_embedding"}
    assert set(right) == {"right_image_embedding"}
    assert set(left) == {"left_image_embedding"}
    for embedding in whole.values():
        assert torch.tensor(embedding).norm() == pytest.approx(1, abs=1e-5)


def test_monocular_has_one_level() -> None:
    task = task_of(views={"monocular": True})
    assert not isinstance(task, AlignViews)
    assert [type(layer) for layer in task.text_projection.layers.children()] == [nn.Linear, nn.ReLU, nn.Linear]
    assert (task.spaces, task.views, len(task.losses)) == (("",), (), 1)
    assert set(task.step(batch_of(4)).parts) == {"temperature"}


@pytest.mark.parametrize(
    ("views", "says"),
    [
        ({"names": ["left", "left"]}, "names are left, left; give each view a name of its own"),
        ({"names": ["left"]}, "at least 2"),
        ({"names": ["case", "right"]}, "a view cannot be called case"),
        ({"names": ["Left eye", "right"]}, "pattern"),
        ({"monocular": True, "loss": "mean"}, "monocular has one picture and one loss"),
    ],
)
def test_views_that_cannot_be_are_refused(views: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ViewsConfig(**views)


# -- Several processes --------------------------------------------------------------------------------------------

PROCESSES = 3
SPREAD: tuple[tuple[int, dict[int, tuple[bool, bool]]], ...] = (  # cases, and which lack what
    (7, {}),
    (7, {0: LEFT, 3: LEFT, 6: LEFT, 1: RIGHT}),  # one process has no left view
    (7, {n: LEFT if n % 2 else RIGHT for n in range(7)}),  # nobody has both
    (2, {}),  # one process has nothing and repeats a case
)


def part_of_a_step(process: int, count: int, missing: dict[int, tuple[bool, bool]]) -> dict[str, Tensor]:
    rows = list(range(count))[process::PROCESSES]
    share = len(rows) * PROCESSES / count
    own = replace(batch_with(count, missing).take(torch.tensor(rows or [0])), share=share)
    step = DistributedDataParallel(eyes())
    loss = step(own).loss
    (loss * share).backward()
    mean = loss.detach() * share / PROCESSES
    distributed.all_reduce(mean)
    found = {name.removeprefix("module."): one.grad for name, one in step.named_parameters() if one.grad is not None}
    return {"loss": mean, **found}


def one_of_several(process: int, folder: str) -> None:
    torch.set_num_threads(1)
    meet, patience = f"file://{folder}/meet", timedelta(seconds=60)
    distributed.init_process_group("gloo", init_method=meet, rank=process, world_size=PROCESSES, timeout=patience)
    for number, (count, missing) in enumerate(SPREAD):
        torch.save(part_of_a_step(process, count, missing), Path(folder) / f"{number}-{process}.pt")
    distributed.barrier()
    os._exit(0)  # all is saved; taking the group's threads down has aborted a process now and then


@pytest.mark.slow  # three processes
def test_several_processes_are_one(tmp_path: Path) -> None:
    multiprocessing.spawn(one_of_several, args=(str(tmp_path),), nprocs=PROCESSES)
    for number, (count, missing) in enumerate(SPREAD):
        expected = step_of(eyes(), batch_with(count, missing))
        for process in range(PROCESSES):
            found = torch.load(tmp_path / f"{number}-{process}.pt", weights_only=True)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert (found[name] - value).abs().max() <= 1e-5 * max(1.0, float(value.abs().max())), name
