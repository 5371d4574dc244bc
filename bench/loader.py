"""Loader throughput on one core, against torchvision's ImageFolder pipeline.

    python bench/loader.py [--images FOLDER] [--count 64] [--rounds 7]

Both sides read JPEG files, take a random crop of 0.5 to 1 of the area to 224 x 224, flip half of the images and
normalise, in batches of 32, with no worker processes and one thread. Each round runs every pipeline once, in turn,
so a busy neighbour slows both; figures are medians over rounds, ratios are taken within a round, once by the clock
and once by the processor time used, which a busy neighbour changes less.

Images are made, not shipped (``bench/_pictures.py``), and saved by Pillow at quality 90.
``--images`` takes your own photographs instead; each is resized to 512 and 1024 px.

The second table compares pixels with full decoding: levels of 0 to 255 at 224 x 224. A crop's edges are rounded to
pixels of the scaled image, so a crop may shift by less than half an output pixel; whole images do not.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import simplejpeg
import torch
import torchvision
from PIL import Image
from torchvision import transforms as peer_transforms

from bench._machine import describe_machine
from bench._pictures import synthetic
from consilium.data.batches.config import AugmentationConfig
from consilium.data.batches.loader import Loader, Request
from consilium.data.batches.readers import ImageReader, Readers
from consilium.data.batches.transforms import DeviceTransform, sample_box
from consilium.data.config import ImageConfig, LoaderConfig
from consilium.data.images.reading import Box, decode, load_view, resize_once

SIZE, BATCH, STORED = 224, 32, 256
SIDES = (512, 1024)
IMAGE = ImageConfig(size=(SIZE, SIZE))
AUGMENTATION = AugmentationConfig(crop_scale=(0.5, 1.0), horizontal_flip_prob=0.5)
TARGETS = {"512 px files": 1.3, "1024 px files": 2.5, "resized once to 256 px": 5.0}


def main() -> None:
    """Make the images, run the rounds, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=None, help="folder of photographs to use instead")
    parser.add_argument("--count", type=int, default=64, help="images of each size")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root, photographs=arguments.images, count=arguments.count)
        load_before = os.getloadavg()[0]
        rates = measure(root, rounds=arguments.rounds)
        print_machine(load_before)
        print_rates(root, rates)
        print_differences(root)


def write_images(root: Path, *, photographs: Path | None, count: int) -> None:
    """``{root}/{side}/all/{number}.jpg`` for 512 and 1024 px, and 256 px reduced from the 1024 px files."""
    if photographs is None:
        pictures = [(lambda side, seed=seed: synthetic(side, seed=seed)) for seed in range(count)]
    else:
        suffixes = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp"}
        files = sorted(path for path in photographs.rglob("*") if path.suffix.lower() in suffixes)[:count]
        if not files:
            raise SystemExit(f"{photographs} holds no images; give a folder of photographs.")
        pictures = [
            (lambda side, path=path: Image.open(path).convert("RGB").resize((side, side), Image.Resampling.LANCZOS))
            for path in files
        ]
    for side in (*SIDES, STORED):
        (root / str(side) / "all").mkdir(parents=True)
    for number, picture in enumerate(pictures):
        for side in SIDES:
            picture(side).save(root / str(side) / "all" / f"{number:04d}.jpg", quality=90)
        large = (root / "1024" / "all" / f"{number:04d}.jpg").read_bytes()
        small = resize_once(large, name=str(number), shorter=STORED, max_pixels=IMAGE.max_pixels)
        (root / str(STORED) / "all" / f"{number:04d}.jpg").write_bytes(small)


