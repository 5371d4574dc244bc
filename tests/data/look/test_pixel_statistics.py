"""The true mean and deviation of pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from consilium.core.errors import DataError, ImageError
from consilium.data.cases.load import used_cases
from consilium.data.config import DataConfig, FilterConfig
from consilium.data.look.pixel_statistics import PixelStatistics, node_lines, node_statistics, pixel_statistics, spread
from consilium.data.store.prepare import prepare
from consilium.data.store.store import Store
from tests.data.samples import data_config, image_bytes, write_jsonl
from tests.labelled import label_needs

SIZES = [(5, 7), (40, 9), (1, 1), (16, 16), (3, 50)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    for number, size in enumerate(SIZES):
        (tmp_path / f"{number}.png").write_bytes(image_bytes(number, size=size))
    rows = [{"modalities": [{"value": f"{n}.png"} for n in (0, 1)], "split": "train"}]
    rows += [{"image": f"{n}.png", "split": "train"} for n in (2, 3)]
    rows += [{"image": "4.png", "split": "test"}, {"text": "no image", "split": "train"}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    return prepare(data_config(tmp_path, {"kind": "jsonl", "name": "s", "path": str(path)})).store


def pixels(*numbers: int) -> np.ndarray:
    images = [np.asarray(Image.open(io.BytesIO(image_bytes(n, size=SIZES[n])))) for n in numbers]
    return np.concatenate([image.reshape(-1, 3) for image in images]).astype(np.float64) / 255


def test_over_all_pixels_of_the_split(store: Store) -> None:
    calls: list[tuple[int, int | None]] = []
    found = pixel_statistics(store, progress=lambda done, total: calls.append((done, total)))
    expected = pixels(0, 1, 2, 3)
    np.testing.assert_allclose(found.mean, expected.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std, expected.std(0), rtol=1e-12)
    assert (found.images, found.pixels) == (4, len(expected))
    assert calls[-1] == (4, 4)


def test_one_image_and_another_split(store: Store) -> None:
    np.testing.assert_allclose(pixel_statistics(store, split="test").mean, pixels(4).mean(0), rtol=1e-12)
    limited = pixel_statistics(store, limit=1)
    np.testing.assert_allclose(limited.std, pixels(0, 1).std(0), rtol=1e-12)
    assert limited.images == 2


@pytest.fixture
def tree(tmp_path: Path) -> DataConfig:
    """Images 0 to 4 at several depths of a tree; 0 is there twice, 3 is a pseudo-label, 4 is tested."""
    for number, size in enumerate(SIZES):
        (tmp_path / f"{number}.png").write_bytes(image_bytes(number, size=size))
    rows = [
        {"modalities": [{"value": "0.png"}, {"value": "0.png"}], "label": "exp.gel.nor", "split": "train"},
        {"image": "1.png", "label": "exp.gel", "split": "train"},
        {"image": "2.png", "label": "gra", "split": "train"},
        {"image": "3.png", "label": "exp.gel.wes", "split": "train", "is_gt": False},
        {"image": "4.png", "label": "exp.gel.nor", "split": "test"},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    return data_config(tmp_path, {"kind": "jsonl", "name": "s", "path": str(path)})


def test_every_inner_node_has_the_cases_strictly_below_it(tree: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    monkeypatch.setattr(
        "consilium.data.look.pixel_statistics.read_bytes",
        lambda image: read.append(image) or Path(str(image)).read_bytes(),
    )
    store = prepare(tree).store
    cases = used_cases(store.table, config=tree, needs=label_needs()).table
    found = node_statistics(store, cases=cases)
    expected = {"root": (0, 0, 1, 2), "exp": (0, 0, 1), "exp.gel": (0, 0)}
    assert list(found) == list(expected)
    assert len(read) == 4, "every image once, whatever the number of nodes above it"
    for node, numbers in expected.items():
        np.testing.assert_allclose(found[node].mean, pixels(*numbers).mean(0), rtol=1e-12)
        np.testing.assert_allclose(found[node].std, pixels(*numbers).std(0), rtol=1e-12)
        assert (found[node].images, found[node].pixels) == (len(numbers), len(pixels(*numbers)))


def test_a_node_has_the_statistics_of_the_run_that_trains_it(tree: DataConfig) -> None:
    config = tree.model_copy(update={"pseudo_labels": True})
    store = prepare(config).store
    cases = used_cases(store.table, config=config, needs=label_needs()).table
    for node, own in node_statistics(store, cases=cases).items():
        alone = config.model_copy(update={"filters": FilterConfig(node=node)})
        assert pixel_statistics(store, cases=used_cases(store.table, config=alone, needs=label_needs()).table) == own


def test_what_is_printed_is_what_a_config_takes() -> None:
    own = PixelStatistics(mean=(0.123456, 0.5, 1.0), std=(0.1, 0.25, 0.00012345), images=2, pixels=70)
    table, _, text = node_lines({"root": own, "exp.on": own, "on": own})
    assert [line.split()[:3] for line in table.splitlines()[3:]] == [[n, "2", "70"] for n in ("root", "exp.on", "on")]
    entry = {"mean": [0.1235, 0.5, 1.0], "std": [0.1, 0.25, 0.0001]}
    assert yaml.safe_load(text) == {"task": {"tree": {"statistics": dict.fromkeys(("root", "exp.on", "on"), entry)}}}


def test_split_without_images(store: Store) -> None:
    with pytest.raises(DataError, match="the split 'val' has no image"):
        pixel_statistics(store, split="val")


def test_image_that_went_bad(store: Store, tmp_path: Path) -> None:
    (tmp_path / "3.png").write_text("gone bad")
    with pytest.raises(ImageError, match=r"3\.png"):
        pixel_statistics(store)


def test_spread() -> None:
    assert spread(10, 3) == [0, 3, 6]
    assert spread(2, 5) == [0, 1]
    assert spread(0, 5) == []
