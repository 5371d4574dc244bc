"""Sparse vectors of texts in an index, and the search through them.

Axes in names: T text, P weight above 0 of all texts, V term of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WEIGHT = np.dtype([("term", "<i4"), ("weight", "<f4")])  # a sparse vector is an array of these [P]
NO_TERMS = np.empty(0, dtype=WEIGHT)


def sparse(weights: Mapping[str, float], names: Mapping[str, int]) -> np.ndarray:
    """The ``text_terms`` of an answer as a sparse vector; ``names`` has the number of each term."""
    return np.array([(names[name], weight) for name, weight in weights.items()], dtype=WEIGHT)


@dataclass(frozen=True)
class TermVectors:
    """The sparse vectors of T texts, one behind the other: ``lengths_T`` of them int64, ``weights_P`` of ``WEIGHT``."""

    lengths_T: np.ndarray
    weights_P: np.ndarray

    def __post_init__(self) -> None:
        if self.weights_P.dtype != WEIGHT or self.lengths_T.sum() != len(self.weights_P):
            raise ValueError("its sparse vectors are not of one length")

    @classmethod
    def of(cls, vectors: Sequence[np.ndarray]) -> TermVectors:
        """The vectors of some texts side by side."""
        lengths_T = np.array([len(vector) for vector in vectors], dtype=np.int64)
        return cls(lengths_T, np.concatenate([NO_TERMS, *vectors]))

    def __len__(self) -> int:
        return len(self.lengths_T)

    def each(self) -> list[np.ndarray]:
        """The vector of each text."""
        ends = self.lengths_T.cumsum()
        return [self.weights_P[end - length : end] for end, length in zip(ends, self.lengths_T, strict=True)]

    def products(self, query: np.ndarray) -> np.ndarray:
        """The product of each text's vector with that of a query, float64 [T]."""
        text_P = np.repeat(np.arange(len(self)), self.lengths_T)
        return np.bincount(text_P, self._products(query), minlength=len(self))

    def matched(self, query: np.ndarray, text: int) -> list[tuple[int, float]]:
        """The terms that a text and a query share, and what each adds to their product, the most first."""
        end = int(self.lengths_T[: text + 1].sum())
        own = TermVectors.of([self.weights_P[end - int(self.lengths_T[text]) : end]])
        found = zip(own.weights_P["term"].tolist(), own._products(query).tolist(), strict=True)
        return sorted(((term, product) for term, product in found if product > 0), key=lambda item: -item[1])

    def _products(self, query: np.ndarray) -> np.ndarray:
        terms_P = self.weights_P["term"]
        query_V = np.zeros(max(terms_P.max(initial=-1), query["term"].max(initial=-1)) + 1)
        query_V[query["term"]] = query["weight"]
        return np.asarray(query_V[terms_P] * self.weights_P["weight"])
