"""Pictures of what is in a store: a row of example images for every label, and near-duplicates side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from consilium.core.errors import ImageError
from consilium.core.files import atomic_file
from consilium.data.case import SPLITS
from consilium.data.config import ImageConfig
from consilium.data.guards.near_duplicates import Pair
from consilium.data.images import load_view, read_bytes
from consilium.data.pixel_statistics import spread
from consilium.data.store import CaseTable

if TYPE_CHECKING:
    from PIL import Image, ImageFont

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
    from PIL import Image, ImageDraw, ImageFont

    common = sorted(sorted(rows_of), key=lambda label: -len(rows_of[label]))[:MAX_ROWS]
    columns = min(COLUMNS, max(len(rows_of[label]) for label in common))
    step = TILE + GAP
    width, height = (
        CAPTION_WIDTH + columns * step + GAP,
        len(common) * step + GAP + (28 if len(common) < len(rows_of) else 0),
    )
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    name_font, count_font = ImageFont.load_default(size=16), ImageFont.load_default(size=13)
    for line, label in enumerate(sorted(common)):
        top = GAP + line * step
        rows = rows_of[label]
        for number, text in enumerate(_wrapped(label, name_font, CAPTION_WIDTH - 3 * GAP)):
            draw.text((2 * GAP, top + 4 + 20 * number), text, fill=INK, font=name_font)
        splits = Counter(table.splits[row] for row in rows)
        counts = ", ".join(f"{split} {splits[split]}" for split in SPLITS if splits[split])
        draw.text((2 * GAP, top + TILE - 20), counts, fill=FAINT, font=count_font)
        for column, position in enumerate(spread(len(rows), columns)):
            tile = _tile(table, rows[position], max_pixels=max_pixels)
            sheet.paste(tile, (CAPTION_WIDTH + column * step, top))
    if len(common) < len(rows_of):
        note = f"The {len(common)} commonest of {len(rows_of)} labels."
        draw.text((2 * GAP, height - 24), note, fill=FAINT, font=count_font)
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
    from PIL import Image, ImageDraw, ImageFont

    shown = pairs[:MAX_PAIRS]
    across, width, height = min(PAIRS_ACROSS, len(shown)), 2 * PAIR_TILE + 4 * GAP, PAIR_TILE + 56
    sheet = Image.new("RGB", (across * width, HEAD + -(-len(shown) // across) * height), PAPER)
    draw = ImageDraw.Draw(sheet)
    label_font, id_font = ImageFont.load_default(size=14), ImageFont.load_default(size=12)
    of_all = f" The first {len(shown)} of {len(pairs)}." if len(shown) < len(pairs) else ""
    draw.text((GAP, GAP), f"Almost the same image; red: on two sides of a split.{of_all}", fill=INK, font=label_font)
    for number, pair in enumerate(shown):
        ink = ALARM if table.splits[pair.a] != table.splits[pair.b] else INK
        top = HEAD + number // across * height
        for side, (row, name) in enumerate(zip((pair.a, pair.b), pair.images, strict=True)):
            left = GAP + number % across * width + side * (PAIR_TILE + GAP)
            names = table.image_names(row)
            view = names.index(name) if name in names else 0
            sheet.paste(_tile(table, row, max_pixels=max_pixels, view=view, size=PAIR_TILE), (left, top))
            label = f"{', '.join(table.labels[row]) or '(no label)'} ({table.splits[row]})"
            draw.text((left, top + PAIR_TILE + 4), _cut(label, label_font), fill=ink, font=label_font)
            draw.text((left, top + PAIR_TILE + 22), _cut(table.ids[row], id_font), fill=FAINT, font=id_font)
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The end of a text that is too long for one tile: paths and labels differ there."""
    if font.getlength(text) <= PAIR_TILE:
        return text
    while font.getlength("…" + text) > PAIR_TILE:
        text = text[1:]
    return "…" + text


def _wrapped(text: str, font: object, width: int) -> list[str]:
    """The text in at most four lines; breaks after a dot, a space or an underscore where it can."""
    from PIL import ImageFont

    assert isinstance(font, ImageFont.FreeTypeFont | ImageFont.ImageFont)
    lines = [""]
    for word in text.replace(".", ".\0").replace(" ", " \0").replace("_", "_\0").split("\0"):
        for piece in [word] if font.getlength(word) <= width else list(word):
            if font.getlength(lines[-1] + piece) > width:
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
