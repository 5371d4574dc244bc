"""The source that a path stands for, where nothing but the path is given."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from consilium.core import places
from consilium.core.archives import is_archive


def kind_of(path: str) -> str | None:
    """folder, csv, parquet or jsonl; None: what lies there (or nothing) is not read as cases."""
    found = places.facts(places.absolute(path)) if path else None
    if is_archive(path) or (found is not None and not found.is_file):
        return "folder"
    kind = Path(path.removesuffix(".gz")).suffix.removeprefix(".")
    return kind if kind in ("csv", "parquet", "jsonl") else None


def single_source(path: str, kind: str) -> dict[str, Any]:
    """The source of this kind, with the keys that a config would give."""
    return {"kind": kind, "name": name_of(path), "path": path}


def name_of(path: str) -> str:
    """A name for what lies there, of letters that every file system takes: that of the file or folder."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", Path(path).stem).strip(".") or "data"
