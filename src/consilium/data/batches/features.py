"""Features of images and texts, computed once and kept on disk by content, and read in the place of these.

Axes in names: B case in a batch, V view, N image or text, F feature.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from consilium.core.contracts import Captions, Texts, Views
from consilium.core.errors import ImageError, StoreError
from consilium.core.files import write_json
from consilium.data.batches.copies import DrawnLooks, copy_digest
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
            before = len(self._shards.get(shard, ()))
            if count > before:
                features = path.with_suffix(".features")
                mapped = np.memmap(features, dtype=np.float32, mode="r", shape=(count, self.width))
                self._shards[shard] = np.asarray(mapped)  # a memmap's own rows take longer
                keys = path.read_bytes()
                for row in range(before, count):
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
        return self.at(self.places(digests))

    def places(self, digests: Sequence[bytes]) -> np.ndarray:
        """Where the features of contents are [N], int64, which stays so; -1 where there are none."""
        return np.array([self._places.get(digest, -1) for digest in digests], dtype=np.int64)

    def at(self, places_N: np.ndarray) -> np.ndarray:
        """The features [N, F] at these places, float32."""
        shards_N, rows_N = places_N >> _SHARD_SHIFT, places_N & ((1 << _SHARD_SHIFT) - 1)
        features_NF = np.empty((len(places_N), self.width), dtype=np.float32)
        for shard, shard_MF in self._shards.items():
            own_N = shards_N == shard
            if own_N.all():  # by most trainings one process computed them all
                return np.take(shard_MF, rows_N, axis=0)
            features_NF[own_N] = shard_MF[rows_N[own_N]]
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
    """The images or the texts of a case table by content: which are of which case.

    Of ``copies`` the contents of a case are those of its first copy, then those of the second, and so on.
    """

    def __init__(self, rows: np.ndarray, digests: list[bytes], *, cases: int, copies: int = 1) -> None:
        """``rows`` are the cases that the contents belong to, in their order."""
        self.rows, self.digests, self.copies = rows, digests, copies
        self.starts = np.searchsorted(rows, np.arange(cases + 1))

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

    def copied(self, copies: int) -> Contents:
        """So many copies of these contents."""
        digests = [
            copy_digest(digest, number)
            for start, stop in pairwise(self.starts.tolist())
            for number in range(1, copies + 1)
            for digest in self.digests[start:stop]
        ]
        return Contents(np.repeat(self.rows, copies), digests, cases=len(self.starts) - 1, copies=copies)

    def of(self, rows: Sequence[int] | np.ndarray) -> list[int]:
        """The numbers of the contents of cases, in the order of these."""
        rows = np.asarray(rows, dtype=np.int64)
        spans = zip(self.starts[rows].tolist(), self.starts[rows + 1].tolist(), strict=True)
        return [number for start, stop in spans for number in range(start, stop)]

    def places(self, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The cases of contents, and which of its case's views or texts each is, or is a copy of."""
        cases_N = self.rows[list(numbers)]
        counts_N = (self.starts[cases_N + 1] - self.starts[cases_N]) // self.copies
        return cases_N, (np.array(numbers, dtype=np.int64) - self.starts[cases_N]) % counts_N


