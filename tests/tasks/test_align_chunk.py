"""``task.chunk``: a batch in chunks has the loss and the gradients of the whole."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from consilium.core.contracts import Batch, Texts, Views
from consilium.core.errors import ConfigError, MemoryExhaustedError
from consilium.data.config import ImageConfig
from consilium.models.config import FreezeConfig, TextConfig, VisionConfig
from consilium.tasks.align.config import AlignConfig
from consilium.tasks.align.family import FAMILY, AlignKnowledge
from consilium.tasks.align.task import Align
from tests.models.texts import CAPTIONS, caption_tokenizer, write_encoder
from tests.tasks.test_align_contract import train_pairs
from tests.tiny import Recorder, Run, assert_close, same

SESSION = import_module("consilium.session.train")


def task_of(*, dropout: float = 0.0, vision: VisionConfig | None = None, **options: Any) -> Align:
    """A ViT and a BERT of two layers, always with the same weights."""
    torch.manual_seed(0)
    tokenizer = caption_tokenizer()
    section = AlignConfig(
        kind="align",
        vision=vision or VisionConfig(name="test_vit", pretrained=False),
        text=TextConfig(name="tiny", pretrained=False, context_length=32),
        embedding_size=8,
        **options,
    )
    task = FAMILY.build(
        section,
        AlignKnowledge(training_cases=5, tokenizer=tokenizer.definition),
        image=ImageConfig(size=(32, 32)),
        members={},
        weights=True,
    )
    for part in task.text.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = dropout
    return task.train()


def perturbed(task: Align) -> Align:
    """The task with weights that have moved, always by the same."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=random)
    return task


def held(*, chunk: int | None) -> Align:
    """A task that holds on to similarities of its start."""
    task = task_of(chunk=chunk, feature_distillation={"kind": "similarity_matrix", "weight": 5.0})
    task.keep_start(("image", "text"))
    return perturbed(task)


def batch_of(count: int, *, views: int = 1) -> Batch:
    """Cases with texts of unequal length; the second view is missing in every other case."""
    random, tokenizer = torch.Generator().manual_seed(count), caption_tokenizer()
    padded = tokenizer.pad(tokenizer.encode([f"{CAPTIONS[n % 5]} {'of it ' * (n % 4)}" for n in range(count)]))
    there_BV = torch.ones(count, views, dtype=torch.bool)
    there_BV[::2, 1:] = False
    return Batch(
        torch.arange(count),
        torch.arange(count),
        counts={"cases": count},
        images=Views(there_BV, torch.randn(count, views, 3, 32, 32, generator=random)),
        texts=Texts(torch.ones(count, dtype=torch.bool), torch.arange(count), padded.tokens_BT, padded.attention_BT),
    )


def step_of(task: Align, batch: Batch, *, bf16: bool = False, seed: int = 1) -> dict[str, Tensor]:
    """The loss of a step and all gradients."""
    task.zero_grad()
    torch.manual_seed(seed)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = task(batch).loss
    loss.backward()
    found = {name: one.grad.clone() for name, one in task.named_parameters() if one.grad is not None}
    return {"loss": loss.detach(), **found}


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("size", [1, 4])
def test_chunks_have_the_loss_and_gradients_of_the_batch(kind: str, size: int) -> None:
    loss: Any = {"kind": kind}
    batch = batch_of(11, views=2)
    whole, parts = task_of(loss=loss), task_of(loss=loss, chunk=size)
    assert_close(step_of(parts, batch), step_of(whole, batch))
    expected = whole.eval().predict(batch).arrays
    for name, array in parts.eval().predict(batch).arrays.items():
        torch.testing.assert_close(array, expected[name], msg=name)


def test_what_autocast_rounds_is_rounded_in_the_backward_pass_too() -> None:
    batch = batch_of(8)
    expected, found = (step_of(task_of(chunk=size), batch, bf16=True) for size in (None, 3))
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 0.05 * gradient.abs().max() + 1e-5, name


