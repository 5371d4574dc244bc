"""Features of images and texts, computed once and kept on disk by content, and read in the place of these.

Axes in names: B case in a batch, V view, N image or text, F feature.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from consilium.core.contracts import Captions, Texts, Views
from consilium.core.errors import ImageError, StoreError
from consilium.core.files import write_json
from consilium.data.batches.readers import DrawnTexts, caption_numbers
from consilium.data.batches.readers import Texts as TextRows
from consilium.data.store.store import CaseTable

DIGEST = 32  # bytes of a SHA-256
ABOUT, LOCK = "features.json", ".lock"
_SHARD_SHIFT = 48  # place of a content = shard << 48 | row


class FeatureCache:
    """The features of images or texts by the SHA-256 of each, in one folder, read memory-mapped.

    Every process of a training that computes some appends to a shard of its own: ``{shard}.features`` (float32, F
    values for each image) and ``{shard}.keys`` (32 bytes for each). A key is written after its features are on the
    disk, so that a process may be killed at any moment and what it had appended counts. ``features.json`` says what
    the features are of. The folder may be deleted whenever nobody trains.
    """

    def __init__(self, folder: Path, *, width: int) -> None:
        self.folder, self.width = folder, width
        self._shards: dict[int, np.ndarray] = {}
        self._places: dict[bytes, int] = {}
        self.refresh()

    def refresh(self) -> None:
        """See what was appended since."""
        for path in sorted(self.folder.glob("*.keys")):
            shard, count = int(path.stem), self._count(path)
            if count:
                self._shards[shard] = np.memmap(
                    path.with_suffix(".features"), dtype=np.float32, mode="r", shape=(count, self.width)
                )
                keys = path.read_bytes()
                for row in range(count):
                    self._places[keys[row * DIGEST : (row + 1) * DIGEST]] = shard << _SHARD_SHIFT | row

    def _count(self, keys: Path) -> int:
        """Contents that are whole in a shard: the last append may have been cut short."""
        features = keys.with_suffix(".features")
        sizes = [path.stat().st_size if path.is_file() else 0 for path in (keys, features)]
        return min(sizes[0] // DIGEST, sizes[1] // (4 * self.width))

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places

    def read(self, digests: Sequence[bytes]) -> np.ndarray:
        """The features [N, F] of contents that are all there, float32."""
        places_N = np.array([self._places[digest] for digest in digests], dtype=np.int64)
        shards_N, rows_N = places_N >> _SHARD_SHIFT, places_N & ((1 << _SHARD_SHIFT) - 1)
        features_NF = np.empty((len(places_N), self.width), dtype=np.float32)
        for shard in np.unique(shards_N).tolist():
            own_N = shards_N == shard
            features_NF[own_N] = self._shards[shard][rows_N[own_N]]
        return features_NF

    def append(self, digests: Sequence[bytes], features_NF: np.ndarray, *, shard: int) -> None:
        """Add contents to the shard of this process, while one process of the training holds the ``lock``."""
        keys = self.folder / f"{shard}.keys"
        with self._writing():
            count = self._count(keys)
            rows = np.ascontiguousarray(features_NF, dtype=np.float32)
            for path, size, data in (
                (keys.with_suffix(".features"), 4 * self.width, rows.tobytes()),
                (keys, DIGEST, b"".join(digests)),
            ):
                with path.open("r+b" if path.exists() else "w+b") as file:
                    _append(file, data, at=count * size)

    @contextlib.contextmanager
    def lock(self, *, about: dict[str, Any], waiting: Callable[[], None]) -> Iterator[None]:
        """Hold off other trainings that compute the same; ``waiting`` is called when one does."""
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / LOCK).open("w", encoding="utf-8")
        with file:
            with self._writing():
                # A record lock is this process's own: a loader's worker that outlives a kill does not hold it.
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError):
                    waiting()
                    fcntl.lockf(file, fcntl.LOCK_EX)
                if not (self.folder / ABOUT).is_file():
                    write_json(self.folder / ABOUT, about)
            yield

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"the features in {self.folder} could not be written: {error}. Free space or correct data.store.root, "
                "and run again: what was computed so far is kept. With trainer.cache_features: false nothing is kept."
            ) from error


def _append(file: BinaryIO, data: bytes, *, at: int) -> None:
    file.truncate(at)
    file.seek(at)
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


class Contents:
    """The images or the texts of a case table by content: which are of which case."""

    def __init__(self, rows: np.ndarray, digests: list[bytes], *, cases: int) -> None:
        """``rows`` are the cases that the contents belong to, in their order."""
        self.rows, self.digests = rows, digests
        self.starts = np.searchsorted(rows, np.arange(cases + 1)).tolist()

    @classmethod
    def images(cls, table: CaseTable) -> Contents:
        """All views."""
        rows, digests = table.view_column("sha256")
        return cls(rows, [bytes.fromhex(digest) for digest in digests], cases=len(table))

    @classmethod
    def texts(cls, table: CaseTable) -> Contents:
        """All texts, and the parts of them that a training draws."""
        found = [(row, text_digest(text)) for row in range(len(table)) for text in texts_of(table, row)]
        rows = np.array([row for row, _ in found], dtype=np.int64)
        return cls(rows, [digest for _, digest in found], cases=len(table))

    def of(self, rows: Sequence[int]) -> list[int]:
        """The numbers of the contents of cases, in the order of these."""
        return [number for row in rows for number in range(self.starts[row], self.starts[row + 1])]


class CachedFeatures:
    """Features by content, for the readers below; what is there must have been computed."""

    def __init__(
        self, cache: FeatureCache, contents: Contents, *, dtype: torch.dtype, unread: Mapping[bytes, str]
    ) -> None:
        """``dtype`` is what the encoder gives; ``unread``: images that have no features, and why."""
        self._cache, self._contents, self._dtype, self._unread = cache, contents, dtype, unread

    def digests(self, row: int) -> list[bytes]:
        """The contents of a case; one that could not be read is an ImageError."""
        digests = [self._contents.digests[number] for number in self._contents.of([row])]
        for digest in digests if self._unread else ():
            if digest in self._unread:
                raise ImageError(self._unread[digest])
        return digests

    def padded(self, digests_B: Sequence[list[bytes]], *, width: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Which contents there are [B, V], V at least ``width``, and their features [B, V, F]; else zeros."""
        counts_B = np.array([len(digests) for digests in digests_B])
        there_BV = np.arange(max(width, counts_B.max())) < counts_B[:, None]
        features_BVF = np.zeros((*there_BV.shape, self._cache.width), dtype=np.float32)
        features_BVF[there_BV] = self._cache.read([digest for digests in digests_B for digest in digests])
        return torch.from_numpy(there_BV), torch.from_numpy(features_BVF).to(self._dtype)


