"""Near-duplicates: planted ones are found, others are not, and the work stays bounded."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter

from consilium.data.guards import near_duplicates as module
from consilium.data.guards.digests import image_digests
from consilium.data.guards.near_duplicates import NearDuplicates, find_near_duplicates
from consilium.data.guards.similarity import (
    COMPARED,
    LEAST_IN_FULL,
    LEAST_SIMILARITY,
    MOST_PIXELS,
    grey_image,
    similarity,
    similarity_in_full,
)
from consilium.data.store.prepare import prepare
from consilium.data.store.store import Store
from tests.data.guards.pictures import encoded, picture, store_of
from tests.data.samples import data_config


def search(store: Store, *, across_splits: bool = True) -> NearDuplicates:
    return find_near_duplicates(store.table, image_digests(store), across_splits=across_splits)


def named(found: NearDuplicates) -> set[tuple[str, str]]:
    return {(Path(pair.images[0]).name, Path(pair.images[1]).name) for pair in found.pairs}


COLLECTION = os.environ.get("CONSILIUM_SHARED", "")
IMAGE = picture(7, side=200)
CHANGES = {
    "recompressed": encoded(IMAGE, quality=50),
    "png": encoded(IMAGE, format="PNG"),
    "half": encoded(IMAGE.resize((100, 100), Image.Resampling.BICUBIC)),
    "double": encoded(IMAGE.resize((400, 400), Image.Resampling.BICUBIC)),
    "stretched": encoded(IMAGE.resize((200, 160), Image.Resampling.BICUBIC)),
    "cropped": encoded(IMAGE.crop((2, 2, 198, 198))),
    "darker": encoded(ImageEnhance.Brightness(IMAGE).enhance(0.7)),
    "grey": encoded(IMAGE.convert("L")),
}


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> NearDuplicates:
    files = {"original.jpg": encoded(IMAGE), **{f"{name}.img": data for name, data in CHANGES.items()}}
    files |= {f"other{number}.jpg": encoded(picture(number, side=200)) for number in range(4)}
    rows = [{"image": name, "split": "train" if name == "original.jpg" else "test"} for name in files]
    return search(store_of(tmp_path_factory.mktemp("changed"), files, rows))


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_image_is_found(changed: NearDuplicates, change: str) -> None:
    assert ("original.jpg", f"{change}.img") in named(changed)


def test_other_images_are_not(changed: NearDuplicates) -> None:
    assert not [names for names in named(changed) if any("other" in name for name in names)]
    assert changed.notes == []
    assert [pair.similarity for pair in changed.pairs] == sorted((p.similarity for p in changed.pairs), reverse=True)
    assert all(LEAST_IN_FULL <= pair.similarity <= 1.0001 and pair.a < pair.b for pair in changed.pairs)


def test_only_across_splits_and_never_the_same_file(tmp_path: Path) -> None:
    one, again = encoded(IMAGE), encoded(IMAGE, quality=60)
    files = {
        "one.jpg": one,
        "copy.jpg": one,
        "again.jpg": again,
        "val.jpg": encoded(IMAGE, quality=70),
        "free.jpg": again,
    }
    splits = {"one.jpg": "train", "copy.jpg": "test", "again.jpg": "train", "val.jpg": "val", "free.jpg": "unlabelled"}
    store = store_of(tmp_path, files, [{"image": name, "split": splits[name]} for name in files])
    across = {("one.jpg", "val.jpg"), ("copy.jpg", "val.jpg"), ("again.jpg", "val.jpg"), ("copy.jpg", "again.jpg")}
    assert named(search(store)) == across
    everywhere = named(search(store, across_splits=False))
    assert not everywhere & {("one.jpg", "copy.jpg"), ("again.jpg", "free.jpg")}  # the same file
    linked = {frozenset(pair) for pair in everywhere} | {frozenset(("one.jpg", "copy.jpg"))}
    assert set().union(*linked) == set(files)


def test_every_case_of_a_file_is_told(tmp_path: Path) -> None:
    files = {"a.jpg": encoded(IMAGE), "b.jpg": encoded(IMAGE, quality=50)}
    rows = [{"image": "a.jpg", "split": "train"}] * 3 + [{"image": "b.jpg", "split": "test"}] * 2
    found = search(store_of(tmp_path, files, rows))
    assert {row for pair in found.pairs for row in (pair.a, pair.b)} == set(range(5))


def test_rows_are_those_of_the_table_that_is_searched(tmp_path: Path) -> None:
    files = {"x.jpg": encoded(picture(3)), "a.jpg": encoded(IMAGE), "b.jpg": encoded(IMAGE, quality=50)}
    rows = [{"image": name, "split": "test" if name == "b.jpg" else "train"} for name in files]
    store = store_of(tmp_path, files, rows)
    found = find_near_duplicates(store.table.select(np.array([2, 1])), image_digests(store))
    assert [(pair.a, pair.b) for pair in found.pairs] == [(0, 1)]
    moved = store.table.with_splits(["train"] * 3)
    assert find_near_duplicates(moved, image_digests(store)).pairs == []


def test_images_of_one_colour_are_told_not_compared(tmp_path: Path) -> None:
    files = {f"{n}.png": encoded(Image.new("RGB", (60 + n, 60), (n, 0, 0)), format="PNG") for n in range(6)}
    store = store_of(tmp_path, files, [{"image": f"{n}.png", "split": ("train", "test")[n % 2]} for n in range(6)])
    found = search(store)
    assert found.pairs == []
    assert found.notes == ["6 image(s) of a single colour were not compared."]


def test_many_that_look_alike_are_bounded_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSEST", 2)
    monkeypatch.setattr(module, "MAX_COMPARED", 9)
    files = {f"{n}.jpg": encoded(IMAGE, quality=50 + 2 * n) for n in range(12)}
    store = store_of(tmp_path, files, [{"image": f"{n}.jpg", "split": ("train", "test")[n % 2]} for n in range(12)])
    calls: list[tuple[int, int | None]] = []
    found = find_near_duplicates(
        store.table, image_digests(store), progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(done, 9) for done in range(1, 10)]
    assert len(found.pairs) == 9
    assert len({pair.a for pair in found.pairs} | {pair.b for pair in found.pairs}) >= 6
    assert found.notes == [
        "36 pairs of images look alike at first sight; only the closest 9 were compared, so near-duplicates "
        "may be missed."
    ]


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    good = encoded(IMAGE)
    files = {"a.jpg": good, "b.jpg": good[: len(good) // 2] + b"\xff\xd9", "c.jpg": encoded(IMAGE, quality=50)}
    rows = [{"image": n, "split": s} for n, s in zip(files, ("train", "test", "val"), strict=True)]
    store = store_of(tmp_path, files, rows, check_images="header")
    digests = image_digests(store)
    found = find_near_duplicates(store.table, digests)
    assert named(found) == {("a.jpg", "c.jpg")}
    assert found.notes == [
        f"1 image(s) cannot be decoded and were not compared, the first {store.table.image_names(1)[0]}."
    ]
    Path(found.pairs[0].images[0]).unlink()  # gone since
    assert find_near_duplicates(store.table, digests).pairs == []


def detailed(seed: int, *, side: int = 640) -> Image.Image:
    """One picture, enlarged, under details of a few pixels that a seed decides."""
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8))
    fine = np.asarray(noise.filter(ImageFilter.GaussianBlur(1.5)), np.float32)[:, :, None] - 127.5
    pixels = np.asarray(picture(1).resize((side, side), Image.Resampling.BICUBIC)) + 0.5 * fine
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def test_large_images_are_compared_at_full_resolution(tmp_path: Path) -> None:
    original = detailed(0)
    files = {
        "original.jpg": encoded(original),
        "other details.jpg": encoded(detailed(1)),
        "again.jpg": encoded(original, quality=50),
        "larger.jpg": encoded(original.resize((900, 900), Image.Resampling.BICUBIC)),
        "cropped.jpg": encoded(original.crop((6, 6, 634, 634))),
        "small.jpg": encoded(original.resize((200, 200), Image.Resampling.BICUBIC)),
    }
    rows = [{"image": name, "split": "train" if name == "original.jpg" else "test"} for name in files]
    found = search(store_of(tmp_path, files, rows))
    assert named(found) == {("original.jpg", name) for name in files} - {
        ("original.jpg", "original.jpg"),
        ("original.jpg", "other details.jpg"),
    }

    def grey(name: str, *, in_full: bool) -> np.ndarray:
        image, size = files[name], Image.open(tmp_path / name).size
        return grey_image(image, name=name, size=size, max_pixels=10**6, in_full=in_full)

    one, other = ("original.jpg", "other details.jpg")
    assert similarity(grey(one, in_full=False), grey(other, in_full=False)) > LEAST_SIMILARITY  # only in full it shows
    again = next(pair for pair in found.pairs if pair.images[1].endswith("again.jpg"))
    assert again.similarity == similarity_in_full(grey(one, in_full=True), grey("again.jpg", in_full=True))


def test_of_many_large_pairs_the_least_alike_are_compared_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = picture(0, side=640)
    files = {
        "original.jpg": encoded(original),
        "q50.jpg": encoded(original, quality=50),
        "q20.jpg": encoded(original, quality=20),
    }
    rows = [{"image": name, "split": "train" if name == "original.jpg" else "test"} for name in files]
    store = store_of(tmp_path, files, rows)
    whole = {pair.images[1]: pair.similarity for pair in search(store).pairs}
    monkeypatch.setattr(module, "MAX_IN_FULL", 1)
    found = search(store)
    assert found.notes == [
        "2 pairs of large images are alike at 256 pixels; only the 1 least alike of them were compared at full "
        "resolution."
    ]
    changed = {pair.images[1] for pair in found.pairs if pair.similarity != whole[pair.images[1]]}
    assert [name.endswith("q50.jpg") for name in changed] == [True]
    assert len(found.pairs) == 2


def test_large_images_without_fine_details_are_judged_when_small(tmp_path: Path) -> None:
    blurred = picture(2, side=200).resize((800, 800), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(15))
    files = {"one.jpg": encoded(blurred), "two.jpg": encoded(blurred, quality=60)}
    found = search(
        store_of(tmp_path, files, [{"image": "one.jpg", "split": "train"}, {"image": "two.jpg", "split": "val"}])
    )
    assert named(found) == {("one.jpg", "two.jpg")}
    grey = np.asarray(blurred.convert("L"))
    assert similarity_in_full(grey, grey) is None
    assert found.pairs[0].similarity >= LEAST_SIMILARITY


def test_the_work_on_a_large_image_is_bounded() -> None:
    data = encoded(picture(0).resize((3000, 2000)))
    for in_full in (False, True):
        height, width = grey_image(data, name="x", size=(2000, 3000), max_pixels=10**7, in_full=in_full).shape
        assert width / height == pytest.approx(1.5, abs=0.01)
        assert height * width <= MOST_PIXELS * 1.001 if in_full else width == COMPARED


def test_no_images_at_all(tmp_path: Path) -> None:
    store = store_of(tmp_path, {}, [{"text": "words", "split": "train"}, {"text": "more", "split": "test"}])
    assert search(store) == NearDuplicates([], [])


@pytest.mark.slow
@pytest.mark.skipif(not COLLECTION, reason="CONSILIUM_SHARED (the folder of the curated collection) is not set")
def test_on_real_images(tmp_path: Path) -> None:
    """Two ultrasound images that the collection's own groups miss; no two fundus photographs or chest X-rays."""
    root = Path(COLLECTION)
    columns = {"image": "path", "label": "modality"}
    source = {"kind": "csv", "name": "s", "path": str(root / "modality/manifest.csv"), "image_root": str(root)}
    store = prepare(data_config(tmp_path, {**source, "columns": columns})).store
    assert ("busi_normal132.jpg", "busi_normal20.jpg") in named(search(store))
    groups = store.table.groups
    strangers = [
        pair.images
        for pair in search(store, across_splits=False).pairs
        if Path(pair.images[0]).parent.name in ("fundus", "xray_chest", "dermoscopy", "endoscopy")
        and groups[pair.a] != groups[pair.b]
    ]
    assert strangers == []


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), wide=st.integers(32, 200), gain=st.floats(0.4, 1.0), shift=st.integers(0, 3))
def test_similarity_survives_size_brightness_and_shift_and_tells_others(
    seed: int, wide: int, gain: float, shift: int
) -> None:
    grey = np.asarray(picture(seed, side=200).convert("L"))
    reduced = np.asarray(Image.fromarray(grey).resize((max(wide, 64), 150), Image.Resampling.BICUBIC))
    assert similarity(grey, (reduced * gain).astype(np.uint8)) > LEAST_SIMILARITY
    assert similarity(grey[:197, :197], grey[shift : shift + 197, shift : shift + 197]) > LEAST_SIMILARITY
    other = np.asarray(picture(seed + 1, side=200).convert("L"))
    assert similarity(grey, other) < 0.6
    assert similarity(grey, other) == pytest.approx(similarity(grey, (other * 0.7).astype(np.uint8)), abs=0.05)


def test_similarity_of_images_without_detail() -> None:
    plain = np.full((100, 100), 128, dtype=np.uint8)
    assert similarity(plain, plain) == 0
    assert similarity(plain, np.asarray(picture(0, side=100).convert("L"))) < 0.3
