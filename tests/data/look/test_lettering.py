"""Letters beyond ASCII on drawn sheets: from a font that has them, or plainer and with a word; never as boxes."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from consilium.data.guards.near_duplicates import Pair
from consilium.data.look import contact_sheet
from consilium.data.look import lettering as module
from consilium.data.look.contact_sheet import draw_contact_sheet, draw_pairs
from consilium.data.look.lettering import REPLACED, Lettering, lettering
from consilium.data.store.prepare import prepare
from tests.data.samples import data_config, write_images


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without fonts."""
    monkeypatch.setattr(module, "MACHINE_FONTS", ())


def boxes(own: Lettering) -> list[str]:
    """The letters that look like what no font has."""
    assert isinstance(own.font, ImageFont.FreeTypeFont)
    blank = bytes(own.font.getmask("\uffff"))
    return [letter for letter in own.text if not letter.isspace() and bytes(own.font.getmask(letter)) == blank]


@pytest.mark.parametrize(
    "text",
    ["mélanome", "Größe µm", "ząb", "рак", "ὀφθαλμός", "正常", "정상", "سليم", "a\N{NO-BREAK SPACE}b", "☃ 🩻", ""],
)
@pytest.mark.parametrize("size", [12, 16])
def test_no_letter_is_a_box(text: str, size: int) -> None:
    own = lettering(text, size=size)
    assert boxes(own) == []
    assert own.complete == (own.text == unicodedata.normalize("NFC", text))
    assert len(own.text) == len(unicodedata.normalize("NFC", text))


@pytest.mark.usefixtures("bare")
def test_without_fonts_a_letter_loses_its_accent_or_is_a_question_mark() -> None:
    assert lettering("mélanome malin", size=16).text == "melanome malin"
    assert lettering("me\N{COMBINING ACUTE ACCENT}lanome", size=16).text == "melanome"
    assert lettering("正常 ct", size=16).text == "?? ct"
    assert not lettering("正常 ct", size=16).complete
    assert lettering("plain", size=16).complete


def test_a_font_of_the_machine_is_taken_where_it_has_all_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [name for name in module.MACHINE_FONTS if module._machine_font(name, 16)]
    if not found:
        pytest.skip("no known font here")
    monkeypatch.setattr(module, "MACHINE_FONTS", ("no such font.ttf", *found))
    own = lettering("é", size=16)
    assert own.text == "é"
    assert own.complete


@pytest.mark.usefixtures("bare")
def test_the_sheets_say_what_they_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, ["images/正常/é.png", "images/ct/b.png"])
    config = data_config(tmp_path, {"kind": "folder", "name": "s", "path": str(tmp_path / "images")})
    store = prepare(config).store
    written: list[str] = []
    write = contact_sheet._write

    def spy(sheet: Image.Image, place: tuple[int, int], own: Lettering, *, ink: str) -> None:
        written.append(own.text)
        write(sheet, place, own, ink=ink)

    monkeypatch.setattr(contact_sheet, "_write", spy)
    draw_contact_sheet(store.table, tmp_path / "sheet.png", max_pixels=10_000)
    assert REPLACED in written
    assert {"??", "ct"} <= set(written)
    written.clear()
    draw_pairs(store.table, [Pair(0, 1, ("a", "b"), 1, 0.99)], tmp_path / "pairs.png", max_pixels=10_000)
    assert REPLACED in written
