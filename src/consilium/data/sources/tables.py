"""csv and parquet files, row by row; a bad row is reported and the rest goes on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from consilium.core.errors import ConfigError, DataError
from consilium.core.places import open_binary
from consilium.data.case import BadRow, Case
from consilium.data.sources.config import TableSource
from consilium.data.sources.rows import RowReader

_NO_CSV = {
    b"\x1f\x8b": "packed with gzip; unpack it (gunzip)",
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
    """The rows of a csv file (UTF-8, with or without byte order mark); ``line`` is where a row begins."""
    reader = reader or RowReader(source)
    # Bytes that are not UTF-8 are kept as surrogates, so that only their row is bad.
    with (
        open_binary(reader.file) as raw,
        io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream,
    ):
        _check_form(raw.read(8), reader)
        raw.seek(0)
        rows = csv.reader(stream, delimiter=source.separator, strict=True)
        header = _csv_header(rows, reader)
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise DataError(f"source '{source.name}': {reader.file} has the column '{twice[0]}' twice; rename one.")
        _check_separator(header, source.separator, reader)
        reader.check_columns(header)
        while True:
            line = rows.line_num + 1
            try:
                cells = next(rows)
                reason = _bad_cells(cells, header)
            except StopIteration:
                return
            except csv.Error as error:
                cells, reason = [], f"not a valid csv row: {error}"
            if reason:
                more = f"; it runs to line {rows.line_num}, look for an open quote" if rows.line_num > line else ""
                yield reader.bad(line, reason + more)
            elif cells:
                yield reader.table_case(dict(zip(header, cells, strict=True)), line)


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


def _bad_cells(cells: Sequence[str], header: Sequence[str]) -> str:
    """What is wrong with the cells of a row; '' for nothing, and for a blank line."""
    if cells and len(cells) != len(header):
        return f"the row has {len(cells)} cells, the header {len(header)}"
    return "" if _is_clean(cells) else "the row is not UTF-8 text; save the file as UTF-8"


def _csv_header(rows: Iterator[list[str]], reader: RowReader) -> list[str]:
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


def read_parquet(source: TableSource) -> Iterator[Case | BadRow]:
    """The rows of a parquet file; ``line`` counts rows from 1. Images may be paths, bytes or Hugging Face structs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    reader = RowReader(source)
    line = 0
    try:
        with open_binary(reader.file) as stream, pq.ParquetFile(stream) as file:
            types = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True))
            reader.check_columns(list(types))
            only_paths = all(pa.types.is_string(types[name]) for name in reader.image_columns if name in types)
            # Cells that may hold whole images come in small batches.
            for batch in file.iter_batches(batch_size=1024 if only_paths else 64):
                for row in batch.to_pylist():
                    line += 1
                    yield reader.table_case(row, line)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        after = f" after row {line}" if line else ""
        raise DataError(f"source '{source.name}': {reader.file} is no sound parquet file{after}: {error}") from error


def read_table(source: TableSource) -> Iterator[Case | BadRow]:
    """The rows of a csv or parquet table, told apart by ``kind`` or, in a mapping, by the end of the name."""
    named_parquet = source.kind != "csv" and source.path.lower().endswith((".parquet", ".pq"))
    is_parquet = source.kind == "parquet" or named_parquet
    return read_parquet(source) if is_parquet else read_csv(source)
