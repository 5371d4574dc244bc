"""The rows of all processes, with their gradients.

Axes in names: B row of this process, N row of the whole batch, D number of a row, P process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def processes() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process among them."""
    return distributed.get_rank() if processes() > 1 else 0


def sizes_of(own: int, *, device: torch.device) -> list[int]:
    """The number of pairs of each process."""
    if processes() == 1:
        return [own]
    sizes_P = torch.zeros(processes(), dtype=torch.int64, device=device)
    sizes_P[rank()] = own
    distributed.all_reduce(sizes_P)
    return [int(size) for size in sizes_P.tolist()]


def gathered(rows_BD: Tensor, sizes: list[int]) -> Tensor:
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
        first = sum(ctx.sizes[: rank()])
        return whole_ND[first : first + ctx.sizes[rank()]], None
