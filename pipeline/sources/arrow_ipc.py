"""Arrow IPC: files with random access (also Feather 2) and streams.

A file's record batches are read one by one. What a file says of its buffers is checked before it is
used, and what they expand to before they are, so a hostile one is a bad file and no crash.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.extension_types import refuse_unpickling, said_by
from pipeline.records import SourceSplit
from pipeline.sources.arrow_layout import batch_rows, check_file, check_stream
from pipeline.sources.columns import Roles
from pipeline.sources.documents import RawRows
from pipeline.sources.expansion import Expansion, slices
from pipeline.sources.files import SourceFile, locate
from pipeline.sources.inspection import Inspection, Unit, check_buffers, file_columns
from pipeline.sources.reasons import (
    DECODING_ERRORS,
    BadFileError,
    Reason,
    is_of_the_system,
)

FILE_MAGIC = b"ARROW1"
FEATHER_1_MAGIC = b"FEA1"


def inspect_arrow(file: SourceFile, roles: Roles, split_bytes: int) -> Inspection:
    """Read the schema and count the record batches.

    Returns: all columns, and the batches put together into units of about `split_bytes`; a stream
        is one unit.

    Raises:
        BadFileError: not an Arrow file or stream.
        SourceError: Feather version 1, which is another format.
    """
    with _open(file.path) as opened:
        reader = opened.reader
        columns = file_columns(file.path, reader.schema, roles)
        if not opened.is_file:
            return Inspection(columns, (Unit(0, None, file.size_bytes),))
        num_batches = reader.num_record_batches
        num_units = max(1, min(num_batches, -(-file.size_bytes // split_bytes)))
        edges = [num_batches * number // num_units for number in range(num_units + 1)]
        # The footer has no row counts: each batch says its own.
        rows = [0] * num_batches
        if num_units > 1:
            rows = batch_rows(file.path, opened.file, opened.size_bytes)
    first_rows = np.cumsum([0, *rows])
    size = file.size_bytes // num_units
    return Inspection(
        columns,
        tuple(
            Unit(first, last, size, int(first_rows[first]))
            for first, last in zip(edges[:-1], edges[1:], strict=True)
            if last > first
        ),
    )


def read_arrow(split: SourceSplit, roles: Roles) -> Iterator[RawRows]:
    """Rows of the split's record batches.

    Raises:
        BadFileError: they cannot be decoded, or expand out of all proportion.
    """
    with _open(split.path) as opened:
        reader, expansion = opened.reader, Expansion(split.path)
        if opened.is_file:
            check_file(split.path, opened.file, opened.size_bytes, split.start, split.end)
            last = reader.num_record_batches if split.end is None else split.end
            batches = (reader.get_batch(number) for number in range(split.start, last))
        else:
            check_stream(split.path, opened.file, opened.size_bytes)
            batches = iter(reader)
        first_row = split.first_row
        names = [name for name in roles.names if name in reader.schema.names]
        for batch in batches:
            needed = batch.select(names)
            check_buffers(needed)
            for part, num_bytes in slices(needed):
                expansion.add(num_bytes, opened.size_bytes)
                offsets = np.arange(first_row, first_row + part.num_rows)
                yield RawRows(pa.Table.from_batches([part]), offsets)
                first_row += part.num_rows


@dataclass(frozen=True)
class _Opened:
    """An open file: Arrow's reader, whether it gives random access, and the bytes themselves."""

    reader: Any
    is_file: bool
    file: BinaryIO
    size_bytes: int


@contextmanager
def _open(path: str) -> Iterator[_Opened]:
    refuse_unpickling()
    storage, name = locate(path)
    with storage.open_input(name) as file, storage.open_input(name) as bytes_of_file:
        head = file.read(len(FILE_MAGIC))
        file.seek(0)
        if head.startswith(FEATHER_1_MAGIC):
            raise SourceError(
                f"{path}: Feather version 1, which is not Arrow IPC; write the file again with "
                "pyarrow.feather.write_feather, version 2"
            )
        is_file = head == FILE_MAGIC
        try:
            source = pa.memory_map(path) if storage.is_local else pa.PythonFile(file, "r")
            reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
            size_bytes = bytes_of_file.seek(0, io.SEEK_END)
            yield _Opened(reader, is_file, bytes_of_file, size_bytes)
        except DECODING_ERRORS as error:
            if is_of_the_system(error):
                raise
            raise BadFileError(
                Reason.CORRUPT_FILE,
                f"{path}: not a readable Arrow IPC file or stream: {said_by(error)}",
            ) from None
