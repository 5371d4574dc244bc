"""Contrastive losses of pairs of images and texts, over all processes.

Axes in names: B pair of this process, T pair of a tile, N pair of the whole batch, D number of an embedding, P process,
K number that says what is right.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from consilium.core.errors import ConfigError
from consilium.losses.config import ContrastiveConfig, SigmoidContrastiveConfig
from consilium.losses.gathering import gathered, rank, sizes_of

TILE = 128  # rows of similarities that are in memory at a time


class ContrastiveLoss(nn.Module, ABC):
    """What a loss of pairs of images and texts shares: a scale that can learn, and the pairs of all processes.

    ``images_BD`` and ``texts_BD`` are embeddings of length 1 of any float type; row b of both is a pair. Everything
    inside is float32, whatever autocast says. The similarity of an image and a text is their dot product times
    ``scale`` (1 / temperature).

    ``same_B`` numbers the cases, those that are right answers for each other alike in all processes; a negative number
    is that of a case which has its own answer alone. None: all are such. ``own_BK`` has further numbers of each image,
    those of other texts that are right for it: an image and a text are right for each other where the text's number is
    one of the image's. Negative ones are none; K is the same in all processes.

    Several processes: the embeddings of all are gathered with their gradients. The result on a process is the mean
    over its own pairs against those of all, so that the mean over processes weighted by ``Batch.share``, and its
    gradient averaged over processes, are those of one process with the whole batch. The processes may have unequal
    numbers of pairs, or none, whose mean is 0; one whose batch only repeats a pair (share 0) says so by ``repeated``,
    and nobody sees its pair. All processes must call it together, so it belongs into ``step`` and never into
    ``predict``.

    Similarities are computed in tiles of rows, so that memory grows with the batch and not with its square: beside
    the embeddings and their gradients it is that of ``TILE`` rows.

    A whole batch of one pair has nothing to tell apart and is a ConfigError.
    """

    both_ways: ClassVar[bool]  # texts are queries, too
    first_temperature: ClassVar[float]  # where the config gives none

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        self.config = config
        self._highest = math.log(config.max_scale)
        start = torch.tensor(-math.log(config.temperature or self.first_temperature))
        self.log_scale = nn.Parameter(start, requires_grad=config.learn_temperature)

    def start_at(self, log_scale: float, *, bias: float | None) -> None:
        """Begin with what was learned before, as far as ``max_scale`` allows, unless the config gives other values."""
        if self.config.temperature is None:
            self.log_scale.data.fill_(min(max(log_scale, 0.0), self._highest))

    @property
    def scale(self) -> Tensor:
        """1 / temperature, a scalar between 1 and ``max_scale``."""
        return self.log_scale.float().clamp(0.0, self._highest).exp()

    def forward(
        self,
        images_BD: Tensor,
        texts_BD: Tensor,
        *,
        same_B: Tensor | None = None,
        own_BK: Tensor | None = None,
        repeated: bool = False,
    ) -> Tensor:
        """The mean loss of this process's pairs among all pairs."""
        with torch.no_grad():  # what left the range comes back to its border, where it has a gradient again
            self.log_scale.clamp_(0.0, self._highest)
        with torch.autocast(images_BD.device.type, enabled=False):
            images_BD, texts_BD = images_BD.float(), texts_BD.float()
            own = 0 if repeated else len(images_BD)
            sizes = sizes_of(own, device=images_BD.device)
            if sum(sizes) < 2:
                raise ConfigError(
                    "a contrastive loss compares the pairs of a batch, and this batch has one. Set "
                    "data.loader.drop_last: true, or another data.loader.batch_size."
                )
            image_BK, image_NK = self._numbers(len(images_BD), same_B, own_BK, sizes=sizes, repeated=repeated)
            text_B1, text_N1 = image_BK[:, :1], image_NK[:, :1]
            scale = self.log_scale.float().exp()
            images_ND, texts_ND = images_BD, texts_BD
            if len(sizes) > 1:
                images_ND, texts_ND = gathered(torch.cat((images_BD, texts_BD), dim=1)[:own], sizes).chunk(2, dim=1)
            total = self.among(images_BD, texts_ND, scale, image_BK, text_N1)
            if self.both_ways:
                total = (total + self.among(texts_BD, images_ND, scale, text_B1, image_NK)) / 2
            elif repeated:  # it takes part in the backward pass, too
                total = total + 0.0 * texts_BD.sum()
            return total / max(len(images_BD), 1)

    @abstractmethod
    def among(
        self, queries_BD: Tensor, answers_ND: Tensor, scale: Tensor, numbers_BK: Tensor, numbers_NK: Tensor
    ) -> Tensor:
        """The sum of the losses of queries among all answers; those that share a number with a query are right."""

    def _numbers(
        self, count: int, same_B: Tensor | None, own_BK: Tensor | None, *, sizes: list[int], repeated: bool
    ) -> tuple[Tensor, Tensor]:
        """The numbers of this process's pairs [B, K] and of all [N, K]; the first of each is that of its text."""
        device = self.log_scale.device
        # A repeated pair is the first of the whole batch.
        first = 0 if repeated else sum(sizes[: rank()])
        places_B = torch.arange(first, first + count, device=device)
        if same_B is None:
            return places_B[:, None], torch.arange(sum(sizes), device=device)[:, None]
        first_B1 = torch.where(same_B < 0, -1 - places_B, same_B)[:, None]  # without one a number that no other has
        numbers_BK = first_B1
        if own_BK is not None:
            numbers_BK = torch.cat((first_B1, torch.where(own_BK < 0, first_B1, own_BK)), dim=1)
        own = 0 if repeated else count
        numbers_NK = gathered(numbers_BK[:own], sizes)
        says_K = (numbers_NK != numbers_NK[:, :1]).any(dim=0)
        says_K[0] = True
        return numbers_BK[:, says_K], numbers_NK[:, says_K]


