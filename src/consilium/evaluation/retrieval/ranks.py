"""Where the right answers of queries stand in a gallery: exact, both ways at once, in bounded memory.

Images N and texts M are compared by cosine similarity. Of every query the wrong answers are counted that stand before
each of its right ones; rank and average precision follow. Ties count against the model: a wrong answer whose similarity
is not lower than that of the right one (within the rounding of float32) stands before it. A model that gives everything
the same embedding finds nothing.

Cost. All similarities are computed once, for both ways, in tiles: N x M x F multiplications, beside which counting is
small. Queries with more than ``FEW`` right answers, and all of ``by_class``,
sort their similarities instead: M log M for each query, once more for the other way. Memory: the embeddings, a few
numbers for each query, and blocks of ``_TILE`` or ``_BLOCK`` similarities.

Axes in names: Q query, A answer, P pair of an image and a text that is right for it, F number of an embedding, K place
among the right answers of a query.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from consilium.evaluation.metrics import Floats, Ints

if TYPE_CHECKING:
    from torch import Tensor

TIE = 1e-6  # similarities that differ by less are equal
FEW = 32  # right answers of a query that are counted one after the other; of more, similarities are sorted
_TILE = (4096, 4096)  # images and texts that are compared at a time (64 MB); small ones wait more where cores are busy
_BLOCK = 16_000_000  # similarities that are sorted at a time (64 MB)
_PAIRS = 16_384  # pairs whose similarities are computed at a time


@dataclass(frozen=True)
class Standing:
    """How each query fares, [Q]: ``right_Q`` answers of the gallery are right for it.

    ``rank_Q`` is where the first of them stands, from 1. ``precision_Q`` is the average precision: the mean over the
    right answers of the share of right ones among the answers up to there (Manning et al., "Introduction to Information
    Retrieval", 2008, section 8.4). ``similarity_Q`` is that of the most similar right answer. ``loss_Q`` is -log of the
    probability of all right answers under the softmax of scaled similarities; None without a scale.
    """

    gallery: int
    right_Q: Ints
    rank_Q: Ints
    precision_Q: Floats
    similarity_Q: Floats
    loss_Q: Floats | None = None

    def take(self, queries: Ints) -> Standing:
        """The same of some of the queries, which may repeat."""
        return Standing(
            gallery=self.gallery,
            right_Q=self.right_Q[queries],
            rank_Q=self.rank_Q[queries],
            precision_Q=self.precision_Q[queries],
            similarity_Q=self.similarity_Q[queries],
            loss_Q=None if self.loss_Q is None else self.loss_Q[queries],
        )


def unit(embeddings_NF: Floats) -> Floats:
    """The embeddings, float32, divided by their length; zeros stay zeros."""
    embeddings_NF = np.asarray(embeddings_NF, dtype=np.float32)
    length_N = np.linalg.norm(embeddings_NF, axis=1, keepdims=True)
    return np.asarray(embeddings_NF / np.where(length_N > 0, length_N, 1))


def by_pairs(
    images_NF: Floats, texts_MF: Floats, *, image_P: Ints, text_P: Ints, scale: float | None = None
) -> tuple[Standing, Standing]:
    """Images that look for texts, and texts that look for images.

    ``image_P`` and ``text_P`` name every right pair by its rows, each once, in any order; all other pairs are wrong,
    and every image and every text has a right answer. All embeddings have length 1. ``scale`` is 1 / temperature.
    """
    own_P = pair_similarities(images_NF, texts_MF, image_P=image_P, text_P=text_P)
    rows = _Side(images_NF, image_P, own_P, scale)
    columns = _Side(texts_MF, text_P, own_P, scale)
    _count(rows, columns, scale)
    return (
        rows.standing(texts_MF, answer_P=text_P, own_P=own_P, scale=scale),
        columns.standing(images_NF, answer_P=image_P, own_P=own_P, scale=scale),
    )


def by_class(images_NF: Floats, texts_MF: Floats, *, image_N: Ints, text_M: Ints) -> tuple[Standing, Standing]:
    """The same where all answers of the query's class are right; ``image_N`` and ``text_M`` number the classes."""
    return _class_way(images_NF, texts_MF, image_N, text_M), _class_way(texts_MF, images_NF, text_M, image_N)


def _class_way(queries_QF: Floats, gallery_AF: Floats, query_Q: Ints, answer_A: Ints) -> Standing:
    order_A = np.argsort(answer_A, kind="stable")
    first_Q, last_Q = (np.searchsorted(answer_A[order_A], query_Q, side) for side in ("left", "right"))
    rights = [slice(first, last) for first, last in zip(first_Q.tolist(), last_Q.tolist(), strict=True)]
    found = _by_sorting(queries_QF, gallery_AF[order_A], rights)
    return Standing(len(gallery_AF), last_Q - first_Q, found.rank_Q, found.precision_Q, found.similarity_Q)


# -- Counting -----------------------------------------------------------------------------------------------------


class _Side:
    """The queries of one way, ordered by how many right answers they have, so that those with a k-th come first.

    ``least_KQ`` has the similarities from which on a wrong answer stands before the k-th right one (infinity where
    there is none), ``before_KQ`` how many do so far. ``peak_Q`` and ``sum_Q`` are of the softmax so far.
    """

    def __init__(self, embeddings_QF: Floats, query_P: Ints, own_P: Floats, scale: float | None) -> None:
        self.right_Q = np.bincount(query_P, minlength=len(embeddings_QF))
        self.query_P = query_P
        counted_Q = np.where(self.right_Q <= FEW, self.right_Q, 0)
        self.order_Q = np.argsort(-counted_Q, kind="stable")
        self.place_Q = np.argsort(self.order_Q, kind="stable")  # where a query stands in this order
        self.counted_Q = counted_Q[self.order_Q]
        self.embeddings_QF = embeddings_QF[self.order_Q]
        pairs = np.flatnonzero(counted_Q[query_P] > 0)
        pairs = pairs[np.lexsort((-own_P[pairs], query_P[pairs]))]  # of each query the most similar first
        starts_Q = np.cumsum(counted_Q) - counted_Q
        at_P = np.arange(len(pairs)) - starts_Q[query_P[pairs]]
        shape = (int(counted_Q.max(initial=0)), len(embeddings_QF))
        self.least_KQ = np.full(shape, np.inf, dtype=np.float32)
        self.least_KQ[at_P, self.place_Q[query_P[pairs]]] = own_P[pairs] - np.float32(TIE)
        self.before_KQ = np.zeros(shape, dtype=np.int64)
        self.peak_Q = np.full(len(embeddings_QF) if scale is not None else 0, -np.inf)
        self.sum_Q = np.zeros(len(self.peak_Q))

    def blocks(self, size: int) -> Iterator[slice]:
        """The queries in blocks."""
        return (slice(start, min(start + size, len(self.order_Q))) for start in range(0, len(self.order_Q), size))

    def having(self, block: slice, k: int) -> int:
        """How many queries of a block have a k-th right answer that is counted; they are its first."""
        return int((self.counted_Q[block] > k).sum())

    def standing(self, gallery_AF: Floats, *, answer_P: Ints, own_P: Floats, scale: float | None) -> Standing:
        """What was found, in the order in which the queries came."""
        queries = len(self.order_Q)
        k_K1 = np.arange(1, len(self.before_KQ) + 1)[:, None]
        precision_KQ = np.where(k_K1 <= self.counted_Q, k_K1 / (k_K1 + self.before_KQ), 0)
        precision_Q = (precision_KQ.sum(axis=0) / np.maximum(self.counted_Q, 1))[self.place_Q]
        first_Q = self.before_KQ[0] if len(self.before_KQ) else np.zeros(queries, dtype=np.int64)
        rank_Q = first_Q[self.place_Q] + 1
        similarity_Q = np.full(queries, -np.inf)
        np.maximum.at(similarity_Q, self.query_P, own_P)
        many = np.flatnonzero(self.right_Q > FEW)
        if len(many):
            order_P = np.argsort(self.query_P, kind="stable")
            ends_Q = np.cumsum(self.right_Q)
            rights = [answer_P[order_P[ends_Q[q] - self.right_Q[q] : ends_Q[q]]] for q in many]
            found = _by_sorting(self.embeddings_QF[self.place_Q[many]], gallery_AF, rights)
            rank_Q[many], precision_Q[many] = found.rank_Q, found.precision_Q
        loss_Q = None if scale is None else self._loss(own_P, scale)
        return Standing(len(gallery_AF), self.right_Q, rank_Q, precision_Q, similarity_Q, loss_Q)

    def _loss(self, own_P: Floats, scale: float) -> Floats:
        peak_Q, sum_Q = self.peak_Q[self.place_Q], self.sum_Q[self.place_Q]
        right_Q = np.bincount(self.query_P, np.exp(scale * (own_P - peak_Q[self.query_P])), minlength=len(peak_Q))
        right_Q = np.maximum(right_Q, np.finfo(np.float32).tiny)  # a probability of 0 would be an infinite loss
        return np.asarray(np.maximum(np.log(sum_Q / right_Q), 0))


def _count(rows: _Side, columns: _Side, scale: float | None) -> None:
    """Compare all rows with all columns once, and count for both."""
    import torch

    rows_QF, columns_QF = torch.from_numpy(rows.embeddings_QF), torch.from_numpy(columns.embeddings_QF)
    row_P, column_P = rows.place_Q[rows.query_P], columns.place_Q[columns.query_P]
    across = -(-len(columns.order_Q) // _TILE[1])
    tile_P = row_P // _TILE[0] * across + column_P // _TILE[1]
    order_P = np.argsort(tile_P, kind="stable")
    ends_T = np.searchsorted(tile_P[order_P], np.arange(-(-len(rows.order_Q) // _TILE[0]) * across), side="right")
    largest = min(_TILE[0], len(rows.order_Q)) * min(_TILE[1], len(columns.order_Q))
    space = torch.from_numpy(np.empty((2, largest), dtype=np.float32))
    tile = 0
    for row_block in rows.blocks(_TILE[0]):
        for column_block in columns.blocks(_TILE[1]):
            shape = (row_block.stop - row_block.start, column_block.stop - column_block.start)
            similarity, other = (own[: shape[0] * shape[1]].view(shape) for own in space)
            torch.mm(rows_QF[row_block], columns_QF[column_block].T, out=similarity)
            if scale is not None:
                _add_scores(rows, row_block, similarity, other, scale, dim=1)
                _add_scores(columns, column_block, similarity, other, scale, dim=0)
            own = order_P[ends_T[tile - 1] if tile else 0 : ends_T[tile]]
            similarity.numpy()[row_P[own] - row_block.start, column_P[own] - column_block.start] = -np.inf
            _add_counts(rows, row_block, similarity, other, dim=1)
            _add_counts(columns, column_block, similarity, other, dim=0)
            tile += 1


def _add_counts(side: _Side, block: slice, similarity: Tensor, other: Tensor, *, dim: int) -> None:
    """Count the wrong answers of a tile that stand before each right answer; right ones are -infinity in it."""
    import torch

    for k in range(len(side.least_KQ)):
        count = side.having(block, k)
        if not count:
            return
        part = slice(block.start, block.start + count)
        least = torch.from_numpy(side.least_KQ[k, part]).unsqueeze(dim)
        inside = (slice(count), slice(None)) if dim == 1 else (slice(None), slice(count))
        torch.ge(
            similarity[inside], least, out=other[inside]
        )  # as numbers: adding up booleans is a hundred times slower
        side.before_KQ[k, part] += other[inside].sum(dim).numpy().astype(np.int64)


def _add_scores(side: _Side, block: slice, similarity: Tensor, other: Tensor, scale: float, *, dim: int) -> None:
    """Add a tile to the sum of a softmax whose highest similarity may be in it."""
    import torch

    peak = similarity.amax(dim, keepdim=True)
    torch.sub(similarity, peak, out=other).mul_(scale).exp_()
    peak_Q, sum_Q = peak.squeeze(dim).numpy().astype(float), other.sum(dim).numpy().astype(float)
    highest_Q = np.maximum(side.peak_Q[block], peak_Q)
    side.sum_Q[block] = side.sum_Q[block] * np.exp(scale * (side.peak_Q[block] - highest_Q)) + sum_Q * np.exp(
        scale * (peak_Q - highest_Q)
    )
    side.peak_Q[block] = highest_Q


# -- Sorting ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sorted:
    rank_Q: Ints
    precision_Q: Floats
    similarity_Q: Floats


def _by_sorting(queries_QF: Floats, gallery_AF: Floats, rights: list[Any]) -> _Sorted:
    """Standings of queries by sorting their similarities; ``rights`` are slices or rows of the gallery."""
    import torch

    rank_Q, precision_Q = np.zeros(len(rights), dtype=np.int64), np.zeros(len(rights))
    similarity_Q = np.zeros(len(rights))

    def judge(start: int, similarity_BA: Floats) -> None:
        for q, similarity_A in enumerate(similarity_BA, start=start):
            own_K = np.sort(similarity_A[rights[q]])[::-1]
            similarity_A[rights[q]] = -np.inf
            similarity_A.sort()
            before_K = len(similarity_A) - np.searchsorted(similarity_A, own_K - np.float32(TIE))
            k_K = np.arange(1, len(own_K) + 1)
            rank_Q[q], precision_Q[q], similarity_Q[q] = before_K[0] + 1, (k_K / (k_K + before_K)).mean(), own_K[0]

    threads = torch.get_num_threads()
    size = max(threads, _BLOCK // len(gallery_AF))
    part = -(-size // threads)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(rights), size):
            similarity_BA = queries_QF[start : start + size] @ gallery_AF.T
            starts = range(0, len(similarity_BA), part)
            list(pool.map(judge, [start + at for at in starts], [similarity_BA[at : at + part] for at in starts]))
    return _Sorted(rank_Q, precision_Q, similarity_Q)


def pair_similarities(images_NF: Floats, texts_MF: Floats, *, image_P: Ints, text_P: Ints) -> Floats:
    """The similarity of each pair, float32 [P]."""
    blocks = [slice(start, start + _PAIRS) for start in range(0, len(image_P), _PAIRS)]
    return np.concatenate([np.einsum("pf,pf->p", images_NF[image_P[b]], texts_MF[text_P[b]]) for b in blocks])


# -- The first answers --------------------------------------------------------------------------------------------


def nearest(queries_QF: Floats, gallery_AF: Floats, *, count: int) -> tuple[Ints, Floats]:
    """The ``count`` most similar answers of each query, best first: their rows [Q, K] and similarities [Q, K].

    Of equally similar answers the first one of the gallery comes first.
    """
    count = min(count, len(gallery_AF))
    rows_QK, similarity_QK = np.zeros((len(queries_QF), count), dtype=np.int64), np.zeros((len(queries_QF), count))
    size = max(1, _BLOCK // max(1, len(gallery_AF)))
    for start in range(0, len(queries_QF), size):
        for q, similarity_A in enumerate(queries_QF[start : start + size] @ gallery_AF.T, start=start):
            least = np.partition(similarity_A, -count)[-count]
            near = np.flatnonzero(similarity_A >= least)
            rows_QK[q] = near[np.argsort(-similarity_A[near], kind="stable")][:count]
            similarity_QK[q] = similarity_A[rows_QK[q]]
    return rows_QK, similarity_QK
