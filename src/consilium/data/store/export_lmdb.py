"""The export as LMDB: transaction by transaction, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from consilium.core.errors import DataError
from consilium.core.files import locked, replace_folder
from consilium.data.sources.lmdb_files import (
    DATA,
    FORMAT,
    FORMAT_KEY,
    IMAGE_COUNT,
    IMAGES,
    PAIR_COUNT,
    PAIRS,
    lmdb_library,
    open_lmdb,
    packed_images,
    pair_key,
)
from consilium.data.store.export_job import ExportJob, Progress, json_line
from consilium.data.store.export_ret_clip import eye_images, first_text, image_keys

BATCH_ROWS, BATCH_BYTES = 4096, 64 * 2**20  # of a transaction
MOST_BYTES = 2**40  # that a database may have; address space, which takes no memory and no room on the disk


@dataclass(frozen=True, slots=True)
class PairRow:
    """A pair as it is written: its line of JSON, the id of its images, and what gives these by their names."""

    line: bytes
    image_id: bytes
    images: Callable[[], Mapping[str, bytes]]


class Pairs(Protocol):
    """All pairs in their order, as often as they are asked for, and the ids of their images."""

    @property
    def image_ids(self) -> Sequence[bytes]:
        """The ids of all images."""
        ...

    def __len__(self) -> int: ...

    def rows(self) -> Iterator[PairRow]:
        """The pairs, from the first."""
        ...


def write_lmdb(pairs: Pairs, out: Path, *, overwrite: bool, progress: Progress | None = None) -> bool:
    """Write a folder of two databases; False: one that holds the same was there already, and stays as it is.

    What is not finished lies beside it. The next run keeps of it what is as it would write it now.
    """
    lmdb = lmdb_library()
    _refuse_others(out)
    work = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(out.with_name(f".{out.name}.lock")):
            if out.exists():
                if _kept(out, pairs) == len(pairs):
                    return False
                if not overwrite:
                    raise DataError(
                        f"{out} exists and holds something else; give another --out, or --overwrite to replace it."
                    )
            start = _kept(work, pairs)
            if not start:
                shutil.rmtree(work, ignore_errors=True)
            _write(lmdb, work, pairs, start=start, progress=progress)
            replace_folder(work, out, old=out.with_name(f".{out.name}.old"))
    except (OSError, lmdb.Error) as error:
        raise DataError(
            f"{out} could not be written: {error}. Free space or give another --out, and run again: what was written "
            "so far is kept."
        ) from error
    return True


class StorePairs:
    """The cases of an export."""

    def __init__(self, job: ExportJob) -> None:
        self._job = job
        self.image_ids = [key.encode() for key in image_keys(job)]

    def __len__(self) -> int:
        return len(self.image_ids)

    def rows(self) -> Iterator[PairRow]:
        """Each case with its own number as the id of its text."""
        for number, key in enumerate(self.image_ids):
            row = first_text(self._job, number, self._job.row(number))
            line = json_line({**row, "text_id": str(number + 1), "image_ids": [key.decode()]})
            yield PairRow(line[:-1].encode(), key, partial(eye_images, self._job, number))


def _refuse_others(out: Path) -> None:
    """Refuse to replace what no export has written."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file, and an LMDB is a folder; give another --out.")
    strange = sorted({path.name for path in out.iterdir()} - {IMAGES, PAIRS}) if out.exists() else []
    if strange:
        raise DataError(f"{out} holds '{strange[0]}', which no export wrote; give another --out.")
    with contextlib.suppress(OSError), open_lmdb(str(out)) as opened:
        if not opened.is_ours:
            raise DataError(f"{out} is an LMDB that another program wrote; give another --out.")


def _kept(folder: Path, pairs: Pairs) -> int:
    """How many of the first pairs a folder holds; 0 where one of them, or its image, is another or missing."""
    if not all((folder / name / DATA).exists() for name in (IMAGES, PAIRS)):
        return 0
    try:
        with open_lmdb(str(folder)) as opened:
            if not opened.is_ours or opened.count > len(pairs):
                return 0
            if not set(opened.image_ids()) <= set(pairs.image_ids):
                return 0
            for number, row in enumerate(islice(pairs.rows(), opened.count)):
                if opened.pair(number) != row.line or not opened.holds(row.image_id.decode()):
                    return 0
            return opened.count
    except OSError:  # killed before the first transaction was whole, or damaged
        return 0


def _write(lmdb: Any, work: Path, pairs: Pairs, *, start: int, progress: Progress | None) -> None:
    """Write the pairs from ``start`` on: of each transaction the images first, so that no pair lacks its own."""
    databases = {}
    for name in (IMAGES, PAIRS):
        (work / name).mkdir(parents=True, exist_ok=True)
        databases[name] = lmdb.open(str(work / name), map_size=MOST_BYTES, lock=False, metasync=False, max_dbs=0)
    with databases[IMAGES] as images, databases[PAIRS] as texts:
        rows = islice(pairs.rows(), start, None)
        done = start
        while done < len(pairs):
            lines: list[bytes] = []
            size = 0
            with images.begin(write=True) as transaction:
                for row in islice(rows, BATCH_ROWS):
                    if transaction.get(row.image_id) is None:
                        value = packed_images(row.images())
                        transaction.put(row.image_id, value)
                        size += len(value)
                    lines.append(row.line)
                    if progress is not None:
                        progress(done + len(lines), len(pairs))
                    if size >= BATCH_BYTES:
                        break
                had = transaction.get(IMAGE_COUNT) is not None
                count = transaction.stat(images.open_db())["entries"] - had
                transaction.put(IMAGE_COUNT, str(count).encode())
            with texts.begin(write=True) as transaction:
                for number, line in enumerate(lines, start=done):
                    transaction.put(pair_key(number), line)
                done += len(lines)
                transaction.put(PAIR_COUNT, str(done).encode())
                transaction.put(FORMAT_KEY, FORMAT)
        for database in (images, texts):
            database.sync(True)
