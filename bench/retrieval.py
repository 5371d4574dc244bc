"""Exact retrieval both ways beside faiss: time, memory, and the same recalls.

    python bench/retrieval.py [--images 100000] [--rounds 1] [--what ranks "faiss top 10"]

As many images as texts, vectors of 512 numbers; the text of an image lies near it. What each computes, over the whole
gallery, for every image and every text:

ranks        ours: rank and average precision of the right answer, so R@k for every k, median rank and mAP
with loss    ours: the same, and -log of the probability of the right answer
faiss top 10 ``IndexFlatIP``, an index of the texts and one of the images, the 10 nearest: R@1, R@5 and R@10 alone
faiss top 1  the same for the nearest alone: R@1
labels       ours: rank and average precision where all answers of one of 10 classes are right

Ranks deeper than k are not to be had of a flat index, whose range search has one radius for all queries. Rounds take
turns; printed are medians, the peak of memory before faiss is loaded, and the recalls of both. Nearly all the time goes
into multiplying matrices, but for ``labels``, which sorts. Where other programs run, compare the column ``processor``,
the time of all cores together.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench._machine import describe_machine, peak
from consilium.core.reporter import format_table
from consilium.evaluation.retrieval import ranks as r

WIDTH, NOISE, CLASSES = 512, 8.0, 10
RECALLS = (1, 5, 10)
WHAT = ("ranks", "with loss", "labels", "faiss top 10", "faiss top 1")


def main() -> None:
    """Draw, measure in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--what", nargs="+", choices=WHAT, default=WHAT)
    asked = parser.parse_args()
    images_NF, texts_NF = drawn(asked.images)
    own_N = np.arange(asked.images)
    pairs: dict[str, Any] = {"image_P": own_N, "text_P": own_N}
    classes: dict[str, Any] = {"image_N": own_N % CLASSES, "text_M": own_N % CLASSES}
    both = (images_NF, texts_NF)
    works: dict[str, Callable[[], Any]] = {
        "ranks": lambda: r.by_pairs(*both, **pairs),
        "with loss": lambda: r.by_pairs(*both, **pairs, scale=50.0),
        "labels": lambda: r.by_class(*both, **classes),
        "faiss top 10": lambda: [flat(gallery).search(queries, 10)[1] for queries, gallery in (both, both[::-1])],
        "faiss top 1": lambda: [flat(gallery).search(queries, 1)[1] for queries, gallery in (both, both[::-1])],
    }
    print(describe_machine())
    print(f"{asked.images:,} images and {asked.images:,} texts of {WIDTH} numbers", flush=True)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in WHAT if name in asked.what}
    found: dict[str, Any] = {}
    most = 0.0
    for _ in range(asked.rounds):
        for name, times in measured.items():
            wall, processor = time.perf_counter(), time.process_time()
            found[name] = works[name]()
            times.append((time.perf_counter() - wall, time.process_time() - processor))
            most = most if "faiss" in sys.modules else peak() / 2**30
    print(f"peak before faiss: {most:.2f} GiB, of which {2 * images_NF.nbytes / 2**30:.2f} are the vectors")
    rows = []
    for name, times in measured.items():
        wall, processor = (statistics.median(own) for own in zip(*times, strict=True))
        rows.append({"what": name, "seconds": wall, "processor": processor, "rounds": len(times)})
    print(format_table(rows, title="both ways"))
    if {"ranks", "faiss top 10"} <= found.keys():
        print(format_table(recalls(found["ranks"], found["faiss top 10"]), title="recalls"))


def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images, and texts near them."""
    random = np.random.default_rng(0)
    images_NF = r.unit(random.standard_normal((count, WIDTH), dtype=np.float32))
    noise_NF = r.unit(random.standard_normal((count, WIDTH), dtype=np.float32))
    noise_NF *= NOISE
    noise_NF += images_NF
    return images_NF, r.unit(noise_NF)


def flat(gallery_NF: np.ndarray) -> Any:
    """An exact index of faiss."""
    import faiss

    index = faiss.IndexFlatIP(WIDTH)
    index.add(gallery_NF)
    return index


def recalls(ways: tuple[r.Standing, r.Standing], ten: list[np.ndarray]) -> list[dict[str, Any]]:
    """Recalls of both, which differ by ties alone: ours count them against the model."""
    rows = []
    for direction, standing, found_N10 in zip(("image to text", "text to image"), ways, ten, strict=True):
        hit_N10 = found_N10 == np.arange(len(found_N10))[:, None]
        for k in RECALLS:
            ours, theirs = float((standing.rank_Q <= k).mean()), float(hit_N10[:, :k].any(axis=1).mean())
            rows.append({"direction": direction, "k": k, "ours": ours, "faiss": theirs})
    return rows


if __name__ == "__main__":
    main()
