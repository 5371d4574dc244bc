"""Text in drawn pictures: letters that Pillow's own font lacks are taken from a font of the machine."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

# Files that Linux, macOS and Windows have, those of many scripts first; Pillow knows where each system keeps them.
MACHINE_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial Unicode.ttf", "segoeui.ttf",
    "arial.ttf", "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf", "wqy-zenhei.ttc",
    "wqy-microhei.ttc", "DroidSansFallbackFull.ttf", "unifont.ttf", "unifont.otf", "PingFang.ttc",
    "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc", "msyh.ttc", "malgun.ttf", "YuGothM.ttc", "msgothic.ttc",
    "NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf", "NotoSansDevanagari-Regular.ttf",
    "NotoSansBengali-Regular.ttf", "NotoSansTamil-Regular.ttf", "NotoSansThai-Regular.ttf", "Nirmala.ttf",
    "LeelawUI.ttf",
)  # fmt: skip
REPLACED = "Letters that no font of this machine has are drawn without accents, or as ?."
_NO_CHARACTER = "\uffff"


@dataclass(frozen=True)
class Lettering:
    """A text as it can be drawn, with its font; ``complete`` is False where letters were replaced."""

    text: str
    font: Font
    complete: bool = True


def lettering(text: str, *, size: int) -> Lettering:
    """The text in the first font that has all its letters; if none has, in the one that lacks the fewest."""
    from PIL import ImageFont

    own = ImageFont.load_default(size=size)
    text = unicodedata.normalize("NFC", text)
    if text.isascii():
        return Lettering(text, own)
    least: tuple[int, Font, Callable[[str], bool]] = (len(text) + 1, own, str.isascii)
    for name in ("", *MACHINE_FONTS):
        font = _machine_font(name, size) if name else own
        if not isinstance(font, ImageFont.FreeTypeFont):
            continue
        has = _drawn_by(font)
        lacking = sum(not has(letter) for letter in text)
        if not lacking:
            return Lettering(text, font)
        if lacking < least[0]:
            least = (lacking, font, has)
    _, font, has = least
    return Lettering("".join(_plainer(letter, has) for letter in text), font, complete=False)


def _plainer(letter: str, has: Callable[[str], bool]) -> str:
    """The letter, or without its accents, or a question mark: the first of these that can be drawn."""
    return next(sign for sign in (letter, unicodedata.normalize("NFKD", letter)[0], "?") if has(sign))


@cache
def _machine_font(name: str, size: int) -> FreeTypeFont | None:
    from PIL import ImageFont

    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _drawn_by(font: FreeTypeFont) -> Callable[[str], bool]:
    """Whether the font has a letter: what it lacks looks like what is no character."""
    blank = bytes(font.getmask(_NO_CHARACTER))

    @cache
    def has(letter: str) -> bool:
        return letter.isspace() or bytes(font.getmask(letter)) != blank

    return has
