"""What ``bench/open_clip_speed.py`` measures: towers, batches and texts of each case, and the times of steps.

Axes in names: B pair in a batch, C channel, H height, W width, T token.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import _open_clip
from bench._pictures import synthetic
from consilium.models.tokenizer import train_tokenizer

SIZE, SIDE, WIDTH, RATE, DECAY, MEAN = 224, 1024, 512, 1e-4, 0.2, (0.5, 0.5, 0.5)
WORDS = [f"{a}{b}{c}a" for a, b, c in itertools.product("bdfgklmnprst", "aeiou", "bdfgklmnprst")]
VOCABULARY = 8192
PICTURES = 8  # different ones
BERT = {"model_type": "bert", "vocab_size": VOCABULARY, "max_position_embeddings": 512}


@dataclass(frozen=True)
class Case:
    """What is measured: the towers of both sides, the batch, and the texts."""

    batch: int
    goal: float
    vision: str  # timm's name of it
    text: Mapping[str, Any]  # transformers' config
    tokens: tuple[int, int]  # of a text, at least and at most
    context: int
    pooling: str = "mean"
    projection: str = "linear"  # of the text tower
    files: bool = False
    theirs: Mapping[str, Any] = field(default_factory=dict)  # the model_cfg of theirs where it is no timm and HF model


_MINILM = {**BERT, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
_CLIP_TEXT = {
    "model_type": "clip_text_model", "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048,
    "num_hidden_layers": 12, "num_attention_heads": 8, "max_position_embeddings": 77,
}  # fmt: skip
CASES = {
    "files": Case(16, 1.5, "tf_efficientnet_lite0", _MINILM, (16, 24), 77, files=True),
    "ViT-B-32": Case(
        8, 1.0, "vit_base_patch32_clip_224", _CLIP_TEXT, (77, 77), 77,
        theirs={"vision_cfg": {"image_size": SIZE, "layers": 12, "width": 768, "patch_size": 32},
                "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}},
    ),
    "BiomedCLIP": Case(4, 1.5, "vit_base_patch16_224", BERT, (56, 72), 256, pooling="cls", projection="mlp"),
}  # fmt: skip


@dataclass(frozen=True)
class Steps:
    """Seconds of each step of a round: processor time and the clock; of ours also what parts of it take, in all."""

    processor: list[float]
    clock: list[float]
    parts: dict[str, float] = field(default_factory=dict)


Round = Callable[[int], Steps]  # so many steps


class Clock:
    """Marks the border between steps."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def mark(self) -> None:
        """Now."""
        self.marks.append((time.process_time(), time.perf_counter()))

    def steps(self, parts: Mapping[str, float] | None = None) -> Steps:
        """The times between the marks; the first step of a round, in which a training also sets up, is left out."""
        processor, clock = (
            [later - earlier for earlier, later in itertools.pairwise(kind)]
            for kind in zip(*self.marks[1:], strict=True)
        )
        return Steps(processor, clock, parts=dict(parts or {}))


def prepare(case: Case, folder: Path, *, count: int) -> None:
    """Files and captions, a text encoder's folder, and their description of the model."""
    texts = captions(case, count)
    tokenizer = train_tokenizer(WORDS, vocabulary_size=VOCABULARY, context_length=case.context)
    encoder = folder / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text(json.dumps(dict(case.text)), encoding="utf-8")
    tokenizer.save(encoder)
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (encoder / "tokenizer_config.json").write_text(json.dumps(described), encoding="utf-8")
    pooler = {"mean": "mean_pooler", "cls": "cls_last_hidden_state_pooler"}[case.pooling]
    given = case.theirs or {
        "vision_cfg": {"timm_model_name": case.vision, "image_size": SIZE, "timm_pool": "", "timm_proj": "linear"},
        "text_cfg": {"context_length": case.context, "hf_pooler_type": pooler, "hf_proj_type": case.projection},
    }
    _open_clip.write_model(
        folder / "model",
        embedding_size=WIDTH,
        vision=given["vision_cfg"],
        text=given["text_cfg"],
        encoder=None if case.theirs else encoder,
        mean=MEAN,
        std=MEAN,
    )
    if case.files:
        files = [folder / f"{number:03d}.jpg" for number in range(count)]
        for number, file in enumerate(files):
            if number < PICTURES:
                synthetic(SIDE, seed=number).save(file, quality=90)
            else:
                shutil.copy(files[number % PICTURES], file)
        _open_clip.write_pairs(
            folder / "pairs.tsv", [(str(file), text) for file, text in zip(files, texts, strict=True)]
        )


def captions(case: Case, count: int) -> list[str]:
    """Texts of words that are a token each; two tokens more begin and end a text."""
    chance = random.Random(0)
    least, most = case.tokens
    return [" ".join(chance.choices(WORDS, k=chance.randint(least, most) - 2)) for _ in range(count)]


def tensors(case: Case, *, steps: int, vocabulary: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images [B, C, H, W] and tokens [B, T], filled up to the context, for each step."""
    chance = torch.Generator().manual_seed(0)
    least, most = case.tokens
    for _ in range(steps):
        tokens_BT = torch.randint(5, vocabulary - 1, (case.batch, case.context), generator=chance)
        lengths_B = torch.randint(least, most + 1, (case.batch,), generator=chance)
        tokens_BT[torch.arange(case.context) >= lengths_B[:, None]] = 0
        tokens_BT[torch.arange(case.batch), lengths_B - 1] = vocabulary - 1  # the end, where CLIP's text tower reads
        yield torch.randn(case.batch, 3, SIZE, SIZE, generator=chance), tokens_BT
