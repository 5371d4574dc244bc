"""Vectors that were computed elsewhere, in the place of a text tower: the text of a case is its id.

Axes in names: B text in a batch, T token, F feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from consilium.core.errors import DataError
from consilium.core.licenses import License
from consilium.core.vectors import VectorFacts, Vectors, read_vectors
from consilium.models.tokenizer import Padded


class VectorCoder:
    """Makes of the id of a case the number of its vector, as the one token of its text.

    The file is read when it is first asked for; vectors of another encoder than ``known`` are a DataError.
    """

    def __init__(self, place: str, known: VectorFacts) -> None:
        self.place, self.known = place, known

    @cached_property
    def vectors(self) -> Vectors:
        """Those of the file that the training read."""
        return self._checked(read_vectors(self.place))

    def take(self, vectors: Vectors) -> None:
        """Use other vectors from now on."""
        self.__dict__.update(vectors=self._checked(vectors), rows=vectors.rows)

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """The number of each id, which is all that other processes need."""
        return self.vectors.rows

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The number of each id, 0 of no text; an id without a vector is a DataError."""
        if strangers := [text for text in texts if text and text not in self.rows]:
            raise DataError(
                f"this model reads vectors of texts that were computed elsewhere, by the id of their case, and "
                f"{self.place} has none for '{strangers[0][:60]}'. It cannot compute one of a text itself: give a file "
                "with vectors of these cases (consilium predict BUNDLE TABLE --vectors FILE)."
            )
        return [[self.rows[text] if text else 0] for text in texts]

    def pad(self, ids: Sequence[Sequence[int]]) -> Padded:
        """Each is one token."""
        tokens_BT = torch.tensor(ids, dtype=torch.int64).reshape(len(ids), 1)
        return Padded(tokens_BT, torch.ones_like(tokens_BT))

    def count_cut(self, texts: Sequence[str]) -> int:
        """Nothing is cut here."""
        return 0

    def unknown_share(self, texts: Sequence[str]) -> float:
        """No words are read here."""
        return 0.0

    def _checked(self, vectors: Vectors) -> Vectors:
        self.known.refuse_other(vectors.facts, place=vectors.place, wanted_by="the model was trained on")
        return vectors

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "known": self.known, "rows": self.rows}


class VectorTower(nn.Module):
    """What stands where a text tower would: it looks vectors up, and has nothing that could learn.

    The vectors stay in the memory of the host, and are no part of a bundle.
    """

    licenses: tuple[License, ...] = ()
    weights_note = ""
    architecture: Mapping[str, Any] | None = None
    pooling = None

    def __init__(self, coder: VectorCoder) -> None:
        super().__init__()
        self.model, self.coder = nn.Identity(), coder
        self.num_features = coder.known.width

    def forward(self, tokens_BT: Tensor, attention_BT: Tensor) -> Tensor:
        """Features [B, num_features] of what the coder made of ids."""
        rows_B = tokens_BT[:, 0].cpu().numpy()
        features_BF: np.ndarray = self.coder.vectors.vectors_NF[rows_B]
        return torch.from_numpy(features_BF).to(tokens_BT.device)

    def blocks(self) -> list[list[nn.Parameter]]:
        """There are none."""
        return []
