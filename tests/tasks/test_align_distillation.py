"""``task.feature_distillation``: towers hold on to the features that they gave at the start."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import consilium
from consilium.core.errors import ConfigError
from consilium.models.config import FreezeConfig, VisionConfig
from consilium.session import train
from consilium.tasks.align.task import Align
from tests.models.texts import write_encoder
from tests.tasks.test_align_chunk import batch_of, perturbed, step_of, task_of
from tests.tasks.test_align_contract import experiment_of, train_pairs
from tests.tiny import Recorder, Run, assert_close, same

KINDS = ("mse", "cosine", "similarity_matrix")
BOTH = ("image", "text")


def held(*, moved: bool = True, groups: tuple[str, ...] = BOTH, kind: str = "cosine", **options: Any) -> Align:
    """A task that has gone some way from its start."""
    weight = options.pop("weight", 1.0)
    task = task_of(feature_distillation={"kind": kind, "weight": weight}, **options)
    task.keep_start(groups)
    return perturbed(task) if moved else task


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_contrastive_one_and_the_weighted_distance(kind: str) -> None:
    batch, plain = batch_of(6, views=2), perturbed(task_of())
    expected = plain.step(batch).loss.detach()
    output = held(kind=kind, weight=3.0).step(batch)
    distance = output.parts["feature_distillation"]
    assert float(distance) > 1e-4
    torch.testing.assert_close(output.parts["contrastive"], expected)
    torch.testing.assert_close(output.loss.detach(), expected + 3 * distance)
    begun = held(kind=kind, moved=False).step(batch)
    assert float(begun.parts["feature_distillation"]) == pytest.approx(0, abs=1e-6)


def test_only_towers_with_a_start_are_held() -> None:
    gradients = {
        groups: step_of(held(groups=groups, weight=100.0), batch_of(6)) for groups in (BOTH, ("image",), ("text",))
    }
    plain = step_of(perturbed(task_of()), batch_of(6))
    for tower, other in (("image", "text."), ("text", "vision.")):
        for name, gradient in gradients[(tower,)].items():
            free = name.startswith((other, "image_projection", "text_projection", "loss."))
            assert not free or torch.allclose(gradient, plain[name], atol=1e-6), name
        assert not torch.allclose(gradients[(tower,)]["loss"], plain["loss"])


@pytest.mark.parametrize("kind", KINDS)
def test_features_stay_closer_to_the_start_the_more_that_weighs(kind: str) -> None:
    def far(weight: float) -> float:
        task, batch = held(kind=kind, weight=weight, moved=False), batch_of(8)
        optimizer = torch.optim.Adam(task.parameters(), lr=3e-4)
        for _ in range(12):
            optimizer.zero_grad()
            task.step(batch).loss.backward()
            optimizer.step()
        return float(task.step(batch).parts["feature_distillation"])

    assert far(300.0) < far(1e-6) / 2


def test_the_start_stays_and_is_not_part_of_the_task() -> None:
    task, plain = held(), task_of()
    assert task.state_dict().keys() == plain.state_dict().keys()
    before = {side: {n: t.clone() for n, t in tower.state_dict().items()} for side, tower in task._start.items()}
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    task.step(batch_of(6)).loss.backward()
    optimizer.step()
    task.train()
    for side, tower in task._start.items():
        assert same(tower.state_dict(), before[side])
        assert not any(part.training for part in tower.modules())
        assert all(own.grad is None for own in tower.parameters())


def test_it_is_the_same_in_chunks() -> None:
    for kind in KINDS:
        batch = batch_of(7)
        assert_close(step_of(held(kind=kind, chunk=3), batch), step_of(held(kind=kind), batch))


def test_what_has_no_start_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no tower that learns \(image, text\) begins with trained weights"):
        held(groups=())
    frozen = VisionConfig(name="test_vit", pretrained=False, freeze=FreezeConfig(kind="tower"))
    with pytest.raises(ConfigError, match=r"no tower that learns \(text\) begins with trained weights"):
        held(groups=("image",), vision=frozen)


# -- Trainings ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("start") / "encoder")


def trained(folder: Path, encoder: Path, *overrides: str, **options: Any) -> Run:
    own = [
        f"task.text={{name: {encoder}, context_length: 16}}",
        "task.feature_distillation={kind: mse, weight: 5}",
        "trainer.save_every=0.34",
    ]
    return train_pairs(folder, *own, *overrides, **options)


def test_a_bundle_needs_no_start(tmp_path: Path, encoder: Path) -> None:
    run = trained(tmp_path, encoder)
    assert "task.feature_distillation keeps a copy of the text tower: " in run.log
    assert not any(name.startswith("_start") for name in run.weights)
    assert consilium.load(run.folder, device="cpu").predict([consilium.Query(text="a red square")])


def test_a_resumed_run_holds_on_to_its_own_start(tmp_path: Path, encoder: Path) -> None:
    copy = tmp_path / "encoder"
    write_encoder(copy)
    whole = trained(tmp_path / "whole", encoder)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "broken", copy, reporter=Recorder(stop_at=4))
    weights = load_file(copy / "model.safetensors")
    save_file({name: tensor + 0.1 for name, tensor in weights.items()}, copy / "model.safetensors", {"format": "pt"})
    assert same(trained(tmp_path / "broken", copy, resume=True).weights, whole.weights)


def test_towers_from_scratch_hold_on_to_nothing_unless_a_bundle_gives_them(tmp_path: Path) -> None:
    own = ["task.feature_distillation={kind: cosine}"]
    with pytest.raises(ConfigError, match=r"task\.feature_distillation holds on to what pretrained towers gave"):
        train(experiment_of(tmp_path, *own), reporter=Recorder())
    first = train(experiment_of(tmp_path, "trainer.max_epochs=1"), reporter=Recorder())
    assert first is not None
    second = train(experiment_of(tmp_path, *own, f"trainer.init_from={first.folder}"), reporter=Recorder())
    assert second is not None
    log = (second.folder / "log.txt").read_text(encoding="utf-8")
    assert "keeps a copy of the image and text tower" in log


# -- A teacher ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expert(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A trained expert with encoder and images of its own."""
    return train_pairs(tmp_path_factory.mktemp("teacher"), "trainer.max_steps=2", "data.image.mean=[0.4, 0.4, 0.4]")


