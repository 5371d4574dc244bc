"""From a configured source to its rows, each checked once."""

from __future__ import annotations

from collections.abc import Iterator

from consilium.core.errors import DataError
from consilium.data.case import BadRow, Case, RowError, check_encodable, printable
from consilium.data.sources.config import (
    FolderSource,
    HubSource,
    JsonlSource,
    RetClipCsvSource,
    RetClipLmdbSource,
    RetClipTsvSource,
    Source,
    TableSource,
)
from consilium.data.sources.files import Inputs, list_inputs

LONGEST_REASON = 1000  # characters


def read_source(source: Source, *, inputs: Inputs | None = None) -> Iterator[Case | BadRow]:
    """The rows of a source, in a fixed order, each either usable or with the reason why not.

    Only the rows are judged here; whether their images can be read is found out when they are prepared.
    A missing or empty file or folder is a DataError, a column that does not exist and a group_pattern that cannot
    be used are ConfigErrors.
    """
    inputs = inputs or list_inputs(source)
    first_line: dict[str, tuple[str, int | None]] = {}
    count = 0
    try:
        for item in _rows(source, inputs):
            count += 1
            if isinstance(item, Case):
                item = _checked(item, first_line)
            if isinstance(item, BadRow):
                item = item._replace(file=printable(item.file), reason=_readable(item.reason))
            yield item
    except OSError as error:
        raise DataError(f"source '{source.name}': {source.path} cannot be read: {error}.") from error
    if not count:
        raise DataError(f"source '{source.name}': {source.path} holds no rows.")


def _readable(reason: str) -> str:
    """A reason as a line of a screen: a cell may hold a whole report."""
    reason = printable(reason)
    return reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]} ({len(reason):,} characters in all)"


def _checked(case: Case, first_line: dict[str, tuple[str, int | None]]) -> Case | BadRow:
    """The case, or what is wrong with it; ``first_line`` is where each id was first."""
    try:
        check_encodable(case)
        if case.id in (".", ".."):
            raise RowError(f"the id '{case.id}' means a folder in paths; give another")
        # Files of a folder have ids of their own.
        place = (case.file, case.line)
        if case.line is not None and first_line.setdefault(case.id, place) != place:
            file, line = first_line[case.id]
            raise RowError(f"the id '{case.id}' was given before, in line {line}" + f" of {file}" * (file != case.file))
    except RowError as error:
        return BadRow(case.source, case.file, case.line, str(error))
    return case


def _rows(source: Source, inputs: Inputs) -> Iterator[Case | BadRow]:
    match source:
        case FolderSource():
            from consilium.data.sources.folder import read_folder

            return read_folder(source, inputs)
        case JsonlSource():
            from consilium.data.sources.jsonl import read_jsonl

            return read_jsonl(source)
        case TableSource():
            from consilium.data.sources.tables import read_table

            return read_table(source, inputs)
        case RetClipTsvSource():
            from consilium.data.sources.ret_clip_tsv import read_ret_clip_tsv

            return read_ret_clip_tsv(source)
        case RetClipLmdbSource():
            from consilium.data.sources.ret_clip_lmdb import read_ret_clip_lmdb

            return read_ret_clip_lmdb(source)
        case HubSource() if inputs.hub is not None:
            from consilium.data.sources.hub import read_hub

            return read_hub(source, inputs.hub)
        case RetClipCsvSource() if inputs.hub is not None:
            from consilium.data.sources.ret_clip_csv import read_ret_clip_csv

            return read_ret_clip_csv(source, inputs.hub)
    raise NotImplementedError(source.kind)
