"""Encoders in chunks: the batch of a large machine in the memory of a small one.

Axes in names: N row of a batch (an image, or a text).
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from consilium.core.devices import free_memory

MARGIN = 2  # what is kept for the backward pass, times this: the gradients of a few layers come on top
_MMAP_THRESHOLD, _LARGE = -3, 1 << 20  # M_MMAP_THRESHOLD of malloc.h; bytes
COPIES = 4  # of what learns: gradients, their copy while processes share them, and two moments of Adam


def in_chunks(encode: Callable[[Tensor], Tensor], rows_N: Tensor, *, size: int | None) -> Tensor:
    """``encode(rows_N)``, [N, ...], computed ``size`` rows at a time; None: all at once.

    Of a chunk only the outputs are kept. The backward pass computes it once more, with the random numbers and the
    precision of the first time, and leaves the gradients of the whole batch (Chen et al., Training Deep Nets with
    Sublinear Memory Cost, 2016, arXiv:1604.06174; for contrastive losses the gradient cache of Gao et al., 2021,
    arXiv:2101.06983). ``encode`` must give a row the same whatever rows stand beside it, as a module does for which
    ``models.weights.batch_statistics`` finds nothing.
    """
    if size is None or len(rows_N) <= size:
        return encode(rows_N)
    if rows_N.device.type == "cpu":
        _return_freed_memory()
    run = partial(checkpoint, encode, use_reentrant=False) if torch.is_grad_enabled() else encode
    # A copy, for an output may be a view of all tokens, the first of which it is.
    return torch.cat([run(chunk).clone() for chunk in torch.split(rows_N, size)])


@cache
def _return_freed_memory() -> None:
    """Let the C library give large blocks back to the system as soon as they are freed.

    glibc learns from the first large block that is freed to keep such blocks; what is kept of each chunk then lies
    between them, and the memory of a batch of 4,096 in chunks of 8 grew beyond 15 GiB. Other C libraries have no such
    setting, and need none.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)


def largest_chunk(encoders: Iterable[Callable[[int], Tensor]], *, learns: Iterable[nn.Parameter]) -> int:
    """How many rows of every encoder fit into the memory that is free, at least 1.

    ``encoders`` give the outputs of so many rows of the largest kind. ``learns`` are the parameters that learn, which
    will have gradients and optimizer states of their own.
    """
    parameters = list(learns)
    needed = sum(_kept_of_a_row(encode) for encode in encoders)
    state = COPIES * sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    return max(1, (free_memory(parameters[0].device) - state) // (MARGIN * max(needed, 1)))


def _kept_of_a_row(encode: Callable[[int], Tensor]) -> int:
    """Bytes that are kept of one row for the backward pass: those of two less those of one."""
    one, two = (sum(_kept(encode, count)) for count in (1, 2))
    return max(two - one, 0)


def _kept(encode: Callable[[int], Tensor], count: int) -> Iterator[int]:
    """The sizes of all that automatic differentiation keeps of so many rows."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, so that its address is not given away again
        return tensor

    devices = range(torch.cuda.device_count())
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda own: own)
    with torch.random.fork_rng(devices), hooks, torch.enable_grad():
        encode(count)
    return (storage.nbytes() for storage in kept.values())
