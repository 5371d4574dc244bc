"""What is inside a store: counts, sizes, missing and duplicate files, leaks, and a picture of every label."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from consilium.core.errors import DataError
from consilium.core.files import write_json
from consilium.core.places import exists
from consilium.core.reporter import format_table
from consilium.data.case import SPLITS
from consilium.data.contact_sheet import draw_contact_sheet
from consilium.data.guards.leaks import Leak, find_leaks
from consilium.data.splits import check_splits
from consilium.data.store import CaseTable, Store

QUANTILES = {"smallest": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "largest": 1.0}
SHOWN = 10


@dataclass(frozen=True)
class Duplicate:
    """Several files of the same content, and the splits they are in."""

    sha256: str
    files: tuple[str, ...]
    splits: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What ``inspect`` found; tables are rows of dictionaries.

    ``counts``: cases per source, split and label; ``balance``: cases per label and split, and the label's share of
    train; ``sizes``: quantiles of width and height in pixels per source, each on its own; ``missing``: files that
    were there when the store was made and are gone; ``contact_sheet`` is None where no case has an image.
    """

    store: str
    cases: int
    images: int
    bad_rows: int
    skipped: dict[str, dict[str, int]]
    counts: list[dict[str, Any]]
    balance: list[dict[str, Any]]
    sizes: list[dict[str, Any]]
    missing: list[str]
    duplicates: list[Duplicate]
    leaks: list[Leak]
    warnings: list[str]
    contact_sheet: str | None

    def lines(self) -> list[str]:
        """The findings for a screen; ``inspection.json`` has them in full."""
        text = [f"{self.store}: {self.cases} cases, {self.images} images, {self.bad_rows} bad rows left out"]
        text += [format_table(self.counts, title="cases"), format_table(self.balance, title="balance")]
        text += [format_table(self.sizes, title="image sizes in pixels")]
        for source, reasons in self.skipped.items():
            text += [f"{source}: {count} x {reason} skipped" for reason, count in reasons.items()]
        text += _first("missing file", self.missing)
        text += _first("duplicate", [f"{', '.join(d.files)} (in {', '.join(d.splits)})" for d in self.duplicates])
        text += _first("leak", [leak.message for leak in self.leaks])
        text += [f"warning: {warning}" for warning in self.warnings]
        if self.contact_sheet is not None:
            text.append(f"contact sheet: {self.contact_sheet}")
        return text


def _first(what: str, found: list[str]) -> list[str]:
    lines = [f"{what}: {item}" for item in found[:SHOWN]]
    return lines + ([f"{what}: {len(found) - SHOWN} more, see inspection.json"] if len(found) > SHOWN else [])


def inspect(store: Store, *, out: Path) -> Inspection:
    """Look through a store, and write ``inspection.json`` and ``contact_sheet.png`` into ``out``."""
    table = store.table
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    sheet = draw_contact_sheet(table, out / "contact_sheet.png", max_pixels=store.manifest.max_pixels)
    inspection = Inspection(
        store=str(store.path),
        cases=len(table),
        images=len(table.view_column("name")[0]),
        bad_rows=store.manifest.bad_rows,
        skipped={source: reasons for source, reasons in store.manifest.skipped.items() if reasons},
        counts=store.manifest.counts,
        balance=_balance(store.manifest.counts),
        sizes=_sizes(table),
        missing=_missing(table, embedded=store.manifest.images == "embed"),
        duplicates=_duplicates(table),
        leaks=find_leaks(table),
        warnings=_warnings(table),
        contact_sheet=None if sheet is None else str(sheet),
    )
    write_json(out / "inspection.json", asdict(inspection))
    return inspection


def _warnings(table: CaseTable) -> list[str]:
    try:
        return check_splits(table)
    except DataError as error:  # looking at data must work where training cannot
        return [str(error)]


def _balance(counts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    cases: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(SPLITS, 0))
    for row in counts:
        cases[row["label"]][row["split"]] += row["cases"]
    train = sum(of_label["train"] for of_label in cases.values())
    return [
        {"label": label or "(none)", **of_label, "share of train": of_label["train"] / train if train else None}
        for label, of_label in sorted(cases.items())
    ]


def _sizes(table: CaseTable) -> list[dict[str, Any]]:
    """Per source, the quantiles of width and of height."""
    rows, widths = table.view_column("width")
    heights = table.view_column("height")[1]
    sources = np.array(table.sources, dtype=object)[rows]
    sizes_N2 = np.array([widths, heights], dtype=np.int64).T
    result = []
    for source in dict.fromkeys(sources):
        own_N2 = sizes_N2[sources == source]
        found = {
            name: " x ".join(str(round(side)) for side in np.quantile(own_N2, share, axis=0))
            for name, share in QUANTILES.items()
        }
        result.append({"source": source, "images": len(own_N2), **found})
    return result


def _missing(table: CaseTable, *, embedded: bool) -> list[str]:
    images = [] if embedded else table.view_column("image")[1]
    masks = [mask for mask in table.masks if mask is not None]
    return [path for path in dict.fromkeys([*images, *masks]) if not exists(path)]


def _duplicates(table: CaseTable) -> list[Duplicate]:
    """Files of one content under several names; one file in several cases is none."""
    rows, digests = table.view_column("sha256")
    names = table.view_column("image")[1]
    files: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row, digest, name in zip(rows.tolist(), digests, names, strict=True):
        files[digest][name or table.ids[row]].add(table.splits[row])
    return [
        Duplicate(digest, tuple(found), tuple(split for split in SPLITS if split in set().union(*found.values())))
        for digest, found in files.items()
        if len(found) > 1
    ]