class CachedFeatures:
    """Features by content, for the readers below; what is there must have been computed."""

    def __init__(
        self, cache: FeatureCache, contents: Contents, *, dtype: torch.dtype, unread: Mapping[bytes, str]
    ) -> None:
        """``dtype`` is what the encoder gives; ``unread``: images that have no features, and why."""
        self._cache, self._contents, self._dtype, self.unread = cache, contents, dtype, unread
        self._places_N = np.full(len(contents.digests), -1, dtype=np.int64)

    def refuse_unread(self, row: int) -> None:
        """A content of the case that could not be read is an ImageError."""
        for number in self._contents.of([row]):
            if reason := self.unread.get(self._contents.digests[number]):
                raise ImageError(reason)

    def of(self, rows_B: np.ndarray, *, copies_B: np.ndarray | int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Which contents cases have [B, V], and their features [B, V, F], else zeros; of copies the numbers from 0."""
        contents = self._contents
        starts_B = contents.starts[rows_B]
        counts_B = (contents.starts[rows_B + 1] - starts_B) // contents.copies
        there_BV = np.arange(max(1, counts_B.max())) < counts_B[:, None]
        numbers_BV = (starts_B + copies_B * counts_B)[:, None] + np.arange(there_BV.shape[1])
        return self._padded(there_BV, self._cache.at(self._places(numbers_BV[there_BV])))

    def of_contents(self, digests_B: Sequence[list[bytes]], *, width: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``of``, for contents [B, V] that are given; V is at least ``width``."""
        counts_B = np.array([len(digests) for digests in digests_B])
        there_BV = np.arange(max(width, counts_B.max())) < counts_B[:, None]
        return self._padded(there_BV, self._cache.read([digest for digests in digests_B for digest in digests]))

    def _places(self, numbers_N: np.ndarray) -> np.ndarray:
        places_N: np.ndarray = self._places_N[numbers_N]
        if (places_N < 0).any():  # computed since the last look
            self._places_N = self._cache.places(self._contents.digests)
            places_N = self._places_N[numbers_N]
        return places_N

    def _padded(self, there_BV: np.ndarray, features_NF: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (*there_BV.shape, self._cache.width)
        if there_BV.all():
            features_BVF = features_NF.reshape(shape)
        else:
            features_BVF = np.zeros(shape, dtype=np.float32)
            features_BVF[there_BV] = features_NF
        return torch.from_numpy(there_BV), torch.from_numpy(features_BVF).to(self._dtype)


class CachedLooks:
    """The features of images and of their copies: look 0 is the image itself, look k its copy number k."""

    def __init__(
        self,
        images: CachedFeatures,
        copies: CachedFeatures | None = None,
        *,
        places_NV: np.ndarray | None = None,
    ) -> None:
        """``places_NV``: which of its own views each case shows at each place, -1 for none; None: all as they come."""
        self._images, self._copies, self._places_NV = images, copies, places_NV
        self.unread = [images.unread] if copies is None else [images.unread, copies.unread]

    def refuse_unread(self, row: int) -> None:
        """An image of the case that could not be read is an ImageError."""
        for cached in (self._images, self._copies):
            if cached is not None:
                cached.refuse_unread(row)

    def of(self, rows_B: np.ndarray, looks_B: np.ndarray) -> Views:
        """The features of cases, each in the look that is asked for."""
        there_BV, features_BVF = self._images.of(rows_B)
        (copied_C,) = np.nonzero(looks_B)
        if self._copies is not None and len(copied_C):
            there_CV, features_CVF = self._copies.of(rows_B[copied_C], copies_B=looks_B[copied_C] - 1)
            features_BVF[copied_C, : there_CV.shape[1]] = features_CVF
        if self._places_NV is not None:
            places_BV = torch.from_numpy(self._places_NV[rows_B])
            there_BV = places_BV >= 0
            features_BVF = features_BVF[torch.arange(len(rows_B))[:, None], places_BV.clamp(min=0)]
            features_BVF = features_BVF * there_BV[:, :, None].to(features_BVF.dtype)
        return Views(there_BV, features_BVF=features_BVF)


class CachedImageReader:
    """Reads cached features in the place of images, in the look that is drawn."""

    nbytes = 0  # they are read in the process that uses them

    def __init__(self, looks: CachedLooks, drawn: DrawnLooks | None = None) -> None:
        """Without ``drawn`` it is always the image itself."""
        self._looks, self._drawn, self._unread = looks, drawn, looks.unread

    @property
    def at_once(self) -> bool:
        """Where every image has features, a case by itself is not looked at."""
        return not any(self._unread)

    def read(self, row: int, draw: int) -> tuple[int, int]:
        """The row and the draw themselves: the features of a batch are read at once."""
        if not self.at_once:
            self._looks.refuse_unread(row)
        return row, draw

    def collate(self, raws: Sequence[tuple[int, int]], *, shared: bool) -> Views:
        """The features, as the encoder gives them."""
        rows_B, draws_B = np.array(raws, dtype=np.int64).T
        return self._looks.of(rows_B, np.zeros_like(rows_B) if self._drawn is None else self._drawn.of(draws_B))


class CachedTextReader:
    """Reads cached features in the place of the text that is drawn of each case."""

    nbytes, at_once = 0, False

    def __init__(self, cached: CachedFeatures, drawn: DrawnTexts) -> None:
        self._cached, self._drawn = cached, drawn

    def read(self, row: int, draw: int) -> tuple[list[int], list[bytes]]:
        """The numbers of the case's texts, that of the drawn one first, and its digest; none where there is no text."""
        text, numbers = self._drawn.of(row, draw)
        return numbers, [text_digest(text)] if text else []

    def collate(self, raws: Sequence[tuple[list[int], list[bytes]]], *, shared: bool) -> Texts:
        """The features, as the encoder gives them."""
        there_BV, features_BVF = self._cached.of_contents([digests for _, digests in raws])
        same_B, own_BK = self._drawn.numbers([numbers for numbers, _ in raws])
        return Texts(there_BV[:, 0], same_B, features_BF=features_BVF[:, 0], own_BK=own_BK)


class CachedCaptionReader:
    """Reads cached features in the place of all texts of each case."""

    nbytes, at_once = 0, False

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
        return Captions(there_BK, same_BK, features_BKF=self._cached.of_contents(digests, width=self._width)[1])


def texts_of(table: CaseTable, row: int) -> list[str]:
    """All texts of a case, and the parts of them that a training draws."""
    return list(dict.fromkeys([*table.captions(row), *table.drawn(row)]))


def text_digest(text: str) -> bytes:
    """What a text is known by."""
    return hashlib.sha256(text.encode()).digest()
