"""The plain loop that others are measured against: what a careful person writes in 40 lines.

torchvision's crop and flip, a WeightedRandomSampler over classes, bf16 autocast, label smoothing, AdamW, one cosine,
the last weights. One worker process decodes. ``Probe`` is its sister for a pretrained tower: frozen, each image once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler
from torchvision import transforms

from bench._imagenet import MODEL

SIZE, BATCH, SMOOTHING, RATE, DECAY = 64, 64, 0.1, 2e-3, 0.05
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

PROBE_SIZE, PROBE_RATE, HALF = 224, 1e-3, (0.5, 0.5, 0.5)

Cases = Sequence[tuple[str, str]]  # (image path, label)


def same(vision: dict[str, Any], *, size: int, statistics: str, rate: float) -> dict[str, Any]:
    """What our side of a comparison sets to train with the same model, loss, batches and optimizer."""
    return {
        "task": {"vision": vision, "loss": {"kind": "cross_entropy", "label_smoothing": SMOOTHING}},
        "data": {
            "image": {"size": [size, size], "statistics": statistics},
            "loader": {"batch_size": BATCH, "workers": 1},
        },
        "optimizer": {
            "kind": "adamw",
            "learning_rate": rate,
            "weight_decay": DECAY,
            "groups": {"head": {"learning_rate": None}},  # as the tower's, whatever a recipe says
        },
        "schedule": {"kind": "cosine", "warmup": 0.1},
    }


SAME = same({"name": "resnet18", "pretrained": False}, size=SIZE, statistics="given", rate=RATE)


def same_probe(weights: Path) -> dict[str, Any]:
    """The same head on the same frozen tower."""
    tower = {"name": MODEL, "pretrained": str(weights), "freeze": {"kind": "tower"}}
    return same(tower, size=PROBE_SIZE, statistics="model", rate=PROBE_RATE)


@dataclass(frozen=True)
class PlainResult:
    """The labels given to the test cases, and the seconds of each training step."""

    answers: list[str]
    seconds: list[float]


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Images by path, through a torchvision transform."""

    def __init__(self, cases: Cases, labels: list[str], transform: transforms.Compose) -> None:
        self.cases, self.labels, self.transform = cases, labels, transform

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.cases[index]
        return self.transform(Image.open(path).convert("RGB")), self.labels.index(label)


def plain(train: Cases, test: Cases, *, epochs: int, seed: int) -> PlainResult:
    """Train on ``train``, as many draws an epoch as there are cases, and answer ``test``."""
    torch.manual_seed(seed)
    labels = sorted({label for _, label in train})
    common = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augment = [transforms.RandomResizedCrop(SIZE, scale=(0.5, 1.0)), transforms.RandomHorizontalFlip()]
    train_set = Pictures(train, labels, transforms.Compose([*augment, *common]))
    test_set = Pictures(
        [(path, labels[0]) for path, _ in test],
        labels,
        transforms.Compose([transforms.Resize((SIZE, SIZE)), *common]),
    )
    counts = {label: sum(own == label for _, own in train) for label in labels}
    sampler = WeightedRandomSampler([1 / counts[label] for _, label in train], len(train))
    loader = DataLoader(train_set, BATCH, sampler=sampler, num_workers=1, persistent_workers=True)
    model = timm.create_model("resnet18", num_classes=len(labels)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * len(loader), pct_start=0.1)
    loss_function = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    seconds = []
    for _ in range(epochs):
        model.train()
        start = time.perf_counter()
        for images, targets in loader:
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_function(model(images.to(memory_format=torch.channels_last)), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
    model.eval()
    with torch.inference_mode():
        answers = torch.cat([model(images).argmax(1) for images, _ in DataLoader(test_set, 256)])
    return PlainResult([labels[number] for number in answers.tolist()], seconds)


class Probe:
    """A linear head on a frozen tower with pretrained weights; each image passes the tower once, whoever asks."""

    def __init__(self, weights: Path) -> None:
        self.tower: nn.Module = timm.create_model(MODEL, num_classes=0)
        state = load_file(weights)
        self.tower.load_state_dict({name: state[name] for name in self.tower.state_dict()})
        self.tower.eval()
        self.known: dict[str, Tensor] = {}

    def answers(self, train: Cases, test: Cases, *, epochs: int, seed: int) -> list[str]:
        """Train the head on ``train``, as many draws an epoch as there are cases, and answer ``test``."""
        torch.manual_seed(seed)
        labels = sorted({label for _, label in train})
        features_NF = self._features(train)
        targets_N = torch.tensor([labels.index(label) for _, label in train])
        counts_K = targets_N.bincount()
        sampler = WeightedRandomSampler((1 / counts_K[targets_N]).tolist(), len(train))
        loader = DataLoader(TensorDataset(features_NF, targets_N), BATCH, sampler=sampler)
        head = nn.Linear(features_NF.shape[1], len(labels))
        optimizer = torch.optim.AdamW(head.parameters(), lr=PROBE_RATE, weight_decay=DECAY)
        steps = epochs * len(loader)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PROBE_RATE, total_steps=steps, pct_start=0.1)
        loss_function = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
        for _ in range(epochs):
            for features, targets in loader:
                loss_function(head(features), targets).backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
        with torch.inference_mode():
            return [labels[number] for number in head(self._features(test)).argmax(1).tolist()]

    def _features(self, cases: Cases) -> Tensor:
        new = [(path, "") for path, _ in cases if path not in self.known]
        steps = [transforms.Resize((PROBE_SIZE, PROBE_SIZE)), transforms.ToTensor(), transforms.Normalize(HALF, HALF)]
        loader = DataLoader(Pictures(new, [""], transforms.Compose(steps)), BATCH)
        with torch.no_grad():
            found = [row for images, _ in loader for row in self.tower(images)]
        self.known |= {path: row for (path, _), row in zip(new, found, strict=True)}
        return torch.stack([self.known[path] for path, _ in cases])
