"""Data that a command is given: a YAML file, a folder or a table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from consilium.core import places
from consilium.core.config import build, read_tree
from consilium.core.errors import ConfigError
from consilium.data.config import DataConfig
from consilium.data.sources.single import kind_of, single_source

YAML = (".yaml", ".yml")


def given_tree(path: str) -> dict[str, Any]:
    """The whole YAML file that is given; {} of anything else."""
    return read_tree(path) if Path(path).suffix in YAML else {}


def given_data(path: str, *, tree: dict[str, Any], own: DataConfig) -> DataConfig:
    """The data section of a YAML file (a whole experiment, or a data section alone), or one source with defaults.

    ``tree`` is what ``given_tree`` read of it.
    """
    if Path(path).suffix in YAML:
        return build(DataConfig, tree.get("data", tree), origin=path)
    kind = kind_of(path)
    if kind is None:
        there = bool(path) and places.facts(places.absolute(path)) is not None
        what = f"'{path}'" + ("" if there else f", which does not exist (looked from {os.getcwd()})")
        raise ConfigError(
            f"the data to judge on is {what}; expected a YAML file with a `data` section (as in a recipe), a folder of "
            "{label}/images (also as a .zip or .tar), or a .csv, .parquet or .jsonl file. Images without labels are "
            "for `consilium predict`."
        )
    if kind == "folder" and places.exists(places.join(places.absolute(path), "store.json")):
        raise ConfigError(f"the data to judge on is {path}, a prepared store; give the YAML file it was prepared from.")
    source = single_source(path, kind)
    single = {"sources": [source], "store": own.store.model_dump(), "on_bad_row": own.on_bad_row}
    return build(DataConfig, single, origin=path)
