"""A contrastive loss of those pairs of a batch that are there, over all processes.

Axes in names: B case of this process, L loss, D number of an embedding, K number that says what is right.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from consilium.losses.contrastive import ContrastiveLoss
from consilium.losses.gathering import processes


def counts_over_processes(there_BL: Tensor, *, repeated: bool) -> list[int]:
    """How many cases of the whole batch there are for each loss [L]; ``repeated``: those of this process count not."""
    counts_L = there_BL.sum(0) * (not repeated)
    if processes() > 1:
        distributed.all_reduce(counts_L)
    return [int(count) for count in counts_L.tolist()]


def loss_of_those_there(
    loss: ContrastiveLoss,
    images_BD: Tensor,
    texts_BD: Tensor,
    *,
    there_B: Tensor,
    of: int,
    share: float,
    same_B: Tensor | None = None,
    own_BK: Tensor | None = None,
) -> Tensor:
    """The loss of the pairs in ``there_B``, of which the whole batch has ``of``: a scalar, as if it had no others.

    ``share`` is that of the batch (``Batch.share``, 0 where it only repeats a case). The mean over processes weighted
    by it is the loss of one process with the whole batch, and so is its gradient, however the pairs are spread; a
    process may have none of them. Where ``of`` is below 2 there is nothing to tell apart, and the loss is 0. The other
    arguments are those of ``ContrastiveLoss``; all processes must call it together.
    """
    if of < 2:  # but all that it is made of stays in the graph
        parts = [images_BD, texts_BD, *(own for own in loss.parameters() if own.requires_grad)]
        return torch.stack([0.0 * part.float().sum() for part in parts]).sum()
    rows = there_B.nonzero()[:, 0][: None if share else 0]
    found: Tensor = loss(
        images_BD[rows],
        texts_BD[rows],
        same_B=None if same_B is None else same_B[rows],
        own_BK=None if own_BK is None else own_BK[rows],
    )
    return found * (len(rows) / of * processes() / share if share else 0.0)
