"""Where the licence of a tower's weights is read: timm's list, a model card, or the bundle that they are of."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from consilium.core.files import BUNDLE
from consilium.core.licenses import License, recorded

CARD = "README.md"  # of a folder as on the hub; its metadata lies between two lines of ---
LICENSE_FILES = (BUNDLE, CARD, "config.json")
_SHOWN = 120  # letters of a name; some write a sentence
_MOST = 2**22  # letters of a card that are read; results of benchmarks may be long
_UNKNOWN = ("", "unknown", "none")


def timm_license(cfg: Mapping[str, Any]) -> License:
    """The licence of weights of timm, from the ``pretrained_cfg`` of a model."""
    source = ".".join(filter(None, (cfg.get("architecture"), cfg.get("tag"))))
    name = _clean(cfg.get("license"))
    return License(source=source, name=name, read_from="timm" if name else "timm names none")


def file_licenses(path: Path, *, source: str) -> list[License]:
    """The licences of a file of weights, or of a folder with one, from what lies beside it.

    A bundle names those of its own start, none where that was random; checkpoints lie in the folder of one. Else it is
    the card, then a ``config.json`` of timm.
    """
    folder = path if path.is_dir() else path.parent
    for inside in (folder, *([folder.parent.parent] if folder.parent.name == "checkpoints" else [])):
        if (inside / BUNDLE).is_file():
            return _of_bundle(inside / BUNDLE, source=source)
    card = folder / CARD
    if names := card_licenses(_text(card)):
        return [License(source=source, name=name, read_from=CARD) for name in names]
    if name := _of_timm_folder(folder / "config.json"):
        return [License(source=source, name=name, read_from="config.json")]
    why = f"its {CARD} names none" if card.is_file() else f"no {CARD} lies beside it"
    return [License(source=source, name=None, read_from=why)]


def card_licenses(card: str) -> list[str]:
    """The names in the metadata of a model card, ``license: other`` as ``license_name``; [] where none can be read."""
    lines = card.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return []
    metadata = []
    for line in lines[1:]:
        if line.rstrip() in ("---", "..."):
            break
        metadata.append(line)
    else:  # the second line of --- is missing
        return []
    found, own = _value("license", metadata), _clean(_value("license_name", metadata))
    names = [_clean(item) for item in (found if isinstance(found, list) else [found])]
    known = [own if own and name.lower() == "other" else name for name in names if name is not None]
    return list(dict.fromkeys(known)) if len(known) == len(names) else []  # what cannot be read may forbid something


def _value(key: str, metadata: list[str]) -> Any:
    """The value of a key at the top, whatever is wrong with the others; None where it has none."""
    starts = [number for number, line in enumerate(metadata) if re.match(rf"{key}\s*:", line)]
    if len(starts) != 1:
        return None
    block = [metadata[starts[0]]]
    for line in metadata[starts[0] + 1 :]:
        if re.match(r"[^\s#-]", line):
            break
        block.append(line)
    try:
        found = yaml.safe_load("\n".join(block))
    except Exception:  # tags in a card can provoke any error in the library
        return None
    return found.get(key) if isinstance(found, dict) else None


def _clean(name: object) -> str | None:
    """A name in one line; None where it is no text, or says that nobody knows."""
    text = " ".join(name.split()) if isinstance(name, str) else ""
    if text.lower() in _UNKNOWN:
        return None
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _text(path: Path) -> str:
    """The beginning of a file that may not be there, nor be text."""
    try:
        if not path.is_file():
            return ""
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_MOST)
    except OSError:
        return ""


def _of_bundle(path: Path, *, source: str) -> list[License]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8")).get("licenses")
        return recorded(TypeAdapter(list[License] | None).validate_python(kept), source=source)
    except (OSError, ValueError, AttributeError, RecursionError, ValidationError):
        return [License(source=source, name=None, read_from=f"its {BUNDLE} cannot be read")]


def _of_timm_folder(path: Path) -> str | None:
    try:
        return _clean(json.loads(_text(path))["pretrained_cfg"]["license"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
