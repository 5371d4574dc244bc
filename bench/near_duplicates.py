"""Near-duplicate search: time, recall on planted duplicates, and what the measure of similarity accepts.

    python bench/near_duplicates.py [--images 100000]
    python bench/near_duplicates.py --folder FOLDER

The first draws small JPEG files: seeded crops of 1 / f noise fields, blended; half of them over one common picture,
as photographs of one kind are alike. Every hundredth image is a planted duplicate of one in another split: written
again at quality 50, resized to 50 to 200 %, cropped by 1 or 2 %, or made 20 % brighter or darker; both are four times
as large, with details that only full resolution shows. One in ten of them has other such details and must not be
found. Printed are the times of preparing the store, of the pass over all images, of the search and of its last stage,
the recall on the planted pairs, and the pairs found that were not planted.

The second takes a folder of folders of images, one folder a kind (say, all chest X-rays), and prints for each way of
changing an image the distance of the hashes and the similarity to the original, then the most similar pairs of
different files of a kind. It shows where ``LEAST_SIMILARITY``, ``LEAST_IN_FULL`` (``in full``: of
images of more than 256 pixels) and ``MAX_DISTANCE`` lie between the two.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import simplejpeg
from PIL import Image, ImageEnhance, ImageFilter

from bench._machine import describe_machine
from consilium.core.config import build
from consilium.data.config import DataConfig
from consilium.data.guards.digests import Digests, image_digests
from consilium.data.guards.near_duplicates import MAX_DISTANCE, find_near_duplicates
from consilium.data.guards.similarity import (
    COMPARED,
    LEAST_IN_FULL,
    LEAST_SIMILARITY,
    grey_image,
    similarity,
    similarity_in_full,
)
from consilium.data.store.prepare import prepare
from consilium.data.store.store import Store

SIDE, FIELD, FIELDS = 160, 512, 64
ENLARGED = 4
OTHER = "other fine details, not to be found"
EVERY = 100  # one image in so many is planted
SPLITS = ("train",) * 8 + ("val", "test")


def main() -> None:
    """Draw, search, print; or measure on a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=None, help="folder of folders of images to measure instead")
    parser.add_argument("--count", type=int, default=40, help="images of each kind, with --folder")
    arguments = parser.parse_args()
    print(f"machine: {describe_machine()}")
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.folder is None:
            search(Path(temporary), images=arguments.images)
        else:
            measure(Path(temporary), folder=arguments.folder, count=arguments.count)


def fields() -> np.ndarray:
    """Noise with the falling spectrum of photographs, [FIELDS, FIELD, FIELD, 3] of deviation 1."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(FIELD)[:, None], np.fft.rfftfreq(FIELD)[None])
    frequency[0, 0] = np.inf
    drawn = []
    for _ in range(FIELDS):
        planes = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((4, FIELD, FIELD))) / frequency**1.5)
        planes /= planes.std((1, 2), keepdims=True)
        drawn.append((0.9 * planes[:1] + 0.3 * planes[1:]).transpose(1, 2, 0).astype(np.float32))
    return np.stack(drawn)


def draw(number: int, drawn: np.ndarray) -> np.ndarray:
    """Image ``number``, always the same."""
    rng = np.random.default_rng(number)
    pixels_HWC = np.full((SIDE, SIDE, 3), 120, dtype=np.float32)
    for _ in range(2):
        top, left = rng.integers(0, FIELD - SIDE, 2)
        field = drawn[rng.integers(1, FIELDS)][top : top + SIDE, left : left + SIDE]
        pixels_HWC += 30 * field[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
    if number % 2:
        pixels_HWC += 25 * drawn[0][:SIDE, :SIDE]
    return np.clip(pixels_HWC, 0, 255).astype(np.uint8)


def enlarged(pixels_HWC: np.ndarray, *, seed: int) -> Image.Image:
    """The image four times as large, under details of a few pixels."""
    side = ENLARGED * SIDE
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8))
    fine_HW = np.asarray(noise.filter(ImageFilter.GaussianBlur(1.5)), np.float32) - 127.5
    large_HWC = np.asarray(Image.fromarray(pixels_HWC).resize((side, side), Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(large_HWC + 0.35 * fine_HW[:, :, None], 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    """The image as a JPEG file."""
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(image.convert("RGB")), quality=quality)
    return encoded


def changed(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Every way of changing an image, and its file."""
    width, height = image.size
    across, down = max(1, round(width / 100)), max(1, round(height / 100))
    yield "quality 50", jpeg(image, 50)
    for zoom in (0.5, 0.75, 1.5, 2.0):
        size = (round(width * zoom), round(height * zoom))
        yield f"resized to {zoom:.0%}", jpeg(image.resize(size, Image.Resampling.BICUBIC))
    yield "cropped 1 % on each side", jpeg(image.crop((across, down, width - across, height - down)))
    yield "cropped 2 % on two sides", jpeg(image.crop((2 * across, 2 * down, width, height)))
    for factor in (0.8, 1.2):
        yield f"brightness {factor}", jpeg(ImageEnhance.Brightness(image).enhance(factor))


