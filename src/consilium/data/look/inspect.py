"""What is inside a store: counts, sizes, missing and duplicate files, what the guards find, and pictures."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from consilium.core.contracts import Needs
from consilium.core.errors import DataError
from consilium.core.files import write_json
from consilium.core.labels import ROOT, indented, reading_order, with_ancestors
from consilium.core.places import facts_of
from consilium.core.reporter import Reporter, Silent, counted, format_table
from consilium.data.case import SPLITS
from consilium.data.cases.filters import Filtered
from consilium.data.cases.folds import resplit
from consilium.data.cases.load import used_cases
from consilium.data.cases.origins import Origins
from consilium.data.config import DataConfig
from consilium.data.guards.check import Findings, check
from consilium.data.look.contact_sheet import draw_contact_sheet, draw_pairs
from consilium.data.store.splits import check_splits
from consilium.data.store.store import CaseTable, Store

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

    The store as a whole, in the splits that the config asks for: ``counts``, cases per source, split and label;
    ``balance``, cases per label and split, and the label's share of train; ``nodes``, the same for every node of the
    tree that dots in labels make, of the cases at it and below, and how many stop there (empty without dots);
    ``sources``, the sources of each label (empty where there is one in all); ``sizes``, quantiles of width and height
    in pixels per source, each on its own; ``missing``, files that were there when the store was made and are gone;
    ``duplicates``; ``contact_sheet``, None where no case has an image.

    The cases that a training would use, after the filters: their number ``used``, what was left out (``left_out``),
    ``findings`` of the guards, ``warnings`` about the splits, and ``near_duplicates``, a picture, None without any.
    """

    store: str
    cases: int
    images: int
    bad_rows: int
    skipped: dict[str, dict[str, int]]
    counts: list[dict[str, Any]]
    balance: list[dict[str, Any]]
    nodes: list[dict[str, Any]]
    sources: list[dict[str, Any]]
    sizes: list[dict[str, Any]]
    missing: list[str]
    duplicates: list[Duplicate]
    contact_sheet: str | None
    used: int
    left_out: list[str]
    findings: Findings
    warnings: list[str]
    near_duplicates: str | None

    def lines(self) -> list[str]:
        """The findings for a screen; ``inspection.json`` has them in full."""
        text = [f"{self.store}: {self.cases} cases, {self.images} images, {counted(self.bad_rows, 'bad row')} left out"]
        text += [format_table(self.counts, title="cases")]
        nodes = [{**row, "label": indented(row["label"])} for row in self.nodes]
        text += [format_table(nodes or self.balance, title="balance")]
        if self.sources:
            text += [format_table(self.sources, title="sources of each label")]
        text += [format_table(self.sizes, title="image sizes in pixels")]
        for source, reasons in self.skipped.items():
            text += [f"{source}: {count} x {reason} skipped" for reason, count in reasons.items()]
        text += _first("missing file", self.missing)
        text += _first("duplicate", [f"{', '.join(d.files)} (in {', '.join(d.splits)})" for d in self.duplicates])
        text += self.left_out
        found = {**self.findings.messages(), "warning": self.warnings}
        nothing = "" if any(found.values()) else " nothing"
        text.append(f"found in the {self.used} cases that a training uses:{nothing}")
        text += [line for what, messages in found.items() for line in _first(what, messages)]
        if self.near_duplicates is not None:
            text.append(f"near-duplicates ({len(self.findings.near_duplicates)}): {self.near_duplicates}")
        if self.contact_sheet is not None:
            text.append(f"contact sheet: {self.contact_sheet}")
        return text


def _first(what: str, found: list[str]) -> list[str]:
    lines = [f"{what}: {item}" for item in found[:SHOWN]]
    return lines + ([f"{what}: {len(found) - SHOWN} more, see inspection.json"] if len(found) > SHOWN else [])


