"""Choose the embedded demo data from the curated collection and write it, bit for bit the same every time.

    python tools/build_demo_data.py --collection DIR            # write src/consilium/demo/data
    python tools/build_demo_data.py --collection DIR --check    # only compare; exit code 1 if they differ

``DIR`` (or the environment variable ``CONSILIUM_SHARED``) holds ``modality/``, ``pairs/`` and ``segmentation/``.
Images and masks are copied byte for byte; splits and groups are the collection's.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any

DATA_FOLDER = Path(__file__).parents[1] / "src" / "consilium" / "demo" / "data"

# Images of one modality in modality.csv; scarce modalities have fewer.
MODALITY_QUOTA = {"train": 56, "val": 18, "test": 24}
# Images of each file of image-text pairs; first come those that modality.csv has.
PAIR_QUOTA = {"train": 96, "val": 28, "test": 36}
# Slices of one volume, tiles of one slide, figures of one test file look much alike.
MAX_PER_GROUP = 8
# Questions about one VQA-RAD image.
MAX_QUESTIONS = 6

# Licence as the collection words it -> as our rows name it. What is not here stays out: NC, GPL, and the few
# images whose Creative Commons licence names no version.
LICENCES = {
    "Apache-2.0 (repository test files)": "Apache-2.0",
    "BSD-3-Clause": "BSD-3-Clause",
    "CC BY 3.0": "CC BY 3.0",
    "CC BY 4.0": "CC BY 4.0",
    "CC BY 4.0 (repository Apache-2.0)": "CC BY 4.0",
    "CC BY 4.0 as part of HyperKvasir (osf.io/mh9sj); the HyperKvasir README asks permission for commercial use": (
        "CC BY 4.0"
    ),
    "CC BY-SA 4.0": "CC BY-SA 4.0",
    "CC0 1.0": "CC0 1.0",
    "CC0 1.0 (as listed on Kaggle and by dataset-ninja/breast-ultasound-images); article CC BY 4.0": "CC0 1.0",
    "MIT": "MIT",
    "free to use and distribute, with or without modification (OpenSlide test data)": "OpenSlide free data",
}
HANNOVER = (
    "COVID-19 Image Repository, Institute for Diagnostic and Interventional Radiology, Hannover Medical School, "
    "doi:10.6084/m9.figshare.12275009"
)

Row = dict[str, str]
Record = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One image that may go into the demo data."""

    path: str
    modality: str
    submodality: str
    split: str
    group_id: str
    source: str
    licence: str
    credit: str
    provenance: str

    @property
    def file(self) -> str:
        """Its place in the demo data; every file name starts with its source."""
        name = PurePosixPath(self.path).name
        return f"images/{self.modality}/{name if name.startswith(self.source) else f'{self.source}_{name}'}"


def stable(text: str) -> str:
    """A key that sorts texts in an order that is arbitrary, yet the same on every machine."""
    return hashlib.sha256(text.encode()).hexdigest()


def interleave(items: Iterable[Item], keys: Sequence[str]) -> list[Item]:
    """Take turns: one item of each value of the first key, and within a value of the next key, and so on."""
    if not keys:
        return sorted(items, key=lambda item: stable(item.path))
    parts: dict[str, list[Item]] = {}
    for item in items:
        parts.setdefault(getattr(item, keys[0]), []).append(item)
    queues = [interleave(parts[value], keys[1:]) for value in sorted(parts, key=stable)]
    return [item for turn in zip_longest(*queues) for item in turn if item is not None]


def read_csv(path: Path) -> list[Row]:
    """The rows of a csv file."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def read_jsonl(path: Path) -> list[Record]:
    """The objects of a jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def image_of(record: Record) -> str:
    """The path of the one image of a record."""
    (image,) = (part["value"] for part in record["modalities"])
    return str(image)