class SoftmaxContrastiveLoss(ContrastiveLoss):
    """Symmetric softmax cross entropy between images and texts.

    An image's probabilities of all texts of the batch are the softmax of its similarities; its loss is their cross
    entropy with the right texts, and likewise for a text among all images. The result is the mean of both over the
    pairs, a scalar in nats: Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
    2021, arXiv:2103.00020. Where several answers are right, the target is spread evenly over them (as in UniCL: Yang et
    al., 2022, arXiv:2204.03610), and the lowest value is the logarithm of how many these are.
    """

    both_ways, first_temperature = True, 0.07

    def among(
        self, queries_BD: Tensor, answers_ND: Tensor, scale: Tensor, numbers_BK: Tensor, numbers_NK: Tensor
    ) -> Tensor:
        """The sum of the cross entropies."""
        total: Tensor = _InTiles.apply(
            _cross_entropy, queries_BD, answers_ND, scale, scale.new_zeros(()), numbers_BK, numbers_NK
        )
        return total


class SigmoidContrastiveLoss(ContrastiveLoss):
    """Binary cross entropy of every image with every text: right or not.

    The loss of an image is the sum over all texts of the batch of -log sigmoid(+-(similarity + bias)), with the sign of
    whether the text is right for it; the result is the mean over images, in nats: Zhai et al., Sigmoid Loss for
    Language Image Pre-Training, 2023, arXiv:2303.15343.
    """

    both_ways, first_temperature = False, 0.1

    def __init__(self, config: SigmoidContrastiveConfig) -> None:
        super().__init__(config)
        self._given = config.bias is not None
        self.bias = nn.Parameter(torch.tensor(-10.0 if config.bias is None else config.bias))

    def start_at(self, log_scale: float, *, bias: float | None) -> None:
        """Begin with the temperature and the bias that were learned before."""
        super().start_at(log_scale, bias=bias)
        if bias is not None and not self._given:
            self.bias.data.fill_(bias)

    def among(
        self, queries_BD: Tensor, answers_ND: Tensor, scale: Tensor, numbers_BK: Tensor, numbers_NK: Tensor
    ) -> Tensor:
        """The sum of the binary cross entropies."""
        total: Tensor = _InTiles.apply(
            _binary_cross_entropy, queries_BD, answers_ND, scale, self.bias.float(), numbers_BK, numbers_NK
        )
        return total


