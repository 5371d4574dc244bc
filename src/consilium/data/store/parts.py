"""A store under construction: Arrow files of a few thousand cases each, so that a killed run can go on."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilium.core.files import atomic_file, write_json
from consilium.data.case import BadRow, Case, Mask
from consilium.data.guards.digests import DigestCollector
from consilium.data.images.check import BadImage, CheckedImages
from consilium.data.store.files import schema
from consilium.data.store.meta import Kind, column_kinds

PART_ROWS = 2048
PART_BYTES = 64 * 2**20
_VARYING = re.compile(r"'[^']*'|\d[\d.,e+-]*")
DIGESTS = ".npz"  # the ending of the digests of a part


class PartWriter:
    """Collects cases and writes them as parts; the name of a part says which cases are done with it.

    The bad rows of a part, the notes on its images and their digests are written before it, so a part that exists is
    complete.
    """

    def __init__(self, folder: Path, *, digests: bool) -> None:
        self.folder = folder
        self._digests = DigestCollector() if digests else None
        finished = parts(folder)
        self.start = self.stop = part_range(finished[-1])[1] if finished else 0
        self._rows: list[dict[str, Any]] = []
        self._bad: list[list[Any]] = []
        self._notes: list[list[Any]] = []
        self._bytes = 0

    def add(self, case: Case, images: CheckedImages | BadImage, *, split: str) -> None:
        """Add the next case."""
        self.stop += 1
        if isinstance(images, BadImage):
            row = BadRow(case.source, case.file, case.line, images.reason)
            self._bad.append([list(row), [images.path, images.size, images.modified_ns]])
        else:
            views = images.views
            self._notes += [[case.source, note, case.views[0].image] for note in images.notes]
            if self._digests is not None:
                for pixels_HWC in images.pixels:
                    self._digests.add(pixels_HWC)
            self._bytes += sum(len(view["bytes"]) for view in views if view["bytes"] is not None)
            self._rows.append(
                {
                    "id": case.id,
                    "source": case.source,
                    "group": case.group,
                    "split": split,
                    "views": views,
                    "texts": [{"text": text.text, "name": text.name} for text in case.texts],
                    "labels": case.labels,
                    "masks": [_stored(mask) for mask in case.masks],
                    "is_gt": case.is_gt,
                    "meta": json.dumps(case.meta, ensure_ascii=False),
                }
            )

    @property
    def full(self) -> bool:
        """Whether it is time to write what is collected."""
        return self.stop - self.start >= PART_ROWS or self._bytes >= PART_BYTES

    def flush(self) -> None:
        """Write what is collected."""
        if self.stop == self.start:
            return
        import pyarrow as pa

        stem = f"part-{self.start:09d}-{self.stop:09d}"
        if self._bad:
            write_json(self.folder / f"{stem}.bad.json", self._bad)
        if self._notes:
            write_json(self.folder / f"{stem}.notes.json", self._notes)
        if self._digests is not None:
            self._digests.write(self.folder / f"{stem}{DIGESTS}")
        table = pa.Table.from_pylist(self._rows, schema=schema())
        with (
            atomic_file(self.folder / f"{stem}.arrow") as path,
            pa.OSFile(str(path), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as stream,
        ):
            stream.write_table(table)
        self._rows, self._bad, self._notes, self._bytes, self.start = [], [], [], 0, self.stop


def _stored(mask: Mask) -> dict[str, Any]:
    """A mask as it is stored; what only opening it would tell is left out."""
    file = {} if mask.file is None else {"file_size": mask.file.size, "modified_ns": mask.file.version}
    return {"image": mask.image, "name": mask.name, "annotator": mask.annotator, **file}


def part_range(part: Path) -> tuple[int, int]:
    """The first row of a part, and the first behind it."""
    start, stop = part.stem.split("-")[1:]
    return int(start), int(stop)


def parts(folder: Path) -> list[Path]:
    """The parts in a folder in order, as far as they follow one another."""
    found: list[Path] = []
    stop = 0
    for path in sorted(folder.glob("part-*.arrow")):
        start, next_stop = part_range(path)
        if start != stop:
            break
        found.append(path)
        stop = next_stop
    return found


def bad_images(folder: Path) -> Iterator[tuple[BadRow, list[Any]]]:
    """The rows whose image is bad, each with [path, size, modified_ns] of the image."""
    for path in parts(folder):
        listing = path.with_suffix(".bad.json")
        if listing.exists():
            for row, file in json.loads(listing.read_text(encoding="utf-8")):
                yield BadRow(*row), file


def image_notes(folder: Path) -> dict[str, Counter[str]]:
    """How many images of each source have a note; notes that differ in a value only count as the first of them."""
    counts: dict[str, Counter[str]] = {}
    first: dict[tuple[str, str], str] = {}
    for path in parts(folder):
        listing = path.with_suffix(".notes.json")
        for source, note, image in json.loads(listing.read_text(encoding="utf-8")) if listing.exists() else []:
            text = first.setdefault((source, _VARYING.sub("", note)), f"{note} (first: {image or 'an embedded image'})")
            counts.setdefault(source, Counter())[text] += 1
    return counts


def remove_leavings(folder: Path) -> None:
    """Remove what only a store under construction needs."""
    keep = {path.name for path in parts(folder)}
    for path in [*folder.glob("part-*"), *folder.glob(".*.tmp")]:
        if path.name not in keep:
            path.unlink()


@dataclass(frozen=True)
class Counts:
    """``splits``: cases per source and split; ``labels``: rows {source, split, label, cases}; ``meta``: the kind of
    each metadata column."""

    splits: dict[str, dict[str, int]]
    labels: list[dict[str, Any]]
    meta: dict[str, Kind]

    @property
    def cases(self) -> int:
        """All cases."""
        return sum(sum(of_source.values()) for of_source in self.splits.values())


def count(found: Sequence[Path]) -> Counts:
    """What the parts hold."""
    import pyarrow as pa

    cases: Counter[tuple[str, str]] = Counter()
    labelled: Counter[tuple[str, str, str]] = Counter()
    for path in found:
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all().select(["source", "split", "labels"])
        for source, split, labels in zip(*(column.to_pylist() for column in table.columns), strict=True):
            cases[source, split] += 1
            labelled.update((source, split, label) for label in labels or [""])
    splits: dict[str, dict[str, int]] = {}
    for (source, split), number in sorted(cases.items()):
        splits.setdefault(source, {})[split] = number
    keys = ("source", "split", "label", "cases")
    rows = [dict(zip(keys, (*key, labelled[key]), strict=True)) for key in sorted(labelled)]
    return Counts(splits, rows, column_kinds(_metas(found)))


def _metas(found: Sequence[Path]) -> Iterator[dict[str, str]]:
    """The metadata of the cases, that of several cases of a part once."""
    import pyarrow as pa

    for path in found:
        column = pa.ipc.open_stream(pa.memory_map(str(path))).read_all().column("meta")
        yield from map(json.loads, column.unique().to_pylist())
