"""The encoder of structured metadata.

Axes in names: B case in a batch, M metadata column, F feature of a column.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from consilium.core.contracts import Meta


class MetadataEncoder(nn.Module):
    """A vector for each column, side by side: of a category its own, of a number a linear map of it.

    What a column lacks has a vector that is learned, and starts as 0. A category that no training case had is 0.
    """

    def __init__(self, categories: Sequence[int], *, width: int) -> None:
        """``categories``: how many each column has; 0: it holds numbers. ``width``: features of each column."""
        super().__init__()
        self.columns = nn.ModuleList(
            nn.Embedding(count + 1, width, padding_idx=count) if count else nn.Linear(1, width) for count in categories
        )
        self.missing_MF = nn.Parameter(torch.zeros(len(categories), width))
        self.num_features = len(categories) * width

    def forward(self, meta: Meta) -> Tensor:
        """Features [B, M * F]."""
        features = [
            (column(values_B.long()) if isinstance(column, nn.Embedding) else column(values_B[:, None])).float()
            for column, values_B in zip(self.columns, meta.values_BM.unbind(1), strict=True)
        ]
        return torch.where(meta.there_BM[:, :, None], torch.stack(features, dim=1), self.missing_MF).flatten(1)
