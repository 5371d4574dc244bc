"""Configs as earlier versions wrote them: with every moved key spelled out in its old place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from consilium.core.config import read_tree
from consilium.core.moved import MOVED

NEW_SECTIONS = (("task", "answers"), ("optimizer", "groups"))


def make_older(folder: Path, **values: Any) -> dict[str, Any]:
    """Rewrite the config (and manifest) of a run with old keys, with ``values`` for some of them; the tree written."""
    tree = read_tree(folder / "config.yaml")
    for old, new in MOVED.items():
        *sections, key = old.split(".")
        _section(tree, sections)[key] = values.get(key, _value(tree, new.split(".")))
    for *sections, name in NEW_SECTIONS:
        _section(tree, sections).pop(name, None)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    manifest = folder / "bundle.json"
    if manifest.is_file():
        content = json.loads(manifest.read_text(encoding="utf-8"))
        del content["task"]["answers"]
        manifest.write_text(json.dumps(content), encoding="utf-8")
    return tree


def _section(tree: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    for key in keys:
        tree = tree[key]
    return tree


def _value(tree: Any, keys: list[str]) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
