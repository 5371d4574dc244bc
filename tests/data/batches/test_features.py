"""The cache of features: what was appended is there, whatever a kill left; batches hold what the cache holds."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from consilium.core.errors import StoreError
from consilium.data.batches.config import AugmentationConfig
from consilium.data.batches.copies import copy_digest
from consilium.data.batches.features import (
    LOCK,
    CachedCaptionReader,
    CachedFeatures,
    CachedImageReader,
    CachedLooks,
    CachedTextReader,
    Contents,
    FeatureCache,
)
from consilium.data.batches.loader import Loader, Request, evaluation_requests
from consilium.data.batches.readers import DrawnTexts, Readers
from consilium.data.config import LoaderConfig

WIDTH = 3


def digest(image: int) -> bytes:
    return image.to_bytes(32, "big")


def features(images: list[int]) -> np.ndarray:
    """The features of image n are [n, n + 0.25, n + 0.5]."""
    return np.array(images, dtype=np.float32)[:, None] + np.array([0, 0.25, 0.5], dtype=np.float32)


def append(cache: FeatureCache, images: list[int], shard: int = 0) -> None:
    cache.append([digest(image) for image in images], features(images), shard=shard)


@given(
    appends=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5)), max_size=6),
    cut=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_what_a_kill_leaves_is_used_as_far_as_it_is_whole(
    tmp_path_factory: pytest.TempPathFactory, appends: list[tuple[int, int]], cut: tuple[int, int]
) -> None:
    folder = tmp_path_factory.mktemp("features")
    cache = FeatureCache(folder, width=WIDTH)
    shards: dict[int, list[int]] = {}
    for number, (shard, count) in enumerate(appends):
        images = list(range(10 * number, 10 * number + count))
        append(cache, images, shard)
        shards.setdefault(shard, []).extend(images)
    for shard in shards:  # the last append of each was cut short, its keys or its features
        for name, lost in zip(("features", "keys"), cut, strict=True):
            with (folder / f"{shard}.{name}").open("r+b") as file:
                file.truncate(max(0, file.seek(0, 2) - lost))
    cache = FeatureCache(folder, width=WIDTH)
    whole = max(-(-cut[0] // (4 * WIDTH)), -(-cut[1] // 32))  # images that are lost
    for shard, images in shards.items():
        kept = images[: max(0, len(images) - whole)]
        assert [image for image in images if digest(image) in cache] == kept
        append(cache, images[len(kept) :] or [500 + shard], shard)
    cache.refresh()
    every = [image for images in shards.values() for image in images]
    assert np.array_equal(
        cache.read([digest(image) for image in reversed(every)]), features(every[::-1]).reshape(-1, 3)
    )


def test_a_reader_sees_what_another_process_appends_when_it_looks_again(tmp_path: Path) -> None:
    writer, reader = (FeatureCache(tmp_path, width=WIDTH) for _ in range(2))
    append(writer, [1])
    assert digest(1) not in reader
    reader.refresh()
    append(writer, [2], shard=1)
    assert np.array_equal(reader.read([digest(1)]), features([1]))
    reader.refresh()
    assert np.array_equal(reader.read([digest(2), digest(1)]), features([2, 1]))


def test_a_second_training_waits_for_the_first(tmp_path: Path) -> None:
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    cache, events = FeatureCache(tmp_path, width=WIDTH), []
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / LOCK)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdin is not None
    assert first.stdout is not None
    first.stdout.readline()  # it holds the lock

    def waiting() -> None:
        events.append(first.poll())
        first.communicate(b"\n")  # it ends

    with cache.lock(about={"tower": "a"}, waiting=waiting):
        events.append(first.poll())
    assert events == [None, 0]
    with cache.lock(about={"tower": "b"}, waiting=waiting):
        assert len(events) == 2
    assert '"a"' in (tmp_path / "features.json").read_text()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = FeatureCache(tmp_path / "file", width=WIDTH)
    with pytest.raises(StoreError, match=r"features in .*file could not be written.*cache_features: false"):
        cache.lock(about={}, waiting=lambda: None).__enter__()
    with pytest.raises(StoreError, match="what was computed so far is kept"):
        append(cache, [1])


class Table:
    """Five cases; the second has two views, the fourth three, and two cases share an image."""

    IMAGES = ((7,), (1, 2), (3,), (4, 7, 5), (6,))

    def __len__(self) -> int:
        return len(self.IMAGES)

    def view_column(self, name: str) -> tuple[np.ndarray, list[str]]:
        assert name == "sha256"
        views = [(row, image) for row, images in enumerate(self.IMAGES) for image in images]
        return np.array([row for row, _ in views]), [digest(image).hex() for _, image in views]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_hold_the_features_of_every_view(tmp_path: Path, dtype: torch.dtype) -> None:
    cache = FeatureCache(tmp_path, width=WIDTH)
    append(cache, [1, 2, 3, 4])
    append(cache, [5, 6, 7], shard=1)
    cache.refresh()
    targets = np.arange(5) * 10
    contents = Contents.images(Table())  # type: ignore[arg-type]
    reader = CachedImageReader(CachedLooks(CachedFeatures(cache, contents, dtype=dtype, unread={})))
    loader = Loader(Readers(images=reader), config=LoaderConfig(workers=0), targets=targets)
    requests = [
        Request([3, 0, 1], [30, 31, 32], {"cases": 5}, 1.5),
        *evaluation_requests([4, 2], config=LoaderConfig()),
    ]
    first, second = (loaded.batch for loaded in loader.load(requests))
    assert first is not None
    assert second is not None
    assert first.views.features_BVF is not None
    assert second.views.features_BVF is not None
    assert first.views.features_BVF.dtype == dtype
    expected = np.zeros((3, 3, WIDTH), dtype=np.float32)
    for case, images in enumerate(([4, 7, 5], [7], [1, 2])):
        expected[case, : len(images)] = features(images)
    assert torch.equal(first.views.features_BVF, torch.from_numpy(expected).to(dtype))
    assert first.views.there_BV.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert (first.rows_B.tolist(), first.draws_B.tolist(), len(first)) == ([3, 0, 1], [30, 31, 32], 3)
    assert (first.counts["cases"], first.share) == (5, 1.5)
    assert first.targets_B is not None
    assert first.targets_B.tolist() == [30, 0, 10]
    assert torch.equal(second.views.features_BVF[:, 0], torch.from_numpy(features([6, 3])).to(dtype))
    assert second.views.there_BV.shape == (2, 1)


@given(
    drawn=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=6),
)
def test_a_case_is_read_in_the_look_that_is_drawn(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("looks")
    images = Contents.images(Table())  # type: ignore[arg-type]
    copies = images.copied(2)
    caches = [FeatureCache(folder / name, width=WIDTH) for name in ("images", "copies")]
    for cache in caches:
        cache.folder.mkdir()
    append(caches[0], [1, 2, 3, 4, 5, 6, 7])
    known = {copy_digest(digest(image), copy): 100 * copy + image for image in range(1, 8) for copy in (1, 2)}
    caches[1].append(list(known), features(list(known.values())), shard=0)
    parts = []
    for cache, contents in zip(caches, (images, copies), strict=True):
        cache.refresh()
        parts.append(CachedFeatures(cache, contents, dtype=torch.float32, unread={}))
    rows_B, looks_B = np.array(drawn).T
    found = CachedLooks(*parts).of(rows_B, looks_B)
    assert found.features_BVF is not None
    for case, (row, look) in enumerate(drawn):
        expected = features([100 * look + image for image in Table.IMAGES[row]])
        count = len(expected)
        assert found.there_BV[case].tolist() == [True] * count + [False] * (found.there_BV.shape[1] - count)
        assert torch.equal(found.features_BVF[case, :count], torch.from_numpy(expected))
        assert not found.features_BVF[case, count:].any()


def test_copies_know_their_case_and_view() -> None:
    copies = Contents.images(Table()).copied(3)  # type: ignore[arg-type]
    cases, views = copies.places(range(len(copies.digests)))
    for number, (case, view) in enumerate(zip(cases.tolist(), views.tolist(), strict=True)):
        image = digest(Table.IMAGES[case][view])
        assert copies.digests[number] in {copy_digest(image, copy) for copy in (1, 2, 3)}
    assert copies.of([1]) == [3, 4, 5, 6, 7, 8]  # both views of copy 1, then of copy 2, then of copy 3
    assert copies.digests[5] == copy_digest(digest(1), 2)


class Captions:
    """Four cases; the second has no text, the last has two, of which one is that of the first."""

    texts: ClassVar[list[list[str]]] = [["a"], [], ["b"], ["c", "a"]]
    most_captions = 2

    def __len__(self) -> int:
        return len(self.texts)

    def captions(self, row: int) -> list[str]:
        return self.texts[row]

    drawn = captions


@pytest.fixture
def cached_texts(tmp_path: Path) -> CachedFeatures:
    """The features of a, b and c are those of the images 1, 2 and 3."""
    contents = Contents.texts(Captions())  # type: ignore[arg-type]
    assert contents.rows.tolist() == [0, 2, 3, 3]
    assert contents.digests[0] == contents.digests[3] == hashlib.sha256(b"a").digest()
    cache = FeatureCache(tmp_path, width=WIDTH)
    cache.append(contents.digests[:3], features([1, 2, 3]), shard=0)
    cache.refresh()
    return CachedFeatures(cache, contents, dtype=torch.float32, unread={})


def test_a_text_is_told_by_its_content_and_drawn_as_its_tokens_would_be(cached_texts: CachedFeatures) -> None:
    drawn = DrawnTexts(Captions(), seed=3)
    reader = CachedTextReader(cached_texts, drawn)
    chosen = [drawn.of(3, draw)[0] for draw in range(20)]
    assert set(chosen) == {"a", "c"}
    for draw, text in enumerate(chosen):
        found = reader.collate([reader.read(row, draw) for row in (3, 1, 2)], shared=False)
        assert found.there_B.tolist() == [True, False, True]
        assert found.same_B.tolist() == [{"a": 0, "c": 2}[text], -1, 1]
        assert found.own_BK is not None
        assert found.own_BK.tolist() == [{"a": [0, 2], "c": [2, 0]}[text], [-1, -1], [1, -1]]
        assert found.features_BF is not None
        own = features([{"a": 1, "c": 3}[text], 2])
        assert torch.equal(found.features_BF, torch.from_numpy(np.stack([own[0], np.zeros_like(own[0]), own[1]])))
    nothing = reader.collate([reader.read(1, 0)], shared=False)
    assert (nothing.there_B.tolist(), nothing.same_B.tolist()) == ([False], [-1])


def test_all_texts_of_a_case_are_read_where_nothing_is_drawn(cached_texts: CachedFeatures) -> None:
    reader = CachedCaptionReader(cached_texts, Captions(), numbers={"a": 0, "b": 1, "c": 2})
    for rows in ([3, 1, 2], [1, 2]):  # as wide where no case of the batch has two
        found = reader.collate([reader.read(row, 7) for row in rows], shared=False)
        assert found.same_BK.tolist() == [{3: [2, 0], 1: [-1, -1], 2: [1, -1]}[row] for row in rows]
        assert torch.equal(found.there_BK, found.same_BK >= 0)
        assert found.features_BKF is not None
        expected = np.zeros((len(rows), 2, WIDTH), dtype=np.float32)
        for place, row in enumerate(rows):
            expected[place, : len(Captions.texts[row])] = features([" abc".index(text) for text in Captions.texts[row]])
        assert torch.equal(found.features_BKF, torch.from_numpy(expected))


def test_augmentations_that_are_on() -> None:
    assert AugmentationConfig(crop_ratio=(0.5, 2.0)).names == []
    on = AugmentationConfig(crop_scale=(0.5, 1.0), rotation_degrees=5, grayscale_prob=0.5)
    assert on.names == ["crop_scale", "rotation_degrees", "grayscale_prob"]
