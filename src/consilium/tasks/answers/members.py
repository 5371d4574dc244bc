"""How several networks see the same images: each with its own mean and standard deviation.

Axes in names: V view, C channel, H height, W width, G network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from consilium.core.contracts import Batch
from consilium.data.config import ImageConfig


class OwnNormalisation(nn.Module):
    """Takes batches whose images have values in [0, 1], and gives each network its own."""

    scales_GC: Tensor
    shifts_GC: Tensor

    def __init__(self, images: Sequence[ImageConfig]) -> None:
        """``images``: of each network in turn."""
        super().__init__()
        mean_GC = torch.tensor([image.mean for image in images])
        std_GC = torch.tensor([image.std for image in images])
        # Not saved: they belong to the bundles of the networks.
        self.register_buffer("scales_GC", 1 / std_GC, persistent=False)
        self.register_buffer("shifts_GC", -mean_GC / std_GC, persistent=False)

    def forward(self, number: int, batch: Batch) -> Batch:
        """The batch as network ``number`` sees it; one without pixels stays as it is."""
        if batch.images is None or batch.images.pixels_BVCHW is None:
            return batch
        scale_C11, shift_C11 = self.scales_GC[number][:, None, None], self.shifts_GC[number][:, None, None]
        pixels_BVCHW = batch.images.pixels_BVCHW * scale_C11 + shift_C11
        return replace(batch, images=replace(batch.images, pixels_BVCHW=pixels_BVCHW))
