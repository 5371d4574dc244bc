"""Radiology reports taken apart: sections by their headings, and sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

# Headings that reports have, as they are usually written; one ends the section before it.
_HEADINGS = (
    *("findings", "finding", "impression", "impressions", "conclusion", "conclusions", "opinion", "summary"),
    *("interpretation", "diagnosis", "indication", "indications", "clinical indication", "history"),
    *("clinical history", "clinical information", "clinical details", "clinical data", "clinical question"),
    *("reason for exam", "reason for examination", "reason for this examination", "reason for study"),
    *("technique", "procedure", "protocol", "contrast", "comparison", "comparisons", "comparison study", "prior study"),
    *("exam", "examination", "exam type", "study", "study type", "views", "view", "report", "final report"),
    *("recommendation", "recommendations", "follow-up", "addendum", "notification", "notifications", "wet read"),
    *("attestation", "signature", "electronically signed by", "dictated by", "critical results"),
)
_SENTENCE = re.compile(r".*?(?:[.!?][\"')\]]*(?=\s+[\"'(\[]*[A-Z0-9\u0080-\U0010ffff])|[。！？]|\Z)", re.DOTALL)
# A point behind one of these, or behind a lone letter or number, ends no sentence.
_SHORTENED = re.compile(
    r"(?:^|[\s(])(?:dr|mr|mrs|ms|prof|st|vs|no|fig|approx|ca|e\.g|i\.e|[a-z]|\d{1,3})\.$", re.IGNORECASE
)


def plain(name: str) -> str:
    """The name of a section as names are compared: in small letters, with single spaces."""
    return " ".join(name.casefold().replace("_", " ").split())


def sections_of(text: str, names: Iterable[str]) -> dict[str, str]:
    """The sections of a report that have something in them, by their plain names.

    A section begins at its heading, a name before a colon, and ends at the next one. ``names`` are headings beside
    those that reports usually have. In mid-line a heading begins with a capital letter, so that "no new findings:" is
    none. "FINDINGS AND IMPRESSION:" is both.
    """
    found: dict[str, list[str]] = {}
    headings = [match for match in _pattern(frozenset(map(plain, names))).finditer(text) if _begins(match, text)]
    ends = [*(match.start() for match in headings), len(text)][1:]
    for match, end in zip(headings, ends, strict=True):
        body = text[match.end() : end].strip().strip("*").strip()
        for name in re.split(r"\s+(?:and|&)\s+|\s*/\s*", match["names"], flags=re.IGNORECASE) if body else ():
            found.setdefault(plain(name), []).append(body)
    return {name: "\n".join(bodies) for name, bodies in found.items()}


@lru_cache(maxsize=64)
def _pattern(names: frozenset[str]) -> re.Pattern[str]:
    known = sorted({*_HEADINGS, *names}, key=lambda name: (-len(name), name))
    one = "(?:" + "|".join(re.escape(name).replace(r"\ ", r"[ \t_]+") for name in known) + ")"
    return re.compile(rf"(?<![\w-])(?P<names>{one}(?:(?:\s+(?:and|&)\s+|\s*/\s*){one})*)[ \t*]*:[*]*", re.IGNORECASE)


def _begins(match: re.Match[str], text: str) -> bool:
    line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
    return not line.strip(" \t*#>-") or match["names"][0].isupper()


def sentences_of(text: str) -> list[str]:
    """The sentences of a text, with single spaces; never none of a text that is not empty.

    A sentence ends with a point, question or exclamation mark before a capital letter or a number. What has no letter,
    such as the numbers of a list, belongs to the sentence behind it.
    """
    found: list[str] = []
    begun = ""
    for part in _SENTENCE.findall(text):
        begun = f"{begun} {' '.join(part.split())}".strip()
        if begun and not _SHORTENED.search(begun) and any(map(str.isalpha, begun)):
            found.append(begun)
            begun = ""
    if begun:
        found.append(begun)
    return found
