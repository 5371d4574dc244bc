"""Every export is loaded by the other library's own call and compared with the bundle before it is called done.

Axes in names: B case in a batch, C channel, H height, W width, T token, D number of an output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from consilium.core.errors import ExportError
from consilium.models.tokenizer import Padded, Tokenizer
from consilium.models.trained import DualEncoder

CLOSE = 1e-5  # of embeddings, whose length is 1; of other outputs relative to their size
TEXTS = ("", "a normal finding", "no pleural effusion, no pneumothorax; the heart is not enlarged")


@dataclass(frozen=True)
class Probe:
    """Random images [B, 3, H, W], and a few texts as the tokenizer pads them; None of a model without texts."""

    images_BCHW: Tensor
    texts: Padded | None

    @classmethod
    def of(cls, image_size: tuple[int, int], tokenizer: Tokenizer | None) -> Probe:
        """The same for the same model, every time."""
        generator = torch.Generator().manual_seed(0)
        texts = None if tokenizer is None else tokenizer.pad(tokenizer.encode(TEXTS))
        return cls(torch.randn(3, 3, *image_size, generator=generator), texts)

    @torch.no_grad()
    def embedded(self, model: DualEncoder) -> dict[str, Tensor]:
        """What the bundle makes of it."""
        found = {"image": model.embed_images(self.images_BCHW)}
        if self.texts is not None:
            found["text"] = model.embed_texts(self.texts.tokens_BT, self.texts.attention_BT)
        return found


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor | Callable[[], Tensor]], *, by: str) -> str:
    """That outputs are equal, in words; a difference above ``CLOSE`` is an ExportError. ``by`` is the loading call."""
    largest = 0.0
    with torch.no_grad():
        for name, own_BD in ours.items():
            given = theirs[name]
            found_BD = (given() if callable(given) else given).float()
            if name in ("image", "text"):
                found_BD = functional.normalize(found_BD, dim=-1)
            distance = float((found_BD - own_BD).abs().max() / max(1.0, float(own_BD.abs().max())))
            if not distance <= CLOSE:
                raise ExportError(
                    f"{by} gives other {name} outputs than the bundle (by {distance:.1e}, {CLOSE:.0e} is allowed), so "
                    "that nothing is written. Please report it, with the config of the bundle; --to onnx or "
                    "safetensors may do."
                )
            largest = max(largest, distance)
    return f"{by}: the outputs of the bundle within {largest:.0g}"
