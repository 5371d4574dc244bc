"""The contrastive loss of pairs of images and texts, over all processes.

Axes in names: B pair of this process, N pair of the whole batch, D number of an embedding, P process.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, distributed, nn

from consilium.core.errors import ConfigError
from consilium.losses.config import ContrastiveConfig


class ContrastiveLoss(nn.Module):
    """Symmetric softmax cross entropy between images and texts, with a temperature that can learn.

    ``images_BD`` and ``texts_BD`` are embeddings of length 1 of any float type; row b of both is a pair. Everything
    inside is float32, whatever autocast says. The similarity of an image and a text is their dot product times
    ``scale`` (1 / temperature). An image's probabilities of all texts of the batch are the softmax of its
    similarities; its loss is their cross entropy with the right texts, and likewise for a text among all images. The
    result is the mean of both over the pairs, a scalar in nats: Radford et al., Learning Transferable Visual Models
    From Natural Language Supervision, 2021, arXiv:2103.00020.

    ``same_B`` numbers the texts, equal texts alike in all processes: the target of a case is then spread evenly over
    the cases with its text (as in UniCL: Yang et al., 2022, arXiv:2204.03610), and the lowest value is the logarithm
    of how many these are. None: only its own pair is right.

    Several processes: the embeddings of all are gathered with their gradients. The result on a process is the mean
    over its own pairs against those of all, so that the mean over processes weighted by ``Batch.share``, and its
    gradient averaged over processes, are those of one process with the whole batch. The processes may have unequal
    numbers of pairs; one whose batch only repeats a pair (share 0) says so by ``repeated``, and nobody sees its pair.
    All processes must call it together, so it belongs into ``step`` and never into ``predict``.

    A whole batch of one pair has nothing to tell apart and is a ConfigError.
    """

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        self._same_texts = config.same_texts
        self._highest = math.log(config.max_scale)
        start = torch.tensor(-math.log(config.temperature))
        self.log_scale = nn.Parameter(start, requires_grad=config.learn_temperature)

    @property
    def scale(self) -> Tensor:
        """1 / temperature, a scalar between 1 and ``max_scale``."""
        return self.log_scale.float().clamp(0.0, self._highest).exp()

    def forward(
        self, images_BD: Tensor, texts_BD: Tensor, *, same_B: Tensor | None = None, repeated: bool = False
    ) -> Tensor:
        """The mean loss of this process's pairs among all pairs."""
        with torch.no_grad():  # what left the range comes back to its border, where it has a gradient again
            self.log_scale.clamp_(0.0, self._highest)
        with torch.autocast(images_BD.device.type, enabled=False):
            images_BD, texts_BD = images_BD.float(), texts_BD.float()
            own = 0 if repeated else len(images_BD)
            sizes = _sizes(own, device=images_BD.device)
            if sum(sizes) < 2:
                raise ConfigError(
                    "a contrastive loss compares the pairs of a batch, and this batch has one. Set "
                    "data.loader.drop_last: true, or another data.loader.batch_size."
                )
            pairs_ND = _gather(torch.cat((images_BD, texts_BD), dim=1)[:own], sizes)
            images_ND, texts_ND = pairs_ND.chunk(2, dim=1)
            targets_BN = self._targets(len(images_BD), same_B, sizes=sizes, repeated=repeated)
            log_scale = self.log_scale.float()
            image_losses_B = _cross_entropy(log_scale.exp() * images_BD @ texts_ND.T, targets_BN)
            text_losses_B = _cross_entropy(log_scale.exp() * texts_BD @ images_ND.T, targets_BN)
            return (image_losses_B + text_losses_B).mean() / 2

    def _targets(self, count: int, same_B: Tensor | None, *, sizes: list[int], repeated: bool) -> Tensor:
        """How much of the answer each pair of the whole batch is for each of this process, [B, N]; rows sum to 1."""
        if same_B is not None and self._same_texts:
            own = 0 if repeated else count
            same_N = _gather(same_B[:own, None], sizes)[:, 0]
            right_BN = (same_B[:, None] == same_N).float()
            return right_BN / right_BN.sum(dim=1, keepdim=True)
        # A repeated pair is the first of the whole batch.
        first = 0 if repeated else sum(sizes[: _rank()])
        places_B = torch.arange(first, first + count, device=self.log_scale.device)
        return nn.functional.one_hot(places_B, sum(sizes)).float()


def _cross_entropy(logits_BN: Tensor, targets_BN: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits_BN, targets_BN, reduction="none")


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _rank() -> int:
    return distributed.get_rank() if _processes() > 1 else 0


def _sizes(own: int, *, device: torch.device) -> list[int]:
    """The number of pairs of each process."""
    if _processes() == 1:
        return [own]
    sizes_P = torch.zeros(_processes(), dtype=torch.int64, device=device)
    sizes_P[_rank()] = own
    distributed.all_reduce(sizes_P)
    return [int(size) for size in sizes_P.tolist()]


def _gather(rows_BD: Tensor, sizes: list[int]) -> Tensor:
    """The rows of all processes, [N, D], in their order; gradients flow back to whose they are."""
    if len(sizes) == 1:
        return rows_BD
    gathered_ND: Tensor = _Gather.apply(rows_BD, sizes)
    return gathered_ND


class _Gather(torch.autograd.Function):
    """All rows on every process; the gradient of a row is the sum of what all processes want of it."""

    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = rows_BD.new_zeros(max(sizes), *rows_BD.shape[1:])
        padded[: len(rows_BD)] = rows_BD
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradients_ND: Tensor) -> tuple[Tensor, None]:
        whole_ND = gradients_ND.contiguous().clone()
        distributed.all_reduce(whole_ND)
        first = sum(ctx.sizes[: _rank()])
        return whole_ND[first : first + ctx.sizes[_rank()]], None
