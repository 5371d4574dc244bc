"""Exports in the form of RET-CLIP: its TSV and JSONL, and what they share with its LMDB."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from consilium.core.errors import DataError
from consilium.core.files import atomic_file
from consilium.data.images.reading import alone, read_bytes
from consilium.data.store.export_job import ExportJob, json_line
from consilium.data.store.export_names import hints


def write_tsv(job: ExportJob) -> None:
    """Write the images as base64 to the TSV, and the texts to a JSONL beside it."""
    keys = image_keys(job)
    written: set[str] = set()
    without_text = 0
    note_what_is_lost(job)
    with (
        atomic_file(job.out.with_suffix(".jsonl")) as texts_path,
        atomic_file(job.out) as images_path,
        texts_path.open("w", encoding="utf-8") as texts,
        images_path.open("wb") as images,
    ):
        for number, row in job.rows():
            image_id = keys[number]
            if image_id not in written:
                written.add(image_id)
                cells = map(base64.b64encode, eye_images(job, number).values())
                images.write(b"\t".join([image_id.encode(), *cells]) + b"\n")
            row = first_text(job, number, row)
            if "text" in row:
                texts.write(json_line({**row, "text_id": number + 1, "image_ids": [int(image_id)]}))
            else:
                without_text += 1
    if without_text == len(job.table):
        job.notes.append("no case has a text: read the TSV without texts. Labels, splits and metadata are left out.")
    elif without_text:
        job.notes.append(
            f"{without_text} cases have no text: the form holds their images alone, without label, split or metadata."
        )


def note_what_is_lost(job: ExportJob) -> None:
    """Say which texts and masks the form has no place for."""
    if hints(job.text_columns, job.mask_columns):
        job.notes.append("the form holds one text of a case, the first, and one mask; all others become metadata.")
    if job.several_texts:
        job.notes.append("of several texts of one name the form holds the first; jsonl and parquet hold all.")


def first_text(job: ExportJob, number: int, row: dict[str, Any]) -> dict[str, Any]:
    """The values of a case with its first text as ``text``, which is not there where it has none."""
    row = {**row, **job.relative_masks(row)}
    first = next(iter(job.table.named_texts[number]), None)
    for column in job.text_columns.values() if first is None else [job.text_columns[first.name]]:
        del row[column]
    return row if first is None else {**row, "text": first.text}


def image_keys(job: ExportJob) -> list[str]:
    """A number for the images of each case (programs of this form expect one); the same images get the same."""
    rows, names = job.table.view_column("name")
    _, digests = job.table.view_column("sha256")
    content: list[list[str]] = [[] for _ in range(len(job.table))]
    for row, name, digest in zip(rows.tolist(), names, digests, strict=True):
        content[row].append(f"{name}:{digest}")
    hashes = (hashlib.sha256("\n".join(sorted(views)).encode()).hexdigest() for views in content)
    return [str(int(digest[:15], 16)) for digest in hashes]


def eye_images(job: ExportJob, row: int) -> dict[str, bytes]:
    """The image of a case (of the name ''), or those of its left and right eye, b'' for one that is missing."""
    views = {name: image for name, _, image in job.views(row)}
    names = job.table.view_names(row)
    if names != [""] and (set(names) - {"left", "right"} or len(views) < len(names)):
        named = ", ".join(f"'{name}'" for name in names)
        raise DataError(
            f"case '{job.table.ids[row]}' has the views {named}; the RET-CLIP form holds one image without a name, or "
            "views named left and right. Name them so (columns.image: [left, right]), or export as jsonl or parquet."
        )
    found: dict[str, bytes] = {}
    for name in names if names == [""] else ["left", "right"]:
        image = views.get(name, b"")
        if isinstance(image, str):
            image = alone(read_bytes(image), name=image, max_pixels=job.max_pixels)
        found[name] = image
    return found
