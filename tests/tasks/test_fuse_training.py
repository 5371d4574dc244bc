"""How a fusion trains: optimizers of each group, blocks that begin in turn, heads and losses as configured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

import consilium
from consilium.session import train
from tests.models.texts import write_encoder
from tests.session.test_loop import by_one_and_by_two
from tests.tasks.test_fuse_contract import experiment_of
from tests.tiny import Recorder, Run, same

# Three kinds of optimizer with floors of their own, a tower that begins late and block by block, and all that changes
# from epoch to epoch; 54 cases in batches of 16, four steps an epoch.
EVERYTHING = [
    "task.vision.freeze={warmup_epochs: 1, unfreeze_every: 1}",
    "task.text.freeze={kind: all_but_last_blocks, blocks: 2}",
    "task.masking={image: 0.3, text: 0.3, ramp_epochs: 2}",
    "task.auxiliary={image: 0.5, text: 0.5, fade_epochs: 2}",
    "task.head={kind: mlp, hidden_sizes: [16], dropout: 0.3}",
    "data.mixture.sampling=class_balanced",
    "data.image.statistics=data",
    "data.augmentation={horizontal_flip_prob: 0.5, brightness_jitter: 0.2}",
    "data.loader.batch_size=16",
    "optimizer={kind: adamw, learning_rate: 0.003, weight_decay: 0.05, groups: {"
    "image: {kind: sgd, learning_rate: 0.05, momentum: 0.8, weight_decay: 0.001, floor: 0.5}, "
    "text: {learning_rate: 0.001, betas: [0.8, 0.95], eps: 1e-6}, "
    "projection: {kind: adam, learning_rate: 0.002, floor: 0.1}}}",
    "schedule={kind: cosine, warmup: 2}",
    "trainer={max_epochs: 3, precision: fp32, device: cpu, log_every: 1, save_every: 0.25, clip_norm: 1.0}",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    result = train(experiment_of(tmp_path_factory.mktemp("whole"), *EVERYTHING), reporter=Recorder())
    assert result is not None
    return Run(result, Recorder())


def test_stopped_again_and_again_it_ends_as_the_unbroken_run(whole: Run, tmp_path: Path) -> None:
    experiment = experiment_of(tmp_path, *EVERYTHING)
    for number, step in enumerate((3, 10)):
        with pytest.raises(KeyboardInterrupt):
            train(experiment, resume=number > 0, reporter=Recorder(stop_at=step))
    result = train(experiment, resume=True, reporter=Recorder())
    assert result is not None
    assert same(Run(result, Recorder()).weights, whole.weights)


def test_every_group_has_its_own_rate_and_floor(whole: Run) -> None:
    first = {"image": 0.05, "text": 0.001, "projection": 0.002, "fusion": 0.003}
    floors = {"image": 0.5, "text": 0.0, "projection": 0.1, "fusion": 0.0}
    for name, rate in first.items():
        rates = whole.steps(f"learning_rate_{name}")
        assert len(rates) == 12
        assert max(rates) == pytest.approx(rate)
        assert rates[-1] == pytest.approx(rate * floors[name], abs=1e-12)


@pytest.mark.slow  # two processes that load everything
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Blocks that begin in turn, each with a momentum of its own, beside another kind of optimizer."""
    encoder = write_encoder(tmp_path / "encoder", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    own = [
        f"task.text={{name: {encoder}, context_length: 16}}",
        "task.vision.freeze={unfreeze_every: 1}",
        "optimizer={kind: adamw, learning_rate: 0.003, eps: 0.01, groups: {"
        "image: {kind: sgd, learning_rate: 0.05, floor: 0.5}, text: {kind: sgd, learning_rate: 0.01}}}",
        "schedule={kind: cosine}",
        "trainer.max_epochs=3",
    ]
    by_one_and_by_two(experiment_of, tmp_path, *own)


def last(folder: Path, *overrides: str) -> Any:
    """The task after one step."""
    result = train(experiment_of(folder, "trainer.max_steps=1", *overrides), reporter=Recorder())
    assert result is not None
    return consilium.load(result.bundle, device="cpu").task


def described(head: nn.Module) -> list[str]:
    """The layers of a head: widths, names, and shares of dropout."""
    words = {nn.Linear: lambda layer: f"{layer.in_features}>{layer.out_features}", nn.Dropout: lambda layer: layer.p}
    return [str(words.get(type(layer), lambda layer: type(layer).__name__)(layer)) for layer in head.children()]


@pytest.mark.parametrize(("multi_label", "weights"), [(False, "given"), (True, "balanced"), (True, "given")])
def test_projections_head_and_loss_are_what_the_config_says(multi_label: bool, weights: str, tmp_path: Path) -> None:
    """One label a case, and several: the colour and the shape."""
    names = ("red", "green", "blue", "round", "flat")
    classes = list(names) if multi_label else [f"{colour}_{shape}" for colour in names[:3] for shape in names[3:]]
    own = f"{{{', '.join(f'{name}: {1 + number}' for number, name in enumerate(classes))}}}"
    task = last(
        tmp_path,
        f"task.multi_label={multi_label}".lower(),
        f"data.sources.0.columns.label_separator={'_' if multi_label else 'null'}",
        "task.normalize=true",
        "task.image_projection={kind: mlp, hidden_sizes: [24, 20], activation: relu, dropout: 0.1, batch_norm: true}",
        "task.text_projection={kind: mlp, hidden_sizes: [12], activation: tanh, dropout: 0.2}",
        "task.head={kind: mlp, hidden_sizes: [10], activation: silu, dropout: 0.4}",
        "task.loss={kind: focal, gamma: 1.5, label_smoothing: 0.1}",
        f"task.loss.class_weights={own if weights == 'given' else weights}",
    )
    width, image, text = len(classes), task.vision.num_features, task.text.num_features
    assert described(task.image_projection) == [
        f"{image}>24", "BatchNorm1d", "ReLU", "0.1", "24>20", "BatchNorm1d", "ReLU", "0.1", "20>16"
    ]  # fmt: skip
    assert described(task.text_projection) == [f"{text}>12", "Tanh", "0.2", "12>16"]
    assert described(task.fusion.head) == ["16>10", "SiLU", "0.4", f"10>{width}"]
    assert task.config.normalize
    assert sorted(task.labels.names) == sorted(classes)
    assert (task.loss.gamma, task.loss.label_smoothing) == (1.5, 0.1)
    found = dict(zip(task.labels.names, task.loss.weights_K.tolist(), strict=True))
    if weights == "given" and multi_label:
        assert found == {name: 1 + number for number, name in enumerate(names)}
    assert len(set(found.values())) > 1
