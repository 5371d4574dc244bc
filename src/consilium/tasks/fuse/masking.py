"""Which modalities a training sees of a case.

Axes in names: B case in a batch, M modality, S subset of modalities (bit m of its number: modality m is in it).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from consilium.data.batches.transforms import uniforms

MASKED, WITHHELD = 1 << 41, 1 << 42  # streams from which neither views nor texts draw


def subsets(modalities: int) -> Tensor:
    """All subsets of modalities, bool [S, M]; the first is empty, the last is whole."""
    numbers_S1 = torch.arange(2**modalities)[:, None]
    return (numbers_S1 >> torch.arange(modalities)) & 1 == 1


def kept(there_BM: Tensor, draws_B: Tensor, *, chances: Sequence[float], stream: int = MASKED) -> Tensor:
    """What remains of the modalities that each case has, bool [B, M]: at least one, where it has any.

    A combination that remains is as likely as the chances say with which each modality is taken away by itself, given
    that not all are. It is a function of the draw and the stream.
    """
    own_BM, all_SM = there_BM.cpu().numpy(), subsets(there_BM.shape[1]).numpy()
    lost_M = np.asarray(chances, dtype=float)
    weights_S = np.where(all_SM, 1 - lost_M, lost_M)  # [S, M], of modalities that a case has
    possible_BS = ~(all_SM & ~own_BM[:, None]).any(-1) & all_SM.any(-1)
    weights_BS = np.where(own_BM[:, None], weights_S, 1.0).prod(-1) * possible_BS
    cumulative_BS = weights_BS.cumsum(1)
    # Where a case has only what is always taken away, all of it stays.
    total_B = cumulative_BS[:, -1]
    drawn_B = uniforms(draws_B.cpu().numpy(), seed=0, stream=stream, count=1)[:, 0] * total_B
    chosen_BM = all_SM[(cumulative_BS > drawn_B[:, None]).argmax(1)]
    return torch.from_numpy(np.where(total_B[:, None] > 0, chosen_BM, own_BM)).to(there_BM.device)
