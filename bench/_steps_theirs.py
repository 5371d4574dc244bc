"""Steps of open_clip's trainer, and batches of its loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench._steps import DECAY, RATE, Case, Clock, Round, Steps, tensors


def their_arguments(case: Case, folder: Path) -> Any:
    """The arguments as their program completes them."""
    from open_clip_train.params import parse_args

    words = {"model": f"local-dir:{folder / 'model'}", "batch-size": case.batch, "workers": 0, "precision": "fp32"}
    words |= {"device": "cpu", "lr": RATE, "wd": DECAY, "train-data": folder / "pairs.tsv", "dataset-type": "csv"}
    arguments = parse_args([part for name, value in words.items() for part in (f"--{name}", str(value))])
    for name, value in {"distributed": False, "distill": False, "wandb": False, "rank": 0, "world_size": 1}.items():
        setattr(arguments, name, value)
    return arguments


def their_parts(case: Case, folder: Path) -> tuple[Any, Any, Any]:
    """Their arguments, model and training loader, made as their program makes them."""
    import open_clip
    from open_clip_train.data import get_data

    arguments = their_arguments(case, folder)
    model, *transforms = open_clip.create_model_and_transforms(
        arguments.model, load_weights=False, pretrained_text=False, output_dict=True
    )
    data = get_data(arguments, transforms, tokenizer=open_clip.get_tokenizer(arguments.model)) if case.files else {}
    return arguments, model, data


def theirs(case: Case, folder: Path) -> Round:
    """Steps of their trainer."""
    torch.manual_seed(0)
    arguments, model, data = their_parts(case, folder)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [parameter for _, parameter in named if parameter.ndim >= 2]
    others = [parameter for _, parameter in named if parameter.ndim < 2]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": decayed, "weight_decay": DECAY}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), eps=1e-6)
    epoch = their_epoch(model, optimizer, arguments)
    vocabulary = case.text["vocab_size"]

    def run(steps: int) -> Steps:
        clock = Clock()
        own = data or {"train": Given(list(tensors(case, steps=steps, vocabulary=vocabulary)), case.batch)}
        epoch(own, lambda step: clock.mark())
        clock.mark()
        return clock.steps()

    return run


def their_epoch(model: Any, optimizer: Any, arguments: Any) -> Callable[[Any, Callable[[int], None]], None]:
    """What takes data and a schedule and trains an epoch; version 4 has all else in one state."""
    import open_clip
    from open_clip_train import train

    if hasattr(train, "TrainState"):
        task = open_clip.create_task(arguments, model=model)
        return lambda data, schedule: train.train_one_epoch(
            train.TrainState(task, optimizer=optimizer, scheduler=schedule), data, arguments
        )
    loss = open_clip.create_loss(arguments)
    return lambda data, schedule: train.train_one_epoch(
        model, data, loss, 0, optimizer, None, schedule, None, arguments
    )


class Given:
    """Batches that are there, as their trainer asks for them: from version 4 on by name."""

    def __init__(self, batches: Sequence[tuple[Tensor, Tensor]], batch: int) -> None:
        self.batches, self.dataloader = batches, self
        self.num_batches, self.num_samples = len(batches), len(batches) * batch

    def __iter__(self) -> Iterator[Any]:
        from open_clip_train import train

        if hasattr(train, "TrainState"):
            return iter([{"image": images_BCHW, "text": tokens_BT} for images_BCHW, tokens_BT in self.batches])
        return iter(self.batches)

    def set_epoch(self, epoch: int) -> None:
        """The same in every epoch."""


def their_loader(case: Case, folder: Path) -> Round:
    """Batches of their loader."""
    _, _, data = their_parts(case, folder)

    def run(steps: int) -> Steps:
        clock = Clock()
        clock.mark()
        for _ in data["train"].dataloader:
            clock.mark()
        return clock.steps()

    return run
