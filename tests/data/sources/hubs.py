"""Small datasets of the Hugging Face hub's own forms, and a preparation of one in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets

from consilium.data.case import Case
from consilium.data.sources.files import list_inputs
from consilium.data.sources.reading import read_source
from consilium.data.store.store import Store
from tests.data.samples import data_config, image_bytes

ROOT = Path(__file__).parents[3]
NAMES = ["ct", "mri", "xray"]
FEATURES = {
    "image": datasets.Image(),
    "label": datasets.ClassLabel(names=NAMES),
    "text": datasets.Value("string"),
    "patient": datasets.Value("int64"),
}


def dataset(rows: int, *, first: int = 0, size: tuple[int, int] = (12, 10)) -> datasets.Dataset:
    """Rows whose images, texts and patients all differ; the label is -1 in every seventh row."""
    numbers = range(first, first + rows)
    return datasets.Dataset.from_dict(
        {
            "image": [{"bytes": image_bytes(n, size=size), "path": "image.png"} for n in numbers],
            "label": [-1 if n % 7 == 6 else n % 3 for n in numbers],
            "text": [f"text {n}" for n in numbers],
            "patient": list(numbers),
        },
        features=datasets.Features(FEATURES),
    )


def write_parquet(folder: Path, splits: Mapping[str, int], *, files: int = 2, group: int = 10, **options: Any) -> Path:
    """A dataset as the hub keeps it: ``data/{split}-00000-of-00002.parquet`` ..., in row groups of ``group``."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    first = 0
    for split, rows in splits.items():
        whole = dataset(rows, first=first, **options)
        first += rows
        for number in range(files):
            shard = whole.shard(num_shards=files, index=number)
            shard.to_parquet(folder / f"data/{split}-{number:05d}-of-{files:05d}.parquet", batch_size=group)
    return folder


def read_all(root: Path, source: Mapping[str, Any]) -> list[Any]:
    """The cases and bad rows of a source called 's' whose stores lie in ``root``/stores."""
    config = data_config(root, {"name": "s", **source})
    return list(read_source(config.sources[0], inputs=list_inputs(config.sources[0], root=config.store.root)))


def cases_of(items: list[Any]) -> list[Case]:
    """The items, none of which may be bad."""
    bad = [item for item in items if not isinstance(item, Case)]
    assert not bad, bad
    return items


_PREPARE = """
import json, sys
import consilium.data.sources.hub_fetch as hub_fetch
from consilium.core.config import build
from consilium.core.errors import ConsiliumError
from consilium.data.config import DataConfig
from consilium.data.store.prepare import prepare
hub_fetch.PART_ROWS = 16
class Printer:
    def line(self, text): print(text, flush=True)
    def progress(self, name, done, total, text=""): print(f"({name} {done}/{total})", flush=True)
try:
    prepared = prepare(build(DataConfig, json.loads(sys.argv[1]), origin="test"), reporter=Printer())
except ConsiliumError as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(2)
print(f"store {prepared.store.path}")
"""


def start(hub: str | None, root: Path, source: Mapping[str, Any], **sections: Any) -> subprocess.Popen[str]:
    """Prepare a source called 's' in a process of its own, embedded, from the hub at this address (None: offline)."""
    store = {"root": str(root / "stores"), "images": "embed", **sections.pop("store", {})}
    config = {"sources": [{"name": "s", **source}], "store": store, **sections}
    environment = {**os.environ, "HF_HOME": str(root / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment.pop("HF_TOKEN", None)
    if hub is not None:
        environment.pop("HF_HUB_OFFLINE", None)
        environment |= {"HF_ENDPOINT": hub, "HF_TOKEN": "hf_right"}
    return subprocess.Popen(
        [sys.executable, "-c", _PREPARE, json.dumps(config)],
        env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(hub: str | None, root: Path, source: Mapping[str, Any], **sections: Any) -> tuple[int, str]:
    """What ``start`` returns, and prints, in the end."""
    process = start(hub, root, source, **sections)
    printed = process.communicate(timeout=300)[0]
    return process.returncode, printed


def store_rows(printed: str) -> list[Any]:
    """All rows of the store that a finished preparation named, with their images."""
    path = next(line for line in printed.splitlines() if line.startswith("store ")).removeprefix("store ")
    return rows_of(Store.open(path))


def rows_of(store: Store) -> list[Any]:
    """All rows of a store, with their images."""
    table = store.table
    columns = (table.ids, table.groups, table.splits, table.labels, table.texts, table.metas)
    return [(*row, table.images(number)) for number, row in enumerate(zip(*columns, strict=True))]
