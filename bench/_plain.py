"""The plain loop that others are measured against: what a careful person writes in 40 lines.

torchvision's crop and flip, a WeightedRandomSampler over classes, bf16 autocast, label smoothing, AdamW, one cosine,
the last weights. One worker process decodes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import timm
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler
from torchvision import transforms

SIZE, BATCH, SMOOTHING, RATE, DECAY = 64, 64, 0.1, 2e-3, 0.05
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# What our side of a comparison sets to train with the same model, loss, batches and optimizer.
SAME = {
    "task": {
        "vision": {"name": "resnet18", "pretrained": False},
        "loss": {"kind": "cross_entropy", "label_smoothing": SMOOTHING},
    },
    "data": {
        "image": {"size": [SIZE, SIZE], "statistics": "given"},
        "loader": {"batch_size": BATCH, "workers": 1},
    },
    "optimizer": {"kind": "adamw", "learning_rate": RATE, "head_learning_rate": None, "weight_decay": DECAY},
    "schedule": {"kind": "cosine", "warmup": 0.1},
}

Cases = Sequence[tuple[str, str]]  # (image path, label)


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