def read_items(collection: Path) -> list[Item]:
    """Every image whose licence allows it, without files that exist twice; dermoscopy is ISIC-2017."""
    notes = {image_of(note): note for note in read_jsonl(collection / "pairs" / "covid_cxr_notes.jsonl")}
    context = {image_of(r) for r in read_jsonl(collection / "pairs" / "isic2017_captions.jsonl") if "context" in r}
    rows = read_csv(collection / "modality" / "manifest.csv")
    for row in read_csv(collection / "segmentation" / "manifest.csv"):
        if row["image"] in context:
            submodality = f"isic2017:{row['label']}"
            rows.append({**row, "path": row["image"], "modality": "dermoscopy", "submodality": submodality})
    items = [
        Item(
            path=row["path"],
            modality=row["modality"],
            submodality=row["submodality"],
            split=row["split"],
            group_id=row["group_id"],
            source=row["source"],
            licence=LICENCES[row["licence"]],
            credit=credit_of(row, notes.get(row["path"], {})),
            provenance=f"{row['source_repo']}: {row['source_path']}",
        )
        for row in rows
        if row["licence"] in LICENCES
    ]
    # IDRiD holds five photographs under two names, most of them with two different grades.
    digests = [hashlib.sha256((collection / item.path).read_bytes()).digest() for item in items]
    return [item for item, digest in zip(items, digests, strict=True) if digests.count(digest) == 1]


def credit_of(row: Row, note: Record) -> str:
    """Whom an image of a source with many authors must be credited to."""
    if row["source"] != "covid_cxr":
        return ""
    if row["licence"] == "CC BY 3.0":
        return HANNOVER
    return "; ".join(str(note[key]) for key in ("credit", "url") if key in note)


def choose(items: Iterable[Item], quota: dict[str, int]) -> list[Item]:
    """Pick ``quota[split]`` items of each split, alternating between sources, modalities, kinds and groups."""
    chosen: list[Item] = []
    for item in interleave(items, ("split", "source", "modality", "submodality", "group_id")):
        of_split = sum(other.split == item.split for other in chosen)
        of_group = sum(other.group_id == item.group_id for other in chosen)
        if of_split < quota[item.split] and of_group < MAX_PER_GROUP:
            chosen.append(item)
    return chosen


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows with the columns of the first."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_pairs(path: Path, records: Iterable[Record], images: dict[str, Item]) -> None:
    """Write the records about the given images, ordered by image and text."""
    lines = []
    for record in records:
        item = images.get(image_of(record))
        if item is None:
            continue
        if (record["split"], record["group_id"]) != (item.split, item.group_id):
            raise SystemExit(f"{path.name}: {item.path} has another split or group than in the manifest")
        changed = {
            **record,
            "modalities": [{"type": "image", "value": item.file}],
            "source": item.source,
            "licence": item.licence,
            "provenance": item.provenance,
        }
        lines.append((item.file, stable(record["text"]), json.dumps(changed, ensure_ascii=False)))
    path.write_text("".join(f"{line}\n" for *_, line in sorted(lines)), encoding="utf-8")


def ask_at_most(records: Iterable[Record], number: int) -> list[Record]:
    """At most ``number`` questions about one image, the same ones every time."""
    asked: dict[str, int] = {}
    kept = []
    for record in sorted(records, key=lambda record: stable(record["text"])):
        image = image_of(record)
        asked[image] = asked.get(image, 0) + 1
        if asked[image] <= number:
            kept.append(record)
    return kept


def mask_rows(collection: Path, images: dict[str, Item]) -> list[tuple[str, Row]]:
    """For every chosen image with an ISIC-2017 or DSB2018 mask: the mask's path in the collection, and its row."""
    # The collection stores DSB2018 images twice, as a modality and beside their masks.
    items = {(i.source, PurePosixPath(i.path).stem.removeprefix("dsb2018_")): i for i in images.values()}
    found = []
    for row in read_csv(collection / "segmentation" / "manifest.csv"):
        item = items.get((row["source"], PurePosixPath(row["image"]).stem))
        if item is None or row["source"] not in ("isic2017", "dsb2018"):
            continue
        if (collection / item.path).read_bytes() != (collection / row["image"]).read_bytes():
            raise SystemExit(f"{item.path} and {row['image']} should be the same file and are not")
        label, _, count = row["label"].partition("; ")
        changed = {
            "image": item.file,
            "mask": f"masks/{row['task']}/{PurePosixPath(item.file).stem}.png",
            "task": row["task"],
            "classes": row["classes"],
            "label": label,
            "split": item.split,
            "group_id": item.group_id,
            "source": item.source,
            "modality": item.modality,
            "objects": count.removesuffix(" nuclei"),
            "foreground": row["foreground"],
            "licence": item.licence,
            "provenance": item.provenance,
        }
        found.append((row["mask"], changed))
    return sorted(found, key=lambda pair: pair[1]["mask"])


