"""How sparse vectors of terms are kept: a penalty on terms that many texts of a batch use.

Axes in names: B text of this process, P process, V term.
"""

from __future__ import annotations

from torch import Tensor

from consilium.losses.gathering import gathered, processes, sizes_of


def flops_penalty(weights_BV: Tensor, *, repeated: bool = False) -> Tensor:
    """The sum over terms of the squared mean weight over the texts of the whole batch, a scalar.

    It is a smooth form of the number of products that a search takes (Paria et al., Minimizing FLOPs to Learn Efficient
    Sparse Representations, 2020, arXiv:2004.05665). The processes of a training share one batch; ``repeated`` texts of
    a process that only fills up count for nothing. All processes must call it together.
    """
    own = 0 if repeated else len(weights_BV)
    texts = sum(sizes_of(own, device=weights_BV.device))
    sums_V = weights_BV.float().sum(0) * (0.0 if repeated else 1.0)
    sums_PV = gathered(sums_V[None], [1] * processes())
    return (sums_PV.sum(0) / texts).square().sum()