def build_contrastive(config: ContrastiveConfig) -> ContrastiveLoss:
    """The loss of a config."""
    if isinstance(config, SigmoidContrastiveConfig):
        return SigmoidContrastiveLoss(config)
    return SoftmaxContrastiveLoss(config)


def _right(queries_TK: Tensor, answers_NK: Tensor) -> Tensor:
    """Which answers have a number in common with a query, bool [T, N]; one of the two, the texts, has one number."""
    right_TN = queries_TK[:, :1] == answers_NK[:, 0]
    for query_T in queries_TK.T[1:]:
        right_TN |= query_T[:, None] == answers_NK[:, 0]
    for answer_N in answers_NK.T[1:]:
        right_TN |= queries_TK[:, :1] == answer_N
    return right_TN


def _cross_entropy(logits_TN: Tensor, right_TN: Tensor) -> Tensor:
    """The sum over queries; ``logits_TN`` becomes its gradient."""
    targets_TN = right_TN.div_(right_TN.sum(dim=1, keepdim=True))
    whole_T = logits_TN.logsumexp(dim=1)
    total = whole_T.sum() - torch.dot(targets_TN.flatten(), logits_TN.flatten())
    logits_TN.sub_(whole_T[:, None]).exp_().sub_(targets_TN)
    return total


def _binary_cross_entropy(logits_TN: Tensor, right_TN: Tensor) -> Tensor:
    """The sum over queries and answers; ``logits_TN`` becomes its gradient."""
    signs_TN = right_TN.mul_(2).sub_(1)
    total = nn.functional.softplus(logits_TN.mul_(signs_TN).neg_()).sum()
    logits_TN.sigmoid_().mul_(signs_TN).neg_()
    return total


class _InTiles(torch.autograd.Function):
    """A loss of the logits scale * query . answer + bias, tile after tile of queries, and its gradients at once."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: Callable[[Tensor, Tensor], Tensor],
        queries_BD: Tensor,
        answers_ND: Tensor,
        scale: Tensor,
        bias: Tensor,
        numbers_BK: Tensor,
        numbers_NK: Tensor,
    ) -> Tensor:
        total, to_scale, to_bias = (scale.new_zeros(()) for _ in range(3))
        to_queries_BD, to_answers_ND = torch.empty_like(queries_BD), torch.zeros_like(answers_ND)
        for start in range(0, len(queries_BD), TILE):
            tile = slice(start, start + TILE)
            logits_TN = torch.addmm(bias, queries_BD[tile] * scale, answers_ND.T)
            total += loss(logits_TN, _right(numbers_BK[tile], numbers_NK).to(logits_TN.dtype))
            to_bias += logits_TN.sum()  # from here on they are gradients
            torch.mm(logits_TN, answers_ND, out=to_queries_BD[tile])
            to_scale += torch.dot(to_queries_BD[tile].flatten(), queries_BD[tile].flatten())
            to_answers_ND.addmm_(logits_TN.T, queries_BD[tile])
        ctx.save_for_backward(to_queries_BD.mul_(scale), to_answers_ND.mul_(scale), to_scale, to_bias)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # In place, for memory: a second pass would be refused by torch, which sees that what was saved has changed.
        to_queries_BD, to_answers_ND, to_scale, to_bias = (saved.mul_(gradient) for saved in ctx.saved_tensors)
        return None, to_queries_BD, to_answers_ND, to_scale, to_bias, None, None
