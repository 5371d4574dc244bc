"""What the files of a store hold: its manifest, and the schema of its rows."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilium.core.files import write_json
from consilium.data.store.meta import Kind

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_VERSION = 2
MANIFEST = "store.json"


@dataclass(frozen=True)
class Manifest:
    """What a store says about itself (``store.json``).

    ``splits`` has the cases per source and split, ``counts`` a row {source, split, label, cases} for each
    combination ('' : no label), ``skipped`` the files that were left aside per source and reason.
    ``unreadable`` are the images and masks of quarantined rows, as [path, size, modified_ns] (null: there was none);
    when one changes the store is prepared again. ``notes`` count, per source, what was read otherwise than it stands in
    the file. ``meta`` has the kind of each metadata column (null: format 1, which did not tell).
    """

    format_version: int
    consilium_version: str
    created: str
    fingerprint: str
    config: dict[str, Any] = field(repr=False)
    images: str
    max_pixels: int
    cases: int
    bad_rows: int
    splits: dict[str, dict[str, int]]
    counts: list[dict[str, Any]] = field(repr=False)
    skipped: dict[str, dict[str, int]]
    unreadable: list[list[Any]] = field(default_factory=list, repr=False)
    notes: dict[str, dict[str, int]] = field(default_factory=dict)
    meta: dict[str, Kind] | None = None


def schema() -> pa.Schema:
    """The Arrow schema of a store, with the features that ``datasets`` reads.

    A mask has what a view has, and its ``name`` is its class; what only opening a mask would tell is null.
    """
    import pyarrow as pa

    view = {"image": "string", "bytes": "binary", "name": "string", "width": "int32", "height": "int32",
            "sha256": "string", "file_size": "int64", "modified_ns": "int64"}  # fmt: skip
    row = {"id": "string", "source": "string", "group": "string", "split": "string", "views": view,
           "texts": {"text": "string", "name": "string"}, "labels": ["string"],
           "masks": {**view, "annotator": "string"}, "is_gt": "bool", "meta": "string"}  # fmt: skip

    def arrow(kind: Any) -> pa.DataType:
        if isinstance(kind, list):
            return pa.list_(arrow(kind[0]))
        if isinstance(kind, dict):
            return pa.list_(pa.struct([(name, arrow(inner)) for name, inner in kind.items()]))
        return {"string": pa.string(), "binary": pa.binary(), "bool": pa.bool_(),
                "int32": pa.int32(), "int64": pa.int64()}[kind]  # fmt: skip

    def feature(kind: Any) -> dict[str, Any]:
        if isinstance(kind, list):
            return {"feature": feature(kind[0]), "_type": "List"}
        if isinstance(kind, dict):
            return {"feature": {name: feature(inner) for name, inner in kind.items()}, "_type": "List"}
        return {"dtype": kind, "_type": "Value"}

    features = {name: feature(kind) for name, kind in row.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([(name, arrow(kind)) for name, kind in row.items()], metadata=metadata)


def write_dataset_files(folder: Path, *, data_files: list[str], manifest: Manifest) -> None:
    """Write what turns a folder of Arrow files into a store; the manifest comes last and completes it."""
    features = json.loads(schema().metadata[b"huggingface"])["info"]["features"]
    write_json(folder / "dataset_info.json", {"citation": "", "description": "", "features": features,
                                              "homepage": "", "license": ""})  # fmt: skip
    write_json(folder / "state.json", {
        "_data_files": [{"filename": name} for name in data_files], "_fingerprint": manifest.fingerprint,
        "_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False,
        "_split": None,
    })  # fmt: skip
    write_json(folder / MANIFEST, asdict(manifest))
