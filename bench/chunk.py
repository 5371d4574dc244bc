"""One training step of a large contrastive batch on the CPU: memory and time by ``task.chunk``.

    python bench/chunk.py [--batch 4096] [--chunk 8] [--threads 1]

A ViT-S at 224 px and a BERT of MiniLM's size (6 layers of 384) with random weights, texts of 64 tokens, AdamW: forward,
backward and the optimizer's step of the align task. ``--chunk 0`` is the whole batch at once. Memory is the peak of the
process (VmHWM), Python, libraries, weights, moments and the pixels of the batch included. Linux only.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from bench._machine import describe_machine, peak
from consilium.core.contracts import Batch, Texts, Views
from consilium.data.config import ImageConfig
from consilium.models.config import TextConfig, VisionConfig
from consilium.models.tokenizer import train_tokenizer
from consilium.tasks.align.config import AlignConfig
from consilium.tasks.align.family import FAMILY
from consilium.tasks.align.knowledge import AlignKnowledge
from consilium.tasks.align.task import Align

SIZE, TOKENS = 224, 64


def main() -> None:
    """Take one step and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--chunk", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    task = build(arguments.chunk or None).train()
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-4)
    step(task, optimizer, batch_of(2))  # loads what is needed, and makes the moments
    batch, before, start = batch_of(arguments.batch), peak(), time.perf_counter()
    loss = step(task, optimizer, batch)
    seconds = time.perf_counter() - start
    print(describe_machine())
    print(
        f"batch {arguments.batch} in chunks of {arguments.chunk or arguments.batch}: loss {loss:.4f}, "
        f"{seconds:.1f} s, peak {peak() / 2**30:.2f} GiB ({before / 2**30:.2f} GiB before the step)"
    )


def step(task: Align, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    """One optimizer step; returns the loss."""
    loss = task.step(batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def build(chunk: int | None) -> Align:
    """The task, with towers of random weights."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = [f"word{number} of a caption" for number in range(500)]
    tokenizer = train_tokenizer(words, vocabulary_size=2048, context_length=TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        size = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
        no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # so that the loss is the same
        BertModel(BertConfig(**size, **no_dropout)).save_pretrained(folder)
        (Path(folder) / "own.json").write_text(tokenizer.definition, encoding="utf-8")
        own = PreTrainedTokenizerFast(tokenizer_file=str(Path(folder) / "own.json"), pad_token="[PAD]")
        own.save_pretrained(folder)
        section = AlignConfig(
            kind="align",
            vision=VisionConfig(name="vit_small_patch16_224", pretrained=False),
            text=TextConfig(name=folder, pooling="mean", context_length=TOKENS),
            chunk=chunk,
        )
        knowledge = AlignKnowledge(training_cases=500, tokenizer=tokenizer.definition)
        image = ImageConfig(size=(SIZE, SIZE))
        return FAMILY.build(section, knowledge, image=image, members={}, weights=True)


def batch_of(count: int) -> Batch:
    """Random images and texts of 64 tokens."""
    rows = torch.arange(count)
    images = Views(torch.ones(count, 1, dtype=torch.bool), torch.randn(count, 1, 3, SIZE, SIZE))
    tokens = torch.randint(5, 2000, (count, TOKENS))
    texts = Texts(torch.ones(count, dtype=torch.bool), rows, tokens, torch.ones_like(tokens))
    return Batch(rows, rows, counts={"cases": count}, images=images, texts=texts)


if __name__ == "__main__":
    main()
