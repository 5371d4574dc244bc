"""RET-CLIP's TSV and JSONL to LMDB: rows a second, and random reads from it beside those from a prepared store.

    python bench/lmdb_export.py [--rows 13000] [--reads 20000] [--folder FOLDER]

Writes JPEG files of 224 pixels (about 6 KiB; every one different) into a TSV, and a text for each into a JSONL.
Measured are the way from there to LMDB without a store (``data export eyes.tsv --out eyes.lmdb``); the preparation of a
store, which decodes every image, and the export of its cases (``data export CONFIG.yaml --out eyes.lmdb``); a second
export, which finds that nothing is to be done; and the time to get the bytes of an image by its number, in a random
order, from the store and from the LMDB. Files are in memory by then: what is compared is the way to them, not the disk.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import simplejpeg

from bench._machine import describe_machine
from consilium.core.config import build
from consilium.data.config import DataConfig
from consilium.data.sources.lmdb_files import open_lmdb, pair_row
from consilium.data.store.export import export
from consilium.data.store.export_from_tsv import export_tsv
from consilium.data.store.prepare import prepare
from consilium.data.store.store import Store

SIDE, BLOCK, REPEATS = 224, 8, 3


def main() -> None:
    """Write, prepare, export, read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=13_000)
    parser.add_argument("--reads", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, default=None, help="where to write; default: a temporary folder")
    arguments = parser.parse_args()
    print(f"machine: {describe_machine()}\n")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder, rows = Path(temporary), arguments.rows
        size = write(folder, rows=rows)
        print(f"{rows:,} JPEG files of {SIDE} pixels, {size / rows / 1024:.1f} KiB each\n")
        print("| what | rows a second | of CPU time | goal |\n|---|---|---|---|")
        stores: list[Store] = []
        direct = [folder / f"direct{number}.lmdb" for number in range(REPEATS)]
        runs = [timed(partial(export_tsv, str(folder / "eyes.tsv"), out)) for out in direct]
        row(f"TSV and JSONL to LMDB, best of {REPEATS}", rows, min(runs), goal="10,000")
        row("TSV and JSONL to a store", rows, timed(lambda: stores.append(prepare(config(folder)).store)))
        outs = [folder / f"{number}.lmdb" for number in range(REPEATS)]
        runs = [timed(partial(export, stores[0], out, form="ret_clip_lmdb")) for out in outs]
        row(f"store to LMDB, best of {REPEATS}", rows, min(runs), goal="10,000")
        row("the same again", rows, timed(lambda: export(stores[0], outs[0], form="ret_clip_lmdb")))
        order = np.random.default_rng(1).integers(0, rows, arguments.reads).tolist()
        print("\n| random reads | microseconds each |\n|---|---|")
        print(f"| from the store | {reads(stores[0].table.images, order):.1f} |")
        with open_lmdb(str(outs[0])) as opened:
            ids = [pair_row(opened.pair(number) or b"")["image_ids"][0] for number in range(rows)]
            print(f"| from the LMDB | {reads(lambda number: opened.views(ids[number]), order):.1f} |")


def write(folder: Path, *, rows: int) -> int:
    """The TSV and JSONL; the bytes of all images."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    cells, size = SIDE // BLOCK, 0
    with (folder / "eyes.tsv").open("w") as images, (folder / "eyes.jsonl").open("w") as texts:
        for number in range(rows):
            top, left = divmod(number, 1024 - cells)
            pixels_HWC = noise[top : top + cells, left : left + cells].repeat(BLOCK, 0).repeat(BLOCK, 1)
            image = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels_HWC), quality=95)
            size += len(image)
            images.write(f"p{number}\t{base64.b64encode(image).decode()}\n")
            text = {"text_id": number, "text": f"Eye {number}: drusen in the macula.", "image_ids": [f"p{number}"]}
            texts.write(json.dumps({**text, "label": f"class {number % 7}", "split": "train"}) + "\n")
    return size


def config(folder: Path) -> DataConfig:
    """The data section that prepares them."""
    source = {"kind": "ret_clip_tsv", "name": "eyes", "path": str(folder / "eyes.tsv"),
              "texts": str(folder / "eyes.jsonl")}  # fmt: skip
    store = {"root": str(folder / "stores"), "images": "embed"}
    return build(DataConfig, {"sources": [source], "store": store}, origin="bench")


def timed(what: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and seconds of CPU time."""
    began, began_cpu = time.perf_counter(), time.process_time()
    what()
    return time.perf_counter() - began, time.process_time() - began_cpu


def row(what: str, rows: int, seconds: tuple[float, float], *, goal: str = "") -> None:
    """A row of the table."""
    print(f"| {what} | {rows / seconds[0]:,.0f} | {rows / seconds[1]:,.0f} | {goal} |")


def reads(read: Callable[[int], object], order: list[int]) -> float:
    """Microseconds of a read, the best of several rounds; the first warms the files up."""
    seconds = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        for number in order:
            read(number)
        seconds.append(time.perf_counter() - began)
    return 1e6 * min(seconds[1:]) / len(order)


if __name__ == "__main__":
    main()
