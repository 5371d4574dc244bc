"""What the columns of an exported file are called, and how they are read back."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import TypeVar

from consilium.data.store.store import CaseTable

Key = TypeVar("Key")
MaskKind = tuple[str, str]  # class and annotator


def text_columns(table: CaseTable, *, taken: Collection[str]) -> dict[str, str]:
    """The column of each name of a text: ``text`` for a text without one."""
    names = _in_order(tuple(dict.fromkeys(text.name for text in texts)) for texts in table.named_texts) or [""]
    return _columns({name: name or "text" for name in names}, taken=set(taken) - {"text"}, kind="text")


def mask_columns(table: CaseTable, *, taken: Collection[str]) -> dict[MaskKind, str]:
    """The column of each class of a mask and annotator: ``mask``, or ``mask.{class}.{annotator}``."""
    kinds = _in_order(tuple((mask.name, mask.annotator) for mask in masks) for masks in table.masks) or [("", "")]
    wanted = {kind: ".".join(["mask", *filter(None, kind)]) for kind in kinds}
    return _columns(wanted, taken=set(taken) - {"mask"}, kind="mask")


def _in_order(cases: Iterable[tuple[Key, ...]]) -> list[Key]:
    """All keys of cases in an order that is that of every case, where there is one: the first text stays the first."""
    sorter: TopologicalSorter[Key] = TopologicalSorter()
    seen = dict.fromkeys(cases)
    for keys in seen:
        for number, key in enumerate(keys):
            sorter.add(key, *keys[max(0, number - 1) : number])
    try:
        return list(sorter.static_order())
    except CycleError:
        return list(dict.fromkeys(key for keys in seen for key in keys))


def _columns(wanted: Mapping[Key, str], *, taken: Collection[str], kind: str) -> dict[Key, str]:
    """The wanted names, each with its kind in front as often as others have it already."""
    columns: dict[Key, str] = {}
    for key, name in wanted.items():
        while name in {*taken, *columns.values()}:
            name = f"{kind}.{name}"
        columns[key] = name
    return columns


def hints(texts: Mapping[str, str], masks: Mapping[MaskKind, str]) -> Sequence[str]:
    """What the reader of a file must say of its columns, where they have names of their own."""
    found = []
    if [*texts] != [""]:
        found.append(f"read its texts with columns: {json.dumps({'text': [*texts.values()]}, ensure_ascii=False)}.")
    if [*masks] != [("", "")]:
        given: dict[str, dict[str, str]] = {}
        for (name, annotator), column in masks.items():
            given.setdefault(name, {})[annotator] = column
        short = {name: own[""] if [*own] == [""] else own for name, own in given.items()}
        found.append(f"read its masks with columns: {json.dumps({'mask': short}, ensure_ascii=False)}.")
    return found