def modality_row(item: Item) -> Row:
    """The row of an image in modality.csv."""
    return {
        "image": item.file,
        "label": item.modality,
        "split": item.split,
        "group_id": item.group_id,
        "source": item.source,
        "submodality": item.submodality,
        "licence": item.licence,
        "credit": item.credit,
        "provenance": item.provenance,
    }


def build(collection: Path, folder: Path) -> None:
    """Write the whole demo data into an empty folder."""
    items = read_items(collection)
    modality = [
        item
        for name in sorted({item.modality for item in items})
        for item in choose((item for item in items if item.modality == name), MODALITY_QUOTA)
    ]
    pairs = {
        source: {item.path: item for item in choose((item for item in items if item.source == source), PAIR_QUOTA)}
        for source in ("vqa_rad", "isic2017", "idrid")
    }
    images = {item.path: item for item in modality} | pairs["vqa_rad"] | pairs["isic2017"] | pairs["idrid"]
    masks = mask_rows(collection, images)
    copies = [(item.path, item.file) for item in images.values()] + [(path, row["mask"]) for path, row in masks]
    for path, file in copies:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(collection / path, folder / file)
    write_csv(folder / "modality.csv", sorted(map(modality_row, modality), key=lambda row: row["image"]))
    write_csv(folder / "masks.csv", [row for _, row in masks])
    texts = collection / "pairs"
    questions = ask_at_most(read_jsonl(texts / "vqa_rad.jsonl"), MAX_QUESTIONS)
    write_pairs(folder / "vqa_rad.jsonl", questions, pairs["vqa_rad"])
    write_pairs(folder / "isic2017.jsonl", read_jsonl(texts / "isic2017_captions.jsonl"), pairs["isic2017"])
    write_pairs(folder / "idrid_grades.jsonl", read_jsonl(texts / "idrid_grades.jsonl"), pairs["idrid"])


def differences(left: Path, right: Path) -> list[str]:
    """Files that are not in both folders, or not the same in both."""
    files = {p.relative_to(root) for root in (left, right) for p in root.rglob("*") if p.is_file()}

    def content(path: Path) -> bytes | None:
        return path.read_bytes() if path.is_file() else None

    return sorted(file.as_posix() for file in files if content(left / file) != content(right / file))


def main(arguments: Sequence[str] | None = None) -> int:
    """Build or check; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--collection", type=Path, default=os.environ.get("CONSILIUM_SHARED"))
    parser.add_argument("--check", action="store_true", help="compare with what is there; write nothing")
    options = parser.parse_args(arguments)
    if options.collection is None or not (Path(options.collection) / "modality" / "manifest.csv").is_file():
        parser.error(f"no collection at {options.collection}; give --collection DIR or set CONSILIUM_SHARED")
    with tempfile.TemporaryDirectory() as temporary:
        built = Path(temporary) / "data"
        built.mkdir()
        build(Path(options.collection), built)
        if options.check:
            changed = differences(built, DATA_FOLDER)
            print("\n".join(["differs from what would be written:", *changed]) if changed else "demo data is as built")
            return 1 if changed else 0
        shutil.rmtree(DATA_FOLDER, ignore_errors=True)
        shutil.copytree(built, DATA_FOLDER)
    size = sum(path.stat().st_size for path in DATA_FOLDER.rglob("*") if path.is_file())
    print(f"wrote {DATA_FOLDER}: {size:,} bytes ({size / 2**20:.2f} MiB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
