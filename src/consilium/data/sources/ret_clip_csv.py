"""``dataset_index,label,prompt``: prompts and labels of images that are numbered in a hub dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from consilium.data.case import BadRow, Case, RowError, View, scalar_text
from consilium.data.sources.config import Columns, RetClipCsvSource, TableSource
from consilium.data.sources.hub import HubCache
from consilium.data.sources.rows import RowReader
from consilium.data.sources.tables import read_csv

INDEX, GROUP = "dataset_index", "group_id"


def read_ret_clip_csv(source: RetClipCsvSource, cache: HubCache) -> Iterator[Case | BadRow]:
    """The rows of a csv file, each with the image that it names by its number (from 0) in the dataset.

    Purpose: indices may repeat and come in any order. All rows of one image are cases of one group,
    ``{source}:{index}``, unless a column ``group_id`` (patient) says more. Errors: an index that is no number or
    beyond the dataset is a bad row.
    """
    cache.fetch()
    table = TableSource(
        kind="csv",
        name=source.name,
        path=source.path,
        split=source.split,
        label_prefix=source.label_prefix,
        columns=Columns(image=INDEX, text="prompt"),
    )
    return read_csv(table, reader=_IndexReader(table, source, cache))


class _IndexReader(RowReader):
    """Reads a row's image from the dataset."""

    def __init__(self, table: TableSource, source: RetClipCsvSource, cache: HubCache) -> None:
        super().__init__(table)
        self._images, self._rows = source.images, cache.split(source.images.split)

    def table_case(self, row: Mapping[str, Any], line: int) -> Case | BadRow:
        try:
            group = row.get(GROUP) or f"{self.source.name}:{self._index(row)}"
        except RowError as error:
            return self.bad(line, str(error))
        return super().table_case({**row, GROUP: group}, line)

    def views(self, row: Mapping[str, Any]) -> list[View]:
        index = self._index(row)
        found = self.cell_views(self._rows[index].get(self._images.image))
        if not found:
            raise RowError(f"row {index} of {self._images.path} ({self._images.split}) has no image")
        return found

    def _index(self, row: Mapping[str, Any]) -> int:
        text = scalar_text(row[INDEX], INDEX)
        whole = text.removesuffix(".0")
        if not (whole.isascii() and whole.isdigit()):
            raise RowError(f"{INDEX} is '{text}'; expected a whole number from 0")
        if int(whole) >= len(self._rows):
            raise RowError(
                f"{INDEX} is {whole}, but {self._images.path} ({self._images.split}) has {len(self._rows):,} rows, "
                "numbered from 0"
            )
        return int(whole)
