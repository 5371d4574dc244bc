"""Fusion: what each modality of a case says, and which of them it has, into scores of classes.

Axes in names: B case in a batch, M modality, D width that the modalities share, K class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from consilium.models.config import AttentionConfig, FusionConfig, HeadConfig
from consilium.models.heads import build_head


class Fusion(nn.Module):
    """Vectors of modalities to scores; a learned vector stands in for each modality that a case lacks."""

    def __init__(self, *, modalities: int, width: int) -> None:
        super().__init__()
        self.absent_MD = nn.Parameter(torch.randn(modalities, width) * width**-0.5)

    def forward(self, vectors_BMD: Tensor, there_BM: Tensor) -> Tensor:
        """Scores [B, K] of vectors, of which only those count that are ``there_BM``."""
        return self.scores(torch.where(there_BM[:, :, None], vectors_BMD, self.absent_MD), there_BM)

    def scores(self, vectors_BMD: Tensor, there_BM: Tensor) -> Tensor:
        """Scores [B, K]; what is missing has its stand-in."""
        raise NotImplementedError


class WeightedSum(Fusion):
    """One softmax of learned numbers says what each modality counts."""

    def __init__(self, head: HeadConfig, *, modalities: int, width: int, classes: int) -> None:
        super().__init__(modalities=modalities, width=width)
        self.shares_M = nn.Parameter(torch.zeros(modalities))
        self.head = build_head(head, in_features=width, classes=classes)

    def scores(self, vectors_BMD: Tensor, there_BM: Tensor) -> Tensor:
        """Of the sum."""
        scores_BK: Tensor = self.head((vectors_BMD * self.shares_M.softmax(0)[:, None]).sum(1))
        return scores_BK


class Gated(Fusion):
    """A softmax over modalities that each case decides by all that it has."""

    def __init__(self, head: HeadConfig, *, modalities: int, width: int, classes: int) -> None:
        super().__init__(modalities=modalities, width=width)
        self.gate = nn.Linear(modalities * width, modalities)
        self.head = build_head(head, in_features=width, classes=classes)

    def scores(self, vectors_BMD: Tensor, there_BM: Tensor) -> Tensor:
        """Of the sum."""
        shares_BM = self.gate(vectors_BMD.flatten(1)).softmax(1)
        scores_BK: Tensor = self.head((vectors_BMD * shares_BM[:, :, None]).sum(1))
        return scores_BK


class Concatenated(Fusion):
    """The head sees all modalities side by side."""

    def __init__(self, head: HeadConfig, *, modalities: int, width: int, classes: int) -> None:
        super().__init__(modalities=modalities, width=width)
        self.head = build_head(head, in_features=modalities * width, classes=classes)

    def scores(self, vectors_BMD: Tensor, there_BM: Tensor) -> Tensor:
        """Of all vectors."""
        scores_BK: Tensor = self.head(vectors_BMD.flatten(1))
        return scores_BK


class Attended(Fusion):
    """Transformer layers over the modalities and a token of the case, which the head sees."""

    def __init__(self, config: AttentionConfig, head: HeadConfig, *, modalities: int, width: int, classes: int) -> None:
        super().__init__(modalities=modalities, width=width)
        self.case_D = nn.Parameter(torch.randn(width) * width**-0.5)
        self.place_MD = nn.Parameter(torch.randn(modalities, width) * width**-0.5)
        layer = nn.TransformerEncoderLayer(
            width, config.heads, dim_feedforward=2 * width, dropout=0.1, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.head = build_head(head, in_features=width, classes=classes)

    def scores(self, vectors_BMD: Tensor, there_BM: Tensor) -> Tensor:
        """Of the token of the case."""
        case_B1D = self.case_D.expand(len(vectors_BMD), 1, -1)
        seen: Tensor = self.layers(torch.cat((case_B1D, vectors_BMD + self.place_MD), dim=1))
        scores_BK: Tensor = self.head(seen[:, 0])
        return scores_BK


class Late(Fusion):
    """The mean of the scores of a head for each modality, over those that are there; of none the stand-ins'."""

    def __init__(self, head: HeadConfig, *, modalities: int, width: int, classes: int) -> None:
        super().__init__(modalities=modalities, width=width)
        self.heads = nn.ModuleList(build_head(head, in_features=width, classes=classes) for _ in range(modalities))

    def scores(self, vectors_BMD: Tensor, there_BM: Tensor) -> Tensor:
        """The mean."""
        scores_BMK = torch.stack([head(vectors_BMD[:, place]) for place, head in enumerate(self.heads)], dim=1)
        counted_BM1 = (there_BM | ~there_BM.any(1, keepdim=True))[:, :, None].to(scores_BMK.dtype)
        return (scores_BMK * counted_BM1).sum(1) / counted_BM1.sum(1)


_KINDS = {"weighted_sum": WeightedSum, "gated": Gated, "concat": Concatenated, "late": Late}


def build_fusion(config: FusionConfig, head: HeadConfig, *, modalities: int, width: int, classes: int) -> Fusion:
    """The fusion that ``config`` describes: vectors [B, modalities, width] to scores [B, classes]."""
    sizes = {"modalities": modalities, "width": width, "classes": classes}
    if isinstance(config, AttentionConfig):
        return Attended(config, head, **sizes)
    return _KINDS[config.kind](head, **sizes)
