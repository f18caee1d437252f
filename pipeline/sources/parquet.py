"""Parquet: columns and row groups of a file from its footer, rows of some row groups.

Only the columns that are needed are read, one row group at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.records import SourceSplit
from pipeline.sources.columns import Roles
from pipeline.sources.documents import MAX_BATCH_ROWS, MAX_BATCH_TEXT_BYTES, RawRows
from pipeline.sources.files import SourceFile, locate
from pipeline.sources.inspection import Inspection, Unit, check_buffers, file_columns
from pipeline.sources.reasons import (
    DECODING_ERRORS,
    BadFileError,
    Reason,
    is_of_the_system,
)

MAGIC = b"PAR1"


def inspect_parquet(file: SourceFile, roles: Roles, split_bytes: int) -> Inspection:
    """Read the footer.

    Returns: all columns, and the row groups put together into units of about `split_bytes`.

    Raises:
        BadFileError: not a Parquet file.
    """
    with _open(file.path, file.size_bytes) as reader:
        schema = reader.schema_arrow
        columns = file_columns(file.path, schema, roles)
        return Inspection(columns, _units(reader.metadata, file.size_bytes, split_bytes))


def read_parquet(split: SourceSplit, roles: Roles) -> Iterator[RawRows]:
    """Rows of the split's row groups.

    Raises:
        BadFileError: they cannot be decoded.
    """
    with _open(split.path) as reader:
        metadata = reader.metadata
        names = [name for name in roles.names if name in reader.schema_arrow.names]
        first_row = sum(metadata.row_group(i).num_rows for i in range(split.start))
        last = metadata.num_row_groups if split.end is None else split.end
        for number in range(split.start, last):
            row_group = metadata.row_group(number)
            batches = reader.iter_batches(
                batch_size=_rows_at_once(row_group),
                row_groups=[number],
                columns=names or None,
                use_threads=False,
            )
            for batch in batches:
                offsets = np.arange(first_row, first_row + batch.num_rows)
                needed = batch.select(names)
                check_buffers(needed)
                yield RawRows(pa.Table.from_batches([needed]), offsets)
                first_row += batch.num_rows


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
def _open(path: str, size_bytes: int | None = None) -> Iterator[Any]:
    storage, name = locate(path)
    with storage.open_input(name) as file:
        try:
            source = pa.OSFile(path) if storage.is_local else pa.PythonFile(file, "r")
            yield pq.ParquetFile(source)
        except DECODING_ERRORS as error:
            if is_of_the_system(error):
                raise
            file.seek(0)
            raise _bad(path, file.read(len(MAGIC)), error) from None


def _bad(path: str, head: bytes, error: Exception) -> BadFileError:
    said = str(error).split("\n")[0]
    if head == MAGIC and "footer" in said:
        return BadFileError(
            Reason.TRUNCATED_FILE,
            f"{path}: the Parquet file has no footer: it was not written to the end",
        )
    return BadFileError(Reason.CORRUPT_FILE, f"{path}: not a readable Parquet file: {said}")
