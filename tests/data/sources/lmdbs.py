"""LMDB folders as the programs of RET-CLIP and Chinese-CLIP write them, and as a test spoils them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lmdb

Pair = tuple[Any, Any, Any]  # image_id, text_id, text


def write_database(folder: Path, items: Mapping[str, bytes]) -> None:
    """A database of these keys."""
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**26) as environment, environment.begin(write=True) as transaction:
        for key, value in items.items():
            transaction.put(key.encode(), value)


def write_old(folder: Path, images: Mapping[str, bytes], pairs: Sequence[Pair | bytes], *, protocol: int = 4) -> Path:
    """``images`` and pickled pairs (bytes: as they are) in the layout of these programs."""
    values = [pair if isinstance(pair, bytes) else pickle.dumps(pair, protocol=protocol) for pair in pairs]
    write_database(folder / "imgs", {**images, "num_images": str(len(images)).encode()})
    numbered = {str(number): value for number, value in enumerate(values)}
    write_database(folder / "pairs", {**numbered, "num_samples": str(len(values)).encode()})
    return folder


def eyes(left: str, right: str, *, protocol: int = 4) -> bytes:
    """The images of a patient as RET-CLIP's program writes them: a pickled tuple of base64."""
    return pickle.dumps((left, right), protocol=protocol)


def contents(folder: Path) -> dict[str, dict[bytes, bytes]]:
    """Everything in the databases of a folder."""
    found = {}
    for name in ("imgs", "pairs"):
        with lmdb.open(str(folder / name), readonly=True, lock=False) as environment, environment.begin() as reading:
            found[name] = dict(reading.cursor())
    return found
