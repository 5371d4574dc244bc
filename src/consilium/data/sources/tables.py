"""csv files, row by row; a bad row is reported and the rest goes on."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from consilium.core.errors import ConfigError, DataError
from consilium.data.case import BadRow, Case
from consilium.data.sources.config import TableSource
from consilium.data.sources.lines import MAX_LINE, open_unpacked
from consilium.data.sources.parquet import is_parquet, read_parquet
from consilium.data.sources.rows import RowReader

if TYPE_CHECKING:
    from consilium.data.sources.files import Inputs

MAX_CELL = 64 * 2**20  # characters of a cell of a csv file
_SEPARATOR_LINE = re.compile(r'\s*"?sep=(?P<separator>.)"?[\s,;]*', re.IGNORECASE)

_NO_CSV = {
    b"PK\x03\x04": "a zip or Excel file; save the sheet as CSV UTF-8, or unpack it",
    b"\xd0\xcf\x11\xe0": "an Excel file; save the sheet as CSV UTF-8",
    b"PAR1": "a parquet file; set kind: parquet",
    b"\xff\xfe": "UTF-16; save it as CSV UTF-8",
    b"\xfe\xff": "UTF-16; save it as CSV UTF-8",
    b'{"': "JSON; set kind: jsonl",
    b"[{": "JSON; write one object a line, and set kind: jsonl",
    b"[\n": "JSON; write one object a line, and set kind: jsonl",
}


def read_csv(source: TableSource, *, reader: RowReader | None = None) -> Iterator[Case | BadRow]:
    """The rows of a csv file (UTF-8, with or without byte order mark, may be packed with gzip).

    Above the header there may be blank lines, comments (``# ...``) and the line ``sep=;`` of Excel, which says the
    separator. ``line`` is where a row begins; a row of empty cells alone is a blank line.
    """
    reader = reader or RowReader(source)
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
    # Bytes that are not UTF-8 are kept as surrogates, so that only their row is bad.
    with (
        open_unpacked(reader.file) as raw,
        io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream,
    ):
        _check_form(raw.read(8), reader)
        raw.seek(0)
        head = _read_head(_short_lines(stream, reader), source.separator, reader)
        rows, header = head.rows, head.header
        twice = sorted({name for name in header if name and header.count(name) > 1})
        if twice:
            raise DataError(f"source '{source.name}': {reader.file} has the column '{twice[0]}' twice; rename one.")
        _check_separator(header, head.separator, reader)
        reader.check_columns([name for name in header if name])
        while True:
            line = head.above + rows.line_num + 1
            try:
                cells = next(rows)
                reason = _bad_cells(cells, header)
            except StopIteration:
                return
            except csv.Error as error:
                cells, reason = [], f"not a valid csv row: {_csv_words(error)}"
            if reason:
                end = head.above + rows.line_num
                yield reader.bad(
                    line, reason + (f"; it runs to line {end}, look for an open quote" if end > line else "")
                )
            elif cells:
                row = dict(zip(header, cells, strict=True))
                row.pop("", None)  # a column without a name, such as the index that pandas writes
                yield reader.table_case(row, line)


@dataclass(frozen=True)
class _Head:
    """A csv file behind its header: how many lines stand above ``rows``, and the separator that holds."""

    header: list[str]
    rows: _Rows
    above: int
    separator: str


class _Rows(Protocol):
    """What ``csv.reader`` returns."""

    line_num: int

    def __iter__(self) -> Iterator[list[str]]: ...

    def __next__(self) -> list[str]: ...


def _read_head(lines: Iterator[str], separator: str, reader: RowReader) -> _Head:
    """Pass over what stands above the header, and read it.

    A line that begins with # is a comment, unless it names columns that are read and the line below names none.
    """
    above, comment, first = 0, "", ""
    for first in lines:
        line = first.strip("\r\n")
        if (named := _SEPARATOR_LINE.fullmatch(line)) and not above:
            separator = named["separator"]
        elif line.startswith("#") and _cells(line, separator)[0] not in reader.used:
            comment = line
        elif line.strip():
            break
        above, first = above + 1, ""
    inside = _cells(comment.lstrip("# "), separator)
    if reader.used & {*inside} and not reader.used & {*_cells(first, separator)}:
        return _Head(inside, csv.reader(chain([first], lines), delimiter=separator, strict=True), above, separator)
    rows = csv.reader(chain([first] if first else [], lines), delimiter=separator, strict=True)
    return _Head(_csv_header(rows, reader), rows, above, separator)


def _cells(line: str, separator: str) -> list[str]:
    """The cells of a line that may be no row of the table."""
    return [cell.strip(' "\r\n') for cell in line.split(separator)] if line else []


def _short_lines(stream: io.TextIOBase, reader: RowReader) -> Iterator[str]:
    """The lines of a text; one above the limit ends the reading, before it fills the memory."""
    while line := stream.readline(MAX_LINE):
        if len(line) == MAX_LINE and not line.endswith(("\r", "\n")):
            raise DataError(
                f"source '{reader.source.name}': {reader.file} has a line of more than {MAX_LINE:,} characters; "
                "a csv table has none so long, so see what the file holds."
            )
        yield line


def _csv_words(error: csv.Error) -> str:
    """What the csv module says, with a way out of its limit."""
    if "field limit" not in str(error):
        return str(error)
    return f"a cell has more than {MAX_CELL:,} characters; keep so long a text in a jsonl or parquet file"


def _check_form(start: bytes, reader: RowReader) -> None:
    """Refuse what is no csv by its first bytes."""
    for magic, what in _NO_CSV.items():
        if start.startswith(magic):
            raise DataError(f"source '{reader.source.name}': {reader.file} is {what}.")


def _check_separator(header: list[str], separator: str, reader: RowReader) -> None:
    """Refuse a header that is one cell because other separators are in it than the config says."""
    if len(header) == 1 and header[0] not in reader.used:
        for mark, shown in {",": ",", ";": ";", "\t": "\\t", "|": "|"}.items():
            if mark in header[0] and mark != separator:
                raise ConfigError(
                    f"source '{reader.source.name}': the columns of {reader.file} are not separated by '{separator}', "
                    f"but by '{shown}'; set separator: \"{shown}\"."
                )


def _bad_cells(cells: list[str], header: Sequence[str]) -> str:
    """What is wrong with the cells of a row; '' for nothing, and for a blank line, which becomes []."""
    if len(cells) > 1 and not any(cells):  # Excel keeps rows that were emptied
        cells.clear()
    if cells and len(cells) != len(header):
        return f"the row has {len(cells)} cells, the header {len(header)}"
    return "" if _is_clean(cells) else "the row is not UTF-8 text; save the file as UTF-8"


def _csv_header(rows: _Rows, reader: RowReader) -> list[str]:
    try:
        header = next(rows, [])
    except csv.Error as error:
        raise DataError(
            f"source '{reader.source.name}': the first line of {reader.file} is no header: {error}"
        ) from None
    if not _is_clean(header):
        raise DataError(f"source '{reader.source.name}': the header of {reader.file} is not UTF-8; save it as UTF-8.")
    return header


def _is_clean(cells: Sequence[str]) -> bool:
    joined = "".join(cells)
    if joined.isascii():
        return True
    try:
        joined.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_table(source: TableSource, inputs: Inputs) -> Iterator[Case | BadRow]:
    """The rows of a csv or parquet table, told apart by ``kind`` or, in a mapping, by the end of the name."""
    return read_parquet(source, [file.name for file in inputs.files]) if is_parquet(source) else read_csv(source)