def write(folder: Path, *, images: int) -> dict[tuple[str, str], str]:
    """Write the images and their table; returns the planted pairs and how each was changed."""
    drawn, planted = fields(), {}
    rng = np.random.default_rng(1)
    with (folder / "images.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "split"])
        for number in range(images):
            name, split = f"{number // 1000:04d}/{number:07d}.jpg", SPLITS[number % 10]
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            if number % EVERY == EVERY - 1:  # in test; its original, two images ago, in train
                pixels_HWC = draw(number - 2, drawn)
                kinds = [
                    *changed(enlarged(pixels_HWC, seed=number)),
                    (OTHER, jpeg(enlarged(pixels_HWC, seed=number + images))),
                ]
                kind, data = kinds[rng.integers(len(kinds))]
                planted[f"{(number - 2) // 1000:04d}/{number - 2:07d}.jpg", name] = kind
            elif number % EVERY == EVERY - 3:
                data = jpeg(enlarged(draw(number, drawn), seed=number + 2))
            else:
                data = jpeg(Image.fromarray(draw(number, drawn)))
            path.write_bytes(data)
            table.writerow([name, split])
    return planted


def store_of(folder: Path, source: dict[str, str]) -> Store:
    """The prepared store of a source."""
    tree = {"sources": [{"name": "s", **source}], "store": {"root": str(folder / "stores")}}
    return prepare(build(DataConfig, tree, origin="bench")).store


def search(folder: Path, *, images: int) -> None:
    """The times, and what was found."""
    start = time.perf_counter()
    planted = write(folder, images=images)
    drawn = time.perf_counter()
    store = store_of(folder, {"kind": "csv", "path": str(folder / "images.csv")})
    prepared = time.perf_counter()
    digests = image_digests(store)
    passed = time.perf_counter()
    found = find_near_duplicates(store.table, digests)
    searched = time.perf_counter()
    print("| images | drawing | preparing | pass over all images | search | pass + search | goal for 100,000 |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {images:,} | {drawn - start:.1f} s | {prepared - drawn:.1f} s | {passed - prepared:.1f} s "
        f"| {searched - passed:.1f} s | {searched - prepared:.1f} s | 300 s |\n"
    )
    rows = [(pair.a, pair.b) for pair in found.pairs]
    start = time.perf_counter()
    for one, other in rows:
        similarity_in_full(*(grey(store, digests, row, in_full=True) for row in (one, other)))
    print(f"of the search, the last stage on {len(rows)} pairs: {time.perf_counter() - start:.1f} s in one thread\n")
    pairs = {tuple(sorted(os.path.relpath(name, folder) for name in pair.images)) for pair in found.pairs}
    print("| planted | pairs | found |\n|---|---|---|")
    for kind in sorted(set(planted.values())):
        own = {pair for pair, how in planted.items() if how == kind}
        print(f"| {kind} | {len(own)} | {len(own & pairs)} |")
    true = {pair for pair, how in planted.items() if how != OTHER}
    print(f"| all to be found | {len(true)} | {len(true & pairs)} |")
    print(f"\npairs found that were not planted: {len(pairs - planted.keys())}; notes: {found.notes or 'none'}")


def measure(work: Path, *, folder: Path, count: int) -> None:
    """Distances and similarities of changed images, and of the most alike of different files."""
    kinds = sorted(path for path in folder.iterdir() if path.is_dir())
    originals = {kind.name: sorted(path for path in kind.iterdir() if path.is_file())[:count] for kind in kinds}
    for kind, paths in originals.items():
        for number, path in enumerate(paths):
            with Image.open(path) as opened:
                image = opened.convert("RGB")
            target = work / "all" / kind
            target.mkdir(parents=True, exist_ok=True)
            (target / f"{number:04d}.jpg").write_bytes(jpeg(image, 95))
            for how, data in changed(image):
                (target / f"{number:04d} {how}.jpg").write_bytes(data)
    store = store_of(work, {"kind": "folder", "path": str(work / "all")})
    digests = image_digests(store)
    files = [Path(store.table.image_names(row)[0]) for row in range(len(store.table))]
    greys = [grey(store, digests, row) for row in range(len(files))]
    first = {(path.parent.name, path.stem): row for row, path in enumerate(files) if " " not in path.stem}

    def alike(one: int, other: int) -> tuple[float, bool]:
        """What the last stage says, and whether both accept."""
        small = similarity(greys[one], greys[other])
        if small < LEAST_SIMILARITY or max(min(size(digests, one), size(digests, other), key=math.prod)) <= COMPARED:
            return small, small >= LEAST_SIMILARITY
        full = similarity_in_full(*(grey(store, digests, row, in_full=True) for row in (one, other)))
        return (small, True) if full is None else (full, full >= LEAST_IN_FULL)

    by_change: dict[str, list[tuple[int, float, bool]]] = {}
    for row, path in enumerate(files):
        stem, _, how = path.stem.partition(" ")
        if how:
            original = first[path.parent.name, stem]
            seen = (distance(digests, row, original), *alike(row, original))
            by_change.setdefault(how, []).append(seen)
    print(
        f"threshold: at most {MAX_DISTANCE} of 255 bits, similarity at least {LEAST_SIMILARITY}, "
        f"in full {LEAST_IN_FULL}\n"
    )
    print("| change | images | bits: median, 99 %, most | similarity: least, 1 %, median | accepted |")
    print("|---|---|---|---|---|")
    for how, measured in by_change.items():
        bits, found, agreed = np.array(measured).T
        accepted = ((bits <= MAX_DISTANCE) & (agreed > 0)).mean()
        print(
            f"| {how} | {len(bits)} | {np.median(bits):.0f}, {np.percentile(bits, 99):.0f}, {bits.max():.0f} "
            f"| {found.min():.2f}, {np.percentile(found, 1):.2f}, {np.median(found):.2f} | {accepted:.1%} |"
        )
    print_strangers(originals, digests, alike, first)


def print_strangers(
    originals: dict[str, list[Path]],
    digests: Digests,
    alike: Callable[[int, int], tuple[float, bool]],
    first: dict[tuple[str, str], int],
) -> None:
    """For each kind, the closest pairs of different files; some may be true duplicates, so their names are told."""
    print("\n| kind | pairs | closest bits | most similar | accepted | the most similar |\n|---|---|---|---|---|---|")
    for kind, paths in originals.items():
        numbers = range(len(paths))
        rows = [first[kind, f"{number:04d}"] for number in numbers]
        pairs = [(distance(digests, rows[a], rows[b]), a, b) for a in numbers for b in numbers if a < b]
        nearest = sorted(pairs)[:100]
        ranked = sorted((*alike(rows[a], rows[b])[::-1], bits, a, b) for bits, a, b in nearest)[::-1]
        if not ranked:
            continue
        accepted = sum(agreed and bits <= MAX_DISTANCE for agreed, _, bits, _, _ in ranked)
        names = "; ".join(f"{paths[a].stem} and {paths[b].stem}" for *_, a, b in ranked[: max(1, accepted)][:3])
        print(f"| {kind} | {len(pairs)} | {nearest[0][0]} | {ranked[0][1]:.2f} | {accepted} | {names} |")


def grey(store: Store, digests: Digests, row: int, *, in_full: bool = False) -> np.ndarray:
    """What ``similarity`` or ``similarity_in_full`` compares."""
    path = store.table.image_names(row)[0]
    return grey_image(path, name=path, size=size(digests, row), max_pixels=digests.max_pixels, in_full=in_full)


def size(digests: Digests, row: int) -> tuple[int, int]:
    """Height and width."""
    width, height = digests.statistics[row, :2].astype(int).tolist()
    return height, width


def distance(digests: Digests, one: int, other: int) -> int:
    """Bits in which two hashes differ."""
    return int(np.bitwise_count(digests.hashes[one] ^ digests.hashes[other]).sum())


if __name__ == "__main__":
    main()