def test_a_seed_drops_the_same_in_both_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside chunks whose insides are kept, where nothing is computed twice."""
    batch = batch_of(8)
    found = step_of(task_of(chunk=3, dropout=0.4), batch)
    with monkeypatch.context() as patch:
        patch.setattr("consilium.models.chunked.checkpoint", lambda encode, rows, use_reentrant: encode(rows))
        expected = step_of(task_of(chunk=3, dropout=0.4), batch)
    assert_close(found, expected)
    assert not torch.allclose(found["loss"], step_of(task_of(chunk=3, dropout=0.4), batch, seed=2)["loss"])


def test_a_chunk_of_texts_is_padded_to_its_own_longest() -> None:
    task, batch = task_of(chunk=3), batch_of(9)
    widths: list[int] = []
    task.text.register_forward_pre_hook(lambda module, given: widths.append(given[0].shape[1]))
    assert batch.texts is not None
    assert batch.texts.attention_BT is not None
    with torch.no_grad():
        task.text_features(batch.texts)
    lengths = sorted(batch.texts.attention_BT.sum(1).tolist())
    assert widths == [lengths[2], lengths[5], lengths[8]]
    assert widths[0] < widths[2]


@pytest.mark.parametrize("chunk", [4, "auto"])
def test_a_tower_that_learns_from_whole_batches_is_refused(chunk: Any) -> None:
    resnet = VisionConfig(name="test_resnet", pretrained=False)
    with pytest.raises(ConfigError, match=r"task\.chunk is .*test_resnet has BatchNorm \(.*freeze\.kind: tower"):
        task_of(chunk=chunk, vision=resnet)
    later = resnet.model_copy(update={"freeze": FreezeConfig(kind="tower", warmup_epochs=1)})
    task = task_of(chunk=chunk, vision=later)  # its statistics stay as they are
    assert torch.isfinite(step_of(task, batch_of(6))["loss"])
    warm = resnet.model_copy(update={"freeze": FreezeConfig(warmup_epochs=1)})
    with pytest.raises(ConfigError, match=r"task\.chunk"):
        task_of(chunk=chunk, vision=warm)


# -- Trainings ----------------------------------------------------------------------------------------------------

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def trained(folder: Path, *overrides: str, **options: Any) -> Run:
    encoder = folder / "encoder"
    if not encoder.is_dir():
        write_encoder(encoder, **NO_DROPOUT)
    own = [
        f"task.text={{name: {encoder}, context_length: 16}}",
        "optimizer={kind: sgd, learning_rate: 0.05}",
        "data.loader.drop_last=false",
        "trainer.accumulate=2",
    ]
    return train_pairs(folder, *own, *overrides, **options)


def test_a_training_in_chunks_is_the_training(tmp_path: Path) -> None:
    """With accumulation, a short last batch, and validation in chunks too."""
    whole, parts = trained(tmp_path), trained(tmp_path, "task.chunk=3")
    assert_close(parts.weights, whole.weights)
    assert parts.steps("train_loss") == pytest.approx(whole.steps("train_loss"), rel=1e-5)
    assert parts.validations("val_log_loss") == pytest.approx(whole.validations("val_log_loss"), rel=1e-4)


def test_cached_features_need_no_chunks(tmp_path: Path) -> None:
    frozen = ["task.vision.freeze.kind=tower", "task.text.freeze.kind=tower"]
    whole = trained(tmp_path, *frozen)
    for chunk in ("3", "auto"):
        parts = trained(tmp_path, *frozen, f"task.chunk={chunk}")
        assert same(parts.weights, whole.weights)
        assert "auto is" not in parts.log


def test_auto_is_said_and_stays_when_the_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consilium.tasks.align.task.largest_chunk", lambda encoders, learns: 3)
    dropout = "task.text={name: tiny, pretrained: false, context_length: 16, vocabulary_size: 256}"
    own = [dropout, "task.chunk=auto", "trainer.save_every=0.5"]
    whole = trained(tmp_path / "whole", *own)
    assert "task.chunk: auto is 3 here" in whole.log
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "broken", *own, reporter=Recorder(stop_at=2))
    monkeypatch.setattr("consilium.tasks.align.task.largest_chunk", lambda encoders, learns: 5)
    run = trained(tmp_path / "broken", *own, resume=True)
    assert same(run.weights, whole.weights), "what is dropped depends on the chunks"


def test_out_of_memory_is_told_of_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(SESSION, "dry_run", exhausted)
    with pytest.raises(MemoryExhaustedError, match=r"Set task\.chunk: auto: .* \(now 2\) does not give them back"):
        trained(tmp_path)
    with pytest.raises(MemoryExhaustedError, match=r"Set a smaller task\.chunk \(now 7\)"):
        trained(tmp_path, "task.chunk=7")
    with pytest.raises(MemoryExhaustedError, match=r"Set task\.chunk to a number below the one in the log"):
        trained(tmp_path, "task.chunk=auto")


# -- Several processes --------------------------------------------------------------------------------------------

PROCESSES, COUNTS = 3, (12, 7, 2)  # equal parts; one has one more; one has nothing and repeats a pair


def part_of_a_step(count: int, process: int) -> dict[str, Tensor]:
    rows = list(range(count))[process::PROCESSES]
    share = len(rows) * PROCESSES / count
    own = replace(batch_of(count).take(torch.tensor(rows or [0])), share=share)
    step = DistributedDataParallel(held(chunk=2))
    loss = step(own).loss
    (loss * share).backward()
    mean = loss.detach() * share / PROCESSES
    distributed.all_reduce(mean)
    found = {name.removeprefix("module."): one.grad for name, one in step.named_parameters() if one.grad is not None}
    return {"loss": mean, **found}


def one_of_several(process: int, folder: str) -> None:
    torch.set_num_threads(1)
    patience = timedelta(seconds=60)
    meet = f"file://{folder}/meet"
    distributed.init_process_group("gloo", init_method=meet, rank=process, world_size=PROCESSES, timeout=patience)
    for count in COUNTS:
        torch.save(part_of_a_step(count, process), Path(folder) / f"{count}-{process}.pt")
    distributed.barrier()
    os._exit(0)  # all is saved; taking the group's threads down has aborted a process now and then


@pytest.mark.slow  # three processes
def test_several_processes_in_chunks_are_one_without(tmp_path: Path) -> None:
    multiprocessing.spawn(one_of_several, args=(str(tmp_path),), nprocs=PROCESSES)
    for count in COUNTS:
        expected = step_of(held(chunk=None), batch_of(count))
        for process in range(PROCESSES):
            found = torch.load(tmp_path / f"{count}-{process}.pt", weights_only=True)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert (found[name] - value).abs().max() <= 1e-5 * max(1.0, float(value.abs().max())), name
