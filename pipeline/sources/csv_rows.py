"""CSV and TSV: a header line, then rows; quoted fields may hold newlines, doubled quotes, commas.

All values are strings as written, and an empty field is null. A row with the wrong number of
fields is a rejected row; a quotation mark that never closes makes the file a bad one, because
nobody can say which of the rows after it are rows.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import SourceConfig
from pipeline.excerpt import excerpt
from pipeline.records import RejectedRow, SourceSplit
from pipeline.sources.columns import FileColumns, Roles
from pipeline.sources.compression import READ_BYTES, ByteStream, decompressed
from pipeline.sources.documents import MAX_BATCH_ROWS, MAX_BATCH_TEXT_BYTES, RawRows
from pipeline.sources.files import SourceFile, open_file
from pipeline.sources.formats import compression_of, delimiter_of
from pipeline.sources.inspection import Inspection, Unit, repeated
from pipeline.sources.jsonl import max_line_bytes, too_long_rows
from pipeline.sources.lines import BYTE_ORDER_MARK, HEAD_BYTES
from pipeline.sources.reasons import BadFileError, Reason

QUOTE = b'"'
_ERRORS = "surrogateescape"


def inspect_csv(file: SourceFile, source: SourceConfig) -> Inspection:
    """Read the header.

    Returns: its names, all of type string; a file is read whole, since only reading from its start
        tells which newlines are inside quotes. A file without a byte has no columns and no units.

    Raises:
        BadFileError: there is no header, or it cannot be read.
    """
    if not file.size_bytes and file.compression is None:
        return Inspection(FileColumns(file.path, {}), ())
    with open_file(file.path) as raw:
        rows = _Rows(decompressed(raw, file.compression, file.path), file.path, source)
        header = rows.header()
    types = dict.fromkeys(header, pa.string())
    columns = FileColumns(file.path, types, repeated(header))
    return Inspection(columns, (Unit(0, None, file.size_bytes),))


def read_csv(split: SourceSplit, source: SourceConfig, roles: Roles) -> Iterator[RawRows]:
    """Rows of the whole file; their offsets count rows after the header.

    Raises:
        BadFileError: a quotation mark never closes, or the data cannot be decompressed.
    """
    with open_file(split.path) as raw:
        stream = decompressed(raw, compression_of(split.path), split.path)
        rows = _Rows(stream, split.path, source)
        header = rows.header()
        places = {name: header.index(name) for name in roles.names if name in header}
        while (batch := rows.next_batch(len(header))) is not None:
            fields, offsets, rejected = batch
            columns = {
                name: _binary([row[place] for row in fields]) for name, place in places.items()
            }
            yield RawRows(pa.table(columns), np.array(offsets, np.int64), tuple(rejected))


def _binary(values: list[str]) -> pa.Array:
    # Bytes that were not UTF-8 came through as surrogates and go back to what they were.
    try:
        return pa.array([value or None for value in values], pa.string())
    except UnicodeEncodeError:
        return pa.array([value.encode(errors=_ERRORS) or None for value in values], pa.binary())


class _RowTooLongError(Exception):
    pass


class _Pieces:
    """The stream's lines with their ends; a line over the limit comes in several pieces."""

    def __init__(self, stream: ByteStream, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._iterator = self._split()

    def __iter__(self) -> Iterator[bytes]:
        return self._iterator

    def _split(self) -> Iterator[bytes]:
        pending: list[bytes] = []
        is_first = True
        while data := self._stream.read(READ_BYTES):
            if is_first:
                data = data.removeprefix(BYTE_ORDER_MARK)
                is_first = False
            newline = data.rfind(b"\n")
            if newline >= 0:
                whole = b"".join([*pending, data[: newline + 1]])
                pending, data = [], data[newline + 1 :]
                yield from whole.splitlines(keepends=True) if _is_plain(whole) else _lines(whole)
            pending.append(data)
            if sum(map(len, pending)) > self._limit:
                yield b"".join(pending)
                pending = []
        if any(pending):
            yield b"".join(pending)


def _is_plain(data: bytes) -> bool:
    # `bytes.splitlines` also ends lines at a lone carriage return.
    return data.count(b"\r") == data.count(b"\r\n")


def _lines(data: bytes) -> list[bytes]:
    return [line + b"\n" for line in data.split(b"\n")[:-1]]


class _Rows:
    """Parses rows and keeps within the limit; knows the number of the row it stands at."""

    def __init__(self, stream: ByteStream, path: str, source: SourceConfig) -> None:
        self._path = path
        self._limit = max_line_bytes(source)
        self._pieces = iter(_Pieces(stream, self._limit))
        self._delimiter = delimiter_of(path)
        self._reader = self._new_reader()
        self._row_bytes = 0
        self._row_quotes = 0
        self._row_head = b""
        self._row = 0

    def header(self) -> list[str]:
        """The fields of the first row that is not blank."""
        try:
            with _large_fields(self._limit):
                fields: list[str] = next(filter(None, self._reader), [])
            "".join(fields).encode()
        except UnicodeEncodeError:
            raise self._bad("its header is not valid UTF-8; write the file as UTF-8") from None
        except (csv.Error, _RowTooLongError) as error:
            raise self._bad(f"its header cannot be read ({error})") from None
        if not fields:
            raise self._bad("it has no header line")
        self._start_row()
        return fields

    def next_batch(
        self, num_fields: int
    ) -> tuple[list[list[str]], list[int], list[RejectedRow]] | None:
        """Some rows with their numbers, and the rejected ones between; None at the end."""
        rows: list[list[str]] = []
        offsets: list[int] = []
        rejected: list[RejectedRow] = []
        num_bytes = 0
        with _large_fields(self._limit):
            while len(rows) < MAX_BATCH_ROWS and num_bytes < MAX_BATCH_TEXT_BYTES:
                try:
                    fields = next(self._reader)
                except StopIteration:
                    break
                except csv.Error as error:
                    rejected.append(self._reject(self._explain(error)))
                except _RowTooLongError:
                    self._skip_row()
                    rejected += too_long_rows(
                        self._path, [self._row], [self._row_head], self._limit
                    )
                else:
                    if len(fields) == num_fields:
                        rows.append(fields)
                        offsets.append(self._row)
                        num_bytes += self._row_bytes
                    elif fields:
                        rejected.append(
                            self._reject(
                                f"the row has {len(fields)} fields, the header has {num_fields}"
                            )
                        )
                    else:
                        self._row -= 1  # A blank line is no row.
                self._row += 1
                self._start_row()
        return (rows, offsets, rejected) if rows or rejected else None

    def _new_reader(self) -> Any:
        return csv.reader(self._texts(), delimiter=self._delimiter, strict=True)

    def _texts(self) -> Iterator[str]:
        for piece in self._pieces:
            if self._row_bytes < HEAD_BYTES:
                self._row_head += piece[:HEAD_BYTES]
            self._row_bytes += len(piece)
            self._row_quotes += piece.count(QUOTE)
            if self._row_bytes > self._limit:
                raise _RowTooLongError("the row is too long")
            yield piece.decode(errors=_ERRORS)

    def _start_row(self) -> None:
        self._row_bytes = self._row_quotes = 0
        self._row_head = b""

    def _skip_row(self) -> None:
        """Pass over the rest of a row without holding it: up to a newline outside of quotes."""
        for piece in self._pieces:
            self._row_quotes += piece.count(QUOTE)
            if piece.endswith(b"\n") and self._row_quotes % 2 == 0:
                break
        if self._row_quotes % 2:
            raise self._never_closes()
        self._reader = self._new_reader()

    def _explain(self, error: csv.Error) -> str:
        if "unexpected end of data" in str(error):
            raise self._never_closes() from None
        return f"the row cannot be parsed: {error}"

    def _never_closes(self) -> BadFileError:
        return self._bad(
            f"the quotation mark opened in row {self._row} (the first row is 0) never closes, so "
            "the rows after it cannot be told apart",
            excerpt(self._row_head),
        )

    def _reject(self, message: str) -> RejectedRow:
        reason = Reason.BAD_CSV_ROW
        shown = excerpt(self._row_head)
        return RejectedRow(self._path, self._row, None, reason.stage, reason.value, message, shown)

    def _bad(self, problem: str, shown: str | None = None) -> BadFileError:
        return BadFileError(
            Reason.CORRUPT_FILE, f"{self._path}: not a readable CSV file: {problem}", shown
        )


@contextmanager
def _large_fields(limit: int) -> Iterator[None]:
    """The csv module has one limit for the whole process; rows are limited here instead."""
    before = csv.field_size_limit(limit + 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)
