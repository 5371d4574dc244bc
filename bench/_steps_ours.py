"""Steps of consilium's training loop, and batches of its loader."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench._steps import DECAY, MEAN, RATE, SIZE, WIDTH, Case, Clock, Round, Steps, tensors
from consilium.core.contracts import Batch, Progress, StepLog, Texts, Views
from consilium.data.batches.config import AugmentationConfig
from consilium.data.batches.loader import Loader, Request
from consilium.data.batches.readers import DrawnTexts, ImageReader, Readers, TextReader
from consilium.data.batches.transforms import DeviceTransform
from consilium.data.config import ImageConfig, LoaderConfig
from consilium.models.config import LinearProjectionConfig, MLPProjectionConfig, TextConfig, VisionConfig
from consilium.models.projection import build_projection
from consilium.models.text import build_text
from consilium.models.tokenizer import Tokenizer
from consilium.models.vision import build_vision
from consilium.tasks.align.config import AlignConfig
from consilium.tasks.align.task import Align
from consilium.training.config import AdamConfig, CosineConfig, TrainerConfig
from consilium.training.loop import Training, fit
from consilium.training.monitor import Monitor
from consilium.training.optim import Schedule, build_optimizer
from consilium.training.plan import Plan
from consilium.training.processes import build_accelerator


def our_task(case: Case, folder: Path) -> Align:
    """The align task of these towers, with random weights."""
    tokenizer = Tokenizer.load(folder / "encoder")
    projections: dict[str, LinearProjectionConfig | MLPProjectionConfig] = {
        "linear": LinearProjectionConfig(),
        "mlp": MLPProjectionConfig(),
    }
    section = AlignConfig(
        kind="align",
        vision=VisionConfig(name=case.vision, pretrained=False),
        text=TextConfig(name="encoder", pretrained=False, pooling=case.pooling, context_length=case.context),
        embedding_size=WIDTH,
    )
    vision = build_vision(section.vision, image_size=(SIZE, SIZE), weights=False)
    text = build_text(section.text, tokenizer=tokenizer, architecture=case.text)
    sides = {
        "image": build_projection(projections["linear"], in_features=vision.num_features, width=WIDTH),
        "text": build_projection(projections[case.projection], in_features=text.num_features, width=WIDTH),
    }
    task = Align(section, vision=vision, text=text, projections=sides, tokenizer=tokenizer)
    return task.to(memory_format=torch.channels_last)


class EnoughError(Exception):
    """The round is over."""


class Marks:
    """A hook of the training that marks its steps and ends it."""

    def __init__(self, clock: Clock, parts: Parts, *, steps: int) -> None:
        self.clock, self.parts, self.steps = clock, parts, steps

    def on_step(self, progress: Progress, log: StepLog) -> None:
        """A border; what the first step took does not count."""
        self.clock.mark()
        if progress.step == 1:
            self.parts.clear()
        if progress.step == self.steps:
            raise EnoughError

    def on_evaluation(self, progress: Progress, metrics: Mapping[str, float | None]) -> None:
        """Never reached."""

    def on_end(self, progress: Progress) -> None:
        """Never reached."""


def ours(case: Case, folder: Path) -> Round:
    """Steps of our loop."""
    torch.manual_seed(0)
    task = our_task(case, folder)
    config = AdamConfig(kind="adamw", learning_rate=RATE, weight_decay=DECAY, betas=(0.9, 0.98), eps=1e-6)
    optimizer = build_optimizer(config, groups=task.parameter_groups())
    accelerator = build_accelerator("cpu")
    transform = DeviceTransform(IMAGE, augmentation=AUGMENTATION, seed=0)
    read = our_reader(case, folder) if case.files else None
    parts = Parts()
    parts.watch(task, optimizer)

    def run(steps: int) -> Steps:
        clock = Clock()
        given = read(steps) if read is not None else iter(list(our_tensors(case, steps)))
        plan = Plan((steps + 1,), (steps + 1,), steps + 1, frozenset({steps + 1}), frozenset({steps + 1}), steps + 1)
        schedule = Schedule(
            CosineConfig(), optimizer=optimizer, total_steps=steps + 1, steps_per_epoch=steps + 1, floors={}
        )
        training = Training(
            task=task, batches=lambda epoch, start: parts.read(given), validate=dict, case_ids=lambda rows: [],
            plan=plan,
            transform=(lambda batch: parts.normalise(transform, batch)) if case.files else (lambda batch: batch),
            optimizer=optimizer, schedule=schedule, config=TrainerConfig(), accelerator=accelerator, precision="fp32",
            monitor=Monitor("mean_recall", higher_is_better=True), checkpoints=folder,
            hooks=[Marks(clock, parts, steps=steps)],
        )  # fmt: skip
        clock.mark()
        with contextlib.suppress(EnoughError):
            fit(training, progress=Progress())
        if not parts.seconds["backward"]:
            raise SystemExit("the loop no longer calls Tensor.backward, so that the parts of a step are not known.")
        return clock.steps(parts.seconds)

    return run


class Parts:
    """Counts the processor time of parts of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = 0.0
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.seconds.update(dict.fromkeys(("forward", "backward", "optimizer", "reading"), 0.0))

    def begin(self, *given: Any) -> None:
        """A part begins; what a hook is given does not matter."""
        self._since = time.process_time()

    def end(self, name: str) -> None:
        """It ends."""
        self.seconds[name] += time.process_time() - self._since

    def watch(self, task: Align, optimizer: torch.optim.Optimizer) -> None:
        """Count forward, backward and the optimizer from now on, in this process."""
        backward = torch.Tensor.backward

        def timed_backward(loss: Tensor, *given: Any, **named: Any) -> None:
            self.begin()
            backward(loss, *given, **named)
            self.end("backward")

        torch.Tensor.backward = timed_backward  # type: ignore[assignment]
        task.register_forward_pre_hook(self.begin)
        task.register_forward_hook(lambda *given: self.end("forward"))
        optimizer.register_step_pre_hook(self.begin)
        optimizer.register_step_post_hook(lambda *given: self.end("optimizer"))

    def read(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Batches as they come; the time that each takes is reading."""
        while True:
            self.begin()
            batch = next(batches, None)
            self.end("reading")
            if batch is None:
                return
            yield batch

    def normalise(self, transform: DeviceTransform, batch: Batch) -> Batch:
        """A batch that was read, as the task takes it; this is reading, too."""
        self.begin()
        normalised = transform(batch, train=True)
        self.end("reading")
        return normalised


IMAGE = ImageConfig(size=(SIZE, SIZE), mean=MEAN, std=MEAN, interpolation="bicubic")
AUGMENTATION = AugmentationConfig(crop_scale=(0.9, 1.0))


def our_reader(case: Case, folder: Path) -> Callable[[int], Iterator[Batch]]:
    """Batches of the files by our loader."""
    table = Table(folder)
    images = ImageReader(table, image=IMAGE, augmentation=AUGMENTATION)
    readers = Readers(images=images, texts=TextReader(DrawnTexts(table), Tokenizer.load(folder / "encoder")))
    loader = Loader(readers, config=LoaderConfig(workers=0, batch_size=case.batch))

    def read(steps: int) -> Iterator[Batch]:
        rows = torch.randperm(len(table.paths)).tolist()
        parts = [rows[start : start + case.batch] for start in range(0, steps * case.batch, case.batch)]
        for loaded in loader.load([Request(part, part, {"cases": len(part)}, 1.0) for part in parts]):
            yield loaded.whole(str)

    return read


class Table:
    """The files and texts that the loader reads."""

    def __init__(self, folder: Path) -> None:
        lines = (folder / "pairs.tsv").read_text(encoding="utf-8").splitlines()[1:]
        self.paths, self.texts = zip(*(line.split("\t") for line in lines), strict=True)

    def images(self, row: int) -> list[str | bytes]:
        """The one view of a row."""
        return [self.paths[row]]

    def __len__(self) -> int:
        return len(self.paths)

    def drawn(self, row: int) -> list[str]:
        """The one text of a row."""
        return [self.texts[row]]


def our_loader(case: Case, folder: Path) -> Round:
    """Batches of our loader, normalised as the device transform does."""
    read, transform = our_reader(case, folder), DeviceTransform(IMAGE, augmentation=AUGMENTATION, seed=0)

    def run(steps: int) -> Steps:
        clock = Clock()
        clock.mark()
        for batch in read(steps):
            transform(batch, train=True)
            clock.mark()
        return clock.steps()

    return run


def our_tensors(case: Case, steps: int) -> Iterator[Batch]:
    """The same tensors as theirs, texts as long as the longest of a batch."""
    for images_BCHW, tokens_BT in tensors(case, steps=steps, vocabulary=case.text["vocab_size"]):
        attention_BT = (tokens_BT != 0).long()
        longest = int(attention_BT.sum(1).max())
        there_B = torch.ones(case.batch, dtype=torch.bool)
        pixels_BVCHW = images_BCHW.contiguous(memory_format=torch.channels_last)[:, None]
        texts = Texts(there_B, torch.arange(case.batch), tokens_BT[:, :longest], attention_BT[:, :longest])
        rows_B = torch.arange(case.batch)
        yield Batch(rows_B, rows_B, {"cases": case.batch}, images=Views(there_B[:, None], pixels_BVCHW), texts=texts)
