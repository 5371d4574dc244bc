"""Search of images through faiss, where an index was built with it. Axes in names: N case, D number, K result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from consilium.core.errors import ConfigError, MissingExtraError, SearchError


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("An index with faiss", "index") from None
    return faiss


def check_factory(factory: str, *, width: int) -> None:
    """A name that faiss's factory does not know, or that does not fit the width, is a ConfigError."""
    faiss = _faiss()
    try:
        faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigError(
            f"--faiss is '{factory}', of which faiss makes no index for embeddings of {width} numbers; expected a name "
            "of its factory, such as Flat, HNSW32 or 'IVF256,Flat'."
        ) from error


def write_faiss(path: Path, images_ND: np.ndarray, *, factory: str) -> None:
    """Train and fill a faiss index by inner product with the rows that are not zeros."""
    faiss = _faiss()
    rows = np.ascontiguousarray(images_ND[images_ND.any(axis=1)], dtype=np.float32)
    index = faiss.index_factory(images_ND.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    try:
        index.train(rows)
        index.add(rows)
    except RuntimeError as error:
        raise ConfigError(
            f"faiss cannot build '{factory}' of {len(rows):,} images ({str(error).splitlines()[-1][:200]}); take a "
            "simpler one, such as Flat or HNSW32."
        ) from error
    faiss.write_index(index, str(path))


class FaissImages:
    """The faiss index of a folder, read once."""

    def __init__(self, path: Path, *, images: int) -> None:
        try:
            self._index = _faiss().read_index(str(path))
        except RuntimeError as error:
            raise SearchError(f"{path} is damaged. Remove the folder and run `consilium index` again.") from error
        if self._index.ntotal != images:
            raise SearchError(f"{path} is of another index. Remove the folder and run `consilium index` again.")

    def nearest(self, query_D: np.ndarray, *, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Places [K] among the images that have an embedding, and similarities [K], best first."""
        similarity_1K, place_1K = self._index.search(query_D[None].astype(np.float32), min(count, self._index.ntotal))
        found_K = place_1K[0] >= 0  # an approximate search may find fewer
        return place_1K[0][found_K], similarity_1K[0][found_K]