def taught(folder: Path, expert: Run, *overrides: str, **options: Any) -> Run:
    own = f"task.feature_distillation={{kind: cosine, weight: 100, teacher: {expert.folder}}}"
    text = f"task.text={{kind: bundle, name: {expert.folder}}}"
    return train_pairs(folder, own, text, "trainer.max_epochs=8", *overrides, **options)


def test_a_tower_from_nothing_learns_the_features_of_a_teacher(tmp_path: Path, expert: Run) -> None:
    """Its image tower comes nearer to the teacher's, from another start, on the teacher's images."""
    run = taught(tmp_path, expert, "seed=7", "task.text.freeze.kind=tower", "optimizer.learning_rate=0.003")
    assert f"task.feature_distillation: the image tower learns from {expert.folder}" in run.log
    assert consilium.load(run.folder).image.mean == (0.4, 0.4, 0.4)
    images_BCHW = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def near(folder: Path) -> float:
        task, teacher = (consilium.load(own, device="cpu").task for own in (folder, expert.folder))
        assert isinstance(task, Align)
        assert isinstance(teacher, Align)
        with torch.no_grad():
            return float(torch.cosine_similarity(task.vision(images_BCHW), teacher.vision(images_BCHW)).mean())

    begun = taught(tmp_path / "begun", expert, "seed=7", "trainer.max_steps=1", "task.text.freeze.kind=tower")
    assert near(run.folder) > 0.5 + near(begun.folder) / 2


def test_a_run_that_was_taught_needs_no_teacher(tmp_path: Path, expert: Run) -> None:
    folder = Path(shutil.copytree(expert.folder, tmp_path / "expert"))
    run = train_pairs(
        tmp_path / "own",
        f"task.feature_distillation={{kind: similarity_matrix, teacher: {folder}}}",
        "trainer.max_steps=1",
    )
    assert "the image and text tower learns from" in run.log  # the same texts made the same tokenizer
    shutil.rmtree(folder)
    assert consilium.load(run.folder) is not None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.image.size=[48, 48]", r"takes images with another data.image.size"),
        ("task.vision.name=test_efficientnet", r"features, this one \d+, which kind: cosine cannot compare"),
        ("task.vision.freeze.kind=tower", r"no tower that learns"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(tmp_path: Path, expert: Run, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        taught(tmp_path, expert, override, "task.text.freeze.kind=tower")


def test_a_teacher_without_texts_is_refused(tmp_path: Path, tiny_run: Run) -> None:
    with pytest.raises(ConfigError, match=r"has no image and text tower; name a bundle of task.kind: align"):
        train_pairs(tmp_path, f"task.feature_distillation={{kind: cosine, teacher: {tiny_run.folder}}}")