def inspect(
    store: Store,
    *,
    config: DataConfig,
    needs: Needs,
    out: Path,
    reporter: Reporter | None = None,
) -> Inspection:
    """Look through a store as a task with these needs sees it; write ``inspection.json`` and pictures into ``out``."""
    table = resplit(store.table, config=config.split).table
    found = used_cases(store.table, config=config, needs=needs)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    max_pixels = store.manifest.max_pixels
    sheet = draw_contact_sheet(table, out / "contact_sheet.png", max_pixels=max_pixels)
    findings = check(
        store,
        found.table,
        config,
        uses_text=False,
        columns=needs.meta,
        everything=True,
        reporter=reporter or Silent(),
    )
    pairs = draw_pairs(found.table, findings.near_duplicates, out / "near_duplicates.png", max_pixels=max_pixels)
    counts = _counts(table)
    origins = Origins.of(found.table, config.mixture.source_column)
    inspection = Inspection(
        store=str(store.path),
        cases=len(table),
        images=len(table.view_column("name")[0]),
        bad_rows=store.manifest.bad_rows,
        skipped={source: reasons for source, reasons in store.manifest.skipped.items() if reasons},
        counts=counts,
        balance=_balance(counts),
        nodes=_nodes(table),
        sources=origins.rows(),
        sizes=_sizes(table),
        missing=_missing(table, embedded=store.manifest.images == "embed"),
        duplicates=_duplicates(table),
        contact_sheet=None if sheet is None else str(sheet),
        used=len(found.table),
        left_out=found.notes,
        findings=findings,
        warnings=[*_warnings(found, table, nested=needs.nested), *origins.warnings(config)],
        near_duplicates=None if pairs is None else str(pairs),
    )
    write_json(out / "inspection.json", _tree(inspection, found.table))
    return inspection


def _tree(inspection: Inspection, table: CaseTable) -> dict[str, Any]:
    """The inspection as JSON: ids in the place of rows, which mean nothing outside."""
    tree = asdict(inspection)
    for leak in tree["findings"]["leaks"]:
        del leak["rows"]
    for pair in tree["findings"]["near_duplicates"]:
        pair["ids"] = [table.ids[pair.pop("a")], table.ids[pair.pop("b")]]
    return tree


def _counts(table: CaseTable) -> list[dict[str, Any]]:
    found: Counter[tuple[str, str, str]] = Counter()
    for source, split, labels in zip(table.sources, table.splits, table.labels, strict=True):
        found.update((source, split, label) for label in labels or ("",))
    keys = ("source", "split", "label", "cases")
    place = {label: number for number, label in enumerate(reading_order(sorted({label for *_, label in found})))}
    ordered = sorted(found, key=lambda key: (*key[:2], place[key[2]]))
    return [dict(zip(keys, (*key, found[key]), strict=True)) for key in ordered]


def _warnings(found: Filtered, table: CaseTable, *, nested: bool) -> list[str]:
    """What is odd about the splits of the cases that were ``found`` to be of use in a table."""
    if len(table.rows("train")) and not len(found.table.rows("train")):
        return [
            f"nothing is left to train on: {' '.join(found.notes)} A training needs cases with an image and a label: "
            "see that columns.image and columns.label, or the folders, name them, and that data.filters keep some."
        ]
    try:
        return check_splits(found.table, nested=nested)
    except DataError as error:  # looking at data must work where training cannot
        return [str(error)]


def _balance(counts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    cases: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(SPLITS, 0))
    for row in counts:
        cases[row["label"]][row["split"]] += row["cases"]
    train = sum(of_label["train"] for of_label in cases.values())
    return [
        {"label": label or "(none)", **of_label, "share of train": of_label["train"] / train if train else None}
        for label in reading_order(sorted(cases))
        for of_label in [cases[label]]
    ]


def _nodes(table: CaseTable) -> list[dict[str, Any]]:
    """Cases at and below every node, the root first and children behind their parent; a case counts once in each."""
    cases: dict[tuple[str, ...], dict[str, int]] = defaultdict(lambda: dict.fromkeys(SPLITS, 0))
    stop: Counter[tuple[str, ...]] = Counter()
    for split, labels in zip(table.splits, table.labels, strict=True):
        for node in {(), *(tuple(node.split(".")) for node in with_ancestors(labels))}:
            cases[node][split] += 1
        stop.update([tuple(label.split(".")) for label in labels] or [()])
    inner = {node[:-1] for node in cases if node}
    if inner <= {()}:
        return []
    train = cases[()]["train"]
    return [
        {
            "label": ".".join(node) or ROOT,
            **own,
            "share of train": own["train"] / train if train else None,
            "stop here": stop[node] if node in inner else None,
        }
        for node, own in sorted(cases.items())
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
    paths = list(dict.fromkeys([*images, *(path for path, _, _ in table.mask_files())]))
    return [path for path, found in zip(paths, facts_of(paths), strict=True) if found is None or not found.is_file]


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
