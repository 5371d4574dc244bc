"""Pictures of what is in a store: a row of example images for every label, and near-duplicates side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from consilium.core.errors import ImageError
from consilium.core.files import atomic_file
from consilium.core.labels import reading_order
from consilium.data.case import SPLITS
from consilium.data.config import ImageConfig
from consilium.data.guards.near_duplicates import Pair
from consilium.data.images.reading import load_view, read_bytes
from consilium.data.look.lettering import REPLACED, Lettering, lettering
from consilium.data.look.pixel_statistics import spread
from consilium.data.store.store import CaseTable

if TYPE_CHECKING:
    from PIL import Image

TILE, GAP, CAPTION_WIDTH, COLUMNS, MAX_ROWS = 128, 8, 240, 8, 60
PAIR_TILE, PAIRS_ACROSS, MAX_PAIRS, HEAD = 192, 3, 48, 36
PAPER, INK, FAINT, BLANK, ALARM = "#ffffff", "#1a1a1a", "#6b6b6b", "#e4e4e4", "#b00020"


def draw_contact_sheet(table: CaseTable, path: Path, *, max_pixels: int) -> Path | None:
    """Write a PNG with a row of up to 8 images, spread evenly over its cases, for each of the 60 commonest labels.

    Every image is shown whole. Returns ``path``, or None where no case has an image.
    """
    with_image = set(table.view_column("name")[0].tolist())
    rows_of: dict[str, list[int]] = {}
    for row, labels in enumerate(table.labels):
        if row in with_image:
            for label in labels or ("(no label)",):
                rows_of.setdefault(label, []).append(row)
    if not rows_of:
        return None
    from PIL import Image

    common = sorted(sorted(rows_of), key=lambda label: -len(rows_of[label]))[:MAX_ROWS]
    columns = min(COLUMNS, max(len(rows_of[label]) for label in common))
    names = {label: lettering(label, size=16) for label in reading_order(sorted(common))}
    notes = [f"The {len(common)} commonest of {len(rows_of)} labels."] if len(common) < len(rows_of) else []
    notes += [REPLACED] if not all(name.complete for name in names.values()) else []
    step = TILE + GAP
    size = (CAPTION_WIDTH + columns * step + GAP, len(common) * step + GAP + (28 if notes else 0))
    sheet = Image.new("RGB", size, PAPER)
    for line, (label, name) in enumerate(names.items()):
        top = GAP + line * step
        rows = rows_of[label]
        for number, text in enumerate(_wrapped(name, CAPTION_WIDTH - 3 * GAP)):
            _write(sheet, (2 * GAP, top + 4 + 20 * number), Lettering(text, name.font), ink=INK)
        splits = Counter(table.splits[row] for row in rows)
        counts = ", ".join(f"{split} {splits[split]}" for split in SPLITS if splits[split])
        _write(sheet, (2 * GAP, top + TILE - 20), lettering(counts, size=13), ink=FAINT)
        for column, position in enumerate(spread(len(rows), columns)):
            tile = _tile(table, rows[position], max_pixels=max_pixels)
            sheet.paste(tile, (CAPTION_WIDTH + column * step, top))
    _write(sheet, (2 * GAP, size[1] - 24), lettering(" ".join(notes), size=13), ink=FAINT)
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path


def draw_pairs(table: CaseTable, pairs: Sequence[Pair], path: Path, *, max_pixels: int) -> Path | None:
    """Write a PNG with the first 48 pairs, each side by side with the label, split and id of both cases.

    Every image is shown whole. Returns ``path``, or None where there is no pair; then an older picture goes.
    """
    if not pairs:
        path.unlink(missing_ok=True)
        return None
    from PIL import Image

    shown = pairs[:MAX_PAIRS]
    across, width, height = min(PAIRS_ACROSS, len(shown)), 2 * PAIR_TILE + 4 * GAP, PAIR_TILE + 56
    sheet = Image.new("RGB", (across * width, HEAD + -(-len(shown) // across) * height), PAPER)
    complete = True
    for number, pair in enumerate(shown):
        ink = ALARM if table.splits[pair.a] != table.splits[pair.b] else INK
        top = HEAD + number // across * height
        for side, (row, name) in enumerate(zip((pair.a, pair.b), pair.images, strict=True)):
            left = GAP + number % across * width + side * (PAIR_TILE + GAP)
            names = table.image_names(row)
            view = names.index(name) if name in names else 0
            sheet.paste(_tile(table, row, max_pixels=max_pixels, view=view, size=PAIR_TILE), (left, top))
            label = lettering(f"{', '.join(table.labels[row]) or '(no label)'} ({table.splits[row]})", size=14)
            case = lettering(table.ids[row], size=12)
            _write(sheet, (left, top + PAIR_TILE + 4), _cut(label), ink=ink)
            _write(sheet, (left, top + PAIR_TILE + 22), _cut(case), ink=FAINT)
            complete = complete and label.complete and case.complete
    of_all = f" The first {len(shown)} of {len(pairs)}." if len(shown) < len(pairs) else ""
    head = f"Almost the same image; red: on two sides of a split.{of_all}"
    _write(sheet, (GAP, GAP - 2), lettering(head, size=14), ink=INK)
    _write(sheet, (GAP, GAP + 14), lettering("" if complete else REPLACED, size=11), ink=INK)
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path


def _write(sheet: Image.Image, place: tuple[int, int], own: Lettering, *, ink: str) -> None:
    from PIL import ImageDraw

    ImageDraw.Draw(sheet).text(place, own.text, fill=ink, font=own.font)


def _cut(own: Lettering) -> Lettering:
    """The end of a text that is too long for one tile: paths and labels differ there."""
    text = own.text
    if own.font.getlength(text) > PAIR_TILE:
        while own.font.getlength("…" + text) > PAIR_TILE:
            text = text[1:]
        text = "…" + text
    return Lettering(text, own.font, own.complete)


def _wrapped(own: Lettering, width: int) -> list[str]:
    """The text in at most four lines; breaks after a dot, a space or an underscore where it can."""
    measure = own.font.getlength
    lines = [""]
    for word in own.text.replace(".", ".\0").replace(" ", " \0").replace("_", "_\0").split("\0"):
        for piece in [word] if measure(word) <= width else list(word):
            if measure(lines[-1] + piece) > width:
                lines.append("")
            lines[-1] += piece
    return lines[:4] if len(lines) <= 4 else [*lines[:3], lines[3][:-1] + "…"]


def _tile(table: CaseTable, row: int, *, max_pixels: int, view: int = 0, size: int = TILE) -> Image.Image:
    from PIL import Image, ImageDraw

    image = ImageConfig(size=(size, size), fit="pad", max_pixels=max_pixels)
    try:
        return Image.fromarray(
            load_view(read_bytes(table.images(row)[view]), name=table.ids[row], image=image, box=None)
        )
    except ImageError:
        tile = Image.new("RGB", (size, size), BLANK)
        ImageDraw.Draw(tile).text((size // 2, size // 2), "unreadable", fill=INK, anchor="mm")
        return tile
