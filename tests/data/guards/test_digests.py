"""One look at every image: what is found, and that it is kept."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from consilium.data.guards import digests as digests_module
from consilium.data.guards.digests import FILE, STATISTICS, Digests, image_digests
from consilium.data.store import parts
from consilium.data.store.prepare import prepare
from consilium.data.store.store import Store
from tests.data.guards.pictures import encoded, picture, store_of
from tests.data.samples import data_config, write_jsonl


def bits(digests: Digests, one: int, other: int) -> int:
    return int(np.bitwise_count(digests.hashes[one] ^ digests.hashes[other]).sum())


def statistic(digests: Digests, name: str) -> np.ndarray:
    return digests.statistics[:, digests.names.index(name)]


def digests_of(folder: Path, images: dict[str, bytes]) -> Digests:
    return image_digests(store_of(folder, images, [{"image": name, "split": "train"} for name in images]))


def test_hashes_change_little_with_the_file_and_much_with_the_picture(tmp_path: Path) -> None:
    image = picture(0, side=640)  # a JPEG of this size is decoded to scale, a PNG is not
    small = image.resize((160, 128), Image.Resampling.BICUBIC)
    files = {
        "0.png": encoded(image, format="PNG"), "1.jpg": encoded(image), "2.jpg": encoded(image, quality=30),
        "3.jpg": encoded(small), "4.jpg": encoded(ImageEnhance.Brightness(image).enhance(0.8)),
        "5.jpg": encoded(picture(1)), "6.jpg": encoded(picture(2)),
    }  # fmt: skip
    digests = digests_of(tmp_path, files)
    assert all(bits(digests, 0, other) <= 12 for other in (1, 2, 3, 4))
    assert all(80 < bits(digests, one, other) < 176 for one, other in ((0, 5), (0, 6), (5, 6)))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), gain=st.floats(0.3, 1.0), offset=st.floats(0.0, 60.0))
def test_brightness_and_contrast_leave_the_hash(seed: int, gain: float, offset: float) -> None:
    values = np.asarray(picture(seed % 1000, side=64)).astype(np.float32) * 0.7
    pixels = np.stack([values, values * gain + offset]).round().astype(np.uint8)
    one, other = digests_module._hashes(pixels)
    assert np.bitwise_count(one ^ other).sum() <= 24  # rounding moves what lies at the median


def test_statistics(tmp_path: Path) -> None:
    plain = np.full((64, 96, 3), (200, 100, 0), dtype=np.uint8)
    framed = np.asarray(picture(0)).copy()
    framed[:, :32] = 0  # the left quarter is black
    digests = digests_of(
        tmp_path,
        {f"{n}.png": encoded(Image.fromarray(pixels), format="PNG") for n, pixels in enumerate((plain, framed))},
    )
    assert statistic(digests, "width").tolist() == [96, 128]
    assert statistic(digests, "height").tolist() == [64, 128]
    assert digests.statistics.shape == (2, len(STATISTICS))
    expected = {
        "left margin": (1, 0.25), "right margin": (1, 0), "top margin": (1, 0), "left border level": (100 / 255, 0),
        "left border deviation": (0, 0), "black border": (0, (0.25 + 0.25 + 1) / 4), "red mean": (200 / 255, None),
        "red deviation": (0, framed[..., 0].std() / 255), "blue mean": (0, framed[..., 2].mean() / 255),
        "saturation mean": (1, None), "grey level 96 to 127": (1, None),
    }  # fmt: skip
    for name, values in expected.items():
        for found, value in zip(statistic(digests, name), values, strict=True):
            assert value is None or found == pytest.approx(value, abs=0.02), name
    histogram = [statistic(digests, name)[1] for name in STATISTICS if name.startswith("grey level")]
    assert sum(histogram) == pytest.approx(1)


def test_they_are_kept_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int | None]] = []
    files = {f"{number}.jpg": encoded(picture(number)) for number in range(3)}
    store = store_of(tmp_path, files, [{"image": name, "split": "train"} for name in files], check_images="header")
    first = image_digests(store, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(3, 3)]
    assert [path.name for path in store.path.glob("*.npz")] == [FILE]
    monkeypatch.setattr(digests_module, "_look", lambda *_: pytest.fail("looked again"))
    again = image_digests(Store.open(store.path))
    for name in ("rows", "hashes", "statistics", "readable"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert again.names == STATISTICS


def test_those_of_prepare_are_those_of_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{number}.jpg": encoded(picture(number)) for number in range(9)}
    rows = [{"image": name, "split": "train"} for name in files]
    monkeypatch.setattr(digests_module, "COLLECTED", 4)
    monkeypatch.setattr(parts, "PART_ROWS", 5)
    prepared = store_of(tmp_path / "decode", files, rows)
    passed = image_digests(store_of(tmp_path / "header", files, rows, check_images="header"))
    monkeypatch.setattr(digests_module, "_look", lambda *_: pytest.fail("looked again"))
    found = image_digests(prepared)
    for name in ("rows", "hashes", "statistics", "readable"):
        assert np.array_equal(getattr(found, name), getattr(passed, name))
    assert [path.name for path in prepared.path.glob("*.npz")] == [FILE]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", None])
def test_a_damaged_or_foreign_file_is_made_again(tmp_path: Path, damage: bytes | None) -> None:
    files = {f"{number}.jpg": encoded(picture(number)) for number in range(2)}
    store = store_of(tmp_path, files, [{"image": name, "split": "train"} for name in files])
    expected = image_digests(store).hashes
    path = store.path / FILE
    if damage is None:  # of another store
        saved = dict(np.load(path))
        np.savez(path, **{**saved, "key": np.array("other"), "hashes": saved["hashes"] + 1})
    else:
        path.write_bytes(damage)
    assert np.array_equal(image_digests(store).hashes, expected)
    assert np.array_equal(np.load(path)["hashes"], expected)


def test_an_interrupted_pass_leaves_no_file(tmp_path: Path) -> None:
    files = {f"{number}.jpg": encoded(picture(number)) for number in range(2)}
    store = store_of(tmp_path, files, [{"image": name, "split": "train"} for name in files], check_images="header")

    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        image_digests(store, progress=interrupt)
    assert not list(store.path.glob("*digests*"))
    assert len(image_digests(store).rows) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    store = store_of(tmp_path, {"0.jpg": encoded(picture(0))}, [{"image": "0.jpg", "split": "train"}])
    store.path.chmod(0o555)
    try:
        assert image_digests(store).readable.all()
    finally:
        store.path.chmod(0o755)


def test_a_write_that_fails_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    rows = [{"image": "0.jpg", "split": "train"}]
    store = store_of(tmp_path, {"0.jpg": encoded(picture(0))}, rows, check_images="header")
    monkeypatch.setattr(digests_module, "atomic_file", full)
    assert image_digests(store).readable.all()
    assert not (store.path / FILE).exists()


def test_damaged_data_is_noted(tmp_path: Path) -> None:
    good = encoded(picture(0))
    broken = good[: len(good) // 2] + b"\xff\xd9"  # the header and the end are whole
    rows = [{"image": name, "split": "train"} for name in ("a.jpg", "b.jpg")]
    store = store_of(tmp_path, {"a.jpg": good, "b.jpg": broken}, rows, check_images="header")
    for digests in (image_digests(store), image_digests(store)):  # made, and read back
        assert digests.readable.tolist() == [True, False]
        assert len(digests.problems) == 1
        assert "b.jpg" in digests.problems[0]
        assert np.isnan(digests.statistics[1, 2:]).all()


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.integers(0, 5), max_size=8))
def test_of_a_part_of_the_store(several_views: Store, rows: list[int]) -> None:
    whole = image_digests(several_views)
    table = several_views.table.select(np.array(rows, dtype=np.int64))
    part = whole.of(table)
    expected_rows, widths = table.view_column("width")
    assert np.array_equal(part.rows, expected_rows)
    assert part.statistics[:, 0].astype(int).tolist() == widths
    again = several_views.table.select(np.arange(6)[::-1]).select(5 - np.array(rows, dtype=np.int64))
    assert np.array_equal(whole.of(again).hashes, part.hashes)


@pytest.fixture(scope="module")
def several_views(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Cases of 2, 0, 1, 3, 0 and 1 images, each of another width."""
    folder = tmp_path_factory.mktemp("views")
    rows, number = [], 0
    for count in (2, 0, 1, 3, 0, 1):
        values = []
        for _ in range(count):
            picture(number, side=64).resize((20 + number, 30)).save(folder / f"{number}.png")
            values.append({"value": f"{number}.png"})
            number += 1
        rows.append({"text": "words", "modalities": values, "split": "train"})
    path = write_jsonl(folder / "a.jsonl", rows)
    return prepare(data_config(folder, {"kind": "jsonl", "name": "s", "path": str(path)})).store