class Files:
    """The image table that the loader reads: one file a row."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(str(path) for path in folder.rglob("*.jpg"))

    def images(self, row: int) -> list[str | bytes]:
        """The one view of a row."""
        return [self.paths[row]]


def ours(folder: Path) -> Callable[[int], int]:
    """An epoch through our loader and device transform; returns how many images it gave."""
    files = Files(folder)
    reader = ImageReader(files, image=IMAGE, augmentation=AUGMENTATION)
    loader = Loader(Readers(images=reader), config=LoaderConfig(workers=0))
    transform = DeviceTransform(IMAGE, augmentation=AUGMENTATION, seed=0)

    def epoch(number: int) -> int:
        rows = np.random.default_rng(number).permutation(len(files.paths)).tolist()
        draws = range(number * len(rows), (number + 1) * len(rows))
        parts = [slice(start, start + BATCH) for start in range(0, len(rows), BATCH)]
        requests = [Request(rows[part], list(draws[part]), {"cases": len(rows[part])}, 1.0) for part in parts]
        given = 0
        for loaded in loader.load(requests):
            assert loaded.batch is not None
            given += transform(loaded.batch, train=True).views.pixels.shape[0]
        return given

    return epoch


def peer(folder: Path) -> Callable[[int], int]:
    """An epoch through torchvision; returns how many images it gave."""
    steps = [
        peer_transforms.RandomResizedCrop(SIZE, scale=AUGMENTATION.crop_scale),
        peer_transforms.RandomHorizontalFlip(0.5),
        peer_transforms.ToTensor(),
        peer_transforms.Normalize(IMAGE.mean, IMAGE.std),
    ]
    data = torchvision.datasets.ImageFolder(str(folder), transform=peer_transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=0)

    def epoch(number: int) -> int:
        torch.manual_seed(number)
        return sum(images_BCHW.shape[0] for images_BCHW, _ in loader)

    return epoch


@dataclass(frozen=True)
class Rate:
    """Images a second: by the clock, and by the processor time used."""

    clock: float
    processor: float


def measure(root: Path, *, rounds: int) -> dict[str, list[Rate]]:
    """The rate of every pipeline in every round."""
    pipelines = {
        "peer 512": peer(root / "512"),
        "ours 512": ours(root / "512"),
        "peer 1024": peer(root / "1024"),
        "ours 1024": ours(root / "1024"),
        "ours 256": ours(root / str(STORED)),
    }
    rates: dict[str, list[Rate]] = {name: [] for name in pipelines}
    for number in range(rounds + 1):  # the first warms caches up and is not counted
        for name, epoch in pipelines.items():
            start, start_processor = time.perf_counter(), time.process_time()
            given = epoch(number)
            rate = Rate(given / (time.perf_counter() - start), given / (time.process_time() - start_processor))
            if number:
                rates[name].append(rate)
    return rates


def print_machine(load_before: float) -> None:
    """What the figures were taken on."""
    print(f"machine: {describe_machine()}; load before {load_before:.2f}")
    libraries = {"torch": torch, "torchvision": torchvision, "Pillow": Image, "simplejpeg": simplejpeg}
    found = ", ".join(f"{name} {library.__version__}" for name, library in libraries.items())
    print(f"versions: Python {platform.python_version()}, {found}\n")


def print_rates(root: Path, rates: dict[str, list[Rate]]) -> None:
    """The table of throughput."""
    rows = (
        ("512 px files", "ours 512", "peer 512", root / "512"),
        ("1024 px files", "ours 1024", "peer 1024", root / "1024"),
        ("resized once to 256 px", "ours 256", "peer 1024", root / str(STORED)),
    )
    print("| ours reads | KiB a file | ours img/s | peer img/s | ratio (min to max) | ratio, processor time | target |")
    print("|---|---|---|---|---|---|---|")
    for title, our, other, folder in rows:
        pairs = list(zip(rates[our], rates[other], strict=True))
        ratios = [mine.clock / theirs.clock for mine, theirs in pairs]
        processor = statistics.median(mine.processor / theirs.processor for mine, theirs in pairs)
        size = statistics.mean(path.stat().st_size for path in folder.rglob("*.jpg")) / 1024
        ours_median, peer_median = (statistics.median(rate.clock for rate in rates[name]) for name in (our, other))
        print(
            f"| {title} | {size:.0f} | {ours_median:.0f} | {peer_median:.0f} ({other[5:]} px) "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {processor:.2f} "
            f"| {TARGETS[title]} |"
        )


def print_differences(root: Path) -> None:
    """The table of pixel differences between scaled and full decoding."""
    print("\n| file | view | mean difference | 99.9th percentile | mean, Pillow decode and resize |")
    print("|---|---|---|---|---|")
    for side in SIDES:
        files = sorted((root / str(side)).rglob("*.jpg"))
        for view in ("whole image", "random crop"):
            found, pillow = [], []
            for draw, path in enumerate(files):
                box = None
                if view == "random crop":
                    box = sample_box(draw, seed=0, view=0, augmentation=AUGMENTATION, width=side, height=side)
                scaled, full, theirs = three_ways(path, box, side)
                found.append(np.abs(scaled - full).ravel())
                pillow.append(np.abs(scaled - theirs).mean())
            levels = np.concatenate(found)
            print(
                f"| {side} px | {view} | {levels.mean():.2f} | {np.percentile(levels, 99.9):.0f} "
                f"| {statistics.mean(pillow):.2f} |"
            )


def three_ways(path: Path, box: Box | None, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A view through our path, through our path with full decoding, and through Pillow alone."""
    data = path.read_bytes()
    lossless = io.BytesIO()  # a PNG is never decoded to scale
    Image.fromarray(decode(data, name=path.name, max_pixels=IMAGE.max_pixels)).save(lossless, "PNG", compress_level=0)
    scaled = load_view(data, name=path.name, image=IMAGE, box=box)
    full = load_view(lossless.getvalue(), name=path.name, image=IMAGE, box=box)
    crop = box or Box(0.0, 0.0, 1.0, 1.0)
    left, top, right, bottom = (
        round(x * side) for x in (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    )
    theirs = (
        Image.open(path).convert("RGB").crop((left, top, right, bottom)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    )
    return scaled.astype(np.int16), full.astype(np.int16), np.asarray(theirs).astype(np.int16)


if __name__ == "__main__":
    main()
