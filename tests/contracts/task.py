"""What every task must keep; a task's own tests subclass ``TaskContract``.

class TestClassify(TaskContract):
    def task(self, *, warmup_epochs=0, seed=0): ...
    def batch(self, *, seed=0): ...
"""

from __future__ import annotations

import copy
import json
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from consilium.core.contracts import Batch


class TaskContract(ABC):
    """Abstract tests of ``consilium.core.contracts.Task``; keep the task's tower small and with BatchNorm."""

    @abstractmethod
    def task(self, *, warmup_epochs: int = 0, seed: int = 0) -> Any:
        """A new task with random weights of ``seed``, whose tower has BatchNorm and is frozen at first."""

    @abstractmethod
    def batch(self, *, seed: int = 0) -> Batch:
        """A batch of at least three cases with targets, whose images are normalised."""

    def test_step_gives_a_finite_scalar_loss_and_a_gradient_for_every_parameter_that_learns(self) -> None:
        task = self.task().train()
        output = task.step(self.batch())
        assert output.loss.shape == ()
        assert output.loss.dtype == torch.float32
        assert math.isfinite(output.loss.item())
        output.loss.backward()
        for name, parameter in task.named_parameters():
            assert parameter.grad is not None, f"{name} gets no gradient"
            assert torch.isfinite(parameter.grad).all(), f"the gradient of {name} is not finite"
        assert all(not part.requires_grad and part.shape == () for part in output.parts.values())

    def test_steps_reduce_the_loss_of_a_batch(self) -> None:
        task, batch = self.task().train(), self.batch()
        optimizer = torch.optim.SGD(task.parameters(), lr=0.01)
        losses = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = task.step(batch).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]

    def test_step_leaves_the_batch_as_it_was(self) -> None:
        batch = self.batch()
        before = copy.deepcopy(tensors(batch))
        self.task().train().step(batch)
        assert_equal(tensors(batch), before)

    def test_prediction_is_one_finite_row_of_float32_per_case(self) -> None:
        batch = self.batch()
        prediction = self.task().eval().predict(batch)
        assert prediction.arrays
        for name, array in prediction.arrays.items():
            assert array.shape[0] == len(batch), name
            assert array.dtype == torch.float32, name
            assert torch.isfinite(array).all(), name
            assert not array.requires_grad, name

    def test_predict_changes_no_state_and_is_deterministic(self) -> None:
        task, batch = self.task(), self.batch()
        task.train().step(batch)  # statistics have moved, as in the middle of a training
        task.eval()
        before, random_state = snapshot(task), torch.get_rng_state()
        first, second = task.predict(batch).arrays, task.predict(batch).arrays
        assert_equal(snapshot(task), before)
        assert_equal(first, second)
        assert torch.equal(torch.get_rng_state(), random_state)
        assert not task.training

    def test_prediction_of_a_case_does_not_depend_on_its_neighbours(self) -> None:
        task, batch = self.task().eval(), self.batch()
        order = torch.arange(len(batch)).flip(0)
        together, reversed_ = task.predict(batch).arrays, task.predict(pick(batch, order)).arrays
        alone = task.predict(pick(batch, order[:1])).arrays
        for name, array in together.items():
            torch.testing.assert_close(reversed_[name], array[order], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(alone[name], array[-1:], rtol=1e-4, atol=1e-5)

    def test_records_are_one_json_object_per_case(self) -> None:
        task, batch = self.task().eval(), self.batch()
        records = task.records(task.predict(batch))
        assert len(records) == len(batch)
        for record in records:
            assert record
            assert json.loads(json.dumps(record, allow_nan=False)) == record

    def test_parameter_groups_hold_every_parameter_exactly_once(self) -> None:
        for task in (self.task(), self.task(warmup_epochs=1)):
            groups = task.parameter_groups()
            held = [id(parameter) for group in groups for parameter in group.parameters]
            assert len(held) == len(set(held))
            assert set(held) == {id(parameter) for parameter in task.parameters()}
            assert len({group.name for group in groups}) == len(groups)
            assert all(group.parameters for group in groups)

    def test_frozen_parts_do_not_move_and_thaw_when_their_epoch_comes(self) -> None:
        task, batch = self.task(warmup_epochs=1), self.batch()
        task.set_epoch(0)
        frozen = {name for name, parameter in task.named_parameters() if not parameter.requires_grad}
        assert frozen, "warmup_epochs=1 froze nothing"
        statistics = {
            f"{name}.{buffer}"
            for name, module in task.named_modules()
            if isinstance(module, _BatchNorm) and f"{name}.weight" in frozen
            for buffer, _ in module.named_buffers()
        }
        assert statistics, "the frozen part has no BatchNorm; build the task with one"
        task.train()
        before = snapshot(task)
        train_one_step(task, batch)
        after = snapshot(task)
        assert_equal({k: after[k] for k in frozen | statistics}, {k: before[k] for k in frozen | statistics})
        assert any(not torch.equal(after[name], before[name]) for name in before), "nothing learned at all"

        task.set_epoch(1)
        assert all(parameter.requires_grad for parameter in task.parameters())
        train_one_step(task, batch)
        thawed = snapshot(task)
        assert all(not torch.equal(thawed[name], after[name]) for name in statistics)
        assert any(not torch.equal(thawed[name], after[name]) for name in frozen)

    def test_set_epoch_keeps_evaluation_mode(self) -> None:
        task = self.task(warmup_epochs=1).eval()
        for epoch in (0, 1):
            task.set_epoch(epoch)
            assert not any(module.training for module in task.modules())

    def test_saved_weights_give_the_same_predictions_in_another_task(self) -> None:
        task, other, batch = self.task(seed=0), self.task(seed=1), self.batch()
        train_one_step(task.train(), batch)
        expected = task.eval().predict(batch).arrays
        untrained = other.eval().predict(batch).arrays
        assert any(not torch.equal(expected[name], untrained[name]) for name in expected)
        other.load_state_dict(snapshot(task))
        assert_equal(other.predict(batch).arrays, expected)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers that are saved."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same names with the same numbers, bit for bit."""
    assert actual.keys() == expected.keys()
    differing = [name for name in expected if not torch.equal(actual[name], expected[name])]
    assert not differing, f"differ: {differing[:5]}"


def train_one_step(task: Any, batch: Batch) -> None:
    """One step of plain gradient descent on the parameters that learn."""
    optimizer = torch.optim.SGD([parameter for parameter in task.parameters() if parameter.requires_grad], lr=0.01)
    optimizer.zero_grad()
    task.step(batch).loss.backward()
    optimizer.step()


def pick(batch: Batch, cases: Tensor) -> Batch:
    """These cases of a batch."""
    return batch.take(cases)


def tensors(batch: Batch) -> dict[str, Tensor]:
    """All tensors of a batch, each with one row per case."""
    columns = {"": batch, "images.": batch.images, "texts.": batch.texts, "masks.": batch.masks, "meta.": batch.meta}
    return {
        f"{column}{name}": value
        for column, own in columns.items()
        for name, value in (vars(own).items() if own is not None else ())
        if isinstance(value, Tensor)
    }
