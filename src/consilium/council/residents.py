"""The experts in memory: each is loaded when it is first asked; at the limit the least recently used is unloaded."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from consilium.predictor import Predictor
from consilium.search import Index


@dataclass(frozen=True)
class Resident:
    """A bundle with its weights, and the indexes of the seats that it has, by their names."""

    predictor: Predictor
    indexes: Mapping[str, Index]


class Residents:
    """Loaded experts by their folders, at most ``limit`` at a time; None: as many as were asked."""

    def __init__(self, load: Callable[[str], Resident], *, limit: int | None) -> None:
        self._load = load
        self._limit = limit
        self._loaded: OrderedDict[str, Resident] = OrderedDict()

    def __contains__(self, folder: str) -> bool:
        return folder in self._loaded

    def get(self, folder: str) -> Resident:
        """An expert; where there is no room for it, another one is unloaded before it is loaded."""
        if folder not in self._loaded:
            while self._limit is not None and len(self._loaded) >= self._limit:
                self._loaded.popitem(last=False)
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            self._loaded[folder] = self._load(folder)
        self._loaded.move_to_end(folder)
        return self._loaded[folder]
