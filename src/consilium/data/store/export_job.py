"""The cases that an export writes, row by row, in the names by which they are read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from consilium.data.case import Text
from consilium.data.store.export_names import mask_columns, text_columns
from consilium.data.store.store import CaseTable, Store

Progress = Callable[[int, int | None], None]
KEYS = ("label", "split", "group_id", "is_gt")
_RESERVED = frozenset({"id", *KEYS, "text", "mask", "image", "modalities", "conversations", "text_id", "image_ids"})


class ExportJob:
    """What all forms share: the values of a row beside its images, by the names that are read back."""

    def __init__(self, store: Store, table: CaseTable, out: Path, progress: Progress | None) -> None:
        self.embedded, self.max_pixels = store.manifest.images == "embed", store.manifest.max_pixels
        self.table, self.out, self._progress = table, out, progress
        self.image_folder = out.with_name(f"{out.stem}_images")
        self.notes: list[str] = []
        self.several_labels = any(len(labels) > 1 for labels in table.labels)
        self.several_texts = any(len({text.name for text in own}) < len(own) for own in table.named_texts)
        several_sources = len(set(table.sources)) > 1
        # Ids are unique within a source only.
        self.prefix_ids = several_sources and len(set(table.ids)) < len(table)
        reserved = _RESERVED | ({"source"} if several_sources else set())
        self.text_columns = text_columns(table, taken=reserved)
        self.mask_columns = mask_columns(table, taken=reserved.union(self.text_columns.values()))
        self.reserved = reserved.union(self.text_columns.values(), self.mask_columns.values())
        self.meta_names = self._meta_names()
        if several_sources:
            self.notes.append("the cases come from several sources; each names its own in `source`.")
        if self.prefix_ids:
            self.notes.append("some sources use the same ids; each id has its source in front.")

    def _meta_names(self) -> dict[str, str]:
        """Metadata keys as they are written: one that has the name of another value becomes ``meta.{key}``."""
        keys = sorted({key for meta in self.table.metas for key in meta})
        names: dict[str, str] = {}
        for key in keys:
            name = key
            while name in self.reserved or (name != key and name in keys):
                name = f"meta.{name}"
            names[key] = name
            if name != key:
                self.notes.append(f"the metadata '{key}' is called '{name}'.")
        return names

    def row(self, row: int) -> dict[str, Any]:
        """The values of a case, None where it has none; masks by their whole path."""
        table = self.table
        source, labels = table.sources[row], table.labels[row]
        values: dict[str, Any] = {
            "id": f"{source}:{table.ids[row]}" if self.prefix_ids else table.ids[row],
            **dict.fromkeys(self.text_columns.values()),
            **self._texts(table.named_texts[row]),
            "label": list(labels) if self.several_labels else next(iter(labels), None),
            "split": table.splits[row],
            "group_id": table.groups[row],
            "is_gt": bool(table.is_gt[row]),
            **dict.fromkeys(self.mask_columns.values()),
            **{self.mask_columns[mask.name, mask.annotator]: mask.image for mask in table.masks[row]},
        }
        if "source" in self.reserved:
            values["source"] = source
        return values | {self.meta_names[key]: value for key, value in table.metas[row].items()}

    def _texts(self, texts: Sequence[Text]) -> dict[str, Any]:
        """The texts of a case by column; lists where a case has several of one name."""
        found: dict[str, list[str]] = {}
        for text in texts:
            found.setdefault(self.text_columns[text.name], []).append(text.text)
        return dict(found) if self.several_texts else {column: own[0] for column, own in found.items()}

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Every case with its number."""
        for row in range(len(self.table)):
            yield row, self.row(row)
            if self._progress is not None:
                self._progress(row + 1, len(self.table))

    def views(self, row: int) -> list[tuple[str, str, str | bytes]]:
        """(name, path, path or embedded bytes) of the images of a case."""
        table = self.table
        return list(zip(table.view_names(row), table.image_names(row), table.images(row), strict=True))

    def relative_masks(self, row: Mapping[str, Any]) -> dict[str, str]:
        """The masks of a row as the file names them."""
        return {column: self.relative(row[column]) for column in self.mask_columns.values() if row[column]}

    def relative(self, path: str) -> str:
        """A path as the file names it: from its own folder where it lies below that, else as it is."""
        folder = f"{self.out.parent}/".replace("//", "/")
        shorter = path.removeprefix(folder)
        return shorter if shorter == shorter.strip() else path


def json_line(row: Mapping[str, Any]) -> str:
    """The values of a row that has them, as one line."""
    return json.dumps({key: value for key, value in row.items() if value is not None}, ensure_ascii=False) + "\n"
