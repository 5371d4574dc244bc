"""Preparing many small images: images a second, going on after a kill, and opening a store of a million rows.

    python bench/prepare.py [--images 100000] [--rows 1000000] [--check-images header]

Writes small JPEG files (64 pixels, about 2 KiB; every one different) and a table of them, and prepares a store that
refers to them, in a process of its own. A second store of the same files is prepared by a process that is killed in
the middle and by one that goes on; both stores must hold the same rows. Each image is decoded once, as usual;
``--check-images header`` reads headers alone, as versions before that check did. Last, a store is made large by naming
copies of its parts, and opened: the time until its last row is read, and the memory of its own that this takes.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import simplejpeg

from bench._machine import describe_machine
from consilium.core.config import build
from consilium.core.reporter import Silent
from consilium.data.config import DataConfig
from consilium.data.store.files import write_dataset_files
from consilium.data.store.prepare import prepare
from consilium.data.store.store import Store

SIDE = 64
OPEN = (
    "import sys, time; import pyarrow; from consilium.data.store.store import Store; "
    "own = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('RssAnon')).split()[1]) / 1024; "
    "before, start = own(), time.perf_counter(); t = Store.open(sys.argv[1]).table; n = len(t); t.images(n - 1); "
    "print(n, time.perf_counter() - start, own() - before)"
)


def main() -> None:
    """Write, prepare, kill, go on, open."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--check-images", choices=("decode", "header"), default="decode")
    parser.add_argument("--only", type=Path, default=None, help=argparse.SUPPRESS)  # the process that prepares
    arguments = parser.parse_args()
    if arguments.only is not None:
        run(arguments.only, arguments.check_images)
        return
    print(f"machine: {describe_machine()}\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder, images=arguments.images)
        print("| what | figure | goal |\n|---|---|---|")
        whole = prepared(folder, arguments.check_images, images=arguments.images)
        resumed(folder, whole, arguments.check_images, images=arguments.images)
        opened(whole, rows=arguments.rows)


def write(folder: Path, *, images: int) -> None:
    """Small JPEG files and a table of them."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    with (folder / "images.csv").open("w") as table:
        table.write("image,label,group_id\n")
        for number in range(images):
            top, left = divmod(number, 1024 - SIDE)
            pixels_HWC = np.ascontiguousarray(
                noise[top : top + SIDE : 4, left : left + SIDE : 4].repeat(4, 0).repeat(4, 1)
            )
            name = f"{number // 1000:04d}/{number:07d}.jpg"
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(simplejpeg.encode_jpeg(pixels_HWC, quality=80))
            table.write(f"{name},label{number % 7},patient{number // 3}\n")


def config(folder: Path, root: Path, check_images: str) -> DataConfig:
    """The data section that prepares the files into a folder of stores."""
    tree = {
        "sources": [{"kind": "csv", "name": "s", "path": str(folder / "images.csv")}],
        "store": {"root": str(root), "check_images": check_images},
    }
    return build(DataConfig, tree, origin="bench")


class Times(Silent):
    """Says when each step was done."""

    def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
        print(done, time.perf_counter(), flush=True)


def run(root: Path, check_images: str) -> None:
    """Prepare, and say at every step how many cases are done and when."""
    prepare(config(root.parent, root, check_images), reporter=Times())


def start(root: Path, check_images: str) -> subprocess.Popen[str]:
    """A process that prepares."""
    command = [sys.executable, __file__, "--only", str(root), "--check-images", check_images]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def prepared(folder: Path, check_images: str, *, images: int) -> Store:
    """Prepare at once."""
    began = time.perf_counter()
    process = start(folder / "whole", check_images)
    steps = process.communicate()[0].splitlines()
    seconds = time.perf_counter() - began
    assert process.returncode == 0
    (first, first_time), (last, last_time) = (map(float, step.split()) for step in (steps[0], steps[-1]))
    rate = (last - first) / (last_time - first_time)
    print(f"| {images:,} images, start to end | {seconds:.1f} s | |")
    print(f"| images a second | {rate:,.0f} | 2,000 |")
    return Store.open(next(path for path in (folder / "whole").iterdir() if path.is_dir()))


def resumed(folder: Path, whole: Store, check_images: str, *, images: int) -> None:
    """Prepare until the middle, kill, go on, and compare."""
    process = start(folder / "killed", check_images)
    assert process.stdout is not None
    done = next(done for done in (int(line.split()[0]) for line in process.stdout) if done >= images // 2)
    process.kill()
    process.wait()
    process.stdout.close()
    again = start(folder / "killed", check_images)
    steps = again.communicate()[0].splitlines()
    assert again.returncode == 0
    store = Store.open(next(path for path in (folder / "killed").iterdir() if path.is_dir()))
    print(f"| killed when so many were done | {done:,} | |")
    print(f"| the next run went on from about | {int(steps[0].split()[0]):,} | above 0 |")
    same = all(getattr(store.table, name) == getattr(whole.table, name) for name in ("ids", "splits", "groups"))
    print(f"| the store is that of a run at once | {'yes' if same else 'NO'} | yes |")


def opened(store: Store, *, rows: int) -> None:
    """Make a store large, and open it."""
    parts = [path.name for path in sorted(store.path.glob("part-*.arrow"))]
    copies = -(-rows // store.manifest.cases)
    for copy in range(copies):
        for name in parts:
            shutil.copy(store.path / name, store.path / f"{copy}-{name}")
    data_files = [f"{copy}-{name}" for copy in range(copies) for name in parts]
    manifest = dataclasses.replace(store.manifest, cases=copies * store.manifest.cases)
    write_dataset_files(store.path, data_files=data_files, manifest=manifest)
    command = [sys.executable, "-c", OPEN, str(store.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, seconds, mebibytes = map(float, done.stdout.split())
    print(f"| opening a store of {count:,.0f} rows | {seconds:.2f} s | 1 s |")
    print(f"| its own memory | {mebibytes:.0f} MiB | 200 MiB |")


if __name__ == "__main__":
    main()
