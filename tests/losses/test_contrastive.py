"""The contrastive loss against plain numpy, finite differences, and one process against several."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from consilium.core.errors import ConfigError
from consilium.losses import contrastive
from consilium.losses.config import ContrastiveConfig, SigmoidContrastiveConfig, SoftmaxContrastiveConfig
from consilium.losses.contrastive import ContrastiveLoss, build_contrastive


def pairs(count: int, *, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    images, texts = (functional.normalize(torch.randn(count, width, generator=random), dim=1) for _ in range(2))
    return images, texts


def softmax(**options: Any) -> ContrastiveLoss:
    return build_contrastive(SoftmaxContrastiveConfig(**options))


def sigmoid(**options: Any) -> ContrastiveLoss:
    return build_contrastive(SigmoidContrastiveConfig(**options))


LOSSES: dict[str, ContrastiveConfig] = {"softmax": SoftmaxContrastiveConfig(), "sigmoid": SigmoidContrastiveConfig()}


def plain(images: np.ndarray, texts: np.ndarray, same: list[int], *, scale: float) -> float:
    """The same by its words, one pair after the other."""
    total = 0.0
    for queries, answers in ((images, texts), (texts, images)):
        for row, query in enumerate(queries):
            scores = [scale * float(np.dot(query, answer)) for answer in answers]
            top = max(scores)
            whole = top + math.log(sum(math.exp(score - top) for score in scores))
            right = [whole - score for score, other in zip(scores, same, strict=True) if other == same[row]]
            total += sum(right) / len(right)
    return total / (2 * len(images))


# -- Value and gradient -------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.integers(1, 9), st.floats(0.02, 1.0), st.booleans())
def test_it_is_what_its_words_say(same: list[int], width: int, temperature: float, merged: bool) -> None:
    images, texts = pairs(len(same), width=width, seed=len(same))
    loss = softmax(temperature=temperature)
    own = torch.tensor(same) if merged else None
    found = loss(images, texts, same_B=own)
    numbers = same if merged else list(range(len(same)))
    expected = plain(images.double().numpy(), texts.double().numpy(), numbers, scale=1 / temperature)
    assert found.shape == ()
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert loss(texts, images, same_B=own).item() == pytest.approx(found.item(), rel=1e-4, abs=1e-5)


def test_it_is_that_of_clip_where_all_texts_differ() -> None:
    images, texts = pairs(8)
    logits, truth = images @ texts.T / 0.07, torch.arange(8)
    clip = (functional.cross_entropy(logits, truth) + functional.cross_entropy(logits.T, truth)) / 2
    for same_B in (None, torch.arange(8) * 5):
        torch.testing.assert_close(softmax()(images, texts, same_B=same_B), clip)


def test_the_lowest_value_is_the_logarithm_of_how_many_are_right() -> None:
    axes = torch.eye(3)[[0, 0, 1, 2]]
    found = softmax(temperature=0.01)(axes, axes, same_B=torch.tensor([7, 7, 8, 9]))
    assert found.item() == pytest.approx(math.log(2) * 2 / 4, abs=1e-4)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.floats(0.02, 1.0), st.floats(-12, 3))
def test_the_sigmoid_loss_is_what_its_words_say(same: list[int], temperature: float, bias: float) -> None:
    images, texts = pairs(len(same), seed=len(same))
    found = sigmoid(temperature=temperature, bias=bias)(images, texts, same_B=torch.tensor(same))
    expected = 0.0
    for row, image in enumerate(images.double().numpy()):
        for column, text in enumerate(texts.double().numpy()):
            score = float(np.dot(image, text)) / temperature + bias
            expected += float(np.logaddexp(0, -score if same[row] == same[column] else score))
    assert found.item() == pytest.approx(expected / len(same), rel=1e-4, abs=1e-5)


def test_a_case_without_a_number_has_its_own_answer_alone() -> None:
    images, texts = pairs(4)
    for loss in (softmax(), sigmoid()):
        found = loss(images, texts, same_B=torch.tensor([-1, 2, -1, 5]))
        torch.testing.assert_close(found, loss(images, texts))


OWN = [[4, 1, -1], [2, -1, -1], [4, -1, 7], [0, 9, 1], [1, -1, -1], [-1, -1, -1], [6, 5, 0]]


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("tile", [3, 100])
def test_an_image_may_have_several_right_texts(kind: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text is right for all images that have its number, whatever else these have; one case has none."""
    monkeypatch.setattr(contrastive, "TILE", tile)
    loss, own_BK = build_contrastive(LOSSES[kind]), torch.tensor(OWN)
    images, texts = (part.requires_grad_() for part in pairs(7))
    found = loss(images, texts, same_B=own_BK[:, 0], own_BK=own_BK)
    found.backward()
    right = torch.tensor([[b == n or (text[0] in image[: 1 + 2 * (image[0] >= 0)] and text[0] >= 0)
                           for n, text in enumerate(OWN)] for b, image in enumerate(OWN)]).double()  # fmt: skip
    assert right.sum() > 7 + 4, "a few are right beside their own"
    assert not torch.equal(right, right.T)
    whole = [part.detach().double().requires_grad_() for part in (images, texts)]
    logits = loss.log_scale.detach().double().exp() * whole[0] @ whole[1].T
    if kind == "softmax":
        sides = [(logits, right), (logits.T, right.T)]
        expected = sum(functional.cross_entropy(one, own / own.sum(1, keepdim=True)) for one, own in sides) / 2
    else:
        expected = -functional.logsigmoid((2 * right - 1) * (logits + loss.bias.detach())).sum() / 7
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip((images, texts), whole, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("tile", [1, 3, 5, 100])
def test_tiles_change_nothing(kind: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients are those of automatic differentiation of the whole square, in float64."""
    monkeypatch.setattr(contrastive, "TILE", tile)
    loss = build_contrastive(LOSSES[kind])
    same_B = torch.tensor([4, 2, 4, 0, 1, 2, 4])
    images, texts = (part.requires_grad_() for part in pairs(7))
    (3 * loss(images, texts, same_B=same_B)).backward()
    whole = [part.detach().double().requires_grad_() for part in (images, texts, loss.log_scale)]
    right = (same_B[:, None] == same_B).double()
    logits = whole[2].exp() * whole[0] @ whole[1].T
    learned = {"images": images.grad, "texts": texts.grad, "scale": loss.log_scale.grad}
    if kind == "softmax":
        targets = right / right.sum(1, keepdim=True)
        sides = [functional.cross_entropy(one, targets) for one in (logits, logits.T)]
        (3 * sum(sides) / 2).backward()
    else:
        bias = loss.bias.detach().double().requires_grad_()
        (-3 * functional.logsigmoid((2 * right - 1) * (logits + bias)).sum() / 7).backward()
        torch.testing.assert_close(loss.bias.grad.double(), bias.grad)
    for found, tensor in zip(learned.values(), whole, strict=True):
        torch.testing.assert_close(found.double(), tensor.grad, rtol=1e-4, atol=1e-5)


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor had that any operation made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        found = (tensor.numel() for tensor in tree_leaves(made) if isinstance(tensor, Tensor))
        self.numbers = max(self.numbers, *found, 0)
        return made


def largest(loss: Callable[[Tensor, Tensor], Tensor], count: int) -> int:
    """The numbers of the largest tensor of a value and its gradients."""
    images, texts = (part.requires_grad_() for part in pairs(count))
    with Largest() as seen:
        loss(images, texts).backward()
    assert images.grad is not None
    return seen.numbers


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
@pytest.mark.parametrize("kind", LOSSES)
def test_memory_grows_with_the_batch_and_not_with_its_square(kind: str, several: bool) -> None:
    """Of a batch twice as large the largest tensor is twice as large, forward and backward; of a whole square four
    times."""
    whole = build_contrastive(LOSSES[kind])

    def tiled(images: Tensor, texts: Tensor) -> Tensor:
        same_B = torch.arange(len(images)) // 2
        own_BK = torch.stack((same_B, same_B + 1), dim=1) if several else None
        return whole(images, texts, same_B=same_B, own_BK=own_BK)

    def square(images: Tensor, texts: Tensor) -> Tensor:
        return functional.cross_entropy(images @ texts.T, torch.arange(len(images)))

    count = 2 * contrastive.TILE
    assert largest(square, 2 * count) == 4 * largest(square, count) == 4 * count**2
    assert largest(tiled, 2 * count) == 2 * largest(tiled, count) == 2 * contrastive.TILE * count


def test_gradients_can_be_had_once() -> None:
    images, texts = (part.requires_grad_() for part in pairs(3))
    loss = softmax()(images, texts)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_are_those_of_finite_differences() -> None:
    loss = softmax(temperature=0.5)
    same = [4, 2, 4]
    images, texts = (part.requires_grad_() for part in pairs(3, width=2))
    loss(images, texts, same_B=torch.tensor(same)).backward()
    arrays = [images.detach().double().numpy(), texts.detach().double().numpy()]
    scale, step = 2.0, 1e-6

    def shifted(side: int, row: int, column: int, by: float) -> float:
        moved = [array.copy() for array in arrays]
        moved[side][row, column] += by
        return plain(*moved, same, scale=scale)

    for side, tensor in enumerate((images, texts)):
        for row in range(3):
            for column in range(2):
                slope = (shifted(side, row, column, step) - shifted(side, row, column, -step)) / (2 * step)
                assert tensor.grad is not None
                assert tensor.grad[row, column].item() == pytest.approx(slope, abs=1e-5)
    up, down = (plain(*arrays, same, scale=scale * math.exp(by)) for by in (step, -step))
    assert loss.log_scale.grad is not None
    assert loss.log_scale.grad.item() == pytest.approx((up - down) / (2 * step), abs=1e-5)


def test_everything_inside_is_float32() -> None:
    images, texts = (part.bfloat16() for part in pairs(6))
    loss = softmax()
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(images, texts)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(images.float(), texts.float()))


# -- Temperature --------------------------------------------------------------------------------------------------


def test_the_temperature_starts_at_its_value_learns_and_stays_within_its_range() -> None:
    loss = softmax()
    assert loss.scale.item() == pytest.approx(1 / 0.07)
    images, _ = pairs(4)  # of equal pairs, which ask for a lower and lower temperature
    optimizer = torch.optim.SGD(loss.parameters(), lr=100.0)
    loss(images, images).backward()
    optimizer.step()
    assert loss.scale.item() == pytest.approx(100)
    optimizer.zero_grad()
    loss(images, -images).backward()  # and now for a higher one: it has a gradient at the border
    assert loss.log_scale.item() == pytest.approx(math.log(100))
    assert loss.log_scale.grad is not None
    assert loss.log_scale.grad.item() > 0
    optimizer.step()
    assert loss.scale.item() == 1


def test_a_fixed_temperature_has_no_gradient() -> None:
    loss = softmax(learn_temperature=False, temperature=0.1)
    assert [parameter for parameter in loss.parameters() if parameter.requires_grad] == []
    assert loss.scale.item() == pytest.approx(10)


def test_a_temperature_out_of_range_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"temperature 0.005 is below 1 / max_scale, 0.01"):
        SoftmaxContrastiveConfig(temperature=0.005)
    with pytest.raises(ValidationError, match=r"temperature 0.05 is below 1 / max_scale, 0.1"):
        SigmoidContrastiveConfig(temperature=0.05, max_scale=10)


def test_a_batch_of_one_pair_is_an_error_that_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"this batch has one. Set data.loader.drop_last: true, or another data"):
        softmax()(*pairs(1))


# -- Several processes --------------------------------------------------------------------------------------------

BATCHES = (8, 7, 2)  # cases of a whole batch; of two, a third process gets none


def towers(kind: str) -> nn.ModuleDict:
    torch.manual_seed(0)
    parts = {"image": nn.Linear(5, 4), "text": nn.Linear(3, 4), "loss": build_contrastive(LOSSES[kind])}
    return nn.ModuleDict(parts)


class Step(nn.Module):
    """What a task does with a batch."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.parts = towers(kind)

    def forward(self, images: Tensor, texts: Tensor, same_B: Tensor, own_BK: Tensor, repeated: bool) -> Tensor:
        image, text = self.parts["image"](images), self.parts["text"](texts)
        embeddings = functional.normalize(image, dim=1), functional.normalize(text, dim=1)
        found: Tensor = self.parts["loss"](*embeddings, same_B=same_B, own_BK=own_BK, repeated=repeated)
        return found


def cases(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(count)
    same_B = torch.tensor([3, 9, 3, 4, 9, 9, 1, 0])[:count]
    own_BK = torch.tensor(
        [[3, 4, -1], [9, -1, -1], [3, 0, 9], [4, -1, 3], [9, 1, -1], [9, -1, -1], [1, 4, 0], [0, 3, 9]]
    )
    images, texts = (torch.randn(count, width, generator=random) for width in (5, 3))
    return images, texts, same_B, own_BK[:count]


def alone(count: int, kind: str) -> dict[str, Any]:
    step = Step(kind)
    loss = step(*cases(count), False)
    loss.backward()
    return {"loss": loss.detach(), **{name: one.grad for name, one in step.named_parameters()}}


def one_of_several(process: int, processes: int, folder: str) -> None:
    """The same steps as one of several processes, as ``data.loader`` and ``training.loop`` make them."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=process, world_size=processes, timeout=timedelta(seconds=60)
    )
    for count in BATCHES:
        for kind in LOSSES:
            torch.save(part_of_a_step(count, process, processes, kind), Path(folder) / f"{kind}-{count}-{process}.pt")
    distributed.barrier()
    os._exit(0)  # all is saved; taking the group's threads down has aborted a process now and then


def part_of_a_step(count: int, process: int, processes: int, kind: str) -> dict[str, Any]:
    own = list(range(count))[process::processes]
    share = len(own) * processes / count
    step = DistributedDataParallel(Step(kind))
    rows = own or [0]  # who gets nothing repeats the first row
    loss = step(*(part[rows] for part in cases(count)), share == 0)
    (loss * share).backward()
    mean = loss.detach() * share / processes
    distributed.all_reduce(mean)
    return {"loss": mean, **{name.removeprefix("module."): one.grad for name, one in step.named_parameters()}}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_are_one_with_all_pairs(processes: int, tmp_path: Path) -> None:
    multiprocessing.spawn(one_of_several, args=(processes, str(tmp_path)), nprocs=processes)
    for count, kind in itertools.product(BATCHES, LOSSES):
        expected = alone(count, kind)
        for process in range(processes):
            found = torch.load(tmp_path / f"{kind}-{count}-{process}.pt", weights_only=True)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")