class CachedImageReader:
    """Reads cached features in the place of images."""

    nbytes = 0  # they are read in the process that uses them

    def __init__(self, cached: CachedFeatures) -> None:
        self._cached = cached

    def read(self, row: int, draw: int) -> list[bytes]:
        """The digests of a case's images."""
        return self._cached.digests(row)

    def collate(self, raws: Sequence[list[bytes]], *, shared: bool) -> Views:
        """The features, as the encoder gives them."""
        there_BV, features_BVF = self._cached.padded(raws)
        return Views(there_BV, features_BVF=features_BVF)


class CachedTextReader:
    """Reads cached features in the place of the text that is drawn of each case."""

    nbytes = 0

    def __init__(self, cached: CachedFeatures, drawn: DrawnTexts) -> None:
        self._cached, self._drawn = cached, drawn

    def read(self, row: int, draw: int) -> tuple[list[int], list[bytes]]:
        """The numbers of the case's texts, that of the drawn one first, and its digest; none where there is no text."""
        text, numbers = self._drawn.of(row, draw)
        return numbers, [text_digest(text)] if text else []

    def collate(self, raws: Sequence[tuple[list[int], list[bytes]]], *, shared: bool) -> Texts:
        """The features, as the encoder gives them."""
        there_BV, features_BVF = self._cached.padded([digests for _, digests in raws])
        same_B, own_BK = self._drawn.numbers([numbers for numbers, _ in raws])
        return Texts(there_BV[:, 0], same_B, features_BF=features_BVF[:, 0], own_BK=own_BK)


class CachedCaptionReader:
    """Reads cached features in the place of all texts of each case."""

    nbytes = 0

    def __init__(self, cached: CachedFeatures, source: TextRows, *, numbers: Mapping[str, int]) -> None:
        """``numbers`` as for the reader of tokens."""
        self._cached, self._source, self._numbers = cached, source, numbers
        self._width = max(1, source.most_captions)

    def read(self, row: int, draw: int) -> list[str]:
        """The texts."""
        return list(self._source.captions(row))

    def collate(self, raws: Sequence[list[str]], *, shared: bool) -> Captions:
        """The features, as the encoder gives them."""
        same_BK, there_BK = caption_numbers([[self._numbers[text] for text in own] for own in raws], self._width)
        digests = [[text_digest(text) for text in own] for own in raws]
        return Captions(there_BK, same_BK, features_BKF=self._cached.padded(digests, width=self._width)[1])


def texts_of(table: CaseTable, row: int) -> list[str]:
    """All texts of a case, and the parts of them that a training draws."""
    return list(dict.fromkeys([*table.captions(row), *table.drawn(row)]))


def text_digest(text: str) -> bytes:
    """What a text is known by."""
    return hashlib.sha256(text.encode()).digest()
