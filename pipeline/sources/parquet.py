"""Parquet: columns and row groups of a file from its footer, rows of some row groups.

Only the columns that are needed are read, one row group at a time. What a page says of itself is
checked before it is decoded, and so many rows are decoded at once that memory stays bounded.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.extension_types import refuse_unpickling, said_by
from pipeline.records import SourceSplit
from pipeline.sources.columns import Roles
from pipeline.sources.documents import MAX_BATCH_ROWS, MAX_BATCH_TEXT_BYTES, RawRows
from pipeline.sources.expansion import MAX_DECODED_BYTES, Expansion, check_rows, slices
from pipeline.sources.files import SourceFile, locate
from pipeline.sources.inspection import Inspection, Unit, check_buffers, file_columns
from pipeline.sources.parquet_pages import ChunkLimits, RangeFile, chunk_limits, longest_entry
from pipeline.sources.reasons import (
    DECODING_ERRORS,
    BadFileError,
    Reason,
    is_of_the_system,
)

MAGIC = b"PAR1"
# Columns or row groups of one file.
MAX_FOOTER_ELEMENTS = 100_000
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}


def inspect_parquet(file: SourceFile, roles: Roles, split_bytes: int) -> Inspection:
    """Read the footer.

    Returns: all columns, and the row groups put together into units of about `split_bytes`.

    Raises:
        BadFileError: not a Parquet file, or one that declares more rows than it can hold.
    """
    with _open(file.path) as opened:
        columns = file_columns(file.path, opened.reader.schema_arrow, roles)
        metadata = opened.reader.metadata
        check_rows(file.path, metadata.num_rows, file.size_bytes)
        return Inspection(columns, _units(metadata, file.size_bytes, split_bytes))


def read_parquet(split: SourceSplit, roles: Roles) -> Iterator[RawRows]:
    """Rows of the split's row groups.

    Raises:
        BadFileError: they cannot be decoded, or expand out of all proportion.
    """
    with _open(split.path) as opened:
        metadata = opened.reader.metadata
        names = [name for name in roles.names if name in opened.reader.schema_arrow.names]
        first_row = sum(metadata.row_group(i).num_rows for i in range(split.start))
        last = metadata.num_row_groups if split.end is None else split.end
        for number in range(split.start, last):
            for batches in _gathered(_row_group(opened, number, names)):
                table = pa.Table.from_batches(batches)
                offsets = np.arange(first_row, first_row + table.num_rows)
                yield RawRows(table, offsets)
                first_row += table.num_rows


@dataclass(frozen=True)
class _Opened:
    """A Parquet file that is open: its reader, what that reads from, what came out so far."""

    path: str
    reader: Any
    file: RangeFile
    size_bytes: int
    expansion: Expansion


def _row_group(
    opened: _Opened, number: int, names: list[str]
) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Checked batches of one row group, and their bytes once all is written out."""
    row_group = opened.reader.metadata.row_group(number)
    check_rows(opened.path, row_group.num_rows, opened.size_bytes)
    at_once = _rows_at_once(row_group)
    for column in range(opened.reader.metadata.num_columns):
        leaf = opened.reader.schema.column(column)
        if any(leaf.path == name or leaf.path.startswith(f"{name}.") for name in names):
            chunk = row_group.column(column)
            limits = chunk_limits(opened.path, chunk, opened.file, opened.size_bytes)
            width = max(leaf.length, _WIDTHS.get(chunk.physical_type, 1))
            if leaf.max_repetition_level:
                _check_list(opened, chunk, limits, width)
            elif max(limits.max_value_bytes, leaf.length) > MAX_DECODED_BYTES // at_once:
                longest = max(_longest_value(chunk, limits), leaf.length)
                at_once = min(at_once, max(1, MAX_DECODED_BYTES // longest))
    batches = opened.reader.iter_batches(
        batch_size=at_once, row_groups=[number], columns=names or None, use_threads=False
    )
    for batch in batches:
        needed = batch.select(names)
        check_buffers(needed)
        for part, num_bytes in slices(needed):
            opened.expansion.add(num_bytes, opened.size_bytes)
            yield part, num_bytes
    opened.file.forget()


def _check_list(opened: _Opened, chunk: Any, limits: ChunkLimits, width: int) -> None:
    """Refuse lists whose elements cannot all be there: a single row may hold every one of them.

    Raises:
        BadFileError: they would expand too far.
    """
    if limits.max_value_bytes:
        width = _longest_value(chunk, limits)
    Expansion(opened.path).add(limits.num_values * max(width, 1), opened.size_bytes)


def _longest_value(chunk: Any, limits: ChunkLimits) -> int:
    """Bytes of the longest value that can be repeated without being stored again."""
    longest = None if limits.has_prefixes else longest_entry(chunk, limits.dictionary)
    return limits.max_value_bytes if longest is None else min(longest, limits.max_value_bytes)


def _gathered(
    batches: Iterable[tuple[pa.RecordBatch, int]],
) -> Iterator[list[pa.RecordBatch]]:
    """Put small batches together until they are worth a table."""
    gathered: list[pa.RecordBatch] = []
    num_rows = num_bytes = 0
    for batch, size in batches:
        if gathered and (num_rows >= MAX_BATCH_ROWS or num_bytes + size > MAX_BATCH_TEXT_BYTES):
            yield gathered
            gathered, num_rows, num_bytes = [], 0, 0
        gathered.append(batch)
        num_rows, num_bytes = num_rows + batch.num_rows, num_bytes + size
    if gathered:
        yield gathered


def _units(metadata: Any, size_bytes: int, split_bytes: int) -> tuple[Unit, ...]:
    num_groups = metadata.num_row_groups
    if size_bytes <= split_bytes or num_groups < 2:
        return (Unit(0, num_groups, size_bytes, 0),) if metadata.num_rows else ()
    sizes = np.array([metadata.row_group(i).total_byte_size for i in range(num_groups)], float)
    rows = np.array([metadata.row_group(i).num_rows for i in range(num_groups)])
    # The footer tells sizes before compression: they are shared out over the file's own size.
    ends = np.cumsum(sizes / max(sizes.sum(), 1.0) * size_bytes)
    unit_of_group = np.floor((ends - 1) / split_bytes).astype(int)
    first_rows = np.cumsum(rows) - rows
    edges = [0, *(np.flatnonzero(np.diff(unit_of_group)) + 1).tolist(), num_groups]
    return tuple(
        Unit(
            first,
            last,
            round(float(ends[last - 1] - (ends[first - 1] if first else 0.0))),
            int(first_rows[first]),
        )
        for first, last in zip(edges[:-1], edges[1:], strict=True)
        if rows[first:last].sum()
    )


def _rows_at_once(row_group: Any) -> int:
    """So many rows that their text is about one batch's, going by the row group's mean row."""
    mean_bytes = row_group.total_byte_size // max(row_group.num_rows, 1) + 1
    return int(max(1, min(MAX_BATCH_ROWS, MAX_BATCH_TEXT_BYTES // mean_bytes)))


@contextmanager
def _open(path: str) -> Iterator[_Opened]:
    refuse_unpickling()
    storage, name = locate(path)
    with storage.open_input(name) as stored:
        file = RangeFile(stored)
        try:
            size_bytes = file.seek(0, io.SEEK_END)
            # What is read of a row group is in memory by then, so nothing is read ahead.
            reader = pq.ParquetFile(
                pa.PythonFile(file, "r"),
                pre_buffer=False,
                thrift_container_size_limit=MAX_FOOTER_ELEMENTS,
            )
            yield _Opened(path, reader, file, size_bytes, Expansion(path))
        except DECODING_ERRORS as error:
            if is_of_the_system(error):
                raise
            stored.seek(0)
            raise _bad(path, stored.read(len(MAGIC)), error) from None


def _bad(path: str, head: bytes, error: Exception) -> BadFileError:
    said = said_by(error)
    if head == MAGIC and "footer" in said:
        return BadFileError(
            Reason.TRUNCATED_FILE,
            f"{path}: the Parquet file has no footer: it was not written to the end",
        )
    return BadFileError(Reason.CORRUPT_FILE, f"{path}: not a readable Parquet file: {said}")
